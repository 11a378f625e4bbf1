// Excerpts of the pages that a search finds: from a file beside the page, since one from the disk may not fetch others.
window.fetch = async (address) => {
  const root = document.documentElement.dataset.content_root;
  const page = document.createElement("div");
  page.setAttribute("role", "main"); // where the search looks for text
  page.textContent = EXCERPTS[address.slice(root.length, -DOCUMENTATION_OPTIONS.FILE_SUFFIX.length)] ?? "";
  return new Response(page.outerHTML);
};

// A search for nothing would find every page.
const asked = new URLSearchParams(window.location.search).get("q");
if (asked !== null && !asked.trim()) {
  history.replaceState(null, "", window.location.pathname);
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("search-results").textContent = "Write into the field above what you look for.";
  });
}

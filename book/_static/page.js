// What every page does: its switch for code, remembered from page to page, and stops of the tab key at what scrolls.
(() => {
  const root = document.documentElement;
  // The theme complains of a first visit, where nobody has chosen.
  if (!localStorage.getItem("mode")) {
    localStorage.setItem("mode", "auto");
    root.dataset.mode = "auto";
  }

  const show = (shown) => {
    root.dataset.code = shown ? "shown" : "hidden";
    document.querySelectorAll(".code-switch").forEach((button) => {
      button.textContent = shown ? "Hide code" : "Show code";
      button.hidden = false;
    });
  };
  const shown = () => root.dataset.code === "shown";
  show(localStorage.getItem("code") === "shown");

  const scrollable = ".pst-scrollable-table-container, .output, .math, pre, .networks, mjx-container[display='true']";
  const reachable = () => {
    for (const box of document.querySelectorAll(scrollable)) {
      const scrolls = box.scrollWidth > box.clientWidth && box.clientWidth > 0;
      if (scrolls && !box.hasAttribute("tabindex")) {
        box.tabIndex = 0;
        box.dataset.scrolls = "";
      } else if (!scrolls && "scrolls" in box.dataset) {
        box.removeAttribute("tabindex");
        delete box.dataset.scrolls;
      }
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    show(shown());
    document.querySelectorAll(".code-switch").forEach((button) =>
      button.addEventListener("click", () => {
        // What the reader looks at stays where it is.
        const inView = (element) => element.getBoundingClientRect().bottom > 100;
        const place = [...document.querySelectorAll("article p, article h2, article .cell_output")].find(inView);
        const before = place?.getBoundingClientRect().top;
        show(!shown());
        localStorage.setItem("code", root.dataset.code);
        if (place) window.scrollBy({ top: place.getBoundingClientRect().top - before, behavior: "instant" });
        reachable();
      }),
    );
  });
  window.addEventListener("load", () => {
    reachable();
    window.MathJax?.startup?.promise?.then(reachable);
  });
  window.addEventListener("resize", reachable);
})();

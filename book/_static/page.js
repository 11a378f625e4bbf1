// What every page does: its switches for code and proofs, remembered from page to page, and stops of the tab key at what
// scrolls.
(() => {
  const root = document.documentElement;
  // The theme complains of a first visit, where nobody has chosen.
  if (!localStorage.getItem("mode")) {
    localStorage.setItem("mode", "auto");
    root.dataset.mode = "auto";
  }

  const proofs = () => [...document.querySelectorAll("details.proof-folded")];
  const switches = {
    code: () => {},
    proofs: (shown) => proofs().forEach((proof) => (proof.open = shown)),
  };
  const shown = (what) => root.dataset[what] === "shown";
  const show = (what, wanted) => {
    root.dataset[what] = wanted ? "shown" : "hidden";
    switches[what](wanted);
    document.querySelectorAll(`.${what}-switch`).forEach((button) => {
      button.textContent = `${wanted ? "Hide" : "Show"} ${what}`;
      button.hidden = false;
    });
  };
  for (const what in switches) show(what, localStorage.getItem(what) === "shown");

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
    for (const what in switches) {
      show(what, shown(what));
      document.querySelectorAll(`.${what}-switch`).forEach((button) =>
        button.addEventListener("click", () => {
          // What the reader looks at stays where it is.
          const inView = (element) => element.getBoundingClientRect().bottom > 100;
          const places = "article p:not(details p), article h2, article .cell_output, article summary";
          const place = [...document.querySelectorAll(places)].find(inView);
          const before = place?.getBoundingClientRect().top;
          show(what, !shown(what));
          localStorage.setItem(what, root.dataset[what]);
          if (place) window.scrollBy({ top: place.getBoundingClientRect().top - before, behavior: "instant" });
          reachable();
        }),
      );
    }
  });
  document.addEventListener("toggle", reachable, true);
  // On paper nothing can be opened.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = proofs().filter((proof) => !proof.open);
    folded.forEach((proof) => (proof.open = true));
  });
  window.addEventListener("afterprint", () => folded.forEach((proof) => (proof.open = false)));
  window.addEventListener("load", () => {
    reachable();
    window.MathJax?.startup?.promise?.then(reachable);
  });
  window.addEventListener("resize", reachable);
})();

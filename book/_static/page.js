// What every page does: its switches for code and proofs, remembered from page to page, stops of the tab key at what
// scrolls, and figures that open enlarged.
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

  // A figure is a link to its picture. Here it opens as large as it was drawn, and scrolls where that is too large.
  let [enlarged, opener] = [null, null];
  const made = () => {
    const box = document.createElement("dialog");
    box.className = "enlarged";
    box.setAttribute("aria-label", "Enlarged figure");
    box.innerHTML =
      '<button type="button">Close</button>' +
      '<div tabindex="0" role="region" aria-label="Figure; the arrow keys move it" autofocus><img></div>';
    box.querySelector("button").addEventListener("click", () => box.close());
    box.addEventListener("click", (event) => event.target === box && box.close());
    // The theme takes Escape for its side bars, and the browser's own does not get it.
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      box.close();
    });
    box.addEventListener("close", () => opener?.focus({ preventScroll: true }));
    document.body.append(box);
    return box;
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.enlarge");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    enlarged ??= made();
    opener = link;
    const [from, to, view] = [link.querySelector("img"), ...["img", "div"].map((each) => enlarged.querySelector(each))];
    to.src = link.href;
    to.alt = from.alt;
    enlarged.showModal();
    // A small picture is doubled as far as there is room.
    to.style.width = `${Math.max(from.naturalWidth, Math.min(2 * from.naturalWidth, view.clientWidth))}px`;
    view.scrollTo(0, 0);
  });

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
    // The theme prints a title of its own, which has lost the chapter's number.
    const number = document.querySelector("article h1 > .section-number");
    if (number) document.querySelector("#jb-print-docs-body h1")?.prepend(number.cloneNode(true));
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

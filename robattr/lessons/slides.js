"use strict";
const slides = [...document.querySelectorAll("section")];
const here = () => slides.findIndex((slide) => slide.getBoundingClientRect().bottom > innerHeight / 2);
const go = (to) => {
  const slide = slides[Math.max(0, Math.min(slides.length - 1, to))];
  slide.scrollIntoView();
  slide.focus({ preventScroll: true });
  history.replaceState(null, "", `#${slide.id}`);
};
const moves = {
  ArrowRight: 1, ArrowDown: 1, PageDown: 1, Enter: 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1,
  Home: -Infinity, End: Infinity,
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const move = event.key === " " ? (event.shiftKey ? -1 : 1) : moves[event.key];
  if (event.key === "n" || event.key === "N") document.body.classList.toggle("speaking");
  else if (move !== undefined) {
    event.preventDefault();
    go(here() + move);
  }
});

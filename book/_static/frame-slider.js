// Shows the pair of pictures that the slider below them stands at.
document.querySelectorAll(".frame-slider").forEach((box) => {
  const input = box.querySelector("input");
  const frames = [...box.querySelectorAll(".frame")];
  input.addEventListener("input", () => {
    frames.forEach((frame, i) => (frame.hidden = i !== Number(input.value)));
    const { name } = frames[Number(input.value)].dataset;
    input.setAttribute("aria-valuetext", name);
    box.querySelector("output").textContent = name;
  });
});

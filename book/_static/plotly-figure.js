// Draws every .plotly-figure of the page from the JSON inside it, in the colours of the theme that is on.
(() => {
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--pst-color-text-base").trim();
    const line = style.getPropertyValue("--pst-color-border").trim();
    return { text, line };
  };

  const themed = (layout) => {
    const { text, line } = colours();
    const result = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true };
    result.font = { ...layout.font, color: text };
    for (const key of Object.keys(layout).concat("xaxis", "yaxis")) {
      if (/^[xy]axis\d*$/.test(key)) {
        result[key] = { ...layout[key], gridcolor: line, zerolinecolor: line, linecolor: line };
      }
    }
    delete result.width; // the page decides
    return result;
  };

  const figures = [...document.querySelectorAll(".plotly-figure")].map((box) => {
    const { data, layout = {} } = JSON.parse(box.querySelector("script").textContent);
    const canvas = document.createElement("div");
    box.append(canvas);
    return { canvas, data, layout };
  });
  const config = { responsive: true, displaylogo: false };
  const draw = () => figures.forEach(({ canvas, data, layout }) => Plotly.react(canvas, data, themed(layout), config));
  draw();
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();

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
    const figure = { canvas, data, layout };
    // For what changes a figure: other data or another layout, drawn as the theme wants them.
    box.redraw = (change) => draw(Object.assign(figure, change));
    return figure;
  });
  const config = { responsive: true, displaylogo: false };
  const draw = ({ canvas, data, layout }) => Plotly.react(canvas, data, themed(layout), config);
  const drawAll = () => figures.forEach(draw);
  drawAll();
  new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();

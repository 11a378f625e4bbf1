// Certified cosine against epsilon, with sliders; robattr.pages.figures.certificate_tables says what the tables hold.
(() => {
  const explore = (box) => {
    const drawing = box.querySelector(".explorer-drawing");
    const tables = JSON.parse(box.querySelector(":scope > script").textContent);
    const values = box.querySelector(".explorer-values");
    const inputs = [...box.querySelectorAll("input")];

    // A value between the entries of a table, which may be rows themselves.
    const between = (table, place, read = (entry) => entry) => {
      const i = Math.min(Math.floor(place), table.length - 2);
      const share = place - i;
      return read(table[i]) * (1 - share) + read(table[i + 1]) * share;
    };

    // z = epsilon / sigma for the Gaussian of the ball's variance; p is the share of the ball outside of the other.
    const shift = ({ epsilon, radius, dimension }) => (epsilon * Math.sqrt(dimension + 2)) / radius;
    const furthest = tables.step * (tables.odds.length - 1);
    const displaced = (z, d) => z * between(tables.displaced[d], z / tables.step);

    // NaN where nothing is certified.
    const certified = {
      ball: (h, z, d) => Math.sqrt(1 - ((2 * displaced(z, d)) / h) ** 2),
      tight: (h, z, d) => {
        const p = displaced(z, d);
        if (2 * p >= h) return NaN;
        const s = Math.min(Math.sqrt(h * h - 3 * p * p), 1 - p);
        const part = Math.acos(Math.min((h * h + s * s - p * p) / (2 * h * s), 1));
        return Math.cos(part + Math.asin(Math.min(p / s, 1)));
      },
      gaussian: (h, z) => {
        const t = (Math.exp(between(tables.odds, z / tables.step)) * z * z * (1 - h * h)) / (h * h);
        if (t >= 1) return NaN;
        const column = Math.sqrt(t) * (tables.gaussian[0].length - 1);
        const table = between(tables.gaussian, z / tables.rowStep, (row) => between(row, column));
        return Math.sqrt((1 - t) * table);
      },
      spectral: (h, z, d, spread) => Math.sqrt(1 - (Math.expm1(z * z) * Math.min(spread, 1 - h * h)) / (h * h)),
    };
    const certificate = (kind, h, z, d, spread) => (z < furthest ? certified[kind](h, z, d, spread) : NaN);

    // A curve's points as (epsilon, cosine): close together towards its end, where it is steep.
    const curve = (kind, setting, [lowest, highest]) => {
      const { mean_norm: h, dimension: d, spread } = setting;
      const scale = shift({ ...setting, epsilon: 1 });
      let [sure, end] = [0, furthest];
      for (let i = 0; i < 50; i++) {
        const middle = (sure + end) / 2;
        if (Number.isNaN(certificate(kind, h, middle, d, spread))) end = middle;
        else sure = middle;
      }
      const first = lowest * scale;
      if (sure <= first) return [];
      const found = [];
      const points = 120;
      for (let i = 0; i <= points; i++) {
        const z = first * (sure / first) ** (1 - (1 - i / points) ** 2);
        if (z / scale > highest) break;
        found.push([z / scale, certificate(kind, h, z, d, spread)]);
      }
      if (sure / scale <= highest) found.push([sure / scale, 0]);
      return found;
    };

    const placed = (axis, value) =>
      axis.from + ((value - axis.first) / (axis.last - axis.first)) * (axis.to - axis.from);
    const across = (epsilon) => placed(tables.x, Math.log10(epsilon)).toFixed(2);
    const up = (cosine) => placed(tables.y, cosine).toFixed(2);

    const number = (value) => Number(value.toPrecision(3)).toString();
    const read = {
      linear: (input) => [Number(input.value), Number(input.value).toFixed(3)],
      log: (input) => [10 ** Number(input.value), number(10 ** Number(input.value))],
      choice: (input) => {
        const chosen = tables.dimensions[Number(input.value)];
        return [chosen, chosen.toLocaleString("en")];
      },
    };

    const update = () => {
      const setting = {};
      for (const input of inputs) {
        const [value, text] = read[input.dataset.scale](input);
        setting[input.dataset.name] = value;
        input.setAttribute("aria-valuetext", text);
        input.closest("label").querySelector("output").textContent = text;
      }
      const { mean_norm: h, dimension: d, epsilon, spread } = setting;
      const z = shift(setting);
      const shown = [tables.x.first, tables.x.last].map((power) => 10 ** power);
      const kinds = Object.keys(tables.names);
      const found = kinds.map((kind) => certificate(kind, h, z, d, spread));
      drawing.querySelector(".chosen").setAttribute("d", `M${across(epsilon)} ${tables.y.from}V${tables.y.to}`);
      kinds.forEach((kind, i) => {
        const points = curve(kind, setting, shown).map(([x, y]) => `${across(x)} ${up(y)}`);
        drawing.querySelector(`path[data-kind="${kind}"]`).setAttribute("d", points.length ? `M${points.join("L")}` : "");
        const point = drawing.querySelector(`circle[data-kind="${kind}"]`);
        const none = Number.isNaN(found[i]);
        point.setAttribute("visibility", none ? "hidden" : "visible");
        point.setAttribute("cx", across(epsilon));
        point.setAttribute("cy", up(none ? 0 : found[i]));
      });

      const p = z < furthest ? `p = ${displaced(z, d).toFixed(2)}` : `more than p = ${displaced(furthest, d).toFixed(2)}`;
      const words = kinds.map((kind, i) => {
        // Rounded down, as a bound has to be.
        const value = Number.isNaN(found[i]) ? "none" : (Math.floor(found[i] * 100) / 100).toFixed(2);
        return `${tables.names[kind]}: ${value}`;
      });
      values.textContent = `Of each ball ${p} lies outside of the other. Certified cosine: ${words.join("; ")}.`;
    };

    inputs.forEach((input) => input.addEventListener("input", update));
    update();
  };
  document.querySelectorAll(".certificate-explorer").forEach(explore);
})();

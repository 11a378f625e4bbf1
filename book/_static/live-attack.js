// The attack in the page: pictures, networks and choices of robattr.pages.figures.attack_in_page, computed by
// live-network.js a step at a time, so that the page stays alive.
(() => {
  "use strict";
  const { Attack, Network, Smoothing, center, cosine, decoded, heatmap, overlap, probabilities, spectralCosine, topPixels } =
    globalThis.robattr;

  const percent = (share) => `${Math.round(100 * share)}%`;
  // Never more than what is promised.
  const atLeast = (value) => (Math.floor(1000 * value) / 1000).toFixed(3);

  const live = (box) => {
    const given = JSON.parse(box.querySelector(":scope > script").textContent);
    const [channels, height, width] = given.shape;
    const pixels = height * width;
    const { l2 } = given.attack;
    const unit = l2 ? 1 : 255;
    const most = () => (l2 ? `an l2 length of at most ${size.value}` : `at most ${size.value}/255 in every value`);
    const colors = decoded(given.colors);
    const bytes = decoded(given.pictures);
    const views = Object.fromEntries([...box.querySelectorAll("canvas")].map((canvas) => [canvas.dataset.view, canvas]));
    const words = box.querySelector(".live-values");
    const [choice, size] = ["network", "epsilon"].map((name) => box.querySelector(`select[data-name=${name}]`));
    const buttons = Object.fromEntries([...box.querySelectorAll("[data-do]")].map((each) => [each.dataset.do, each]));
    const networks = given.networks.map(() => null);
    const drawn = new Float64Array(channels * pixels);
    let picture = "0";
    let attack = null;
    let turn = 0; // what runs belongs to the latest choice, or stops

    // Decoded when it is first asked for.
    const network = () => (networks[choice.selectedIndex] ??= new Network(given.networks[choice.selectedIndex]));
    const image = () =>
      picture === "drawn"
        ? drawn
        : Float64Array.from({ length: channels * pixels }, (_, i) => bytes[picture * channels * pixels + i] / 255);

    const paint = (view, color) => {
      const context = views[view].getContext("2d");
      const data = context.createImageData(width, height);
      for (let i = 0; i < pixels; i++) data.data.set([...color(i), 255], 4 * i);
      context.putImageData(data, 0, 0);
    };
    const paintImage = (view, values) =>
      paint(view, (i) => [0, 1, 2].map((c) => 255 * values[(channels === 1 ? 0 : c) * pixels + i]));
    const paintMap = (view, map, top) =>
      paint(view, (i) => {
        const place = 3 * Math.min(Math.round((255 * map[i]) / top), 255);
        return colors.subarray(place, place + 3);
      });
    const brightest = (map) => Math.max([...map].sort((a, b) => b - a)[Math.floor(map.length / 200)], 1e-12);

    const say = (text) => (words.textContent = text);
    const predicted = (logits) => {
      const shares = probabilities(logits);
      const best = shares.indexOf(Math.max(...shares));
      return `${given.classes[best]}, ${percent(shares[best])}`;
    };
    const busy = (running) => {
      buttons.attack.textContent = running === "attack" ? "Stop" : "Attack";
      // Not disabled: the keyboard would lose its place.
      buttons.smooth.setAttribute("aria-disabled", String(running === "smooth"));
    };

    // Whether the maps that are seen are smoothed ones: an attack starts from the plain one.
    let blurred = false;

    const start = () => {
      turn += 1;
      blurred = false;
      busy(null);
      attack = new Attack(network(), image(), {
        k: given.attack.k,
        epsilon: Number(size.value) / unit,
        step: given.attack.step / unit,
        l2,
      });
      const top = brightest(attack.map);
      for (const view of ["image", "attacked"]) paintImage(view, attack.image);
      for (const view of ["map", "attacked-map"]) paintMap(view, attack.map, top);
      say(
        `The network says ${predicted(attack.logits)}. The map is the gradient of this class; press Attack to move it ` +
          `with changes of ${most()}.`,
      );
    };

    const moved = (found) => {
      const k = given.attack.k;
      const [a, b] = [center(attack.map, width), center(found.map, width)];
      return (
        `${percent(overlap(attack.top, topPixels(found.map, k)))} of the ${k} top pixels are left, the cosine of the two ` +
        `maps is ${cosine(attack.map, found.map).toFixed(2)}, and the center of mass moved ` +
        `${Math.hypot(a[0] - b[0], a[1] - b[1]).toFixed(1)} pixels.` +
        (l2 ? ` The cosine of the two gradients is ${atLeast(cosine(attack.gradient, found.gradient))}.` : "")
      );
    };

    const climb = () => {
      if (buttons.attack.textContent === "Stop") {
        turn += 1;
        busy(null);
        return;
      }
      if (attack.iterations > 0 || blurred) start();
      const mine = ++turn;
      busy("attack");
      const top = brightest(attack.map);
      const step = () => {
        if (mine !== turn) return;
        attack.advance();
        const found = attack.best ?? attack.now;
        paintImage("attacked", found.image);
        paintMap("attacked-map", found.map, top);
        const last = attack.iterations >= given.attack.iterations;
        const prediction = attack.best ? `Still ${predicted(found.logits)}` : `Now ${predicted(found.logits)}`;
        say(
          `${attack.iterations} of ${given.attack.iterations} steps. Before: ${predicted(attack.logits)}. ${prediction}; ` +
            moved(found),
        );
        if (last) busy(null);
        else setTimeout(step);
      };
      setTimeout(step);
    };

    // The cosines of the gradients, as found and smoothed, and below them what holds for every change of the length.
    const promised = (smoothed, found, bound) => {
      const { sigma, choose, samples, alpha } = given.smoothing;
      const reached = found
        ? `The attack left a cosine of ${atLeast(cosine(attack.gradient, found.gradient))} between the gradients, and of ` +
          `${atLeast(cosine(smoothed[0].mean, smoothed[1].mean))} between the smoothed ones, estimated from these samples. `
        : attack.iterations > 0
          ? "No step of the attack kept the prediction: both maps are of the picture as it was. "
          : "Attack first, to see how far the smoothed map follows. ";
      const floor =
        bound > 0
          ? `Certified with probability ${percent(1 - alpha)}, whatever the attack within an l2 length of ${size.value}: ` +
            `at least ${atLeast(bound)} between the expectations, which these estimate.`
          : `Within an l2 length of ${size.value} nothing is certified with so few samples.`;
      return `Smoothed over Gaussian noise of sigma ${sigma}, ${samples + choose} samples. ${reached}${floor}`;
    };

    // Of the picture, and of what the attack has found of it, with the same noise.
    const smooth = () => {
      if (buttons.smooth.getAttribute("aria-disabled") === "true") return;
      const mine = ++turn;
      busy("smooth");
      const { sigma, choose, samples, alpha, shifts } = given.smoothing;
      const found = attack.best;
      const images = [attack.image, ...(found ? [found.image] : [])];
      const smoothed = images.map(
        (each) => new Smoothing(network(), each, attack.label, { sigma, choose, samples, alpha, seed: 1 }),
      );
      const finish = () => {
        const maps = smoothed.map((each) => each.map);
        const top = brightest(maps[0]);
        paintMap("map", maps[0], top);
        paintMap("attacked-map", maps[maps.length - 1], top);
        blurred = true;
        const { meanNorm, spread } = smoothed[0].bounds();
        if (l2) {
          say(promised(smoothed, found, spectralCosine(meanNorm, spread, Number(size.value) / sigma)));
          busy(null);
          return;
        }
        const promises = shifts
          .map((shift) => [shift * sigma, spectralCosine(meanNorm, spread, shift)])
          .filter(([, value]) => value > 0);
        const certified = promises
          .map(([length, value]) => `at least ${atLeast(value)} for every change of l2 length up to ${length.toPrecision(2)}`);
        const k = given.attack.k;
        const length = found ? Math.hypot(...found.image.map((value, i) => value - attack.image[i])) : 0;
        const beyond = length > Math.max(...promises.map(([each]) => each)) ? ` This attack is longer: ${length.toPrecision(2)}.` : "";
        const seen = found
          ? `After the attack ${percent(overlap(topPixels(maps[0], k), topPixels(maps[1], k)))} of the ${k} top pixels ` +
            `of the smoothed maps are left, where ${percent(overlap(attack.top, topPixels(found.map, k)))} were; their ` +
            `cosine is ${cosine(maps[0], maps[1]).toFixed(2)}. `
          : "";
        say(
          `Smoothed over Gaussian noise of sigma ${sigma}, ${samples + choose} samples. ${seen}` +
            (certified.length
              ? `Certified with probability ${percent(1 - alpha)}, whatever the attack: the cosine of the expectations of the ` +
                `gradients' directions, which these samples estimate, is ${certified.join(", ")}.${beyond}`
              : "Nothing is certified with so few samples."),
        );
        busy(null);
      };
      const step = () => {
        if (mine !== turn) return;
        const until = performance.now() + 40;
        let [more, each] = [true, smoothed.find((s) => s.done < choose + samples)];
        while (each && performance.now() < until) {
          more = each.advance();
          if (!more) each = smoothed.find((s) => s.done < choose + samples);
        }
        const done = smoothed.reduce((total, s) => total + s.done, 0);
        say(`Smoothing: ${done} of ${(choose + samples) * smoothed.length} samples.`);
        if (each) setTimeout(step);
        else setTimeout(finish);
      };
      setTimeout(step);
    };

    const choosePicture = (button) => {
      picture = button.dataset.picture;
      box.querySelectorAll("[data-picture]").forEach((each) => each.setAttribute("aria-pressed", each === button));
      views.image.tabIndex = picture === "drawn" ? 0 : -1;
      views.image.classList.toggle("live-paper", picture === "drawn");
      start();
      if (picture === "drawn")
        say("Draw a digit on the picture: with a finger or the mouse, or with the arrow keys and the space bar.");
    };

    // A brush of one pixel with a softer edge below and to the right, as the digits have.
    const dab = (row, column) => {
      for (const [y, x, value] of [[0, 0, 1], [0, 1, 0.4], [1, 0, 0.4]]) {
        if (row + y >= height || column + x >= width) continue;
        for (let c = 0; c < channels; c++) {
          const place = c * pixels + (row + y) * width + column + x;
          drawn[place] = Math.max(drawn[place], value);
        }
      }
      start();
    };
    const cursor = [Math.floor(height / 2), Math.floor(width / 2)];
    views.image.addEventListener("pointerdown", (event) => {
      if (picture !== "drawn") return;
      views.image.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    for (const kind of ["pointerdown", "pointermove"])
      views.image.addEventListener(kind, (event) => {
        if (picture !== "drawn" || !(event.buttons & 1)) return;
        const frame = views.image.getBoundingClientRect();
        const [x, y] = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
        if (x >= 0 && x < 1 && y >= 0 && y < 1) dab(Math.floor(y * height), Math.floor(x * width));
      });
    views.image.addEventListener("keydown", (event) => {
      if (picture !== "drawn") return;
      const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!way && event.key !== " ") return;
      event.preventDefault();
      if (way) {
        cursor[0] = Math.min(Math.max(cursor[0] + way[0], 0), height - 1);
        cursor[1] = Math.min(Math.max(cursor[1] + way[1], 0), width - 1);
        say(`Row ${cursor[0] + 1}, column ${cursor[1] + 1}; the space bar paints.`);
      } else dab(...cursor);
    });

    box.querySelectorAll("[data-picture]").forEach((each) => each.addEventListener("click", () => choosePicture(each)));
    for (const select of [choice, size]) select.addEventListener("change", start);
    buttons.attack.addEventListener("click", climb);
    buttons.smooth.addEventListener("click", smooth);
    buttons.reset.addEventListener("click", () => {
      if (picture === "drawn") drawn.fill(0);
      start();
    });
    start();
  };

  // Only what a reader comes near to is decoded.
  const watch = new IntersectionObserver(
    (entries) =>
      entries.forEach(({ isIntersecting, target }) => {
        if (!isIntersecting) return;
        watch.unobserve(target);
        live(target);
      }),
    { rootMargin: "400px" },
  );
  document.querySelectorAll(".live-attack").forEach((box) => watch.observe(box));
})();

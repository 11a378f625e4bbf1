// A small network in the reader's browser: logits, gradient, the derivative of the gradient along a direction, the attack
// on the top pixels, and the spectral certificate of a smoothed gradient. No library and no network connection; the
// tests compare each of these with PyTorch. robattr.pages.figures.live_network says what a network is made of.
(() => {
  "use strict";

  const decoded = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // Numbers of 16 bits (IEEE 754 binary16), little-endian.
  const halves = (text) => {
    const bytes = decoded(text);
    const view = new DataView(bytes.buffer);
    const found = new Float64Array(bytes.length / 2);
    for (let i = 0; i < found.length; i++) {
      const bits = view.getUint16(2 * i, true);
      const exponent = (bits >> 10) & 31;
      const fraction = bits & 1023;
      const size =
        exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? NaN : (1 + fraction / 1024) * 2 ** (exponent - 15);
      found[i] = bits & 0x8000 ? -size : size;
    }
    return found;
  };

  const softplus = (x, beta) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(beta * x))) / beta;
  const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

  // --- layers: each knows its linear map and the transpose of it, and the others their derivatives ------------------

  class Convolution {
    constructor({ shape, filters, kernel, stride, padding }, take) {
      [this.channels, this.height, this.width] = shape;
      Object.assign(this, { filters, kernel, stride, padding });
      this.rows = Math.floor((this.height + 2 * padding - kernel) / stride) + 1;
      this.columns = Math.floor((this.width + 2 * padding - kernel) / stride) + 1;
      this.wide = this.width + 2 * padding;
      this.area = this.wide * (this.height + 2 * padding);
      this.weight = take(filters * this.channels * kernel * kernel);
      this.bias = take(filters);
      this.size = filters * this.rows * this.columns;
      this.framed = new Float64Array(this.channels * this.area);
    }

    // Each pair of an image within the frame and a weight: what both directions go over.
    forEachTap(visit) {
      const { channels, filters, kernel, area, wide, rows, columns } = this;
      let tap = 0;
      for (let filter = 0; filter < filters; filter++)
        for (let channel = 0; channel < channels; channel++)
          for (let y = 0; y < kernel; y++)
            for (let x = 0; x < kernel; x++)
              visit(filter * rows * columns, channel * area + y * wide + x, this.weight[tap++]);
    }

    forward(source, biased) {
      const { framed, channels, height, width, wide, area, padding, rows, columns, stride } = this;
      const result = new Float64Array(this.size);
      if (biased)
        for (let filter = 0; filter < this.filters; filter++)
          result.fill(this.bias[filter], filter * rows * columns, (filter + 1) * rows * columns);
      for (let channel = 0; channel < channels; channel++)
        for (let y = 0; y < height; y++) {
          const from = (channel * height + y) * width;
          framed.set(source.subarray(from, from + width), channel * area + (y + padding) * wide + padding);
        }
      this.forEachTap((to, from, weight) => {
        for (let y = 0; y < rows; y++) {
          const start = from + y * stride * wide;
          const place = to + y * columns;
          for (let x = 0; x < columns; x++) result[place + x] += weight * framed[start + x * stride];
        }
      });
      return result;
    }

    backward(slope) {
      const { channels, height, width, wide, area, padding, rows, columns, stride } = this;
      const frame = new Float64Array(channels * area);
      this.forEachTap((to, from, weight) => {
        for (let y = 0; y < rows; y++) {
          const start = from + y * stride * wide;
          const place = to + y * columns;
          for (let x = 0; x < columns; x++) frame[start + x * stride] += weight * slope[place + x];
        }
      });
      const result = new Float64Array(channels * height * width);
      for (let channel = 0; channel < channels; channel++)
        for (let y = 0; y < height; y++) {
          const start = channel * area + (y + padding) * wide + padding;
          result.set(frame.subarray(start, start + width), (channel * height + y) * width);
        }
      return result;
    }
  }

  class Linear {
    constructor({ inputs, outputs }, take) {
      Object.assign(this, { inputs, outputs });
      this.weight = take(inputs * outputs);
      this.bias = take(outputs);
    }

    forward(source, biased) {
      const result = biased ? this.bias.slice() : new Float64Array(this.outputs);
      for (let row = 0; row < this.outputs; row++) {
        let sum = 0;
        for (let i = 0, place = row * this.inputs; i < this.inputs; i++) sum += this.weight[place + i] * source[i];
        result[row] += sum;
      }
      return result;
    }

    backward(slope) {
      const result = new Float64Array(this.inputs);
      for (let row = 0; row < this.outputs; row++)
        for (let i = 0, place = row * this.inputs; i < this.inputs; i++)
          result[i] += this.weight[place + i] * slope[row];
      return result;
    }
  }

  // The first of equal values is the largest, as in PyTorch.
  class MaxPool {
    constructor({ shape, side }) {
      [this.channels, this.height, this.width] = shape;
      this.side = side;
    }

    choose(source) {
      const { channels, height, width, side } = this;
      this.chosen = [];
      for (let channel = 0; channel < channels; channel++)
        for (let top = 0; top + side <= height; top += side)
          for (let left = 0; left + side <= width; left += side) {
            let best = -1;
            for (let y = top; y < top + side; y++)
              for (let x = left; x < left + side; x++) {
                const place = (channel * height + y) * width + x;
                if (best < 0 || source[place] > source[best]) best = place;
              }
            this.chosen.push(best);
          }
    }

    forward(source, biased) {
      if (biased) this.choose(source);
      return Float64Array.from(this.chosen, (place) => source[place]);
    }

    backward(slope) {
      const result = new Float64Array(this.channels * this.height * this.width);
      this.chosen.forEach((place, i) => (result[place] += slope[i]));
      return result;
    }
  }

  class Activation {
    constructor({ beta }) {
      this.beta = beta; // Infinity is the ReLU
    }

    values(source) {
      const { beta } = this;
      return source.map((a) => (beta === Infinity ? Math.max(a, 0) : softplus(a, beta)));
    }

    first(source) {
      const { beta } = this;
      return source.map((a) => (beta === Infinity ? Number(a > 0) : sigmoid(beta * a)));
    }
  }

  const LAYERS = { convolution: Convolution, linear: Linear, "max-pool": MaxPool, activation: Activation };

  class Network {
    // A specification of layers, and a base64 text with their weights in turn.
    constructor({ shape, mean, std, classes, layers, weights }) {
      const values = halves(weights);
      let used = 0;
      const take = (count) => values.subarray(used, (used += count));
      Object.assign(this, { shape, classes });
      const area = shape[1] * shape[2];
      this.mean = Float64Array.from({ length: shape[0] * area }, (_, i) => mean[Math.floor(i / area)]);
      this.std = Float64Array.from({ length: shape[0] * area }, (_, i) => std[Math.floor(i / area)]);
      this.layers = layers.map(({ kind, beta, ...options }) =>
        new LAYERS[kind]({ ...options, beta: beta === null ? Infinity : beta }, take),
      );
      if (used !== values.length) throw new Error(`the network has ${values.length} weights and takes ${used}`);
    }

    // Logits, and with them what the way back needs; with a direction also how they change along it.
    #there(image, direction) {
      let value = image.map((x, i) => (x - this.mean[i]) / this.std[i]);
      let change = direction && direction.map((x, i) => x / this.std[i]);
      const kept = [];
      for (const layer of this.layers) {
        if (layer instanceof Activation) {
          const slope = layer.first(value);
          kept.push({ slope, change });
          value = layer.values(value);
          change = change && change.map((x, i) => x * slope[i]);
        } else {
          kept.push(null);
          value = layer.forward(value, true);
          change = change && layer.forward(change, false);
        }
      }
      return { logits: value, kept };
    }

    // The gradient of a logit, and with a direction its derivative along it.
    #back(kept, label, direction) {
      let slope = new Float64Array(this.classes);
      slope[label] = 1;
      let bend = direction && new Float64Array(this.classes);
      for (let i = this.layers.length - 1; i >= 0; i--) {
        const layer = this.layers[i];
        if (layer instanceof Activation) {
          const { slope: first, change } = kept[i];
          if (bend) {
            const above = slope;
            const { beta } = layer;
            bend = bend.map((b, j) => {
              const s = first[j];
              const second = beta === Infinity ? 0 : beta * s * (1 - s);
              return b * s + second * change[j] * above[j];
            });
          }
          slope = slope.map((s, j) => s * first[j]);
        } else {
          slope = layer.backward(slope);
          bend = bend && layer.backward(bend);
        }
      }
      return { gradient: slope.map((s, i) => s / this.std[i]), product: bend && bend.map((b, i) => b / this.std[i]) };
    }

    logits(image) {
      return this.#there(image, null).logits;
    }

    // Of a logit, by default the largest.
    gradient(image, label) {
      const { logits, kept } = this.#there(image, null);
      const explained = label ?? largest(logits);
      return { logits, label: explained, gradient: this.#back(kept, explained, null).gradient };
    }

    // The Hessian of a logit times a direction.
    curvature(image, label, direction) {
      const { logits, kept } = this.#there(image, direction);
      return { logits, ...this.#back(kept, label, direction) };
    }
  }

  // --- maps ---------------------------------------------------------------------------------------------------------

  const largest = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
  const sum = (values) => values.reduce((total, v) => total + v, 0);
  const dot = (a, b) => {
    let total = 0;
    for (let i = 0; i < a.length; i++) total += a[i] * b[i];
    return total;
  };

  const probabilities = (logits) => {
    const top = Math.max(...logits);
    const odds = logits.map((z) => Math.exp(z - top));
    const total = sum(odds);
    return odds.map((o) => o / total);
  };

  // The sum of absolute values over channels, divided by its sum.
  const heatmap = (gradient, pixels) => {
    const map = new Float64Array(pixels);
    gradient.forEach((g, i) => (map[i % pixels] += Math.abs(g)));
    const total = sum(map);
    return total > 0 ? map.map((h) => h / total) : map;
  };

  // The k largest; of equal ones the first.
  const topPixels = (map, k) =>
    new Set(Array.from(map.keys()).sort((a, b) => map[b] - map[a] || a - b).slice(0, k));

  const overlap = (a, b) => [...a].filter((i) => b.has(i)).length / a.size;

  const center = (map, width) => {
    const total = sum(map);
    let [row, column] = [0, 0];
    map.forEach((h, i) => {
      row += (h * Math.floor(i / width)) / total;
      column += (h * (i % width)) / total;
    });
    return [row, column];
  };

  const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));

  // --- the attack on the top pixels (Ghorbani et al. 2019), by the network itself ------------------------------------

  class Attack {
    // With `l2` the ball is one of lengths, else one of single values; so is the step.
    constructor(network, image, { k, epsilon, step, l2 = false }) {
      Object.assign(this, { network, image, epsilon, step, l2 });
      this.pixels = network.shape[1] * network.shape[2];
      const { logits, label, gradient } = network.gradient(image);
      Object.assign(this, { label, logits, map: heatmap(gradient, this.pixels) });
      this.top = topPixels(this.map, k);
      this.gradient = gradient;
      this.now = { image, map: this.map, logits, gradient, kept: true, mass: this.mass(this.map) };
      this.best = null; // the iterate with the least mass on the pixels that keeps the prediction
      this.iterations = 0;
    }

    mass(map) {
      let total = 0;
      for (const pixel of this.top) total += map[pixel];
      return total;
    }

    // Which way the mass on the pixels falls: the derivative of its negative.
    slope({ image, gradient, mass }) {
      const total = sum(gradient.map(Math.abs));
      if (!(total > 0)) return new Float64Array(image.length);
      const direction = gradient.map(
        (g, i) => (Math.sign(g) * (mass - Number(this.top.has(i % this.pixels)))) / total,
      );
      return this.network.curvature(image, this.label, direction).product;
    }

    // One step along the slope, and back into the ball and to [0, 1].
    moved(slope) {
      const { image, epsilon, step, l2 } = this;
      const rate = l2 ? step / (Math.sqrt(dot(slope, slope)) || 1) : step;
      const change = slope.map((s, i) => this.now.image[i] + rate * (l2 ? s : Math.sign(s)) - image[i]);
      // A hair inside: what is divided by its own length may be longer by rounding.
      const factor = l2 ? Math.min(1, ((1 - 1e-12) * epsilon) / Math.sqrt(dot(change, change))) : 1;
      return image.map((clean, i) => {
        if (l2) return Math.min(Math.max(clean + factor * change[i], 0), 1);
        return Math.min(Math.max(clean + change[i], clean - epsilon, 0), clean + epsilon, 1);
      });
    }

    advance() {
      const image = this.moved(this.slope(this.now));
      const { logits, gradient } = this.network.gradient(image, this.label);
      const map = heatmap(gradient, this.pixels);
      const kept = largest(logits) === this.label;
      this.now = { image, map, logits, gradient, kept, mass: this.mass(map) };
      this.iterations += 1;
      if (kept && (!this.best || this.now.mass < this.best.mass)) this.best = this.now;
      return this.now;
    }
  }

  // --- noise and certificates ---------------------------------------------------------------------------------------

  // mulberry32, a generator of 32 bits of state: the same numbers in every browser.
  const uniform = (seed) => {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  };

  const normal = (draw) => () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw());

  // The relative entropy of two coins.
  const divergence = (q, p) => {
    const part = (a, b) => (a > 0 ? a * Math.log(a / b) : 0);
    return part(q, p) + part(1 - q, 1 - p);
  };

  // Of a number in [0, 1] the largest expectation that its mean over n draws leaves possible (Chernoff).
  const upperMean = (mean, n, alpha) => {
    let [low, high] = [Math.min(mean, 1), 1];
    for (let i = 0; i < 100; i++) {
      const middle = (low + high) / 2;
      if (divergence(mean, middle) <= Math.log(1 / alpha) / n) low = middle;
      else high = middle;
    }
    return high;
  };

  // No less than the largest eigenvalue of a matrix of Gram, and at most n^(1/256) times it: tr(G^256)^(1/256).
  const largestEigenvalue = (gram, n) => {
    let matrix = gram.slice();
    let log = 0; // of what the matrix was divided by, in powers of the first one
    const trace = () => {
      let total = 0;
      for (let i = 0; i < n; i++) total += matrix[i * n + i];
      return total;
    };
    if (!(trace() > 0)) return 0;
    for (let power = 1; power <= 256; power *= 2) {
      const size = trace();
      log += Math.log(size) / power;
      matrix = matrix.map((v) => v / size);
      if (power === 256) break;
      const squared = new Float64Array(n * n);
      for (let i = 0; i < n; i++)
        for (let j = 0; j < n; j++) {
          const v = matrix[i * n + j];
          for (let k = 0, row = i * n, other = j * n; k < n; k++) squared[row + k] += v * matrix[other + k];
        }
      matrix = squared;
    }
    return Math.exp(log);
  };

  // cos(h(x), h(x + delta)) for every delta of an l2 length of shift x sigma, or -1: see "Certified attributions".
  const spectralCosine = (meanNorm, spread, shift) => {
    const turned = (Math.expm1(shift * shift) * spread) / (meanNorm * meanNorm);
    return meanNorm > 0 && turned < 1 ? Math.sqrt(1 - turned) : -1;
  };

  // The smoothed gradient of a class and what its samples say of it, a sample at a time so that a page stays alive.
  class Smoothing {
    constructor(network, image, label, { sigma, choose, samples, alpha, seed }) {
      Object.assign(this, { network, image, label, sigma, choose, samples, alpha });
      this.noise = normal(uniform(seed));
      this.pixels = network.shape[1] * network.shape[2];
      this.direction = new Float64Array(image.length);
      this.map = new Float64Array(this.pixels); // of all samples, as is
      this.mean = new Float64Array(image.length); // of the normalized gradients: the estimate of h(x)
      this.rows = [];
      this.done = 0;
    }

    // One sample; whether there are more.
    advance() {
      const noisy = this.image.map((x) => x + this.sigma * this.noise());
      const { gradient } = this.network.gradient(noisy, this.label);
      const length = Math.sqrt(dot(gradient, gradient));
      const unit = length > 0 ? gradient.map((g) => g / length) : gradient;
      if (this.done < this.choose) unit.forEach((u, i) => (this.direction[i] += u / this.choose));
      else this.rows.push(unit);
      const map = heatmap(gradient, this.pixels);
      map.forEach((h, i) => (this.map[i] += h));
      unit.forEach((u, i) => (this.mean[i] += u / (this.choose + this.samples)));
      this.done += 1;
      return this.done < this.choose + this.samples;
    }

    // H from below and Lambda from above, each with probability 1 - alpha / 2, from the samples that did not choose.
    bounds() {
      const { rows, direction, alpha } = this;
      const n = rows.length;
      const length = Math.sqrt(dot(direction, direction));
      if (!(length > 0) || n < 2) return { meanNorm: 0, spread: 1 };
      const along = sum(rows.map((row) => dot(row, direction) / length)) / n;
      const meanNorm = Math.max(1 - 2 * upperMean((1 - along) / 2, n, alpha / 2), 0);
      const gram = new Float64Array(n * n);
      const apart = rows.map((row) => row.map((u, i) => u - direction[i]));
      for (let i = 0; i < n; i++)
        for (let j = 0; j <= i; j++) gram[i * n + j] = gram[j * n + i] = dot(apart[i], apart[j]) / n;
      const limit = (1 + length) ** 2;
      const spread = limit * upperMean(Math.min(largestEigenvalue(gram, n) / limit, 1), n, alpha / 2);
      return { meanNorm, spread: Math.min(spread, 1) };
    }
  }

  const offered = {
    Attack, Network, Smoothing, center, cosine, decoded, halves, heatmap, largest, largestEigenvalue, normal, overlap,
    probabilities, spectralCosine, topPixels, uniform, upperMean,
  }; // prettier-ignore
  if (typeof module === "object") module.exports = offered;
  else globalThis.robattr = offered;
})();

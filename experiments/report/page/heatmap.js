// Step x step maps: how well one step's value stands in for another's.

// Light to dark in equal steps of lightness (magma, reversed): told apart by any eye, and in grey.
const SHADES = ["#fcfdbf", "#fed395", "#fea973", "#fa7d5e", "#e95462", "#c83e73", "#a3307e", "#7e2482", "#59157e", "#331067", "#120d31"];

/** The shade at a share between 0 (alike) and 1. */
function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (SHADES.length - 1), i = Math.min(Math.floor(at), SHADES.length - 2);
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  return [0, 1, 2].map((k) => Math.round(part(SHADES[i], k) + (at - i) * (part(SHADES[i + 1], k) - part(SHADES[i], k))));
}

class Heatmap {
  constructor(island) {
    this.entries = island.entries.map((entry) => ({ ...entry, read: new Map() }));
    this.measures = new Map(island.measures.map((measure) => [measure.name, measure]));
    this.canvas = byId("map");
    this.note = island.note;
    const sites = [...new Set(this.entries.map((entry) => entry.label))];
    byId("map-site").replaceChildren(...sites.map((name) => make("option", { value: name }, name)));
    byId("map-site").addEventListener("change", () => this.site());
    byId("map-branch").addEventListener("change", () => this.branch());
    byId("map-measure").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.site();
    watched(this.canvas.parentElement, () => this.draw());
  }

  site() {
    const branches = this.entries.filter((entry) => entry.label === byId("map-site").value).map((entry) => entry.branch), before = byId("map-branch").value;
    byId("map-branch").replaceChildren(...branches.map((name) => make("option", { value: name }, name)));
    if (branches.includes(before)) byId("map-branch").value = before;
    this.branch();
  }

  branch() {
    this.entry = this.entries.find((e) => e.label === byId("map-site").value && e.branch === byId("map-branch").value);
    const names = [...this.measures.keys()].filter((name) => name in this.entry.values), before = byId("map-measure").value;
    byId("map-measure").replaceChildren(...names.map((name) => make("option", { value: name }, this.measures.get(name).title)));
    byId("map-measure").value = names.includes(before) ? before : names.includes("rel_l1") ? "rel_l1" : "rel_l2";
    this.cell = null;
    this.draw();
  }

  /** The value of step j (column) standing in for step i (row); NaN where there is none. */
  value(measure, i, j, entry = this.entry) {
    if (!entry.read.has(measure)) entry.read.set(measure, floats(entry.values[measure]));
    return entry.read.get(measure)[i * entry.steps + j];
  }

  /** How far two values are apart, 0 where they are equal, whatever the measure. */
  gap(i, j) {
    const { name, identical } = this.measures.get(byId("map-measure").value), value = this.value(name, i, j);
    return identical ? identical - value : value;
  }

  draw() {
    const { canvas, entry } = this, n = entry.steps, sharp = window.devicePixelRatio || 1, wide = Math.max(canvas.clientWidth, 200);
    canvas.width = canvas.height = Math.round(wide * sharp);
    const paint = canvas.getContext("2d");
    paint.scale(sharp, sharp);
    this.edge = 44;
    this.side = (wide - this.edge - 4) / n;
    const known = [];
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) { const gap = this.gap(i, j); if (gap > 0) known.push(gap); }
    known.sort((a, b) => a - b);
    // On a logarithmic axis: redundancy is in the small differences. A distance of 1 is that of no value at all.
    this.low = known.length ? Math.max(known[Math.floor(0.02 * known.length)], 1e-7) : 1e-3;
    this.high = known.length ? Math.min(Math.max(known[Math.floor(0.99 * (known.length - 1))], 1.5 * this.low), 1) : 1;
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
      const gap = this.gap(i, j);
      if (Number.isNaN(gap)) continue;
      paint.fillStyle = `rgb(${shade(gap <= this.low ? 0 : Math.log(gap / this.low) / Math.log(this.high / this.low)).join()})`;
      paint.fillRect(this.edge + j * this.side, 4 + i * this.side, Math.ceil(this.side * sharp) / sharp, Math.ceil(this.side * sharp) / sharp);
    }
    this.axes(paint, n, wide);
    if (this.cell) this.outline(paint);
    this.scale();
    this.tell();
  }

  axes(paint, n, wide) {
    paint.fillStyle = paint.strokeStyle = colour("soft");
    paint.font = "12px system-ui, sans-serif";
    const every = this.side * 5 < 26 ? 10 : 5, end = 4 + n * this.side;
    for (let step = 0; step < n; step += every) {
      const at = (step + 0.5) * this.side;
      paint.textAlign = "right";
      paint.fillText(step, this.edge - 6, 4 + at + 4);
      paint.textAlign = "center";
      paint.fillText(step, this.edge + at, end + 15);
    }
    paint.textAlign = "right";
    paint.fillText("step j that stands in →", wide - 4, end + 33);
    paint.save();
    paint.translate(11, end);
    paint.rotate(-Math.PI / 2);
    paint.textAlign = "left";
    paint.fillText("← step i that is replaced", 0, 0);
    paint.restore();
    paint.strokeRect(this.edge, 4, n * this.side, n * this.side);
  }

  outline(paint) {
    const [i, j] = this.cell;
    paint.lineWidth = 2;
    paint.strokeStyle = "#00a0ff";
    paint.strokeRect(this.edge + j * this.side - 1, 4 + i * this.side - 1, this.side + 2, this.side + 2);
  }

  scale() {
    const { name, title, formula, identical } = this.measures.get(byId("map-measure").value), bar = make("canvas", { width: 220, height: 1 }), paint = bar.getContext("2d");
    for (let x = 0; x < 220; x++) {
      paint.fillStyle = `rgb(${shade(x / 219).join()})`;
      paint.fillRect(x, 0, 1, 1);
    }
    const shown = (gap) => (identical ? (gap < 1e-3 ? `1 − ${brief(gap)}` : brief(identical - gap)) : brief(gap));
    byId("map-scale").replaceChildren(bar, make("div", { class: "ends" }, [make("span", {}, shown(this.low)), make("span", {}, shown(this.high))]),
      make("p", {}, [`${title}, on a logarithmic axis. `, make("code", {}, formula), name === "fitted" ? "" : "; a stands in for b"]));
    byId("map-note").textContent = [`${this.entry.source}, mean over ${counted(this.entry.runs, "prompt")}`, this.note].filter(Boolean).join("; ");
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect(), n = this.entry.steps;
    const j = Math.floor((event.clientX - box.left - this.edge) / this.side), i = Math.floor((event.clientY - box.top - 4) / this.side);
    if (i >= 0 && j >= 0 && i < n && j < n) this.choose(i, j);
  }

  key(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [i, j] = this.cell ?? [0, 0], last = this.entry.steps - 1;
    this.choose(Math.min(Math.max(i + move[0], 0), last), Math.min(Math.max(j + move[1], 0), last));
  }

  choose(i, j) {
    if (this.cell && this.cell[0] === i && this.cell[1] === j) return;
    this.cell = [i, j];
    this.draw();
  }

  tell() {
    if (!this.cell) return void (byId("map-readout").textContent = "\u00a0");
    const [i, j] = this.cell, { values } = this.entry, words = { rel_l1: "relative L1", rel_l2: "relative L2", cosine: "cosine", fitted: "fitted" };
    const parts = Object.keys(words).filter((name) => name in values).map((name) => [words[name], this.value(name, i, j)]);
    const facts = parts.filter(([, value]) => !Number.isNaN(value)).map(([name, value]) => `${name} ${name === "cosine" ? value.toFixed(4) : brief(value)}`);
    byId("map-readout").textContent = `step ${j} standing in for ${i}: ${facts.join(", ") || "not recorded"}`;
  }
}

// Words, SVG and scales that all views share.

const byId = (id) => document.getElementById(id);

/** An element of HTML or SVG with attributes and children (elements or text). */
function make(name, attributes = {}, children = []) {
  const svg = ["svg", "g", "path", "line", "rect", "circle", "text", "title", "polyline"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...[children].flat());
  return node;
}

const times = (value) => value.toFixed(2) + "×";
const db = (value) => value.toFixed(1) + " dB";
const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** A number with three significant digits; 1e-5 and the like stay short. */
function brief(value) {
  if (value === null || !Number.isFinite(value)) return "not recorded";
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) { bytes /= 1024; at++; }
  return `${at && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

/** Round ticks between two values, about `wanted` of them. */
function ticks(low, high, wanted) {
  const raw = (high - low || 1) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9; v += step) found.push(Number(v.toFixed(9)));
  return found;
}

/** An empty chart with its frame: scales and the node to draw into. */
function chart(place, { height, x, y, xTicks, yTicks, xLabel, yLabel, label, log = false, logY = false }) {
  const width = Math.max(place.clientWidth, 280), edge = { left: 48, right: 14, top: 24, bottom: 40 };
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  const map = (value, [low, high], [from, to], bend = (v) => v) => from + (to - from) * (bend(value) - bend(low)) / (bend(high) - bend(low) || 1);
  const left = (value) => map(value, x, [edge.left, width - edge.right], log ? Math.log : undefined);
  const top = (value) => map(value, y, [height - edge.bottom, edge.top], logY ? Math.log : undefined);
  for (const value of yTicks) {
    svg.append(make("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: top(value), y2: top(value) }));
    svg.append(make("text", { x: edge.left - 6, y: top(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const [value, text] of xTicks) {
    svg.append(make("line", { class: "grid", x1: left(value), x2: left(value), y1: edge.top, y2: height - edge.bottom }));
    svg.append(make("text", { x: left(value), y: height - edge.bottom + 16, "text-anchor": "middle" }, text));
  }
  svg.append(make("text", { x: width - edge.right, y: height - 4, "text-anchor": "end" }, xLabel));
  svg.append(make("text", { x: 4, y: 12 }, yLabel));
  place.replaceChildren(svg);
  return { svg, left, top, width, height, edge };
}

/** A line that follows the pointer or the arrow keys over a chart of steps, and says what is there. */
function followed(frame, steps, tell) {
  let at = 0;
  const cursor = make("line", { class: "frame", y1: frame.edge.top, y2: frame.height - frame.edge.bottom, visibility: "hidden" });
  const go = (step) => {
    at = step;
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, frame.left(step));
    cursor.setAttribute("visibility", "visible");
    tell(step);
  };
  frame.svg.append(cursor);
  frame.svg.setAttribute("tabindex", 0);
  frame.svg.addEventListener("pointermove", (event) => go(stepAt(event, frame, steps)));
  frame.svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    go(Math.min(Math.max(at + move, 0), steps - 1));
  });
}

/** The step under a pointer in a chart over steps. */
function stepAt(event, frame, steps) {
  const box = frame.svg.getBoundingClientRect();
  const at = (event.clientX - box.left) * frame.width / box.width;
  const share = (at - frame.edge.left) / (frame.width - frame.edge.left - frame.edge.right);
  return Math.min(Math.max(Math.round(share * (steps - 1)), 0), steps - 1);
}

/** Marks of different shape as well as colour. */
function mark(shape, x, y, r, fill, stroke) {
  const paint = { fill: fill || "none", stroke: stroke || "none", "stroke-width": 2 };
  const path = (d) => make("path", { d, ...paint });
  if (shape === "diamond") return path(`M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`);
  if (shape === "cross") return path(`M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}`);
  if (shape === "square") return make("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, ...paint });
  return make("circle", { cx: x, cy: y, r, ...paint });
}

/** Draw again when the width or the colour scheme changes. */
function watched(place, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth !== width) { width = place.clientWidth; draw(); }
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

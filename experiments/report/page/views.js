// The front, the steps that matter, and predictions beside what came out.

const SHAPES = {
  predicted: ["circle", "predicted", "planned, predicted"],
  measured: ["circle", "measured", "planned, measured on search prompts"],
  planned: ["square", "measured", "planned, measured on held-out prompts"],
  "fewer steps": ["diamond", "fewer", "fewer steps, no cache"],
  published: ["cross", "published", "published methods"],
  edited: ["circle", "edited", "the schedule above"],
};

class FrontView {
  constructor(island, rivals, schedules, load) {
    Object.assign(this, { rivals, schedules, load });
    this.planned = island.points.map((point) => ({ ...point, speedup: schedules.speedup(point.computed), predicted: schedules.psnr(point.computed) }))
      .filter((point) => point.computed.length < schedules.steps && point.predicted !== null);
    this.place = byId("front-chart");
    watched(this.place, () => this.draw());
  }

  show(plan) {
    this.plan = plan;
    if (this.place.clientWidth) this.draw();
  }

  draw() {
    const now = this.plan && { speedup: this.schedules.speedup(this.plan), psnr: this.schedules.psnr(this.plan) };
    const fast = Math.max(2, ...this.planned.map((p) => p.speedup).filter((s) => s <= 12), ...this.rivals.map((r) => r.speedup));
    const inside = (s) => s <= fast * 1.02;
    const values = [...this.planned.filter((p) => inside(p.speedup)).map((p) => p.predicted), ...this.rivals.map((r) => r.psnr)].filter((v) => v <= 100);
    if (now && now.speedup <= fast) values.push(now.psnr);
    const low = Math.floor(Math.min(...values) / 5) * 5, high = Math.min(Math.ceil(Math.max(...values) / 5) * 5, 100);
    const narrow = this.place.clientWidth < 560;
    const xs = (narrow ? [1, 2, 3, 5, 10, 20, 50] : [1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 25, 50]).filter((v) => v <= fast * 1.02);
    const frame = chart(this.place, {
      height: narrow ? 340 : 430, x: [1, fast * 1.04], y: [low, high], log: true, xTicks: xs.map((v) => [v, `${v}×`]), yTicks: ticks(low, high, 7),
      xLabel: "FLOPs speedup →", yLabel: "↑ PSNR to the uncached video, dB", label: "Quality by speedup",
    });
    const fewer = this.rivals.filter((r) => r.group === "fewer steps").sort((a, b) => a.speedup - b.speedup);
    this.line(frame, fewer.map((r) => [r.speedup, r.psnr]), "fewer", "5 4");
    this.line(frame, this.planned.filter((p) => inside(p.speedup)).map((p) => [p.speedup, p.predicted]), "predicted", null);
    const best = (r) => !this.rivals.some((o) => o.group === "published" && o.speedup >= r.speedup && o.psnr > r.psnr);
    for (const rival of this.rivals.filter((r) => r.group === "published")) this.point(frame, "published", rival.speedup, rival.psnr, rival.name, null, best(rival) ? 4 : 2.5, !best(rival), rival);
    for (const rival of fewer) this.point(frame, "fewer steps", rival.speedup, rival.psnr, `fewer steps, no cache: ${rival.name}`, null, 4.5, false, rival);
    for (const point of this.planned.filter((p) => inside(p.speedup))) {
      const words = `planned, ${point.computed.length} of ${this.schedules.steps} steps`;
      this.point(frame, "predicted", point.speedup, point.predicted, `${words}, predicted`, point.computed, 3.5);
      if (point.psnr !== null) this.point(frame, "measured", point.speedup, point.psnr, `${words}, measured on ${counted(point.prompts, "search prompt")}`, point.computed, 6.5);
    }
    for (const rival of this.rivals.filter((r) => r.group === "planned")) this.point(frame, "planned", rival.speedup, rival.psnr, rival.name, rival.computed, 5, false, rival);
    if (now && inside(now.speedup)) {
      const ring = mark("circle", frame.left(now.speedup), frame.top(Math.max(now.psnr, low)), 11, null, colour("edited"));
      ring.id = "edited-point";
      frame.svg.append(ring);
    }
    this.name(frame, this.rivals.filter((r) => r.group === "published" && best(r)));
    const there = new Set(["predicted", ...(this.planned.some((p) => p.psnr !== null) ? ["measured"] : []), ...this.rivals.map((r) => r.group), "edited"]);
    byId("front-legend").replaceChildren(...Object.keys(SHAPES).filter((key) => there.has(key)).map((key) => {
      const [shape, paint, words] = SHAPES[key], ring = key === "edited";
      const icon = make("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" }, mark(shape, 11, 7, 5, ring || shape === "cross" ? null : colour(paint), ring || shape === "cross" ? colour(paint) : null));
      return make("span", {}, [icon, words]);
    }));
  }

  line(frame, points, paint, dash) {
    if (points.length < 2) return;
    frame.svg.append(make("polyline", { points: points.map(([x, y]) => `${frame.left(x)},${frame.top(y)}`).join(" "), fill: "none", stroke: colour(paint), "stroke-width": 2, "stroke-dasharray": dash }));
  }

  point(frame, kind, speedup, psnr, words, computed, r, faint = false, rival = null) {
    const [shape, paint] = SHAPES[kind], line = shape === "cross";
    const text = `${words}: ${times(speedup)}, ${db(psnr)}${rival && rival.low !== null ? ` (${rival.low.toFixed(1)} to ${rival.high.toFixed(1)})` : ""}${rival ? `, ${counted(rival.prompts, "prompt")}, ${rival.source}` : ""}`;
    const node = make("g", { opacity: faint ? 0.5 : null, "aria-label": text, role: computed ? "button" : "img" }, [
      mark("circle", frame.left(speedup), frame.top(psnr), Math.max(r, 9), "transparent", null), mark(shape, frame.left(speedup), frame.top(psnr), r, line ? null : colour(paint), line ? colour(paint) : null),
    ]);
    const tell = () => (byId("front-readout").textContent = text + (computed ? " (click to load)" : ""));
    node.addEventListener("pointerenter", tell);
    node.addEventListener("focus", tell);
    if (computed) {
      node.setAttribute("data-load", computed.length);
      node.setAttribute("data-kind", kind);
      if (kind !== "predicted") node.setAttribute("tabindex", 0);
      node.addEventListener("click", () => this.load(computed));
      node.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        this.load(computed);
        this.place.querySelector(`[data-kind="${kind}"][data-load="${computed.length}"]`)?.focus();
      });
    }
    frame.svg.append(node);
  }

  /** Names beside the best published points, where they do not cover each other. */
  name(frame, points) {
    const taken = [];
    for (const rival of points.sort((a, b) => b.psnr * Math.log(b.speedup) - a.psnr * Math.log(a.speedup))) {
      const x = frame.left(rival.speedup) + 7, words = rival.name.split(",")[0], wide = 6.6 * words.length;
      const line = interpolate(rival.speedup, this.planned.map((p) => p.speedup), this.planned.map((p) => p.predicted));
      const y = frame.top(rival.psnr) + (Math.abs(frame.top(line) - frame.top(rival.psnr)) < 24 ? 16 : -5);
      if (x + wide > frame.width - 4 || taken.some(([a, b, w]) => x < a + w && a < x + wide && Math.abs(y - b) < 14)) continue;
      taken.push([x, y, wide]);
      frame.svg.append(make("text", { x, y }, words));
    }
  }
}

/** Damage of skipping each step alone, and the sampler's impulse response. */
class MatterView {
  constructor(schedules) {
    this.schedules = schedules;
    const steps = Array.from({ length: schedules.steps }, (_, i) => i);
    this.alone = steps.map((step) => schedules.damage.alone(step));
    const most = Math.max(...this.alone.filter((v) => v !== null));
    this.level = this.alone.map((v) => (v === null || v <= 0 ? null : 10 * Math.log10(v / most)));
    const largest = Math.max(...schedules.impulse.map(Math.abs));
    this.impulse = schedules.impulse.map((v) => Math.abs(v) / largest);
    this.place = byId("matter-chart");
    watched(this.place, () => this.draw());
  }

  show(plan) {
    this.plan = plan;
    if (this.place.clientWidth) this.draw();
  }

  draw() {
    const known = this.level.filter((v) => v !== null), low = Math.floor(Math.min(...known, -5) / 10) * 10, steps = this.schedules.steps;
    const every = this.place.clientWidth < 560 ? 10 : 5;
    const xTicks = Array.from({ length: Math.ceil(steps / every) }, (_, i) => [i * every, String(i * every)]);
    const frame = chart(this.place, {
      height: 280, x: [0, steps - 1], y: [low - 8, 3], xTicks, yTicks: ticks(low, 0, 5), xLabel: "denoising step →",
      yLabel: "↑ damage of skipping this step alone, dB to the worst one", label: "Damage of each step",
    });
    const { svg, left, top } = this.frame = frame;
    const curve = (values, attributes) => svg.append(make("polyline", { fill: "none", points: values.map((v, i) => (v === null ? null : `${left(i)},${top(v)}`)).filter(Boolean).join(" "), ...attributes }));
    curve(this.impulse.map((v) => low + v * -low), { stroke: colour("predicted"), "stroke-width": 1.5, "stroke-dasharray": "5 4" });
    svg.append(make("text", { x: left(steps - 1) - 4, y: top(low + this.impulse[steps - 1] * -low) - 6, "text-anchor": "end" }, "pull of the sampler"));
    curve(this.level, { stroke: colour("damage"), "stroke-width": 2.5 });
    for (const step of this.plan ?? []) svg.append(make("rect", { x: left(step) - 1.5, y: top(low) + 4, width: 3, height: 14, fill: colour("computed") }));
    followed(frame, steps, (step) => this.tell(step));
  }

  tell(step) {
    const level = this.level[step], on = this.plan?.includes(step) ? "the schedule above computes it" : "the schedule above skips it";
    const cost = level === null ? "must be computed" : level === 0 ? "the worst step to skip" : `${db(-level)} less damage than the worst one`;
    byId("matter-readout").textContent = `step ${step}: ${cost}; the sampler passes on ${brief(100 * Math.abs(this.schedules.impulse[step]))} % of an error there; ${on}`;
  }
}

/** Plans that were run, by what was predicted of them. */
class TrustView {
  constructor(judged, schedules) {
    this.points = judged.map(({ computed, decibels }) => ({ computed, predicted: schedules.decibels(computed), came: decibels }));
    this.place = byId("trust-chart");
    const of = (key) => ranks(this.points.map((p) => p[key]));
    this.correlation = pearson(of("predicted"), of("came"));
    watched(this.place, () => this.draw());
  }

  draw() {
    const all = this.points.flatMap((p) => [p.predicted, p.came]), low = Math.floor(Math.min(...all) / 5) * 5, high = Math.ceil(Math.max(...all) / 5) * 5;
    const frame = chart(this.place, {
      height: 320, x: [low, high], y: [low, high], xTicks: ticks(low, high, 6).map((v) => [v, String(v)]), yTicks: ticks(low, high, 6),
      xLabel: "predicted, dB →", yLabel: "↑ what came out, dB (last latent)", label: "Predicted and measured",
    });
    frame.svg.append(make("line", { class: "frame", x1: frame.left(low), y1: frame.top(low), x2: frame.left(high), y2: frame.top(high) }));
    for (const point of this.points) {
      const words = `${counted(point.computed.length, "computed step")}: predicted ${db(point.predicted)}, came out ${db(point.came)}`;
      const node = mark("circle", frame.left(point.predicted), frame.top(point.came), 5, colour("measured"), null);
      node.append(make("title", {}, words));
      node.addEventListener("pointerenter", () => (byId("trust-readout").textContent = words));
      frame.svg.append(node);
    }
  }
}

/** Ranks from 1, equal values sharing theirs. */
function ranks(values) {
  return values.map((v) => values.filter((o) => o < v).length + (values.filter((o) => o === v).length + 1) / 2);
}

function pearson(a, b) {
  const mean = (v) => v.reduce((x, y) => x + y, 0) / v.length, x = a.map((v) => v - mean(a)), y = b.map((v) => v - mean(b));
  return dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y));
}

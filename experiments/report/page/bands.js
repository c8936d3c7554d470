// How alike the guidance branches' outputs are over the steps, whole and by frequency band.

const BANDS = { whole: ["predicted", "6 4"], low: ["computed", null], high: ["damage", "2 3"] };

class BandsView {
  constructor(entries) {
    this.entries = entries;
    byId("bands-branch").replaceChildren(...entries.map((entry) => make("option", { value: entry.branch }, entry.branch)));
    byId("bands-measure").replaceChildren(...Object.keys(entries[0].measures).map((name) => make("option", { value: name }, entries[0].measures[name].title)));
    byId("bands-branch").closest("label").hidden = entries.length === 1;
    for (const id of ["bands-branch", "bands-measure"]) byId(id).addEventListener("change", () => this.draw());
    this.place = byId("bands-chart");
    this.draw();
    watched(this.place, () => this.draw());
  }

  draw() {
    const entry = this.entries.find((one) => one.branch === byId("bands-branch").value), measure = entry.measures[byId("bands-measure").value];
    // Similarities as what they lack to 1, as in the maps.
    const curves = Object.entries(measure.bands).map(([band, { mean, std }]) => ({ band, std, mean: mean.map((v) => (v === null ? null : measure.identical ? measure.identical - v : v)) }));
    const known = curves.flatMap((curve) => curve.mean).filter((v) => v !== null && v > 0), steps = entry.steps;
    const low = Math.max(Math.min(...known), 1e-7), high = Math.max(...known, 1.5 * low), every = this.place.clientWidth < 560 ? 10 : 5;
    const yTicks = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) for (const m of [1, 2, 5]) { const v = Number((m * 10 ** power).toPrecision(1)); if (v >= low && v <= high) yTicks.push(v); }
    const frame = chart(this.place, {
      height: 280, x: [0, Math.max(steps - 1, 1)], y: [low, high], logY: true, yTicks, xTicks: Array.from({ length: Math.ceil(steps / every) }, (_, i) => [i * every, String(i * every)]),
      xLabel: "denoising step →", yLabel: `↑ ${measure.identical ? "1 − " : ""}${measure.title.toLowerCase()}`, label: "Guidance branches by frequency band",
    });
    for (const { band, mean } of curves) {
      const points = mean.map((v, i) => (v === null || v <= 0 ? null : `${frame.left(i)},${frame.top(Math.max(v, low))}`)).filter(Boolean).join(" ");
      frame.svg.append(make("polyline", { points, fill: "none", stroke: colour(BANDS[band][0]), "stroke-width": 2.5, "stroke-dasharray": BANDS[band][1] }));
    }
    const words = (band) => (band === "whole" ? "whole" : `${band} band`);
    byId("bands-legend").replaceChildren(...curves.map(({ band }) => make("span", {}, [
      make("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" }, make("line", { x1: 0, x2: 22, y1: 7, y2: 7, stroke: colour(BANDS[band][0]), "stroke-width": 2.5, "stroke-dasharray": BANDS[band][1] })), words(band),
    ])));
    byId("bands-note").textContent = `${measure.formula}, cond standing in for ${entry.branch}; mean over ${counted(entry.runs, "prompt")}; low: disc of radius min(H, W) // 5 in the latent's spectrum`;
    followed(frame, steps, (step) => {
      byId("bands-readout").textContent = `step ${step}: ` + curves.map(({ band, mean, std }) => `${words(band)} ${brief(mean[step])}${entry.runs > 1 && std[step] !== null ? ` ± ${brief(std[step])}` : ""}`).join(", ");
    });
  }
}

// What a schedule costs, from the recording's inner products alone: `tuner/planning/damage.py` in the browser.

class Damage {
  constructor(recording) {
    Object.assign(this, recording); // steps, history, ridge, latent, starts
    this.gram = symmetric(recording.products, 2 * this.steps + 1);
    this.impulse = recording.impulse;
    this.known = new Map();
  }

  /** The first step of the denoiser that runs at a step. */
  firstOf(step) {
    return Math.max(...this.starts.filter((start) => start <= step));
  }

  /** The computed steps that a stand-in after the q-th one may combine, newest first. */
  past(computed, q) {
    const first = this.firstOf(computed[q]);
    return computed.slice(Math.max(q - this.history + 1, 0), q + 1).filter((step) => step >= first).reverse();
  }

  /** Damage of each stretch of a plan: of the skipped steps that follow each computed one. */
  byStretch(computed) {
    return computed.map((step, q) => {
      const end = q + 1 < computed.length ? computed[q + 1] : this.steps;
      if (end === step + 1) return 0;
      const past = this.past(computed, q), key = past.join() + ":" + end;
      if (!this.known.has(key)) this.known.set(key, this.stretch(past, end));
      return this.known.get(key);
    });
  }

  /**
   * What each stretch does wrong by itself, as `fastercache attribute` predicts it (`tuner/planning/attribution.py`): its
   * damage, which the denoiser makes grow from the stretch's end to the end of the run.
   */
  attributed(computed) {
    return this.byStretch(computed).map((damage, q) => {
      const end = q + 1 < computed.length ? computed[q + 1] : this.steps;
      return damage * Math.exp(2 * this.growth * (1 - end / this.steps));
    });
  }

  of(computed) {
    return this.byStretch(computed).reduce((a, b) => a + b, 0);
  }

  /** The least damage of skipping the steps after past[0] up to `end`. */
  stretch(past, end) {
    const span = [];
    for (let m = past[0] + 1; m < end; m++) span.push(m);
    const target = new Map(span.map((m) => [m, this.impulse[m]]));
    return this.solved(past, target).error;
  }

  /** Least squares of a combination of outputs, {step: factor}, by the features that follow past[0]. */
  solved(past, target) {
    const rows = past.map((step) => this.steps + 1 + step);
    if (this.latent) rows.push(past[0]);
    const entries = [...target].map(([m, factor]) => [this.steps + 1 + m, factor]);
    const k = past.length, size = rows.length;
    // Features as combinations of the rows: the newest output, the differences of the older ones, the latent.
    const change = rows.map((_, p) => {
      const row = new Float64Array(size);
      row[p] = p >= 1 && p < k ? -1 : 1;
      if (p >= 1 && p < k) row[p - 1] = 1;
      return row;
    });
    const direct = rows.map((r) => entries.reduce((sum, [m, factor]) => sum + factor * this.gram[r][m], 0));
    const raw = rows.map((r) => rows.map((c) => this.gram[r][c]));
    const half = change.map((row) => raw.map((column) => dot(row, column)));
    const products = half.map((row) => change.map((other) => dot(row, other)));
    const right = change.map((row) => dot(row, direct));
    const { weights, norms, scaled } = fitted(products, right, this.ridge);
    let error = 0;
    for (const [m, f] of entries) for (const [l, g] of entries) error += f * g * this.gram[m][l];
    for (let i = 0; i < size; i++) {
      let through = 0;
      for (let j = 0; j < size; j++) through += products[i][j] / norms[i] / norms[j] * weights[j];
      error -= weights[i] * (2 * scaled[i] - through);
    }
    return { error: Math.max(error, 0), features: Array.from(weights, (w, i) => w / norms[i]) };
  }

  /** Damage of skipping one step while all others are computed; null where a step must be computed. */
  alone(step) {
    if (this.starts.includes(step)) return null;
    const others = Array.from({ length: this.steps }, (_, i) => i).filter((i) => i !== step);
    return this.of(others);
  }
}

/** Weights of the features (newest, differences, latent) as weights of the outputs, newest first, and of the latent. */
function unfolded(features, outputs) {
  const found = new Array(outputs).fill(0);
  found[0] = features[0];
  for (let p = 1; p < outputs; p++) {
    found[p - 1] += features[p];
    found[p] -= features[p];
  }
  return { outputs: found, latent: features.length > outputs ? features[outputs] : 0 };
}

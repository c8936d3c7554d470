// A cached run rehearsed in the span of the recorded vectors: `tuner/planning/rehearsal.py` in the browser.

class Rehearsal {
  constructor(recording) {
    Object.assign(this, recording); // steps, history, ridge, latent, starts
    const n = this.steps, whole = 3 * n + 1;
    this.rows = matrixOf(recording.response, n + 1);
    this.impulse = recording.impulse;
    const extended = matrixOf(recording.coordinates, 2 * n + 1).map((row) => {
      const long = new Float64Array(whole);
      long.set(row);
      return long;
    });
    this.latents = extended.slice(0, n + 1);
    this.outputs = extended.slice(n + 1);
    const inverse = this.rows.slice(1).map((row, s) => (Math.abs(row[1 + s]) > 1e-12 ? 1 / (n * row[1 + s]) : 0));
    this.grows = inverse.map((v) => recording.growth * v);
    this.strays = inverse.map((v) => recording.novelty * Math.abs(v));
  }

  /** A whole plan: its squared error in the last latent, and the weights that each stretch was fitted with. */
  run(computed) {
    const state = { used: [], past: [], behind: new Float64Array(3 * this.steps + 1) }, stretches = [];
    computed.forEach((step, q) => {
      this.compute(state, step);
      const end = q + 1 < computed.length ? computed[q + 1] : this.steps;
      if (end > step + 1) stretches.push(this.skip(state, step, end));
    });
    return { error: dot(state.behind, state.behind), stretches };
  }

  compute(state, step) {
    const error = add(this.latent_of(state, step), -1, this.latents[step]);
    const output = add(this.outputs[step].slice(), this.grows[step], error);
    output[2 * this.steps + 1 + step] += this.strays[step] * Math.sqrt(dot(error, error));
    const past = this.starts.includes(step) ? [] : state.past;
    state.past = [output, ...past].slice(0, this.history);
    state.used.push([step, step + 1, output]);
    add(state.behind, this.impulse[step], this.outputs[step]);
    add(state.behind, -this.impulse[step], output);
  }

  skip(state, step, end) {
    const ahead = new Float64Array(3 * this.steps + 1);
    let weight = 0, size = 0;
    for (let m = step + 1; m < end; m++) {
      add(ahead, this.impulse[m], this.outputs[m]);
      weight += this.impulse[m];
      size += Math.abs(this.impulse[m]);
    }
    const whole = Math.abs(weight) > 1e-6 * size;
    const rest = whole ? add(ahead.slice(), 1, state.behind).map((v) => v / weight) : this.outputs[step + 1].slice();
    const newest = state.past[0], columns = [newest];
    for (let p = 1; p < state.past.length; p++) columns.push(add(state.past[p - 1].slice(), -1, state.past[p]));
    if (this.latent) columns.push(this.latent_of(state, step));
    add(rest, -1, newest);
    const products = columns.map((a) => columns.map((b) => dot(a, b)));
    const { weights, norms } = fitted(products, columns.map((a) => dot(a, rest)), this.ridge);
    const features = Array.from(weights, (w, i) => w / norms[i]);
    const output = newest.slice();
    features.forEach((w, i) => add(output, w, columns[i]));
    state.used.push([step + 1, end, output]);
    add(state.behind, 1, ahead);
    add(state.behind, -weight, output);
    features[0] += 1;
    return { after: step, ...unfolded(features, state.past.length) };
  }

  /** The latent before a step, from what the run used so far. */
  latent_of(state, step) {
    const row = this.rows[step], found = this.latents[0].map((v) => v * row[0]);
    for (const [first, end, vector] of state.used) {
      let weight = 0;
      for (let m = first; m < end; m++) weight += row[1 + m];
      add(found, weight, vector);
    }
    return found;
  }
}

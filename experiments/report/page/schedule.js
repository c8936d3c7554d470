// A schedule of whole steps: its cost, its predicted quality, and the file that `fc.attach` takes.

class Schedules {
  constructor(island) {
    Object.assign(this, island.recording);
    this.config = island.config;
    this.entryBytes = island.entry_bytes;
    this.damage = new Damage(island.recording);
    this.rehearsal = island.recording.coordinates ? new Rehearsal(island.recording) : null;
    this.wary = this.rehearsal && new Rehearsal({ ...island.recording, novelty: island.recording.wary });
    this.fits = new Map(island.points.filter((p) => p.stretches).map((p) => [p.computed.join(), p]));
    const measured = island.points.filter((point) => point.psnr !== null && point.computed.length < this.steps);
    this.scale = anchored(measured.map((point) => [this.decibels(point.computed), point.psnr]), this.apart);
  }

  /** Predicted squared error of the last latent. */
  error(computed) {
    const isolated = this.damage.of(computed);
    return this.rehearsal ? Math.sqrt(isolated * this.rehearsal.run(computed).error) : isolated;
  }

  decibels(computed) {
    return -10 * Math.log10(Math.max(this.error(computed), 1e-14));
  }

  /** Predicted PSNR of the video, dB: foreseen, on the scale of the measured plans; null where none was measured. */
  psnr(computed) {
    if (computed.length === this.steps) return 100;
    if (!this.scale.length) return null;
    const level = this.decibels(computed), levels = this.scale.map(([at]) => at);
    const inside = Math.min(Math.max(level, levels[0]), levels[levels.length - 1]);
    return Math.min(interpolate(inside, levels, this.scale.map(([, psnr]) => psnr)) + this.steepness * (level - inside), 100);
  }

  speedup(computed) {
    return this.steps / computed.length;
  }

  /** The most bytes held at the end of a step: what a later skipped step reads, as the runtime releases it. */
  bytes(computed) {
    return this.entryBytes === null ? null : this.entryBytes * mostKept(computed, this.steps, this.depth(computed));
  }

  /** How many computed outputs the longest combination takes. */
  depth(computed) {
    const lengths = this.stretches(computed).map((stretch) => stretch.outputs.length);
    return Math.max(1, ...lengths);
  }

  /**
   * Weights for each stretch of skipped steps, as the predictor `fitted` holds them: of the plan's own fit in cached runs
   * where there is one, else of a rehearsal that trusts its repairs less than predictions do.
   */
  stretches(computed) {
    const own = this.fits.get(computed.join());
    if (own) return own.stretches;
    if (this.wary)
      return this.wary.run(computed).stretches.map(({ after, outputs, latent }) => ({
        after, start: after + 1, outputs, input: this.input ? latent / this.input[after] : 0,
      }));
    // Where the sampler is not linear in the outputs: each skipped step by itself, towards its own output.
    const found = [];
    computed.forEach((step, q) => {
      const end = q + 1 < computed.length ? computed[q + 1] : this.steps, past = this.damage.past(computed, q);
      for (let m = step + 1; m < end; m++) {
        const { outputs } = unfolded(this.damage.solved(past, new Map([[m, 1]])).features, past.length);
        found.push({ after: step, start: m, outputs, input: 0 });
      }
    });
    return found;
  }

  /** The policy `planned` as a file holds it. */
  policy(computed) {
    const stretches = this.stretches(computed);
    const own = this.fits.get(computed.join()), variance = own ? own.variance : true;
    const standIn = stretches.length ? { predictor: "fitted", stretches, variance } : { predictor: "hold" };
    return { policy: "planned", steps: this.steps, computed, stand_in: standIn };
  }

  /** A tuned config with this schedule. */
  tuned(computed) {
    return { ...this.config, policy: this.policy(computed) };
  }
}

/** The most computed outputs that are held at the end of a step, each until the last step that reads it. */
function mostKept(computed, steps, depth) {
  const chosen = new Set(computed), done = [], last = new Map();
  for (let i = 0; i < steps; i++) {
    if (chosen.has(i)) done.push(i);
    else for (const step of done.slice(-depth)) last.set(step, i);
  }
  let most = 0;
  for (let i = 0; i < steps; i++)
    most = Math.max(most, done.filter((step) => step <= i && last.has(step) && last.get(step) > i).length);
  return most;
}

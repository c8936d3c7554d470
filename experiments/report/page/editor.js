// The schedule editor: a row of steps, what it costs, undo, and the file.

class Editor {
  constructor(island, schedules, changed) {
    Object.assign(this, { island, schedules, changed });
    this.plan = island.chosen.slice();
    this.before = [];
    this.after = [];
    this.best = new Map(island.points.map((point) => [point.computed.length, point.computed]));
    this.measured = new Map(island.points.filter((p) => p.psnr !== null).map((p) => [p.computed.join(), p]));
    this.first = this.numbers(this.plan);
    this.build();
    this.show();
  }

  numbers(plan) {
    const { schedules } = this;
    return { decibels: schedules.decibels(plan), psnr: schedules.psnr(plan), speedup: schedules.speedup(plan), bytes: schedules.bytes(plan) };
  }

  build() {
    const row = byId("steps");
    this.cells = Array.from({ length: this.schedules.steps }, (_, step) => {
      const cell = make("button", { type: "button", class: "step", tabindex: step ? -1 : 0, "data-step": step }, [
        make("span", { class: "share" }, make("i")), make("span", { class: "box" }, String(step)),
      ]);
      if (this.schedules.starts.includes(step)) cell.setAttribute("aria-disabled", "true");
      row.append(cell);
      return cell;
    });
    row.addEventListener("pointerdown", (event) => this.press(event));
    row.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => (this.painting = null));
    row.addEventListener("click", (event) => {
      const cell = event.target.closest(".step");
      if (cell && event.detail === 0) this.toggle(Number(cell.dataset.step)); // by keyboard; the pointer has pressed
    });
    row.addEventListener("keydown", (event) => this.key(event));
    row.addEventListener("pointerover", (event) => this.tell(event.target));
    row.addEventListener("focusin", (event) => this.tell(event.target));
    byId("undo").addEventListener("click", () => this.undo());
    byId("redo").addEventListener("click", () => this.redo());
    byId("reset").addEventListener("click", () => this.load(this.island.chosen));
    byId("download").addEventListener("click", () => this.download());
    const range = byId("count"), counts = [...this.best.keys()];
    range.closest("label").hidden = !counts.length;
    range.min = Math.min(...counts);
    range.max = Math.max(...counts);
    range.addEventListener("input", () => this.load(this.best.get(Number(range.value))));
    document.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.altKey || event.key.toLowerCase() !== "z") return;
      event.preventDefault();
      if (event.shiftKey) this.redo(); else this.undo();
    });
  }

  press(event) {
    const cell = event.target.closest(".step");
    if (!cell || event.button) return;
    cell.releasePointerCapture?.(event.pointerId);
    this.painting = { on: !this.plan.includes(Number(cell.dataset.step)), begun: false };
    this.paint(Number(cell.dataset.step));
  }

  drag(event) {
    if (!this.painting) return;
    const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest(".step");
    if (cell) this.paint(Number(cell.dataset.step));
  }

  /** One step of a drag: the whole drag is one entry to undo. */
  paint(step) {
    if (this.plan.includes(step) === this.painting.on) return;
    const next = this.with(step, this.painting.on);
    if (!next) return;
    this.go(next, this.painting.begun);
    this.painting.begun = true;
  }

  /** The plan with a step computed or skipped; null where it has to be computed. */
  with(step, on) {
    if (!on && this.schedules.starts.includes(step)) return null;
    return on ? [...this.plan, step].sort((a, b) => a - b) : this.plan.filter((other) => other !== step);
  }

  toggle(step) {
    const next = this.with(step, !this.plan.includes(step));
    if (next) this.go(next);
  }

  load(plan) {
    if (plan && plan.join() !== this.plan.join()) this.go(plan.slice());
  }

  go(plan, joined = false) {
    if (!joined) this.before.push(this.plan);
    this.after = [];
    this.plan = plan;
    this.show();
  }

  undo() {
    if (!this.before.length) return;
    this.after.push(this.plan);
    this.plan = this.before.pop();
    this.show();
  }

  redo() {
    if (!this.after.length) return;
    this.before.push(this.plan);
    this.plan = this.after.pop();
    this.show();
  }

  key(event) {
    const cell = event.target.closest(".step");
    if (!cell) return;
    const step = Number(cell.dataset.step), across = getComputedStyle(byId("steps")).gridTemplateColumns.split(" ").length;
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -step, End: this.cells.length - 1 - step }[event.key];
    if (move === undefined || event.ctrlKey) return;
    event.preventDefault();
    const next = this.cells[step + move];
    if (!next) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /** The step under the pointer or the keyboard's focus. */
  tell(target) {
    const cell = target.closest?.(".step");
    if (!cell) return;
    this.at = Number(cell.dataset.step);
    this.say();
  }

  /** What changing that step would do. */
  say() {
    const { at } = this, on = this.plan.includes(at);
    if (this.schedules.starts.includes(at)) {
      byId("step-readout").textContent = `step ${at} must be computed: nothing before it could stand in`;
      return;
    }
    const change = this.schedules.decibels(this.with(at, !on)) - this.schedules.decibels(this.plan);
    const words = `${change < 0 ? "−" : "+"}${db(Math.abs(change))}`;
    byId("step-readout").textContent = on ? `step ${at} is computed; skipping it: ${words}` : `step ${at} is skipped; computing it: ${words}`;
  }

  show() {
    const { plan, schedules, first } = this, now = this.numbers(plan), whole = plan.length === schedules.steps;
    const shares = schedules.damage.attributed(plan), most = Math.max(...shares, 1e-300);
    const total = shares.reduce((a, b) => a + b, 0);
    this.cells.forEach((cell, step) => {
      const q = plan.filter((other) => other <= step).length - 1, on = plan[q] === step;
      cell.setAttribute("aria-pressed", String(on));
      const part = total ? shares[q] / total : 0;
      cell.querySelector("i").style.height = on || !total ? "0" : `${Math.max(2, 100 * shares[q] / most)}%`;
      const words = on ? `step ${step}, computed` : `step ${step}, skipped; its stretch makes ${Math.round(100 * part)} % of the error`;
      cell.setAttribute("aria-label", words);
      cell.title = words;
    });
    const point = this.measured.get(plan.join());
    const moved = (value, before, text) => (Math.abs(value - before) < 5e-3 ? "as the plan" : `${value < before ? "−" : "+"}${text(Math.abs(value - before))} to the plan`);
    const quality = now.psnr === null
      ? [db(now.decibels), "predicted, last latent", moved(now.decibels, first.decibels, db)]
      : [whole ? "uncached" : db(now.psnr), "predicted PSNR", point ? `measured ${db(point.psnr)}, ${counted(point.prompts, "search prompt")}` : moved(now.psnr, first.psnr, db)];
    const tiles = [
      [`${plan.length} of ${schedules.steps}`, "computed steps", `${schedules.steps - plan.length} skipped`],
      [times(now.speedup), "FLOPs speedup", moved(now.speedup, first.speedup, (v) => v.toFixed(2))],
      quality,
      now.bytes === null ? ["not known", "cached", "size of a latent not recorded"] : [size(now.bytes), "cached at the most", moved(now.bytes, first.bytes, size)],
    ];
    byId("tiles").replaceChildren(...tiles.map(([value, name, more]) =>
      make("div", { class: "tile" }, [make("span", {}, name), make("b", {}, value), make("span", {}, more)])));
    byId("undo").disabled = !this.before.length;
    byId("redo").disabled = !this.after.length;
    byId("count").value = plan.length;
    byId("count-shown").textContent = counted(plan.length, "step");
    byId("download").disabled = whole;
    if (this.at !== undefined) this.say();
    this.changed(plan);
  }

  download() {
    const text = JSON.stringify(this.schedules.tuned(this.plan), null, 2) + "\n";
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: `schedule-${this.plan.length}-of-${this.schedules.steps}.json` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}

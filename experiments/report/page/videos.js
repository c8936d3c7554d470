// Videos side by side in step: the uncached one, a cached one, and their difference by one stated factor.

class VideosView {
  constructor(island) {
    Object.assign(this, island); // gain, fps, cases, note
    this.read = new Map();
    byId("videos-prompt").replaceChildren(...this.cases.map((one, i) => make("option", { value: i }, one.prompt)));
    byId("videos-prompt").addEventListener("change", () => this.choose());
    byId("videos-setting").addEventListener("change", () => this.draw());
    byId("videos-frame").addEventListener("input", () => this.draw());
    byId("videos-play").addEventListener("click", () => this.play());
    byId("video-gain").textContent = `|difference| × ${this.gain}, the same for all`;
    byId("videos-note").textContent = this.note;
    this.choose();
  }

  choose() {
    this.case = this.cases[Number(byId("videos-prompt").value)];
    const before = byId("videos-setting").value, names = this.case.settings.map((one) => one.name);
    byId("videos-setting").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    byId("videos-setting").value = names.includes(before) ? before : names[names.length - 1];
    byId("videos-frame").max = this.case.frames - 1;
    this.draw();
  }

  /** The pixels of a video, all its frames beside each other. */
  async pixels(sprite) {
    if (!this.read.has(sprite)) {
      const image = new Image(), canvas = make("canvas");
      image.src = sprite;
      await image.decode();
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const paint = canvas.getContext("2d", { willReadFrequently: true });
      paint.drawImage(image, 0, 0);
      this.read.set(sprite, paint);
    }
    return this.read.get(sprite);
  }

  async draw() {
    const { width, height, frames, uncached, settings } = this.case, at = Math.min(Number(byId("videos-frame").value), frames - 1);
    const chosen = settings.find((one) => one.name === byId("videos-setting").value);
    byId("video-name").textContent = chosen.name;
    byId("videos-at").textContent = `${at + 1} of ${frames}`;
    const drawn = (this.drawn = {});
    const [a, b] = (await Promise.all([this.pixels(uncached), this.pixels(chosen.sprite)])).map((paint) => paint.getImageData(at * width, 0, width, height));
    if (this.drawn !== drawn) return; // another frame was asked for meanwhile
    const c = new ImageData(width, height);
    for (let i = 0; i < c.data.length; i++) c.data[i] = i % 4 === 3 ? 255 : Math.abs(a.data[i] - b.data[i]) * this.gain;
    for (const [id, data] of [["video-uncached", a], ["video-chosen", b], ["video-difference", c]]) {
      const canvas = byId(id);
      [canvas.width, canvas.height] = [width, height];
      canvas.getContext("2d").putImageData(data, 0, 0);
    }
    this.shown = { at, name: chosen.name };
  }

  play() {
    const on = !this.timer, frame = byId("videos-frame");
    byId("videos-play").textContent = on ? "Pause" : "Play";
    byId("videos-play").setAttribute("aria-pressed", String(on));
    if (!on) return void (this.timer = clearInterval(this.timer));
    this.timer = setInterval(() => {
      frame.value = (Number(frame.value) + 1) % this.case.frames;
      this.draw();
    }, 1000 / this.fps);
  }
}

"""The model card: what a shipped model is, how it was trained and what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastercache.experiments.reference.spec import MODELS, Distilled, Spec


@dataclass(frozen=True)
class Measured:
    """Accuracies (shares of videos) of one kind of call on held-out combinations.

    ``what`` says which captions and how many prompts per call, ``seconds`` is one video's wall time, or none.
    """

    what: str
    videos: int
    seed: int
    guidance_scale: float
    accuracy: dict[str, float]
    seconds: float | None
    threads: int

    def row(self) -> str:
        """As a line of the card's table."""
        cells = " | ".join(f"{100 * self.accuracy[key]:.1f} %" for key in ("digit", "colour", "direction", "all"))
        timed = "not timed" if self.seconds is None else f"{self.seconds:.2f} s"
        return f"| {self.what} | {self.videos} | {cells} | {timed} |"


def record(folder: Path, key: str, measured: Measured) -> None:
    """Put a measurement into the folder's ``metrics.json``, replacing an earlier one of the same key."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    metrics[key] = asdict(measured)
    path.write_text(json.dumps(metrics, indent=2) + "\n")


def _architecture(spec: Spec, weights: dict[str, int]) -> str:
    sizes = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in weights.items())
    if spec.generation.family == "latte":
        blocks = (
            f"`LatteTransformer3DModel`: {spec.layers} spatial and {spec.layers} temporal blocks, width "
            f"{32 * spec.heads}, patch 2 on an 8x8x{spec.latent_channels} latent; `AutoencoderKL`, a T5 encoder with a "
            "word-level tokenizer; v-prediction, `DDIMScheduler` (cosine betas, zero terminal signal, trailing steps). "
            "The second half of the output channels predicts the size of the error, which the pipeline discards as "
            "the learned variance."
        )
    else:
        blocks = (
            f"`WanTransformer3DModel`: {spec.layers} blocks, width {32 * spec.heads}, patch (1, 2, 2) on an "
            f"8x8x{spec.latent_channels} latent; `AutoencoderKLWan`, a UMT5 encoder with a word-level tokenizer; "
            "flow matching, `FlowMatchEulerDiscreteScheduler`."
        )
    return f"{blocks} Parameters: {sizes}."


def parameter_counts(folder: Path) -> dict[str, int]:
    """Parameters of each part of a model's folder, read from the safetensors headers; the key of its own is ""."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        part = "" if file.parent == folder else file.parent.name
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                size = 1
                for extent in tensors.get_slice(key).get_shape():
                    size *= extent
                counts[part] = counts.get(part, 0) + size
    return counts


def _megabytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*.safetensors')) / 1e6:.1f} MB"


def _trained(spec: Spec, folder: Path, training: dict[str, Any]) -> str:
    """What a model is made of and how it was trained from nothing."""
    extra = f" and {spec.decoder_steps} of the decoder alone" if spec.decoder_steps else ""
    autoencoder = f"{spec.autoencoder_steps} steps{extra}"
    remarks = training.get("remarks", "")
    return f"""## Made of

{_architecture(spec, parameter_counts(folder))} Weights: {_megabytes(folder)} of safetensors.

## Trained

Data: `experiments/reference/data.py` (pen strokes of scikit-learn's digits, training samples only; 200 of the 240
combinations). Autoencoder: {autoencoder}, {training["autoencoder_psnr"]:.1f} dB on videos of test
strokes. Transformer and text encoder together: {training["steps"]} steps of {spec.batch} videos from a pool of
{spec.pool}, Muon and AdamW, {100 * spec.caption_drop:.0f} % caption drop, averaged weights,
final loss {training["loss"]:.4f};
{training["minutes"]:.0f} minutes on {training["machine"]}. Seed {spec.seed}. {remarks}Again, from nothing:
`python -m fastercache.experiments.reference.train {spec.name}`."""


def _distilled(spec: Distilled, folder: Path, training: dict[str, Any]) -> str:
    """What a model does not share with its teacher and how it was distilled."""
    own = sum(parameter_counts(folder).values()) / 1e6
    remarks = training.get("remarks", "")
    return f"""## Made of

`{spec.teacher}`, from whose folder everything else is read, with {own:.2f} M parameters of its own in the
transformer: all but those of the feed-forward networks. Weights: {_megabytes(folder)} of safetensors.
`load("{spec.name}").save_pretrained(folder)` writes an ordinary diffusers folder.

## Trained

By trajectory distillation, guidance included. The teacher made {training["trajectories"]} videos of captions of the
train split, with {spec.teacher_steps} steps of DDIM and guidance scale {spec.teacher_guidance:g}. The student begins as
the teacher. It learns at each of its {spec.generation.num_inference_steps} steps, from the teacher's latent there, the
v that brings it to the teacher's latent at the next; in {100 * spec.own:.0f} % of the updates it starts from a latent
that it has itself made, one step before. {training["updates"]} updates of {spec.batch} latents, AdamW, averaged
weights, final loss {training["loss"]:.4f};
{training["minutes"]:.0f} minutes on {training["machine"]}, the teacher's videos not counted.
Seed {spec.seed}. {remarks}Again: `python -m fastercache.experiments.reference.distil {spec.name}`."""


def write_card(folder: Path, name: str) -> None:
    """Write ``README.md`` into a model folder from its ``metrics.json`` and ``training.json``."""
    spec, generation = MODELS[name], MODELS[name].generation
    training = json.loads((folder / "training.json").read_text())
    measured = [Measured(**entry) for entry in json.loads((folder / "metrics.json").read_text()).values()]
    seeds = ", ".join(sorted({str(entry.seed) for entry in measured}))
    guidance = ", ".join(sorted({f"{entry.guidance_scale:g}" for entry in measured}))
    threads = ", ".join(sorted({str(entry.threads) for entry in measured}))
    distilled = isinstance(spec, Distilled)
    origin = _distilled(spec, folder, training) if isinstance(spec, Distilled) else _trained(spec, folder, training)
    text = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# {name}

A very small text-to-video model that is really trained: {generation.frames} frames of 32x32 RGB show a
handwritten digit in a colour, moving over a textured background. It exists to study feature caching on two
CPU cores. It knows nothing else.

```python
from fastercache.experiments.reference import GENERATION, load

pipe = load("{name}")
video = pipe("a red seven moving left", **GENERATION["{name}"].kwargs(), output_type="pt").frames
```

![generated videos of held-out captions](contact-sheet.png)

*Four frames each of generated videos; none of these combinations of digit, colour and direction was seen in training.*

## Measured

| videos of held-out combinations | n | digit | colour | direction | all three | a video |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(entry.row() for entry in measured)}

Judged by classifiers trained on the data generator alone (`experiments/reference/judges.py`).
{generation.num_inference_steps} steps, guidance scale {guidance}, one seed per video counting up from {seeds}; CPU
threads: {threads}. Again: `python -m fastercache.experiments.reference.evaluate {name}`.

{origin}

## Limits

Captions outside the grammar ("a red seven moving left", "the blue digit two moving up", "a handwritten six in cyan
moving right", "green four going down", "a yellow nine drifting left") are not understood. Only {generation.frames}
frames and 32x32 pixels were trained{f", and only {generation.num_inference_steps} steps" if distilled else ""}.
"""
    (folder / "README.md").write_text(text)

"""The model card: what a shipped model is, how it was trained and what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fastercache.experiments.reference.spec import SPECS, Spec


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
    """Parameters of each part of a diffusers folder, read from the safetensors headers."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                size = 1
                for extent in tensors.get_slice(key).get_shape():
                    size *= extent
                counts[file.parent.name] = counts.get(file.parent.name, 0) + size
    return counts


def write_card(folder: Path, name: str) -> None:
    """Write ``README.md`` into a model folder from its ``metrics.json`` and ``training.json``."""
    spec, generation = SPECS[name], SPECS[name].generation
    training = json.loads((folder / "training.json").read_text())
    measured = [Measured(**entry) for entry in json.loads((folder / "metrics.json").read_text()).values()]
    megabytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    extra = f" and {spec.decoder_steps} of the decoder alone" if spec.decoder_steps else ""
    autoencoder = f"{spec.autoencoder_steps} steps{extra}"
    remarks = training.get("remarks", "")
    seeds = ", ".join(sorted({str(entry.seed) for entry in measured}))
    guidance = ", ".join(sorted({f"{entry.guidance_scale:g}" for entry in measured}))
    threads = ", ".join(sorted({str(entry.threads) for entry in measured}))
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

## Made of

{_architecture(spec, parameter_counts(folder))} Weights: {megabytes:.1f} MB of safetensors.

## Trained

Data: `experiments/reference/data.py` (pen strokes of scikit-learn's digits, training samples only; 200 of the 240
combinations). Autoencoder: {autoencoder}, {training["autoencoder_psnr"]:.1f} dB on videos of test
strokes. Transformer and text encoder together: {training["steps"]} steps of {spec.batch} videos from a pool of
{spec.pool}, Muon and AdamW, {100 * spec.caption_drop:.0f} % caption drop, averaged weights,
final loss {training["loss"]:.4f};
{training["minutes"]:.0f} minutes on {training["machine"]}. Seed {spec.seed}. {remarks}Again, from nothing:
`python -m fastercache.experiments.reference.train {name}`.

## Limits

Captions outside the grammar ("a red seven moving left", "the blue digit two moving up", "a handwritten six in cyan
moving right", "green four going down", "a yellow nine drifting left") are not understood. Only {generation.frames}
frames and 32x32 pixels were trained.
"""
    (folder / "README.md").write_text(text)

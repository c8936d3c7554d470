"""The model card: what a shipped model is, how it was trained and what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.reference.spec import SPECS, Spec


@dataclass(frozen=True)
class Measured:
    """Accuracies (shares of videos) on held-out captions and how they were obtained."""

    name: str
    videos: int
    seed: int
    call: dict[str, Any]
    single: dict[str, float]
    paraphrased: dict[str, float]
    batched: dict[str, float]
    batch: int
    seconds: float
    threads: int

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def _row(title: str, accuracy: dict[str, float], count: int) -> str:
    cells = " | ".join(f"{100 * accuracy[key]:.1f} %" for key in ("digit", "colour", "direction", "all"))
    return f"| {title} | {count} | {cells} |"


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


def write_card(folder: Path, measured: Measured) -> None:
    """Write ``README.md`` into a model folder. Figures of training come from its ``training.json``."""
    spec, generation = SPECS[measured.name], SPECS[measured.name].generation
    training = json.loads((folder / "training.json").read_text())
    remarks = training.get("remarks", "")
    megabytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    rows = [
        _row("held-out captions, one prompt per call", measured.single, measured.videos),
        _row("held-out combinations, paraphrased, one prompt per call", measured.paraphrased, measured.videos),
        _row(f"held-out captions, {measured.batch} prompts per call", measured.batched, measured.videos),
    ]
    text = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# {measured.name}

A very small text-to-video model that is really trained: {generation.frames} frames of 32x32 RGB show a
handwritten digit in a colour, moving over a textured background. It exists to study feature caching on two
CPU cores. It knows nothing else.

```python
from experiments.reference import GENERATION, load

pipe = load("{measured.name}")
video = pipe("a red seven moving left", **GENERATION["{measured.name}"].kwargs(), output_type="pt").frames
```

![generated videos of held-out captions](contact-sheet.png)

*Four frames each of generated videos; none of these combinations of digit, colour and direction was seen in training.*

## Measured

| videos of | n | digit | colour | direction | all three |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Judged by classifiers trained on the data generator alone (`experiments/reference/judges.py`).
{generation.num_inference_steps} steps, guidance scale {measured.call["guidance_scale"]:g}, seeds from {measured.seed},
{measured.seconds:.2f} s a video with one prompt per call on {measured.threads} CPU threads. Again:
`python -m experiments.reference.evaluate {measured.name}`.

## Made of

{_architecture(spec, parameter_counts(folder))} Weights: {megabytes:.1f} MB of safetensors.

## Trained

Data: `experiments/reference/data.py` (pen strokes of scikit-learn's digits, training samples only; 200 of the 240
combinations). Autoencoder: {spec.autoencoder_steps} steps, {training["autoencoder_psnr"]:.1f} dB on videos of test
strokes. Transformer and text encoder together: {training["steps"]} steps of {spec.batch} videos from a pool of
{spec.pool}, Muon and AdamW, {100 * spec.caption_drop:.0f} % caption drop, averaged weights,
final loss {training["loss"]:.4f};
{training["minutes"]:.0f} minutes on {training["machine"]}. Seed {spec.seed}. {remarks}Again, from nothing:
`python -m experiments.reference.train {measured.name}`.

## Limits

Captions outside the grammar ("a red seven moving left", "the blue digit two moving up", "a handwritten six in cyan
moving right", "green four going down", "a yellow nine drifting left") are not understood. Only {generation.frames}
frames and 32x32 pixels were trained.
"""
    (folder / "README.md").write_text(text)

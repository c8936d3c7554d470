"""What differs between the reference models, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Generation:
    """How a reference model is called by default: ``pipe(prompt, **generation.kwargs())``."""

    family: Literal["latte", "wan"]
    num_inference_steps: int = 50
    guidance_scale: float = 4.0
    height: int = 32
    width: int = 32
    frames: int = 8

    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the family's pipeline call, without prompt, generator and output type."""
        shared = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
        }
        if self.family == "latte":
            return shared | {"video_length": self.frames, "clean_caption": False}
        return shared | {"num_frames": self.frames, "max_sequence_length": 24}


@dataclass(frozen=True)
class Spec:
    """Architecture and training of one reference model.

    ``heads`` of 32 channels make the width; ``layers`` counts pairs of spatial and temporal blocks for Latte. ``pool``
    is the number of videos encoded once and trained on. Rates: ``matrix_rate`` for the blocks' matrices (Muon),
    ``rate`` for everything else (AdamW). ``decoder_steps`` continue the autoencoder's decoder alone (Wan only).
    """

    name: str
    generation: Generation
    heads: int = 5
    layers: int = 4
    latent_channels: int = 4
    text_width: int = 64
    autoencoder_steps: int = 2000
    decoder_steps: int = 0
    text_steps: int = 300
    pool: int = 16384
    steps: int = 5000
    batch: int = 32
    rate: float = 1e-3
    matrix_rate: float = 1e-3
    warm_up: int = 150
    caption_drop: float = 0.1
    ema: float = 0.999
    seed: int = 0

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape ``(C, F, h, w)`` of one video's latent."""
        frames = self.generation.frames
        return self.latent_channels, frames if self.generation.family == "latte" else (frames + 1) // 2, 8, 8


SPECS = {
    "latte-digits": Spec("latte-digits", Generation("latte")),
    "wan-digits": Spec(
        "wan-digits",
        Generation("wan", frames=9),
        layers=6,
        latent_channels=8,
        autoencoder_steps=2600,
        decoder_steps=1200,
        pool=12288,
        steps=4000,
    ),
}


@dataclass(frozen=True)
class Distilled:
    """How a few-step model is distilled from a trained one.

    The teacher makes ``trajectories`` videos of captions of the train split at ``teacher_steps`` steps with
    ``teacher_guidance``. The student, which begins as the teacher, learns to make the same way in
    ``generation.num_inference_steps`` steps and one branch. It trains the transformer's tensors whose names do not
    contain ``frozen``; only those are shipped. ``own`` is the share of updates whose latents the student itself has
    made, one step earlier.
    """

    name: str
    teacher: str
    generation: Generation
    teacher_steps: int = 16
    teacher_guidance: float = 4.0
    trajectories: int = 512
    frozen: str = ".ff."
    updates: int = 1300
    batch: int = 16
    rate: float = 5e-4
    warm_up: int = 50
    own: float = 0.25
    ema: float = 0.99
    seed: int = 0


DISTILLED = {
    "latte-digits-8": Distilled(
        "latte-digits-8", "latte-digits", Generation("latte", num_inference_steps=8, guidance_scale=1.0)
    ),
}

MODELS: dict[str, Spec | Distilled] = {**SPECS, **DISTILLED}
"""Every reference model: trained from nothing, or distilled from one that was."""

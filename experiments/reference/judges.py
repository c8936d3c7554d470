"""Small classifiers that say whether a video shows the digit, colour and direction its caption asks for.

They are trained on the data generator alone (training strokes), never on generated videos, and checked on test strokes.
Train again with ``python -m fastercache.experiments.reference.judges``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as functional
import typer
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastercache.experiments.reference.data import COLOURS, DIGITS, DIRECTIONS, SIZE, Sampler, parse

WEIGHTS = Path(__file__).parent / "judges.safetensors"
LOOKS = 4  # frames that are looked at, evenly spread


@dataclass(frozen=True)
class JudgeScores:
    """Which videos show what was asked: boolean arrays ``(N,)``."""

    digit: NDArray[np.bool_]
    colour: NDArray[np.bool_]
    direction: NDArray[np.bool_]

    @property
    def all(self) -> NDArray[np.bool_]:
        """Videos that are right in all three."""
        return self.digit & self.colour & self.direction

    def accuracy(self) -> dict[str, float]:
        """Shares of right videos: ``digit``, ``colour``, ``direction``, ``all``."""
        parts = {"digit": self.digit, "colour": self.colour, "direction": self.direction, "all": self.all}
        return {name: float(part.mean()) for name, part in parts.items()}


def _trunk(channels: int, widths: tuple[int, int, int], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    cells = (SIZE // 2 ** len(widths)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * cells, out), nn.ReLU())


class Judge(nn.Module):
    """Digit and colour from each look on its own (logits averaged), direction from all looks together."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = _trunk(3, (16, 32, 64), 96)
        self.digit = nn.Linear(96, len(DIGITS))
        self.colour = nn.Linear(96, len(COLOURS))
        self.motion = _trunk(LOOKS, (12, 24, 32), 32)
        self.direction = nn.Linear(32, len(DIRECTIONS))

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The shipped judges, ready to score."""
        judge = cls()
        judge.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
        return judge.eval()

    def save(self, path: Path = WEIGHTS) -> None:
        """Write the weights in half precision."""
        tensors = {k: v.half().contiguous() for k, v in self.state_dict().items() if v.is_floating_point()}
        save_file(tensors, path)

    def forward(self, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of digit, colour, direction ``(N, 10 | 6 | 4)`` for videos ``(N, F, 3, H, W)`` in [0, 1]."""
        if videos.ndim != 5 or videos.shape[2] != 3 or videos.shape[1] < LOOKS:
            raise ValueError(
                f"judges need videos (N, F>={LOOKS}, 3, H, W) in [0, 1], found shape {tuple(videos.shape)}"
            )
        looks = videos[:, torch.linspace(0, videos.shape[1] - 1, LOOKS).round().long()].float()
        if looks.shape[-2:] != (SIZE, SIZE):
            looks = functional.interpolate(looks.flatten(0, 1), size=(SIZE, SIZE), mode="area").unflatten(
                0, (-1, LOOKS)
            )
        features = self.frame(looks.flatten(0, 1) * 2 - 1)
        digit = self.digit(features).unflatten(0, (-1, LOOKS)).mean(1)
        colour = self.colour(features).unflatten(0, (-1, LOOKS)).mean(1)
        brightest = looks.amax(dim=2) * 2 - 1  # every ink is bright in some channel, the background in none
        return digit, colour, self.direction(self.motion(brightest))

    @torch.no_grad()
    def predict(self, videos: Tensor) -> Tensor:
        """Attribute indices ``(N, 3)``: digit, colour, direction."""
        parts = [torch.stack([part.argmax(-1) for part in self(chunk)], dim=-1) for chunk in videos.split(64)]
        return torch.cat(parts)

    def score(self, videos: Tensor, captions: list[str]) -> JudgeScores:
        """Compare videos ``(N, F, 3, H, W)`` in [0, 1] with their captions (of the grammar).

        Raises ``ValueError`` for a caption that names no digit, colour or direction, or for mismatched lengths.
        """
        if len(videos) != len(captions):
            raise ValueError(f"{len(videos)} videos but {len(captions)} captions")
        wanted = torch.tensor([parse(caption).indices() for caption in captions])
        right = (self.predict(videos).cpu() == wanted).numpy()
        return JudgeScores(right[:, 0], right[:, 1], right[:, 2])


def _spoil(videos: Tensor, generator: torch.Generator) -> Tensor:
    """Random shear, rotation, scale, blur, noise and contrast on ``(N, F, 3, H, W)``, the same for a video's frames."""
    count, frames = videos.shape[:2]
    jitter = (torch.rand(count, 4, generator=generator) - 0.5) * torch.tensor([0.3, 0.3, 0.2, 0.2])
    one = torch.ones(count)
    matrix = torch.stack(
        [one + jitter[:, 2], jitter[:, 0], 0 * one, jitter[:, 1], one + jitter[:, 3], 0 * one], dim=-1
    ).view(count, 2, 3)
    grid = functional.affine_grid(matrix, [count, 1, SIZE, SIZE], align_corners=False)
    flat = functional.grid_sample(videos.flatten(1, 2), grid, padding_mode="reflection", align_corners=False)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = functional.conv2d(
        functional.pad(flat, (1, 1, 1, 1), mode="replicate"),
        (kernel[:, None] * kernel).expand(flat.shape[1], 1, 3, 3),
        groups=flat.shape[1],
    )
    mix, noise, contrast = torch.rand(3, count, 1, 1, 1, generator=generator)
    flat = torch.lerp(flat, blurred, mix * 1.2) + 0.06 * noise * torch.randn(flat.shape, generator=generator)
    spoiled: Tensor = ((flat - 0.3) * (0.85 + 0.3 * contrast) + 0.3).clamp(0, 1).unflatten(1, (frames, 3))
    return spoiled


def train(*, steps: int, videos: int, seed: int) -> Iterator[tuple[int, float, Judge]]:
    """Train from nothing; yields (step, loss, judge)."""
    torch.manual_seed(seed)
    sampler = Sampler(split="all", strokes="train", seed=seed + 5000)
    batches = [sampler.batch(100) for _ in range(videos // 100)]
    keep = torch.linspace(0, 7, LOOKS).round().long()
    pool = torch.cat([(b.video[:, :, keep] * 127.5 + 127.5).byte().transpose(1, 2) for b in batches])
    labels = torch.cat([batch.attributes for batch in batches])
    judge = Judge().train()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=1.0, weight_decay=0.02)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = (
            3e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6
        )
        picks = torch.randint(len(pool), (24,), generator=generator)
        logits = judge(_spoil(pool[picks].float() / 255, generator))
        losses = [
            functional.cross_entropy(part, labels[picks, i], label_smoothing=0.05) for i, part in enumerate(logits)
        ]
        loss = torch.stack(losses).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        yield step, float(loss.detach()), judge


def check(judge: Judge, *, videos: int = 1000, seed: int = 99, spoiled: bool = False) -> dict[str, float]:
    """Accuracy on videos of test strokes, all combinations; ``spoiled`` adds blur, noise and distortion."""
    sampler = Sampler(split="all", strokes="test", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    right = []
    for _ in range(videos // 50):
        batch = sampler.batch(50)
        video = (batch.video.transpose(1, 2) + 1) / 2
        right.append(judge.predict(_spoil(video, generator) if spoiled else video) == batch.attributes)
    hits = torch.cat(right).float()
    digit, colour, direction = hits.mean(0).tolist()
    return {"digit": digit, "colour": colour, "direction": direction, "all": float(hits.prod(-1).mean())}


def main(
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2000,
    videos: Annotated[int, typer.Option(help="Rendered training videos.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Train the judges, check them on test strokes and save them beside this module."""
    console = Console()
    judge = Judge()
    for step, loss, trained in train(steps=steps, videos=videos, seed=seed):
        judge = trained
        if step % 200 == 0 or step == steps - 1:
            console.print(f"step {step + 1}/{steps}, loss {loss:.3f}")
    judge.eval().save()
    console.print("test strokes:", check(Judge.load()), "spoiled:", check(Judge.load(), spoiled=True))


if __name__ == "__main__":
    typer.run(main)

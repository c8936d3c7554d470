"""Captioned videos of handwritten digits: the world the reference models live in.

A video is one digit (real pen strokes, scikit-learn's ``load_digits``) in one of six colours, moving steadily through
the centre in one of four directions over a static, dark, low-contrast texture. Everything is drawn from one seeded
generator.

Shapes: ``B`` videos, ``F`` frames, ``H = W = 32`` pixels. Positions and speeds are in pixels (per frame).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from fastercache.extras import need

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("left", "right", "up", "down")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
RGB = (
    (0.95, 0.15, 0.15),
    (0.15, 0.85, 0.20),
    (0.25, 0.35, 1.00),
    (0.98, 0.88, 0.15),
    (0.92, 0.25, 0.90),
    (0.15, 0.88, 0.92),
)
VELOCITY = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))  # (x, y), y points down as in images

CANONICAL = "a {colour} {digit} moving {direction}"
TEMPLATES = (
    CANONICAL,
    "a {colour} {digit} drifting {direction}",
    "{colour} {digit} going {direction}",
    "the {colour} digit {digit} moving {direction}",
    "a handwritten {digit} in {colour} moving {direction}",
)

SIZE = 32
FRAMES = 8
HELD_OUT_SHARE = 1 / 6

Split = Literal["train", "held_out"]
Strokes = Literal["train", "test"]


class Attributes(NamedTuple):
    """What a caption asks for, as words of the grammar."""

    digit: str
    colour: str
    direction: str

    def indices(self) -> tuple[int, int, int]:
        """Positions in ``DIGITS``, ``COLOURS`` and ``DIRECTIONS``."""
        return DIGITS.index(self.digit), COLOURS.index(self.colour), DIRECTIONS.index(self.direction)

    def caption(self, template: str = CANONICAL) -> str:
        """The caption in one of ``TEMPLATES``."""
        return template.format(digit=self.digit, colour=self.colour, direction=self.direction)


class Batch(NamedTuple):
    """Videos ``(B, 3, F, H, W)`` in [-1, 1]; attribute indices ``(B, 3)`` as digit, colour, direction; captions."""

    video: Tensor
    attributes: Tensor
    captions: list[str]


def parse(caption: str) -> Attributes:
    """Read the three attributes back from a caption of the grammar.

    >>> parse("a red seven moving left")
    Attributes(digit='seven', colour='red', direction='left')

    Raises ``ValueError`` if a digit, colour or direction is missing or named twice.
    """
    words = caption.lower().replace(".", " ").replace(",", " ").split()
    found = []
    for name, choices in (("digit", DIGITS), ("colour", COLOURS), ("direction", DIRECTIONS)):
        hits = [word for word in words if word in choices]
        if len(hits) != 1:
            raise ValueError(f"caption {caption!r} names {len(hits)} {name}s, expected one of: {', '.join(choices)}")
        found.append(hits[0])
    return Attributes(*found)


@lru_cache(maxsize=2)
def combinations(split: Split) -> tuple[Attributes, ...]:
    """All (digit, colour, direction) combinations of a split, in a fixed shuffled order.

    A sixth (40 of 240) is held out; every digit, colour and direction is held out equally often (up to one).
    """
    every = [Attributes(*words) for words in itertools.product(DIGITS, COLOURS, DIRECTIONS)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(2024)).tolist()
    shuffled = [every[i] for i in order]
    target = round(HELD_OUT_SHARE * len(every))
    held_out: list[Attributes] = []
    while len(held_out) < target:
        counts = {word: sum(word in taken for taken in held_out) for word in DIGITS + COLOURS + DIRECTIONS}
        rest = [combination for combination in shuffled if combination not in held_out]
        held_out.append(min(rest, key=lambda c: counts[c.digit] * 10 + counts[c.colour] * 6 + counts[c.direction] * 4))
    if split == "held_out":
        return tuple(held_out)
    if split == "train":
        return tuple(combination for combination in shuffled if combination not in held_out)
    raise ValueError(f"unknown split {split!r}, expected 'train' or 'held_out'")


def captions(split: Split) -> list[str]:
    """The canonical captions of a split, each combination once, in a fixed shuffled order (train 200, held_out 40)."""
    return [combination.caption() for combination in combinations(split)]


@lru_cache(maxsize=2)
def _strokes(part: Strokes) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Pen strokes ``(N, 1, 8, 8)`` in [0, 1] and, for each digit, the indices of its samples. Every fifth is test."""
    need("train", "making the reference models' data")
    from sklearn.datasets import load_digits

    if part not in ("train", "test"):
        raise ValueError(f"unknown strokes {part!r}, expected 'train' or 'test'")
    source = load_digits()
    index = torch.arange(len(source.target))
    chosen = index[(index % 5 == 4) == (part == "test")]
    images = torch.tensor(source.images, dtype=torch.float32)[chosen, None] / 16
    labels = torch.tensor(source.target)[chosen]
    return images, tuple(torch.nonzero(labels == digit).flatten() for digit in range(10))


def _texture(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Static dark backgrounds ``(B, 3, H, W)`` in [0, 1]: smooth noise around a random dark grey, slightly tinted."""
    coarse = torch.randn(count, 1, 5, 5, generator=generator)
    noise = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    base = 0.12 + 0.12 * torch.rand(count, 1, 1, 1, generator=generator)
    tint = 1 + 0.15 * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    return ((base + 0.045 * noise) * tint).clamp(0, 1)


def render(
    attributes: Tensor, *, strokes: Strokes, generator: torch.Generator, frames: int = FRAMES, size: int = SIZE
) -> Tensor:
    """Draw one video for each row of attribute indices.

    Args:
        attributes: ``(B, 3)`` integers: digit, colour, direction.
        strokes: whose handwriting: training or test samples.
        generator: source of every random choice.
        frames: number of frames. The path keeps its length, so more frames move more slowly.
        size: height and width in pixels.

    Returns:
        ``(B, 3, F, H, W)`` in [-1, 1].
    """
    images, by_digit = _strokes(strokes)
    count = len(attributes)
    uniform = torch.rand(count, 7, generator=generator)
    chosen = torch.stack(
        [
            by_digit[d][int(u * len(by_digit[d]))]
            for d, u in zip(attributes[:, 0].tolist(), uniform[:, 0].tolist(), strict=True)
        ]
    )
    unit = size / 32
    extent = (18 + 2 * uniform[:, 1]) * unit
    speed = (1.0 + 0.4 * uniform[:, 2]) * unit * (FRAMES - 1) / (frames - 1)
    jitter = (uniform[:, 3:5] - 0.5) * 1.2 * unit
    tilt = (uniform[:, 5] - 0.5) * (12 / 180 * math.pi)

    # centre of the digit in each frame: (B, F, 2)
    time = torch.arange(frames) - (frames - 1) / 2
    velocity = torch.tensor(VELOCITY)[attributes[:, 2]] * speed[:, None]
    centre = size / 2 + jitter[:, None] + velocity[:, None] * time[None, :, None]

    # output pixel -> position in the 8x8 stroke image, in [-1, 1]: (B, F, H, W)
    pixel = torch.arange(size) + 0.5
    x = (pixel[None, None, None, :] - centre[:, :, 0, None, None]) * 2 / extent[:, None, None, None]
    y = (pixel[None, None, :, None] - centre[:, :, 1, None, None]) * 2 / extent[:, None, None, None]
    cos, sin = torch.cos(tilt)[:, None, None, None], torch.sin(tilt)[:, None, None, None]
    grid = torch.stack(torch.broadcast_tensors(x * cos - y * sin, x * sin + y * cos), dim=-1)
    field = functional.grid_sample(
        images[chosen], grid.flatten(1, 2), mode="bicubic", padding_mode="zeros", align_corners=False
    ).view(count, 1, frames, size, size)
    edge = ((field - 0.25) / 0.4).clamp(0, 1)
    alpha = edge * edge * (3 - 2 * edge)

    ink = torch.tensor(RGB)[attributes[:, 1]] * (0.94 + 0.06 * uniform[:, 6, None])
    background = _texture(count, size, generator)[:, :, None]
    video = background * (1 - alpha) + ink[:, :, None, None, None] * alpha
    return video.clamp(0, 1) * 2 - 1


@dataclass
class Sampler:
    """An endless, seeded source of captioned videos.

    ``Sampler(split="train", strokes="train", seed=0).batch(32)`` gives a ``Batch``; two samplers with the same
    arguments give the same sequence of batches.
    """

    split: Split | Literal["all"] = "train"
    strokes: Strokes = "train"
    seed: int = 0
    frames: int = FRAMES
    size: int = SIZE
    paraphrase: bool = True

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        chosen = combinations("train") + combinations("held_out") if self.split == "all" else combinations(self.split)
        self.choices = chosen
        self.table = torch.tensor([choice.indices() for choice in chosen])

    def batch(self, count: int) -> Batch:
        """The next ``count`` videos with their attributes and captions."""
        picks = torch.randint(len(self.choices), (count,), generator=self.generator)
        wording = torch.randint(len(TEMPLATES), (count,), generator=self.generator).tolist()
        attributes = self.table[picks]
        video = render(attributes, strokes=self.strokes, generator=self.generator, frames=self.frames, size=self.size)
        texts = [
            self.choices[pick].caption(TEMPLATES[word] if self.paraphrase else CANONICAL)
            for pick, word in zip(picks.tolist(), wording, strict=True)
        ]
        return Batch(video, attributes, texts)

"""Videos and images on disk, and side by side with what caching changed.

A video is a float tensor `(F, 3, H, W)` in [0, 1]; an image is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastercache.policies.documents import replacing

SHOWN = 160
"""Frames are enlarged by a whole factor to at least about this many pixels on the shorter side."""
WIDEST = 900
"""Pixels across of several videos beside each other: as wide as a page shows them."""
GAP = 6


def frames(video: Tensor) -> NDArray[np.uint8]:
    """`(F, 3, H, W)` in [0, 1] to `(F, H, W, 3)` bytes."""
    scaled = (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.asarray(scaled.permute(0, 2, 3, 1).cpu().numpy(), dtype=np.uint8)


def gain_for(video: Tensor, reference: Tensor) -> int:
    """The largest power of two up to 64 that keeps 99.5 % of |video - reference| below 1 when multiplied with it."""
    error = (video.float() - reference.float()).abs().flatten()
    level = float(torch.quantile(error[:: max(1, error.numel() // 1_000_000)], 0.995))
    gain = 1
    while gain < 64 and level * gain * 2 <= 1:
        gain *= 2
    return gain


def difference(video: Tensor, reference: Tensor, gain: int) -> Tensor:
    """|video - reference| times `gain`, so that it can be seen."""
    return ((video.float() - reference.float()).abs() * gain).clamp(0, 1)


def enlarged(pictures: NDArray[np.uint8], least: int = SHOWN) -> NDArray[np.uint8]:
    """`(F, H, W, 3)` repeated by a whole factor, so that a 32-pixel video can be looked at."""
    factor = max(1, round(least / min(pictures.shape[1:3])))
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def fitted(pictures: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """`(F, H, W, 3)` enlarged as `enlarged` does, but at most `width` pixels across; what is larger is made smaller."""
    factor = min(round(SHOWN / min(pictures.shape[1:3])), width // pictures.shape[2])
    if factor >= 1:
        return pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    size = (width, max(round(pictures.shape[1] * width / pictures.shape[2]), 1))
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures])


def side_by_side(panels: Sequence[tuple[str, Tensor]]) -> NDArray[np.uint8]:
    """Labelled videos next to each other, at most `WIDEST` pixels across: `(F, H', W', 3)` bytes.

    All must have the same number of frames.
    """
    font = ImageFont.load_default(size=13)
    each = (WIDEST - GAP * (len(panels) - 1)) // len(panels)
    drawn = [fitted(frames(video), each) for _, video in panels]
    words = [_wrapped(label, font, d.shape[2] - 4) for (label, _), d in zip(panels, drawn, strict=True)]
    head = 4 + 16 * max(map(len, words))
    height = max(d.shape[1] for d in drawn) + head
    width = sum(d.shape[2] for d in drawn) + GAP * (len(drawn) - 1)
    result = np.full((drawn[0].shape[0], height, width, 3), 255, dtype=np.uint8)
    left = 0
    for lines, picture in zip(words, drawn, strict=True):
        strip = Image.new("RGB", (picture.shape[2], head), "white")
        for row, line in enumerate(lines):
            ImageDraw.Draw(strip).text((2, 2 + 16 * row), line, fill="black", font=font)
        result[:, :head, left : left + picture.shape[2]] = np.asarray(strip)
        result[:, head : head + picture.shape[1], left : left + picture.shape[2]] = picture
        left += picture.shape[2] + GAP
    return result


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Words in lines of at most `width` pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def common_gain(pairs: Sequence[tuple[Tensor, Tensor]]) -> int:
    """One factor for several (video, reference): what `gain_for` gives the pair that differs most."""
    return min((gain_for(video, reference) for video, reference in pairs), default=1)


def comparison(
    reference: Tensor, others: Sequence[tuple[str, Tensor]], label: str = "uncached", gain: int | None = None
) -> NDArray[np.uint8]:
    """The uncached video, then each other one with its difference to it, all amplified by one factor.

    `gain`: the factor, where it is shared with further comparisons; by default the one that suits these videos.
    """
    factor = common_gain([(video, reference) for _, video in others]) if gain is None else gain
    panels = [(label, reference)]
    for name, video in others:
        panels += [(name, video), (f"difference x{factor}", difference(video, reference, factor))]
    return side_by_side(panels)


def stacked(groups: Sequence[NDArray[np.uint8]], gap: int = GAP) -> NDArray[np.uint8]:
    """Animations of equal width and length under each other."""
    filler = np.full((groups[0].shape[0], gap, groups[0].shape[2], 3), 255, dtype=np.uint8)
    parts = [part for group in groups for part in (group, filler)][:-1]
    return np.concatenate(parts, axis=1)


def strip(video: Tensor, count: int = 4) -> NDArray[np.uint8]:
    """`count` frames evenly over the video, side by side: `(H, count * W, 3)` bytes."""
    picked = torch.linspace(0, video.shape[0] - 1, min(count, video.shape[0])).round().long()
    return np.asarray(np.concatenate(list(enlarged(frames(video[picked]), 96)), axis=1), dtype=np.uint8)


def save(path: Path, pictures: NDArray[np.uint8], fps: float = 6.0) -> Path:
    """Write `(F, H, W, 3)` bytes as an animated GIF, or as a PNG if there is one frame.

    The suffix is replaced to match, and folders are made as needed. Returns the path written.
    """
    images = [Image.fromarray(picture) for picture in pictures]
    if len(images) == 1:
        path = path.with_suffix(".png")
        with replacing(path, "picture") as temporary:
            images[0].save(temporary, optimize=True)
        return path
    path = path.with_suffix(".gif")
    # One palette for all frames: palettes of their own make a still background flicker.
    shared = Image.fromarray(np.concatenate(list(pictures), axis=0)).quantize(256, dither=Image.Dither.NONE)
    indexed = [image.quantize(palette=shared, dither=Image.Dither.NONE) for image in images]
    with replacing(path, "picture") as temporary:
        indexed[0].save(temporary, save_all=True, append_images=indexed[1:], duration=round(1000 / fps), loop=0)
    return path


def save_video(path: Path, video: Tensor, fps: float = 6.0) -> Path:
    """Write one video `(F, 3, H, W)`, enlarged; see `save`."""
    return save(path, enlarged(frames(video)), fps)

"""Videos for the page: the uncached ones and each setting's, frames beside each other in one lossless picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fastercache.experiments.bench.contest import UNCACHED, Runs
from fastercache.experiments.pictures import render
from fastercache.policies.documents import read_model
from fastercache.policies.errors import ConfigUnreadable

MOST = 1_500_000
"""Characters of all pictures together: further prompts are left out, and the page says so."""
FRAMES, SIDE = 32, 256
"""A longer video is shown by so many of its frames, a larger one with so many pixels on its longer side."""
FPS = 6


def island(folders: Sequence[Path]) -> dict[str, Any] | None:
    """What the page's view takes, or None where no contest in the folders kept a cached video beside an uncached one.

    Raises:
        ConfigUnreadable: if a folder's `runs.json` or a video is damaged.
    """
    kept = [case for folder in folders for case in _cases(folder)]
    if not kept:
        return None
    pairs = [(video, videos[UNCACHED]) for _, videos in kept for name, video in videos.items() if name != UNCACHED]
    shown: list[dict[str, Any]] = []
    total = 0
    for prompt, videos in kept:
        frames = {name: _frames(video) for name, video in videos.items()}
        count, height, width = frames[UNCACHED].shape[:3]
        sprites = {name: sprite(pictures) for name, pictures in frames.items()}
        total += sum(map(len, sprites.values()))
        if shown and total > MOST:
            break
        reference = sprites.pop(UNCACHED)
        settings = [{"name": name, "sprite": picture} for name, picture in sprites.items()]
        shown.append(
            {"prompt": prompt, "frames": count, "height": height, "width": width, "uncached": reference,
             "settings": settings}
        )  # fmt: skip
    left = len(kept) - len(shown)
    note = f"{left} of {len(kept)} kept prompts are left out to keep the file small" if left else ""
    return {"gain": render.common_gain(pairs), "fps": FPS, "cases": shown, "note": note}


def _cases(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(prompt, videos by name) of a contest's kept prompts."""
    if not (folder / "runs.json").is_file():
        return
    for key, case in read_model(folder / "runs.json", Runs, "bench's runs").cases.items():
        found = {}
        for entry, run in case.runs.items():
            path = folder / f"video-{key}-{entry}.safetensors"
            if path.is_file():
                found[str(run["name"])] = _loaded(path)
        if UNCACHED in found:
            same = {name: video for name, video in found.items() if video.shape == found[UNCACHED].shape}
            if len(same) > 1:
                yield case.prompt, same


def _loaded(path: Path) -> Tensor:
    try:
        return load_file(path)["video"]
    except Exception as error:  # safetensors and the system raise errors of their own
        raise ConfigUnreadable(f"{path} is damaged ({error}): delete it and run the command that made it") from None


def _frames(video: Tensor) -> NDArray[np.uint8]:
    """`(F, 3, H, W)` as at most `FRAMES` pictures of at most `SIDE` pixels, (F', H', W', 3)."""
    picked = torch.linspace(0, video.shape[0] - 1, min(video.shape[0], FRAMES)).round().long()
    pictures = render.frames(video[picked])
    factor = SIDE / max(pictures.shape[1:3])
    if factor >= 1.0:
        return pictures
    size = (max(round(pictures.shape[2] * factor), 1), max(round(pictures.shape[1] * factor), 1))
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures])


def sprite(pictures: NDArray[np.uint8]) -> str:
    """Frames, (F, H, W, 3), beside each other, as a PNG in a data address: differences are amplified, so lossless."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

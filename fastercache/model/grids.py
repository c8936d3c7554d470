"""From a denoiser's output to a grid whose last two axes are latent height and width, and back.

Frequency-weighted guidance works per frame over height and width; packed tokens must be unpacked first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastercache.model.families import Family
from fastercache.policies.errors import AttachError


@dataclass(frozen=True)
class Grid:
    """A pair of inverse rearrangements."""

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


IDENTITY = Grid(lambda x: x, lambda x: x)


def patch_grid(frames: int, height: int, width: int, patch: int) -> Grid:
    """Tokens (B, F*H*W, C*p*p) of a grid of `patch` x `patch` patches <-> (B, C, F, H*p, W*p).

    A token holds its channels first, then the patch's rows and columns, as Flux's and Qwen's packing does.
    """

    def to(x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        x = x.reshape(batch, frames, height, width, channels // patch**2, patch, patch)
        return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(batch, -1, frames, height * patch, width * patch)

    def back(x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        x = x.reshape(batch, channels, frames, height, patch, width, patch)
        return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames * height * width, channels * patch**2)

    return Grid(to, back)


def leading_grid(grid: Grid, own: int, count: int) -> Grid:
    """`grid` of the first `own` of `count` tokens (B, count, C); coming back, the others are zero."""

    def back(x: Tensor) -> Tensor:
        tokens = grid.back(x)
        return torch.nn.functional.pad(tokens, (0, 0, 0, count - own))

    return Grid(lambda x: grid.to(x[:, :own]), back)


def line_grid() -> Grid:
    """Tokens (B, L, C) along one axis, as LTX-2's audio has them <-> (B, C, L, 1): its low band is the mean over L."""
    return Grid(lambda x: x.transpose(1, 2)[..., None], lambda x: x[..., 0].transpose(1, 2))


def grid_of(family: Family | None, kwargs: dict[str, Any], output: Tensor, stream: int = 0) -> Grid:
    """The grid of one denoiser output, from the call's own arguments; `stream` is its place among the outputs.

    Where reference images' tokens follow the generated image's (Flux Kontext, Qwen-Image-Edit), they are left out.

    Raises:
        AttachError: for packed tokens (B, N, C) of a family whose packing is not known, or of another number.
    """
    if output.ndim >= 4:
        return IDENTITY
    rule = family.tokens if family else ""
    if stream > 0 and "audio_num_frames" in kwargs:
        return line_grid()
    shape = _grid_shape(rule, kwargs)
    count = output.shape[1]
    if shape is not None:
        frames, height, width, patch = shape
        own = frames * height * width
        if own == count:
            return patch_grid(frames, height, width, patch)
        if own < count == _tokens(rule, kwargs):
            return leading_grid(patch_grid(frames, height, width, patch), own, count)
    raise AttachError(
        f"the denoiser's output is packed tokens of shape {tuple(output.shape)}, and the call does not tell their "
        "height and width: CFG-Cache needs them; use a policy without the branch site for this model"
    )


def _grid_shape(rule: str, kwargs: dict[str, Any]) -> tuple[int, int, int, int] | None:
    """Frames, height and width of the generated image's tokens, and the patch each of them packs."""
    if rule == "num_frames" and all(k in kwargs for k in ("num_frames", "height", "width")):
        return int(kwargs["num_frames"]), int(kwargs["height"]), int(kwargs["width"]), 1
    if rule == "img_shapes" and kwargs.get("img_shapes"):
        if kwargs.get("additional_t_cond") is not None:
            return None  # layered images: several of the shapes are generated
        frames, height, width = _image_shapes(kwargs)[0]
        return frames, height, width, 2
    if rule == "img_ids" and isinstance(kwargs.get("img_ids"), Tensor):
        return _grid_of_ids(kwargs["img_ids"])
    return None


def _grid_of_ids(ids: Tensor) -> tuple[int, int, int, int] | None:
    """The grid of image ids ([B], N, 3 or 4): Flux's are (image, row, column), Flux.2's (image, row, column, text), of
    tokens that pack 2 x 2 latents. None where they do not count up the rows of one image."""
    if ids.shape[-1] not in (3, 4):
        return None
    ids = ids[0] if ids.ndim == 3 else ids
    own = ids[ids[:, 0] == ids[0, 0]]  # references have another first coordinate
    height, width = (int(v) + 1 for v in torch.amax(own, dim=0)[1:3].tolist())
    rows = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).reshape(-1, 2)
    if not torch.equal(own[:, 1:3].long().cpu(), rows):
        return None
    return 1, height, width, 2


def _image_shapes(kwargs: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Token counts (frames, height, width) of the generated image and its references, of the first row."""
    first = kwargs["img_shapes"][0]
    shapes = first if isinstance(first[0], (tuple, list)) else [first]
    return [(int(f), int(h), int(w)) for f, h, w in shapes]


def _tokens(rule: str, kwargs: dict[str, Any]) -> int:
    """How many tokens the call says it has, those of references included."""
    if rule == "img_shapes":
        return sum(f * h * w for f, h, w in _image_shapes(kwargs))
    if rule == "img_ids":
        return int(kwargs["img_ids"].shape[-2])
    return 0

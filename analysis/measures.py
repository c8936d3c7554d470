"""Similarity of two values, each measure named with its denominator, whole and split into frequency bands.

Throughout, `a` stands in for `b`: `b` is the value that would have been computed, and its norm is the denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastercache.policies.errors import MeasurementError, suggest
from fastercache.policies.predictors.frequency import band_radius, split_bands

MeasureName = Literal["cosine", "rel_l1", "rel_l2"]
Band = Literal["whole", "low", "high"]
BANDS: tuple[Band, ...] = ("whole", "low", "high")


@dataclass(frozen=True, slots=True)
class Measure:
    """How a measure is written, and which way is more alike.

    Attributes:
        name: its key in results and files.
        title: for headings.
        formula: with the denominator, `a` standing in for `b`.
        identical: its value for equal tensors: 1 for a similarity, 0 for a distance.
    """

    name: MeasureName
    title: str
    formula: str
    identical: float


MEASURES: dict[str, Measure] = {
    "cosine": Measure("cosine", "Cosine similarity", "⟨a, b⟩ / (‖a‖ ‖b‖)", 1.0),
    "rel_l1": Measure("rel_l1", "Relative L1 distance", "mean|a − b| / mean|b|", 0.0),
    "rel_l2": Measure("rel_l2", "Relative L2 distance", "‖a − b‖ / ‖b‖", 0.0),
}
ORDER: tuple[MeasureName, ...] = ("cosine", "rel_l1", "rel_l2")
"""The measures in the order in which arrays hold them."""


def measure_of(name: str) -> Measure:
    """The measure of this name. Raises MeasurementError naming the nearest one."""
    if name not in MEASURES:
        raise MeasurementError(f"there is no measure '{name}'{suggest(name, MEASURES)}")
    return MEASURES[name]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ / (‖a‖ ‖b‖) over all elements, a scalar in [-1, 1]; 1 if both are zero, 0 if only one is."""
    return _compare(*_flat(a, b))[0]


def relative_l1(a: Tensor, b: Tensor) -> Tensor:
    """mean|a − b| / mean|b|, a scalar; 0 if both are zero, infinite if only `b` is."""
    return _compare(*_flat(a, b))[1]


def relative_l2(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ / ‖b‖, a scalar; 0 if both are zero, infinite if only `b` is."""
    return _compare(*_flat(a, b))[2]


def similarity(a: Tensor, b: Tensor, batched: bool = False) -> Tensor:
    """All three measures at once: (3,) in the order of `ORDER`; with `batched` (N, 3), for each of the N first entries.

    Raises MeasurementError for other shapes.
    """
    return _compare(*_flat(a, b, batched))


def band_similarity(a: Tensor, b: Tensor, radius: int | None = None, batched: bool = False) -> Tensor:
    """The three measures whole and in the low and high band: (bands 3, measures 3), in the orders of BANDS and ORDER.

    Args:
        a, b: (..., H, W); the bands are taken over the last two axes.
        radius: of the low band's disc in the shifted spectrum; by default the paper's min(H, W) // 5.
        batched: compare each of the N first entries by itself: (N, 3, 3).

    Each band's denominator is that band of `b`. Raises MeasurementError for other shapes or fewer than two axes.
    """
    if a.shape != b.shape or a.ndim < 2 + batched:
        raise MeasurementError(
            f"bands need two tensors of one shape (..., H, W), found {tuple(a.shape)} and {tuple(b.shape)}"
        )
    both = torch.stack((a, b)).float()
    low, high = split_bands(both, band_radius(*a.shape[-2:]) if radius is None else radius)
    stacked = torch.stack((both, low, high))  # (bands, 2, [N], ..., H, W)
    stacked = stacked.flatten(3).movedim(2, 0) if batched else stacked.flatten(2)
    return _compare(*stacked.unbind(-2))


def _flat(a: Tensor, b: Tensor, batched: bool = False) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise MeasurementError(
            f"only tensors of one shape can be compared, found {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a.flatten(int(batched)).float(), b.flatten(int(batched)).float()


def _compare(a: Tensor, b: Tensor) -> Tensor:
    """(..., n) and (..., n) -> (..., 3), without a device synchronisation."""
    difference = a - b
    l1, l2 = difference.abs().mean(-1), torch.linalg.vector_norm(difference, dim=-1)
    return from_norms(
        l1, l2, b.abs().mean(-1), torch.linalg.vector_norm(a, dim=-1), torch.linalg.vector_norm(b, dim=-1)
    )


def from_norms(l1: Tensor, l2: Tensor, b_l1: Tensor, a_l2: Tensor, b_l2: Tensor) -> Tensor:
    """The three measures from norms: (..., 3).

    Args:
        l1: mean|a − b|. b_l1: mean|b|.
        l2: ‖a − b‖, a_l2: ‖a‖, b_l2: ‖b‖, in any common scale (root mean squares do as well).

    By the law of cosines ⟨a, b⟩ / (‖a‖‖b‖) = 1 − (‖a − b‖² − (‖a‖ − ‖b‖)²) / (2 ‖a‖‖b‖): for nearly equal tensors the
    rounding error is relative to 1 − cosine, where a plain dot product would lose it.
    """
    product = a_l2 * b_l2
    gap = (l2**2 - (a_l2 - b_l2) ** 2) / (2.0 * product)
    both_zero = (a_l2 == 0) & (b_l2 == 0)
    none = torch.zeros_like(product)
    cos = torch.where(product > 0, (1.0 - gap).clamp(-1.0, 1.0), torch.where(both_zero, none + 1.0, none))
    cos = torch.where(product.isnan(), product, cos)
    rel_l1 = torch.where((l1 == 0) & (b_l1 == 0), none, l1 / b_l1)
    rel_l2 = torch.where((l2 == 0) & (b_l2 == 0), none, l2 / b_l2)
    return torch.stack((cos, rel_l1, rel_l2), -1)

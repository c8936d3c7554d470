"""Constants measured on a model, brought to the step count of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fastercache.policies.measurements import Lags

T = TypeVar("T")


def nearest(values: Sequence[T], index: int, count: int) -> T:
    """The value for step `index` of `count`, by nearest neighbour in progress [as MagCache's code resamples].

    >>> [nearest("abcd", i, 7) for i in range(7)]
    ['a', 'a', 'b', 'c', 'c', 'c', 'd']
    """
    return values[-1] if count <= 1 else values[round(index * (len(values) - 1) / (count - 1))]


def lagged(curves: Lags, index: int, lag: int, count: int) -> float | None:
    """The entry for step `index` of `count` against the one `lag` steps before it; None if it was not measured.

    With fewer steps than were measured each lag spans more of them: 2 steps of 25 are 4 of 50.
    """
    known = len(curves[0])
    scaled = max(round(lag * (known - 1) / (count - 1)), 1) if count > 1 else lag
    at = round(index * (known - 1) / (count - 1)) if count > 1 else known - 1
    if scaled > len(curves) or at < scaled:
        return None
    return curves[scaled - 1][at]

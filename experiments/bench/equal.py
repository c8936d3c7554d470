"""How much faster one front is than another setting at equal PSNR, with intervals over prompts.

A front is one method at several speedups. Between neighbours its PSNR is taken to be linear in the logarithm of the
speedup, prompt by prompt, as in `verdict`. The speedup that equals a setting is the highest at which the difference to
that setting's PSNR, paired over prompts, is still 0 in the mean. Where the front is better than the setting even at its
highest speedup, that speedup is a lower bound (`at least`); where it is worse even at its lowest, an upper one
(`at most`).

Intervals are 95 % of a bootstrap over prompts: each draw takes the same prompts for both, in PSNR and in seconds. In a
draw a speedup that is not on the front is put at its end. FLOPs are taken as counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastercache.experiments.bench.verdict import NO, UNDECIDED, YES

Bound = Literal["", "at least", "at most"]
LEAST: Bound = "at least"
MOST: Bound = "at most"
DRAWS = 2000
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One setting on each prompt.

    Attributes:
        flops: speedup in FLOPs. psnr: dB. seconds, uncached: of its call and of the uncached one beside it.
    """

    flops: float
    psnr: tuple[float, ...]
    seconds: tuple[float, ...]
    uncached: tuple[float, ...]


class Ratio(NamedTuple):
    """A ratio of speedups; `bound` says whether it is known only from one side. No interval for a single prompt."""

    value: float
    low: float | None
    high: float | None
    bound: Bound = ""

    def shown(self) -> str:
        """`2.31 (2.10 to 2.55)`; a bound is said in words, without an interval."""
        if self.bound:
            return f"{self.bound} {self.value:.2f}"
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def reaches(self, goal: float) -> str:
        """`yes` where the whole interval is at or above a goal, `no` where it is below, else `undecided`.

        A lower bound below the goal leaves it undecided, and so does an upper bound above it.
        """
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if self.bound != MOST and low >= goal:
            return YES
        if self.bound != LEAST and high < goal:
            return NO
        return UNDECIDED


class Drawn(NamedTuple):
    """A ratio and what it is in each draw of prompts, `(draws,)`."""

    ratio: Ratio
    draws: Values


Speedups = Callable[[Measured, NDArray[np.int64]], Values]
"""A setting's speedup in each draw: indices of prompts `(draws, prompts)` to `(draws,)`."""


def by_flops(one: Measured, chosen: NDArray[np.int64]) -> Values:
    """The same in every draw."""
    return np.full(len(chosen), one.flops)


def by_time(one: Measured, chosen: NDArray[np.int64]) -> Values:
    """Median seconds of the uncached runs over median seconds, of the prompts drawn."""
    uncached, seconds = np.asarray(one.uncached)[chosen], np.asarray(one.seconds)[chosen]
    found: Values = np.median(uncached, axis=1) / np.median(seconds, axis=1)
    return found


def compare(front: Sequence[Measured], other: Measured, speedups: Speedups) -> Drawn:
    """The front's speedup at the PSNR of `other`, over the speedup of `other`. All are of the same prompts."""
    count = len(other.psnr)
    drawn = np.random.default_rng(0).integers(0, count, (DRAWS, count))
    chosen = np.concatenate([np.arange(count)[None], drawn])  # the prompts themselves first
    x = np.stack([np.log(speedups(one, chosen)) for one in front], axis=1)  # (1 + draws, settings)
    above = np.stack([(np.asarray(one.psnr) - np.asarray(other.psnr))[chosen].mean(axis=1) for one in front], axis=1)
    order = np.argsort(x, axis=1)
    where, bound = crossing(np.take_along_axis(x, order, 1), np.take_along_axis(above, order, 1))
    found = np.exp(where) / speedups(other, chosen)
    return Drawn(_with_interval(found, bound[0], count), found[1:])


def crossing(x: Values, above: Values) -> tuple[Values, list[Bound]]:
    """By row, the last place where a piecewise linear curve through (x, above) is not below 0; the ends are bounds.

    Args:
        x: rising along each row, `(rows, points)`. above: values at these places.
    """
    rows, points = x.shape
    last = np.where(above >= 0.0, np.arange(points), -1).max(axis=1)
    inner = (last >= 0) & (last < points - 1)
    at = np.clip(last, 0, max(points - 2, 0))
    each = np.arange(rows)
    left, right = above[each, at], above[each, np.minimum(at + 1, points - 1)]
    share = np.where(inner, left / np.where(inner, left - right, 1.0), 0.0)
    between = x[each, at] + share * (x[each, np.minimum(at + 1, points - 1)] - x[each, at])
    where = np.where(inner, between, np.where(last < 0, x[:, 0], x[:, -1]))
    bounds: list[Bound] = ["" if ok else MOST if n < 0 else LEAST for ok, n in zip(inner, last, strict=True)]
    return where, bounds


def smallest(ratios: Sequence[Drawn], prompts: int) -> tuple[Ratio, int]:
    """The smallest of several ratios, and which it is.

    Its interval is of the smallest in each draw, whichever that is there: one figure, so nothing is left to correct for
    the number of ratios. Chance makes the smallest of many smaller, so it errs against the front. It is an upper bound
    where any of them is one, else a lower bound where itself is one.
    """
    values = [one.ratio.value for one in ratios]
    least = int(np.argmin(values))
    bound: Bound = MOST if any(one.ratio.bound == MOST for one in ratios) else ratios[least].ratio.bound
    found = np.concatenate([[values[least]], np.stack([one.draws for one in ratios]).min(axis=0)])
    return _with_interval(found, bound, prompts), least


def _with_interval(found: Values, bound: Bound, prompts: int) -> Ratio:
    """Of the value and its draws."""
    if prompts < 2:
        return Ratio(float(found[0]), None, None, bound)
    low, high = np.quantile(found[1:], (0.025, 0.975))
    return Ratio(float(found[0]), float(low), float(high), bound)

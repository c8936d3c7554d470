"""Does a setting beat fewer steps? Intervals over prompts, the baseline's curve, and the rule that answers.

The baseline is the same solver with fewer steps and nothing cached, measured at several step counts. Between two
neighbouring counts its quality is taken to be linear in the logarithm of the speedup, prompt by prompt. At the speedup
of a setting the difference to that is taken on each prompt, and its 95 % interval over prompts (Student's t) decides:

    yes        the whole interval is above 0
    no         the whole interval is below 0
    undecided  it spans 0, or there is only one prompt
    outside    the speedup lies outside those measured for fewer steps, so there is nothing to compare with

Out of a hundred settings that exactly match fewer steps, two or three would get a `yes` by chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

YES, NO, UNDECIDED, OUTSIDE = "yes", "no", "undecided", "outside"
RULE = (
    "beats fewer steps: at the setting's own speedup its PSNR exceeds that of fewer steps, interpolated linearly in "
    "log speedup between measured step counts; yes or no where the 95 % interval of the difference, paired over "
    "prompts, excludes 0, else undecided; outside: no fewer-steps run is as fast, or as slow"
)


class Interval(NamedTuple):
    """A mean, or a ratio, with its 95 % interval; both ends are None for a single prompt."""

    value: float
    low: float | None
    high: float | None

    def shown(self, form: str, unit: str = "", *, always: bool = False) -> str:
        """`41.20 ± 0.35`, with a unit after the value; the value alone where there is no interval.

        An interval of no width is shown only with `always`.
        """
        value = form.format(self.value) + unit
        if self.low is None or self.high is None or (self.low == self.high and not always):
            return value
        return f"{value} ± {form.format((self.high - self.low) / 2)}"


class Verdict(NamedTuple):
    """The answer, and the difference in PSNR to fewer steps (dB) that it rests on; None where there is none."""

    word: str
    difference: Interval | None


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean over prompts with Student's 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(over: Sequence[float], under: Sequence[float], draws: int = 2000) -> Interval:
    """median(over) / median(under), paired by prompt, with the 95 % interval of a bootstrap over prompts."""
    ratio = statistics.median(over) / statistics.median(under)
    if len(over) < 2:
        return Interval(ratio, None, None)
    chosen = np.random.default_rng(0).integers(0, len(over), (draws, len(over)))
    drawn = np.median(np.asarray(over)[chosen], axis=1) / np.median(np.asarray(under)[chosen], axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(ratio, float(low), float(high))


@dataclass(frozen=True)
class Baseline:
    """Fewer steps at several step counts.

    Attributes:
        speedups: of each count, rising. values: PSNR of each count on each prompt, in the same order.
    """

    speedups: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, points: Sequence[tuple[float, Sequence[float]]]) -> Baseline:
        """From (speedup, PSNR by prompt) in any order."""
        ordered = sorted(points, key=lambda point: point[0])
        return cls(tuple(s for s, _ in ordered), tuple(tuple(values) for _, values in ordered))

    def at(self, speedup: float) -> list[float] | None:
        """PSNR on each prompt at a speedup, linear in its logarithm between neighbours; None outside those measured."""
        if not self.speedups or not self.speedups[0] <= speedup <= self.speedups[-1]:
            return None
        x = [math.log(s) for s in self.speedups]
        return [float(np.interp(math.log(speedup), x, column)) for column in zip(*self.values, strict=True)]


def verdict(speedup: float, values: Sequence[float], baseline: Baseline) -> Verdict:
    """Whether a setting with these PSNRs, in the order of the baseline's prompts, beats fewer steps; see the module."""
    expected = baseline.at(speedup)
    if expected is None:
        return Verdict(OUTSIDE, None)
    difference = mean_interval([value - other for value, other in zip(values, expected, strict=True)])
    if difference.low is not None and difference.low > 0.0:
        return Verdict(YES, difference)
    if difference.high is not None and difference.high < 0.0:
        return Verdict(NO, difference)
    return Verdict(UNDECIDED, difference)

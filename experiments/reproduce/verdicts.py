"""Does a claim hold? Paired differences over prompts, corrected within a finding, and the words that say so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

HOLDS, REVERSED, UNDECIDED = "holds", "reversed", "undecided"
FAILS = "does not hold"
LEVEL = 0.05
RULE = (
    "each claim is the mean of a difference, paired over prompts, with Student's 95 % interval; p-values of Student's "
    "t-test, two-sided, are corrected by Holm's method over the claims of a finding; below 0.05 a claim holds, or is "
    "reversed where the difference is negative, else it is undecided. A finding holds if all its claims do and does "
    "not hold if one is reversed"
)


def p_value(values: Sequence[float]) -> float:
    """Two-sided p-value of Student's t-test that the mean is 0; 1 for fewer than two values."""
    if len(values) < 2:
        return 1.0
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if spread == 0.0:
        return 0.0 if mean else 1.0
    return float(2.0 * stats.t.sf(abs(mean) / spread * math.sqrt(len(values)), len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several, in the order given [Holm 1979].

    The smallest of m counts m times, the next m - 1 times, and none less than the one before it.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def word(mean: float, corrected: float) -> str:
    """What a claim's mean difference and corrected p-value say."""
    if corrected >= LEVEL:
        return UNDECIDED
    return HOLDS if mean > 0.0 else REVERSED


def overall(words: Sequence[str]) -> str:
    """What the claims of a finding say together."""
    if REVERSED in words:
        return FAILS
    return HOLDS if all(one == HOLDS for one in words) else UNDECIDED

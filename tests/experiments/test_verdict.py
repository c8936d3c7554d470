"""The bench's intervals and verdicts: how they are written, what lies at their ends, and how they are drawn."""

from __future__ import annotations

import inspect
import statistics

import numpy as np
import pytest

from fastercache.experiments.bench import verdict
from fastercache.experiments.bench.verdict import Baseline, Interval

BASE = Baseline.of([(4.0, [20.0, 24.0]), (1.0, [40.0, 44.0]), (2.0, [30.0, 32.0])])


@pytest.mark.parametrize(
    ("interval", "unit", "always", "shown"),
    [
        (Interval(41.2, 40.85, 41.55), "", False, "41.20 ± 0.35"),
        (Interval(2.5, 2.25, 2.75), "x", False, "2.50x ± 0.25"),
        (Interval(41.2, None, None), "x", True, "41.20x"),
        (Interval(41.2, 41.2, 41.2), "", False, "41.20"),
        (Interval(41.2, 41.2, 41.2), "", True, "41.20 ± 0.00"),
        (Interval(41.2, 41.0, None), "", True, "41.20"),
        (Interval(41.2, None, 41.4), "", True, "41.20"),
    ],
)
def test_an_interval_is_written_with_half_its_width(interval: Interval, unit: str, always: bool, shown: str) -> None:
    assert interval.shown("{:.2f}", unit, always=always) == shown


def test_one_prompt_has_no_interval_and_two_have_one() -> None:
    """Of two values x - d and x + d the standard error is d, and t(0.975, 1) is 12.7062."""
    assert verdict.ratio_interval([3.0], [2.0]) == (1.5, None, None)
    assert verdict.mean_interval([3.0]) == (3.0, None, None)
    assert verdict.mean_interval([2.0, 4.0]) == pytest.approx((3.0, 3 - 12.7062047, 3 + 12.7062047))
    value, low, high = verdict.ratio_interval([2.0, 4.0], [1.0, 1.0])
    assert (value, low, high) == (3.0, 2.0, 4.0)


def test_the_ends_of_the_baseline_belong_to_it() -> None:
    assert BASE.speedups == (1.0, 2.0, 4.0)
    assert BASE.at(1.0) == [40.0, 44.0] and BASE.at(4.0) == [20.0, 24.0]
    assert Baseline.of([(2.0, [30.0])]).at(2.0) == [30.0] and Baseline.of([(2.0, [30.0])]).at(2.1) is None


def test_an_interval_that_ends_at_zero_does_not_exclude_it() -> None:
    word, difference = verdict.verdict(2.0, [30.0, 32.0], BASE)
    assert word == "undecided" and difference == (0.0, 0.0, 0.0)
    assert verdict.verdict(2.0, [30.1, 32.1], BASE).word == "yes"
    assert verdict.verdict(2.0, [29.9, 31.9], BASE).word == "no"


def test_the_resamplings_are_the_same_each_time() -> None:
    """2,000 of them, drawn from seed 0: published intervals come out again. A few lines of plain Python beside."""
    over, under = [7.9, 7.3, 4.9, 3.8, 5.6, 4.8], [2.6, 1.6, 2.0, 2.2, 2.8, 2.0]
    ratios = [
        statistics.median(over[i] for i in row) / statistics.median(under[i] for i in row)
        for row in np.random.default_rng(0).integers(0, 6, (2000, 6)).tolist()
    ]
    _, low, high = verdict.ratio_interval(over, under)
    assert low is not None and high is not None
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, (0.025, 0.975))))
    assert inspect.signature(verdict.ratio_interval).parameters["draws"].default == 2000
    few = [ratios[i] for i in range(10)]
    drawn = np.random.default_rng(0).integers(0, 6, (10, 6)).tolist()
    assert few == [statistics.median(over[i] for i in row) / statistics.median(under[i] for i in row) for row in drawn]
    assert verdict.ratio_interval(over, under, draws=10).low == pytest.approx(np.quantile(few, 0.025))

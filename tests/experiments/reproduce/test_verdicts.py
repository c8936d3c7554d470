"""Words of claims and findings: right values by hand."""

from __future__ import annotations

import pytest
from scipy import stats

from fastercache.experiments.reproduce.verdicts import (
    FAILS,
    HOLDS,
    LEVEL,
    REVERSED,
    UNDECIDED,
    holm,
    overall,
    p_value,
    word,
)


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.02], [0.02]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x .01; 2 x .03; 1 x .04, but no less than the one before
        ([0.5, 0.001, 0.9], [1.0, 0.003, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm(given: list[float], corrected: list[float]) -> None:
    assert holm(given) == pytest.approx(corrected)


def test_the_p_value_is_that_of_students_test() -> None:
    values = [0.3, -0.1, 0.8, 0.4, 0.2]
    assert p_value(values) == pytest.approx(float(stats.ttest_1samp(values, 0.0).pvalue))
    assert p_value([-v for v in values]) == pytest.approx(p_value(values))


def test_p_values_without_a_spread() -> None:
    assert p_value([0.5]) == 1.0, "one prompt decides nothing"
    assert p_value([0.0, 0.0, 0.0]) == 1.0, "the same figures on every prompt"
    assert p_value([0.5, 0.5]) == 0.0


def test_the_word_of_a_claim() -> None:
    assert word(0.4, LEVEL * 0.99) == HOLDS
    assert word(-0.4, LEVEL * 0.99) == REVERSED
    assert word(0.4, LEVEL) == word(-9.0, 0.5) == UNDECIDED


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, UNDECIDED], UNDECIDED),
        ([HOLDS, REVERSED], FAILS),
        ([UNDECIDED, REVERSED], FAILS),
    ],
)
def test_the_word_of_a_finding(words: list[str], expected: str) -> None:
    assert overall(words) == expected

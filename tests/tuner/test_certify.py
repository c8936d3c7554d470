"""Certificates are exact where a closed form exists and keep their promise in simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from fastercache.tuner import clopper_pearson, fixed_sequence, hoeffding_bentkus, prompts_needed
from fastercache.tuner.certify import InvalidCertificate, binomial_p_value, certificate, sequential


def test_fifty_nine_prompts_without_a_miss_certify_five_percent() -> None:
    assert prompts_needed(0.05) == 59
    assert clopper_pearson(0, 59) < 0.05 < clopper_pearson(0, 58)
    assert clopper_pearson(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))


def test_bound_equals_scipys() -> None:
    for v, n in ((0, 10), (1, 20), (7, 30), (30, 30)):
        for confidence in (0.8, 0.95):
            expected = binomtest(v, n, alternative="less").proportion_ci(confidence, method="exact").high
            assert clopper_pearson(v, n, confidence) == pytest.approx(expected)


def test_bound_and_p_value_agree() -> None:
    for v, n in ((0, 59), (2, 100), (5, 40)):
        rate = clopper_pearson(v, n, 0.95)
        assert binomial_p_value(v, n, rate) == pytest.approx(0.05, rel=1e-6)


def test_bound_covers_the_true_rate_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.02, 0.2):
        covered = [clopper_pearson(int(v), 60) >= rate for v in rng.binomial(60, rate, 2000)]
        assert np.mean(covered) >= 0.95 - 0.01


def test_hoeffding_bentkus_is_a_p_value() -> None:
    """Under the null (the mean is exactly the bound) it is below 5 % at most 5 % of the time."""
    rng = np.random.default_rng(1)
    for bound in (0.05, 0.3):
        losses = rng.binomial(100, bound, 4000) / 100
        p = np.array([hoeffding_bentkus(float(loss), 100, bound) for loss in losses])
        assert np.mean(p <= 0.05) <= 0.05 + 0.01


def test_hoeffding_bentkus_by_hand_and_scale() -> None:
    n, r, a = 50, 0.1, 0.3
    h1 = r * math.log(r / a) + (1 - r) * math.log((1 - r) / (1 - a))
    bentkus = math.e * sum(math.comb(n, k) * a**k * (1 - a) ** (n - k) for k in range(6))
    assert hoeffding_bentkus(r, n, a) == pytest.approx(min(math.exp(-n * h1), bentkus))
    assert hoeffding_bentkus(10 * r, n, 10 * a, maximum=10.0) == pytest.approx(hoeffding_bentkus(r, n, a))
    assert hoeffding_bentkus(0.5, n, 0.3) == 1.0


def test_fixed_sequence_stops_at_the_first_failure() -> None:
    assert fixed_sequence([0.01, 0.04, 0.2, 0.001]) == 2
    assert fixed_sequence([0.2, 0.001]) == 0
    assert fixed_sequence([0.01, float("nan"), 0.01]) == 1
    assert fixed_sequence([]) == 0


def test_the_ends_of_what_can_be_counted() -> None:
    """One prompt, no miss or nothing but misses, and levels that are just reached."""
    assert clopper_pearson(0, 1) == pytest.approx(0.95) and clopper_pearson(1, 1) == 1.0
    assert binomial_p_value(1, 1, 0.5) == 1.0 and binomial_p_value(0, 1, 0.3) == pytest.approx(0.7)
    assert prompts_needed(0.96) == 1  # 1 - 0.05 = 0.95 of all prompts at most
    assert prompts_needed(0.98, violations=1) == 2  # 0.95^(1/2) = 0.9747
    assert prompts_needed(0.97, violations=1) == 3
    assert fixed_sequence([0.05]) == 1 and fixed_sequence([0.5], 0.5) == 1
    assert hoeffding_bentkus(1.0, 5, 0.5) == hoeffding_bentkus(0.5, 5, 0.5) == 1.0
    assert hoeffding_bentkus(0.0, 1, 0.3) == pytest.approx(0.7)  # 1 - a, below e (1 - a)
    assert hoeffding_bentkus(0.0, 1, 1.5, maximum=2.0) == pytest.approx(0.25)


def test_certificate_counts_misses() -> None:
    made = certificate([False] * 58 + [True], "psnr>=30")
    assert (made.prompts, made.violations) == (59, 1)
    assert made.rate == clopper_pearson(1, 59)
    surer = certificate([True, False], "psnr>=30", confidence=0.5)
    # P(Binomial(2, p) <= 1) = 1 - p^2 is one half at the bound
    assert (surer.violations, surer.confidence) == (1, 0.5) and surer.rate == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: clopper_pearson(3, 2),
        lambda: clopper_pearson(0, 0),
        lambda: clopper_pearson(-1, 5),
        lambda: clopper_pearson(1, 5, 0.0),
        lambda: clopper_pearson(1, 5, 1.0),
        lambda: binomial_p_value(3, 2, 0.5),
        lambda: binomial_p_value(-1, 5, 0.5),
        lambda: binomial_p_value(0, 0, 0.5),
        lambda: binomial_p_value(0, 1, 0.0),
        lambda: binomial_p_value(0, 1, 1.0),
        lambda: prompts_needed(0.0),
        lambda: prompts_needed(1.0),
        lambda: hoeffding_bentkus(2.0, 5, 0.5),
        lambda: hoeffding_bentkus(1.5, 5, 0.5),
        lambda: hoeffding_bentkus(-0.1, 5, 0.5),
        lambda: hoeffding_bentkus(0.5, 0, 0.5),
        lambda: hoeffding_bentkus(0.0, 5, 0.5, maximum=0.0),
        lambda: hoeffding_bentkus(0.5, 5, 1.0),
        lambda: hoeffding_bentkus(0.5, 5, 0.0),
        lambda: fixed_sequence([0.1], 0.0),
        lambda: fixed_sequence([0.1], 1.0),
    ],
)
def test_impossible_counts_are_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(InvalidCertificate):
        bad()


def at_most(misses: int, n: int, rate: float) -> float:
    """P(Binomial(n, rate) <= misses), added up."""
    return math.fsum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(misses + 1))


@settings(max_examples=15)
@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_at_the_bound_so_few_misses_are_as_rare_as_the_confidence_says(
    n: int, data: st.DataObject, sure: float
) -> None:
    missed = data.draw(st.integers(0, n))
    bound = clopper_pearson(missed, n, sure)
    assert bound == 1.0 if missed == n else at_most(missed, n, bound) == pytest.approx(1 - sure, rel=1e-6)
    made = certificate([True] * missed + [False] * (n - missed), "psnr>=30", sure)
    assert (made.prompts, made.violations, made.rate, made.confidence) == (n, missed, bound, sure)
    rate = data.draw(st.integers(1, 19)) / 20
    assert binomial_p_value(missed, n, rate) == pytest.approx(at_most(missed, n, rate), rel=1e-9)


@settings(max_examples=15)
@given(st.integers(2, 10).map(lambda k: k / 20), st.sampled_from([0.8, 0.9, 0.95]), st.integers(0, 2))
def test_the_prompts_that_are_needed_are_the_fewest(rate: float, sure: float, missed: int) -> None:
    fewest = next(n for n in range(missed + 1, 1000) if at_most(missed, n, rate) <= 1 - sure)
    assert prompts_needed(rate, sure, missed) == fewest


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(20, 80), st.sampled_from([0.05, 0.1]),
    st.sampled_from([0.8, 0.95]),
)  # fmt: skip
def test_candidates_are_certified_until_the_first_whose_misses_are_not_rare(
    counts: list[int], n: int, rate: float, sure: float
) -> None:
    expected = list(itertools.takewhile(lambda missed: at_most(missed, n, rate) <= 1 - sure, counts))
    found = sequential([[True] * missed + [False] * (n - missed) for missed in counts], "psnr>=30", rate, sure)
    assert [one.violations for one in found] == expected
    assert all((one.rate, one.confidence, one.prompts) == (rate, sure, n) for one in found)


@settings(max_examples=15)
@given(st.integers(1, 40), st.data())
def test_the_p_value_of_a_mean_loss_is_the_smaller_of_its_two_bounds(n: int, data: st.DataObject) -> None:
    level = data.draw(st.integers(1, 19)) / 20
    total = data.draw(st.integers(0, 2 * n))  # of losses of halves
    risk = total / 2 / n
    r = min(risk, level)
    divergence = (r * math.log(r / level) if r else 0.0) + (1 - r) * math.log((1 - r) / (1 - level))
    expected = min(1.0, math.exp(-n * divergence), math.e * at_most(-(-total // 2), n, level))
    assert hoeffding_bentkus(risk, n, level) == pytest.approx(expected, rel=1e-9)
    assert hoeffding_bentkus(3 * risk, n, 3 * level, maximum=3.0) == pytest.approx(expected, rel=1e-6)

"""Certificates of several candidates keep their promise, and one prompt is judged by its own value."""

from __future__ import annotations

import numpy as np
import pytest

from fastercache.tuner import Budget
from fastercache.tuner.certify import each, misses, sequential

N = 59


def flags(count: int) -> list[bool]:
    return [True] * count + [False] * (N - count)


def test_the_list_ends_at_the_first_that_fails() -> None:
    """P(Binomial(59, 0.05) <= 0) = 0.95^59 = 0.0485 passes at 0.05, <= 1 is 0.199 and does not."""
    found = sequential([flags(0), flags(0), flags(1), flags(0)], "psnr>=40")
    assert [one.violations for one in found] == [0, 0]
    assert found[1].words == ("misses psnr>=40 on at most 5 % of prompts like these, 95 % sure; 59 prompts, 0 misses")
    assert sequential([flags(1), flags(0)], "psnr>=40") == []
    assert "1 miss" in sequential([[True] + [False] * 200], "psnr>=40")[0].words


def test_two_thousand_repetitions_keep_the_rate() -> None:
    """Five candidates that miss on 3 to 8 % of all prompts, of which 5 % are allowed. In 95 % of the repetitions
    nothing beyond the allowed rate may be certified: with 2,000, up to 5 % + 3 standard errors (1.46 %)."""
    rng = np.random.default_rng(0)
    rates = [0.03, 0.052, 0.06, 0.07, 0.08]
    wrong = useful = 0
    for _ in range(2000):
        missed = [(rng.random(N) < rate).tolist() for rate in rates]
        certified = len(sequential(missed, "psnr>=40"))
        wrong += certified > 1
        useful += certified >= 1
    assert wrong <= 2000 * (0.05 + 0.0146)
    assert useful >= 0.1 * 2000  # 0.97^59 = 0.166 of the time the first passes


def test_a_gentle_candidate_is_certified_nearly_always() -> None:
    """One miss in 1,000: 0.999^59 = 94 % of the repetitions."""
    rng = np.random.default_rng(1)
    found = sum(bool(sequential([(rng.random(N) < 0.001).tolist()], "psnr>=40")) for _ in range(2000))
    assert 0.92 * 2000 < found < 0.96 * 2000


@pytest.mark.parametrize("text", ["psnr>=45", "p90:psnr>=45", "q0.1(psnr)>=45"])
def test_each_prompt_is_asked_for_the_bound_itself(text: str) -> None:
    budget = Budget.parse(text)
    assert each(budget) == "psnr>=45"
    assert misses(budget, {"psnr": 44.9}) and not misses(budget, {"psnr": 45.0})
    both = Budget.parse("psnr>=45,lpips<=0.1")
    assert misses(both, {"psnr": 50.0, "lpips": 0.2}) and not misses(both, {"psnr": 50.0, "lpips": 0.1})


@pytest.mark.parametrize(
    ("text", "strictest"),
    [
        ("psnr>=40,p90:psnr>=45", "psnr>=45"),
        ("q0.1(psnr)>=45,psnr>=40", "psnr>=45"),
        ("p90:lpips<=0.2,ssim>=0.9,lpips<=0.1", "lpips<=0.1,ssim>=0.9"),
    ],
)
def test_of_several_bounds_of_a_metric_the_strictest_is_asked(text: str, strictest: str) -> None:
    assert each(Budget.parse(text)) == strictest
    assert str(Budget.parse(each(Budget.parse(text)))) == strictest

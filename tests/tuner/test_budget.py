"""A budget means what it says, and stopping early never rejects what could still meet it."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastercache.analysis.metrics import metric_called
from fastercache.policies.errors import NotFinite
from fastercache.tuner import Budget, InvalidBudget


def test_mean_and_quantile_against_numpy() -> None:
    values = np.random.default_rng(0).normal(30, 4, 17).tolist()
    assert Budget.parse("psnr>=31").violation({"psnr": values}) == pytest.approx(31 - np.mean(values))
    for q in (0.1, 0.25, 0.5, 0.9, 1.0):
        expected = np.quantile(values, q, method="inverted_cdf")
        assert Budget.parse(f"q{q}(psnr)>=31").violation({"psnr": values}) == pytest.approx(31 - expected)


def test_a_tenth_quantile_lets_a_tenth_of_the_prompts_miss() -> None:
    budget = Budget.parse("q0.1(psnr)>=30")
    assert budget.violation({"psnr": [20.0] + [35.0] * 19}) <= 0
    assert budget.violation({"psnr": [20.0] * 3 + [35.0] * 17}) > 0
    upper = Budget.parse("q0.9(lpips)<=0.05")
    assert upper.violation({"lpips": [0.5] + [0.01] * 9}) <= 0
    assert upper.violation({"lpips": [0.5] * 2 + [0.01] * 8}) > 0


def test_all_terms_must_hold() -> None:
    budget = Budget.parse("psnr>=30, ssim >= 0.95,LPIPS<=0.05")
    assert budget.metrics == ("psnr", "ssim", "lpips")
    good = {"psnr": [31.0], "ssim": [0.96], "lpips": [0.04]}
    assert budget.violation(good) <= 0
    for name, bad in (("psnr", 29.0), ("ssim", 0.9), ("lpips", 0.2)):
        assert budget.violation({**good, name: [bad]}) > 0
        assert budget.margin({**good, name: [bad]}) < 0


def test_terms_are_weighed_on_one_scale() -> None:
    """The largest miss counts, in units that mean about the same: 0.02 of SSIM is more than 1 dB, 0.005 is less."""
    budget = Budget.parse("psnr>=30,ssim>=0.95")
    scale = metric_called("ssim").unit
    assert 0 < scale < 0.02
    assert budget.violation({"psnr": [29.0], "ssim": [0.95 - 2 * scale]}) == pytest.approx(2.0)
    assert budget.violation({"psnr": [29.0], "ssim": [0.95 - 0.5 * scale]}) == pytest.approx(1.0)


def test_text_reads_back_the_same() -> None:
    for text in ("psnr>=30", "q0.1(psnr)>=28.5,ssim>=0.95", "lpips<=0.05"):
        assert str(Budget.parse(text)) == text
        assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)
    assert Budget.parse("mean(psnr)>=30") == Budget.parse("psnr>=30")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read"),
        ("psnr", "has no bound"),
        ("psnr>30", "cannot read"),
        ("psnr>=thirty", "cannot read"),
        ("psnr>=3.0.1", "cannot read a number"),
        ("psmr>=30", "did you mean 'psnr'"),
        ("psnr<=30", "write psnr>=30"),
        ("lpips>=0.1", "write lpips<=0.1"),
        ("q1.5(psnr)>=30", "quantile"),
        ("q0(psnr)>=30", "quantile"),
        ("psnr>=130", "ranges from 0 to 100"),
        ("psnr>=30,psnr>=31", "twice"),
        ("psnr>=30,,ssim>=0.9", "cannot read"),
        ("psnr>=40,5,ssim>=0.9", "if 'psnr>=40,5' has a decimal comma, write a point, psnr>=40.5"),
        ("time<=1, 5s,psnr>=30", "if 'time<=1,5s' has a decimal comma, write a point, time<=1.5s"),
        ("tme<=8s", "cannot read the budget term 'tme<=8s': only time is bounded in s; write for example time<=8s"),
        ("psnr>=30,cach<=2gib", "'cach<=2gib': only cache is bounded in GiB; write for example cache<=2GiB"),
        ("psnr>=8dB", "cannot read the budget term 'psnr>=8dB': write for example"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(InvalidBudget, match=says) as error:
        Budget.parse(text)
    assert "\n" not in str(error.value)


def test_early_stop_is_sound_for_every_way_the_rest_may_turn_out() -> None:
    """Where some completion meets the budget the answer is yes, where it is no none does: checked by enumeration."""
    levels = [0.0, 20.0, 30.0, 40.0, 100.0]
    for text in ("psnr>=30", "q0.5(psnr)>=30", "q0.1(psnr)>=30", "psnr>=95"):
        budget = Budget.parse(text)
        for known in itertools.chain([()], itertools.product(levels, repeat=1), itertools.product(levels, repeat=2)):
            completions = itertools.product(levels, repeat=4 - len(known))
            possible = any(budget.violation({"psnr": [*known, *rest]}) <= 0 for rest in completions)
            assert budget.can_still_be_met({"psnr": list(known)}, 4) == possible, (text, known)


def test_early_stop_is_sound_where_lower_is_better() -> None:
    """The best that can still come of LPIPS is 0, and of an open end of its range nothing follows."""
    levels = [0.0, 0.05, 0.1, 0.4]
    for text in ("lpips<=0.1", "q0.5(lpips)<=0.05", "lpips<=0.02"):
        budget = Budget.parse(text)
        for known in itertools.chain(itertools.product(levels, repeat=1), itertools.product(levels, repeat=2)):
            completions = itertools.product(levels, repeat=4 - len(known))
            possible = any(budget.violation({"lpips": [*known, *rest]}) <= 0 for rest in completions)
            assert budget.can_still_be_met({"lpips": list(known)}, 4) == possible, (text, known)


def test_not_a_number_is_an_error_not_a_pass() -> None:
    with pytest.raises(NotFinite):
        Budget.parse("psnr>=30").violation({"psnr": [31.0, float("nan")]})


@pytest.mark.parametrize("name", ["psnr", "ssim", "lpips"])
def test_decibels_grow_with_quality_and_turn_back(name: str) -> None:
    metric = metric_called(name)
    values = {"psnr": [10.0, 30.0, 50.0], "ssim": [0.2, 0.9, 0.99], "lpips": [0.6, 0.1, 0.01]}[name]
    scaled = [metric.to_decibel(v) for v in values]
    assert scaled == sorted(scaled)
    assert [metric.from_decibel(s) for s in scaled] == pytest.approx(values)


@pytest.mark.parametrize("n", [1, 7, 8, 10, 20])
@pytest.mark.parametrize("percent", [1, 50, 90, 95, 100])
@pytest.mark.parametrize("text", ["psnr>=40", "lpips<=40"])
def test_a_share_counts_the_prompts_that_meet_the_bound(n: int, percent: int, text: str) -> None:
    budget = Budget.parse(f"p{percent}:{text}")
    (name,) = budget.metrics
    for good in range(n + 1):
        meets, misses = (41.0, 39.0) if name == "psnr" else (39.0, 41.0)
        values = [meets] * good + [misses] * (n - good)
        assert (budget.violation({name: values}) <= 0) is (100 * good >= percent * n), (good, n)
    assert Budget.parse(str(budget)) == budget


def test_budgets_say_what_they_mean() -> None:
    said = {
        "psnr>=40": "psnr at least 40 on average over the prompts",
        "p90:psnr>=45": "psnr at least 45 for at least 90 % of the prompts",
        "q0.1(psnr)>=45": "psnr at least 45 for at least 90 % of the prompts",
        "q0.9(psnr)>=45": "psnr at least 45 for at least 10 % of the prompts",
        "q0.9(lpips)<=0.1": "lpips at most 0.1 for at least 90 % of the prompts",
    }
    assert {text: Budget.parse(text).words for text in said} == said


def test_a_share_that_was_written_as_a_fraction_warns() -> None:
    (said,) = Budget.parse("p0.9:psnr>=45").warnings
    assert said == "p0.9:psnr>=45 asks this of 0.9 % of the prompts only; if you mean most of them, write p90:psnr>=45"
    assert Budget.parse("p1:psnr>=45").warnings and not Budget.parse("p2:psnr>=45").warnings


def test_a_lenient_quantile_warns_and_says_what_was_meant() -> None:
    assert Budget.parse("q0.1(psnr)>=45,p10:psnr>=45,q0.9(lpips)<=0.1").warnings == ()
    (warning,) = Budget.parse("q0.9(psnr)>=45").warnings
    assert "10 % of the prompts" in warning and "p90:psnr>=45" in warning
    assert len(Budget.parse("q0.1(lpips)<=0.1").warnings) == 1


@pytest.mark.parametrize("text", ["p0:psnr>=40", "p101:psnr>=40", "p:psnr>=40", "p90(psnr)>=40"])
def test_shares_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidBudget):
        Budget.parse(text)


values_of = st.lists(st.integers(0, 100).map(float), min_size=1, max_size=12)


@given(values_of, st.integers(1, 20), st.integers(0, 100), st.booleans())
def test_quantiles_and_shares_are_counted(values: list[float], twentieths: int, bound: int, higher: bool) -> None:
    """A quantile is the least value that at least q of all do not exceed; a share counts the prompts that are good."""
    exact = Fraction(twentieths, 20)
    name, sign = ("psnr", ">=") if higher else ("lpips", "<=")
    least = min(v for v in values if sum(w <= v for w in values) >= exact * len(values))
    budget = Budget.parse(f"q{float(exact)!r}({name}){sign}{bound}")
    assert budget.terms[0].statistic(values) == least
    assert (budget.violation({name: values}) <= 0) is (least >= bound if higher else least <= bound)
    share = Budget.parse(f"p{5 * twentieths}:{name}{sign}{bound}")
    good = sum(v >= bound if higher else v <= bound for v in values)
    assert (share.violation({name: values}) <= 0) is (good >= exact * len(values))
    for one in (budget, share):
        assert Budget.parse(str(one)) == one
        (term,) = one.terms
        assert term.violation(values) == pytest.approx((1 if higher else -1) * (bound - term.statistic(values)))
        assert one.margin({name: values}) * one.violation({name: values}) <= 0.0


@given(st.integers(1, 99), st.booleans())
def test_what_a_quantile_asks_of_the_prompts(percent: int, higher: bool) -> None:
    name, sign = ("psnr", ">=") if higher else ("lpips", "<=")
    (term,) = Budget.parse(f"q{percent / 100}({name}){sign}1").terms
    good, bad = (1.0, 0.5) if higher else (1.0, 1.5)
    n = 100
    fewest = next(k for k in range(n + 1) if term.violation([good] * k + [bad] * (n - k)) <= 0)
    # of 100 prompts a quantile of psnr lets percent - 1 of them miss: those that lie below the percent-th smallest
    assert fewest == (n - percent + 1 if higher else percent)
    assert term.asked == pytest.approx(1 - percent / 100 if higher else percent / 100)
    assert (term.lenient is not None) is (term.asked is not None and term.asked < 0.5)


@pytest.mark.parametrize("text", ["psnr>=0", "psnr>=100", "ssim>=1", "lpips<=0", "lpips<=1000"])
def test_the_ends_of_a_metrics_range_can_be_asked_for(text: str) -> None:
    assert str(Budget.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("psnr>=100.1", "psnr ranges from 0 to 100,"),
        ("psnr>=-0.1", "psnr ranges from 0 to 100,"),
        ("lpips<=-0.1", "lpips ranges from 0 to any number,"),
        ("psnr", "for example psnr>=40"),
        ("lpips", "for example lpips<=0.05"),
        ("p90:psnr>=40,p90:psnr>=41", "bounds p90:psnr twice"),
        ("q0.1(lpips)<=0.1,q0.1(lpips)<=0.2", r"bounds q0.1\(lpips\) twice"),
        ("cache<=1GiB,psnr>=30,cache<=2GiB", "limits the cache twice"),
        ("cache<=1GiB", "asks for no quality"),
    ],
)
def test_what_is_wrong_is_said_with_its_figures(text: str, says: str) -> None:
    with pytest.raises(InvalidBudget, match=says):
        Budget.parse(text)


def test_a_budget_says_what_was_reached() -> None:
    budget = Budget.parse("psnr>=30,p50:lpips<=0.1,q0.5(ssim)>=0.9,cache<=2GiB,time<=8s")
    values = {"psnr": [29.0, 30.02345], "lpips": [0.2, 0.05], "ssim": [0.5, 0.75]}
    assert budget.describe(values) == "psnr 29.51, p50:lpips 0.05, q0.5(ssim) 0.5"
    missed = {"psnr>=30": 0.488275, "p50:lpips<=0.1": -0.05, "q0.5(ssim)>=0.9": 0.4}
    assert budget.violations(values) == pytest.approx(missed)
    assert [limit.what for limit in budget.limits] == ["cache", "time"] and Budget.parse("psnr>=30").limits == ()
    assert budget.words.endswith(
        "and at most 2 GiB of cached values and at most 8 s for a call of the pipeline on this machine"
    )
    with pytest.raises(InvalidBudget, match="cannot be judged without a single value"):
        budget.violation({**values, "psnr": []})


def test_the_margin_is_the_smallest_slack_in_decibels() -> None:
    """PSNR is in decibels already; of SSIM 0.9 and 0.99 the shortfalls from 1 are a tenth of each other: 10 dB."""
    budget = Budget.parse("psnr>=30,ssim>=0.9")
    assert budget.margin({"psnr": [42.0], "ssim": [0.99]}) == pytest.approx(10.0, abs=1e-6)
    assert budget.margin({"psnr": [33.0], "ssim": [0.99]}) == pytest.approx(3.0)


def test_what_is_left_is_filled_with_the_best_or_with_what_can_be_expected() -> None:
    budget = Budget.parse("psnr>=30,lpips<=0.1")
    known = {"psnr": [20.0], "lpips": [0.3]}
    assert budget.completed(known, 3) == {"psnr": [20.0, 100.0, 100.0], "lpips": [0.3, 0.0, 0.0]}
    assert budget.completed({}, 1) == {"psnr": [100.0], "lpips": [0.0]}
    ceiling = {"psnr": [35.0, 36.0], "lpips": [0.01, 0.02]}
    assert budget.completed(known, 3, ceiling) == {"psnr": [20.0, 35.0, 36.0], "lpips": [0.3, 0.01, 0.02]}
    assert budget.can_still_be_met({"psnr": [20.0], "lpips": [0.0]}, 2, {"psnr": [40.0], "lpips": [0.2]})
    assert not budget.can_still_be_met({"psnr": [20.0], "lpips": [0.0]}, 2, {"psnr": [39.9], "lpips": [0.2]})


def test_bounds_of_one_metric_are_told_apart_and_it_is_measured_once() -> None:
    budget = Budget.parse("psnr>=30,p90:psnr>=25,q0.5(psnr)>=28,p50:psnr>=29,q0.5(lpips)<=0.1")
    assert budget.metrics == ("psnr", "lpips") and len(budget.terms) == 5
    values = {"psnr": [24.0, 30.0, 40.0], "lpips": [0.05, 0.2, 0.3]}
    assert budget.violations(values) == pytest.approx(
        {"psnr>=30": 30 - 94 / 3, "p90:psnr>=25": 1.0, "q0.5(psnr)>=28": -2.0, "p50:psnr>=29": -1.0,
         "q0.5(lpips)<=0.1": 0.1}
    )  # fmt: skip
    assert budget.violation(values) == pytest.approx(max(1.0, 0.1 / metric_called("lpips").unit))


def test_the_margin_of_a_metric_of_which_less_is_better() -> None:
    """Half of what is allowed is above it on the decibel scale, twice as much below it, by as much."""
    scale = metric_called("lpips").to_decibel
    budget = Budget.parse("lpips<=0.1")
    assert budget.margin({"lpips": [0.05]}) == pytest.approx(scale(0.05) - scale(0.1)) and scale(0.05) > scale(0.1)
    assert budget.margin({"lpips": [0.3, 0.1]}) == pytest.approx(scale(0.2) - scale(0.1))
    assert budget.margin({"lpips": [0.1]}) == 0.0 == budget.violation({"lpips": [0.1]})

"""A hopeless trial is stopped early, a promising one is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastercache.analysis.metrics import metric_called
from fastercache.tuner import Budget
from fastercache.tuner.early import Projection

BUDGET = Budget.parse("psnr>=30")


def test_nothing_is_stopped_without_evidence() -> None:
    assert Projection(BUDGET, 4, []).verdict({"psnr": [27.0]}) is None


def test_far_below_is_stopped_after_one_prompt_and_says_what_is_projected() -> None:
    reason = Projection(BUDGET, 4, []).verdict({"psnr": [12.0]})
    assert reason is not None and "1 of 4 prompts" in reason and "psnr 12" in reason


def test_what_cannot_be_met_any_more_is_stopped_whatever_is_projected() -> None:
    """Two of three prompts at 0 dB: even 100 dB on the third has a mean below 60."""
    lucky = [{"psnr": [0.0, 0.0, 100.0]}] * 9
    reason = Projection(Budget.parse("psnr>=60"), 3, lucky).verdict({"psnr": [0.0, 0.0]})
    assert reason is not None and "cannot be met any more" in reason


def test_a_hard_first_prompt_is_no_reason() -> None:
    """Where every trial is 8 dB worse on the first prompt, 24 dB there points to 32 dB elsewhere."""
    finished = [{"psnr": [level - 8, level, level, level]} for level in (28.0, 31.0, 34.0, 40.0)]
    assert Projection(BUDGET, 4, finished).verdict({"psnr": [24.0]}) is None
    assert Projection(BUDGET, 4, finished).verdict({"psnr": [12.0]}) is not None
    expected = Projection(BUDGET, 4, finished).expected({"psnr": [24.0]})["psnr"]
    assert all(29 < v < 32.5 for v in expected)


def test_the_projection_by_hand() -> None:
    """Two whole trials of three prompts, one that was cut short, and a third with two prompts known.

    Prompt effects: the sum over trials of what a prompt is off its trial's mean, over one trial more than there are.
    Variance: the residuals' squares and six of 2 dB, over (2 - 1) (3 - 1) + 6. Three spreads of a prompt and of the
    mean of the two known ones.
    """
    finished = [{"psnr": [30.0, 34.0, 38.0]}, {"psnr": [20.0, 21.0, 28.0]}, {"psnr": [1.0, 2.0]}]
    off = np.array([[-4.0, 0.0, 4.0], [-3.0, -2.0, 5.0]])
    effects = off.sum(axis=0) / 3
    spread = math.sqrt((((off - effects) ** 2).sum() + 6 * 2.0**2) / (2 + 6))
    level = (25.0 - effects[0] + 29.0 - effects[1]) / 2
    projection = Projection(BUDGET, 3, finished)
    known = {"psnr": [25.0, 29.0]}
    assert projection.expected(known)["psnr"] == pytest.approx([level + effects[2]])
    above = projection.expected(known, 3.0)["psnr"]
    assert above == pytest.approx([level + effects[2] + 3 * spread * math.sqrt(1 + 1 / 2)])
    assert projection.completed(known)["psnr"] == pytest.approx([25.0, 29.0, level + effects[2]])


def test_trials_that_would_meet_the_budget_are_rarely_stopped() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(0, 3, 6)
    finished = [{"psnr": (level + effects + rng.normal(0, 1, 6)).tolist()} for level in rng.uniform(24, 36, 8)]
    wrong = spared = hopeless = 0
    for level in rng.uniform(20, 34, 300):
        values = (level + effects + rng.normal(0, 1, 6)).tolist()
        meets = BUDGET.violation({"psnr": values}) <= 0
        stopped = any(Projection(BUDGET, 6, finished).verdict({"psnr": values[:k]}) for k in range(1, 6))
        wrong += meets and stopped
        hopeless += not meets and level < 26
        spared += not meets and level < 26 and stopped
    assert wrong == 0
    assert spared > 0.9 * hopeless


def test_each_metric_is_projected_on_a_scale_of_its_own() -> None:
    """LPIPS, of which less is better, in -10 log10 like PSNR in dB: what is above the projection is better there."""
    budget = Budget.parse("psnr>=30,lpips<=0.1")
    finished = [{"psnr": [30.0, 36.0], "lpips": [0.1, 0.001]}]
    scale = metric_called("lpips")
    off = [(np.array(row) - np.mean(row)) / 2 for row in ([30.0, 36.0], [scale.to_decibel(v) for v in (0.1, 0.001)])]
    projection = Projection(budget, 2, finished)
    known = {"psnr": [20.0], "lpips": [0.2]}
    starts = [20.0, scale.to_decibel(0.2)]
    levels = [start - effects[0] for start, effects in zip(starts, off, strict=True)]
    expected = projection.expected(known)
    assert expected["psnr"] == pytest.approx([levels[0] + off[0][1]])
    assert expected["lpips"] == pytest.approx([scale.from_decibel(levels[1] + off[1][1])])
    above = projection.expected(known, 3.0)
    spreads = [math.sqrt((2 * float((effects**2).sum()) / 2 + 24.0) / 6) for effects in off]
    assert above["psnr"] == pytest.approx([levels[0] + off[0][1] + 3 * spreads[0] * math.sqrt(2)])
    assert above["lpips"][0] < expected["lpips"][0]


@pytest.mark.parametrize(("missing", "stopped"), [(8.4, False), (8.6, True)])
def test_a_trial_is_stopped_where_three_spreads_are_too_few(missing: float, stopped: bool) -> None:
    """Without evidence the one prompt that is left is at most 3 x 2 dB x sqrt(2) = 8.49 dB above the first."""
    asked = Budget.parse(f"psnr>={21.0 + missing / 2:g}")
    assert (Projection(asked, 2, []).verdict({"psnr": [21.0]}) is not None) is stopped

"""Judging plans in groups beside whole fits, and what giving up and shared beginnings save."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastercache.tuner.planning.fitting import fit
from fastercache.tuner.planning.referee import Referee
from tests.tuner.planning.bare import STEPS, Pipe
from tests.tuner.planning.test_fitting import material

SEEDS = (0, 1, 2, 3)
GROUPS = ((0, 1), (2, 3))
GOOD, BETTER, POOR = (0, 1, 3, 6), (0, 1, 4, 6), (0, 1, 3, 7)  # of this toy: 46, 52 and 23 dB


@pytest.fixture(scope="module")
def work() -> tuple[Pipe, object, list[object]]:
    pipe = Pipe()
    sampler, runs = material(pipe, SEEDS)
    return pipe, sampler, runs


def errors(work, plan, group):  # type: ignore[no-untyped-def]
    pipe, sampler, runs = work
    return np.log(fit(pipe, [runs[i] for i in group], sampler, plan).errors[-1] + 1e-14)


def referee(work):  # type: ignore[no-untyped-def]
    pipe, sampler, runs = work
    return Referee(pipe, runs, sampler, GROUPS, 5)


def test_a_plan_without_a_rival_is_judged_by_all_groups(work) -> None:  # type: ignore[no-untyped-def]
    """Each group has weights of its own; the error is the mean over all prompts."""
    judged = referee(work)(GOOD, None)
    assert judged.error == pytest.approx(np.concatenate([errors(work, GOOD, g) for g in GROUPS]).mean(), rel=1e-9)
    assert judged.spent == pytest.approx(len(SEEDS) * len(GOOD) / STEPS)


def test_one_that_falls_behind_in_the_first_group_does_not_see_the_second(work) -> None:  # type: ignore[no-untyped-def]
    judge = referee(work)
    best = judge(GOOD, None)
    poor = judge(POOR, best)
    assert math.isinf(poor.error)
    assert poor.spent <= len(GROUPS[0]) * len(POOR) / STEPS


def test_one_that_keeps_up_is_judged_like_the_first(work) -> None:  # type: ignore[no-untyped-def]
    judge = referee(work)
    best = judge(GOOD, None)
    better = judge(BETTER, best)
    assert better.error == pytest.approx(np.concatenate([errors(work, BETTER, g) for g in GROUPS]).mean(), rel=1e-6)
    assert better.error < best.error


def test_a_common_beginning_is_not_computed_twice(work) -> None:  # type: ignore[no-untyped-def]
    """Two of four steps are common to both, with the same weights up to the second."""
    judge = referee(work)
    best = judge(GOOD, None)
    assert judge(BETTER, best).spent == pytest.approx(len(SEEDS) * 2 / STEPS)

"""Judging plans in groups beside whole fits, and what giving up and shared beginnings save."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fastercache.analysis.sampling import Relations
from fastercache.tuner.planning import referee as module
from fastercache.tuner.planning.fitting import FittedRuns, Steps, fit
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


# -- with runs that are made up ----------------------------------------------------------------------------------------
@dataclass
class Runs:
    """Stands in for `fit`: by group, named by its prompts, and plan, the ends of stretches and errors of two prompts.

    A run makes 10 denoiser calls for each stretch. What is asked on the way is written down.
    """

    courses: dict[tuple[tuple[str, ...], Steps], tuple[list[int], list[list[float]]]]
    given: list[dict[str, Any]] = field(default_factory=list)

    def fit(self, pipe: Any, runs: list[str], sampler: Any, plan: Steps, **words: Any) -> FittedRuns:
        self.given.append({"prompts": tuple(runs), "plan": plan, **words})
        ends, errors = self.courses[tuple(runs), plan]
        found = FittedRuns(plan)
        for end, error in zip(ends, errors, strict=True):
            found.ends.append(end)
            found.errors.append(np.array(error))
            found.calls += 10
            if end < ends[-1] and not words["go_on"](found):
                return found
        found.complete = True
        return found


@dataclass
class MadeUp:
    """What a referee reads of a sampler: 8 steps of 2 calls."""

    steps: int = STEPS
    relations: Any = field(default_factory=lambda: Relations(None, "", True, True, (0,), 2))


ONE, TWO = ("a", "b"), ("c", "d", "e")


def made_up(monkeypatch: pytest.MonkeyPatch, courses: dict[Any, Any]) -> tuple[Referee, Runs]:
    runs = Runs(courses)
    monkeypatch.setattr(module, "fit", runs.fit)
    sampler: Any = MadeUp()
    given: Any = ["a", "b", "c", "d", "e"]
    return Referee("a pipeline", given, sampler, ((0, 1), (2, 3, 4)), 3), runs


def course(
    *errors: float, ends: tuple[int, ...] = (1, 3, 6, 8), prompts: int = 2
) -> tuple[list[int], list[list[float]]]:
    return list(ends), [[error] * prompts for error in errors]


def test_the_error_is_the_mean_of_logarithms_over_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    last = ([1, 8], [[9.0, 9.0], [1e-2, 1e-4]])
    judge, runs = made_up(monkeypatch, {(ONE, GOOD): last, (TWO, GOOD): ([1, 8], [[9.0] * 3, [1e-3, 1e-5, 1e-7]])})
    judged = judge(GOOD, None)
    assert judged.error == pytest.approx(math.log(10.0) * -(2 + 4 + 3 + 5 + 7) / 5)
    assert judged.spent == pytest.approx(4 * 10 / (2 * STEPS)) and judged.computed == GOOD
    assert [(one["prompts"], one["history"], one["finish"]) for one in runs.given] == [(ONE, 3, False), (TWO, 3, False)]
    assert runs.given[0]["memory"] is not runs.given[1]["memory"], "each group has prompts of its own"


@pytest.mark.parametrize(
    ("third", "calls"),
    [(10.0**0.499, 40), (10.0**0.501, 30)],
    ids=["4.99 dB behind", "5.01 dB behind"],
)
def test_a_run_is_given_up_where_it_is_five_decibels_behind(
    monkeypatch: pytest.MonkeyPatch, third: float, calls: int
) -> None:
    """The incumbent's error at the step is on the line between the ends of its stretches, in the logarithm."""
    usual = 10.0 ** (-2 - 2 / 4)  # at step 5, halfway from 1e-2 at step 3 to 1e-3 at step 7
    courses = {
        (ONE, GOOD): course(1e-1, 1e-2, 1e-3, 1e-4, ends=(1, 3, 7, 8)),
        (ONE, POOR): course(1e9, 1e9, third * usual, 1e-4, ends=(1, 2, 5, 8)),
        (TWO, GOOD): course(1.0, prompts=3, ends=(8,)),
        (TWO, POOR): course(1.0, prompts=3, ends=(8,)),
    }
    judge, _ = made_up(monkeypatch, courses)
    best = judge(GOOD, None)
    judged = judge(POOR, best)
    assert math.isfinite(judged.error) is (calls == 40)
    assert judged.spent == pytest.approx((calls + 10 * (calls == 40)) / (2 * STEPS))


@pytest.mark.parametrize(("behind", "seen"), [(0.49, True), (0.51, False), (-3.0, True)])
def test_a_second_group_is_seen_by_those_at_most_half_a_decibel_behind(
    monkeypatch: pytest.MonkeyPatch, behind: float, seen: bool
) -> None:
    courses = {
        (ONE, GOOD): course(1e-3, ends=(8,)),
        (TWO, GOOD): course(1e-5, ends=(8,), prompts=3),
        (ONE, POOR): course(1e-3 * 10.0 ** (behind / 10.0), ends=(8,)),
        (TWO, POOR): course(1e-1, ends=(8,), prompts=3),
    }
    judge, runs = made_up(monkeypatch, courses)
    judged = judge(POOR, judge(GOOD, None))
    assert [one["prompts"] for one in runs.given[2:]] == ([ONE, TWO] if seen else [ONE])
    level = (2 * (-30.0 + behind) + 3 * -10.0) / 5
    assert -judged.decibels == (pytest.approx(level) if seen else math.inf), "the last group gives no plan up"


def test_the_best_so_far_is_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the scores of a worse plan nor what only it computed are kept."""
    courses = {(group, plan): course(error, ends=(8,), prompts=len(group)) for group in (ONE, TWO)
               for plan, error in ((GOOD, 1e-3), (BETTER, 1e-4), (POOR, 1e-3))}  # fmt: skip
    judge, _ = made_up(monkeypatch, courses)
    memory = judge._memories[0]
    begun = {plan: plan[:3] for plan in (GOOD, BETTER, POOR)}
    memory.kept = {begun[GOOD]: [], begun[BETTER]: []}
    first = judge(GOOD, None)
    assert set(memory.kept) == {begun[GOOD]}
    memory.kept[begun[BETTER]] = []
    second = judge(BETTER, first)
    assert set(memory.kept) == {begun[BETTER]} and second.error < first.error
    memory.kept[begun[GOOD]] = []
    judge(GOOD, second)
    assert set(memory.kept) == {begun[GOOD], begun[BETTER]}, "a worse one is no reason to forget"
    judge(BETTER, second)
    assert set(memory.kept) == {begun[GOOD], begun[BETTER]}, "nor is an equal one"

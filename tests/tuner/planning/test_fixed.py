"""Fixed predictors as weights of a plan, and as rivals of a fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.response import Response
from fastercache.analysis.sampling import Relations
from fastercache.analysis.trajectory import Trajectory, gram
from fastercache.experiments.jobs.planning_families import recorded, replays
from fastercache.policies.base import Hold
from fastercache.policies.predictors.fitted import Stretch
from fastercache.policies.predictors.history import Linear
from fastercache.policies.vocabulary import Step
from fastercache.tuner.planning import fixed as module
from fastercache.tuner.planning.fitting import FittedRuns, Sampler, fit, replay
from fastercache.tuner.planning.fixed import FIXED, better_of, fixed_weights, isolated, steps_of
from tests.tuner.planning.bare import Pipe
from tests.tuner.planning.test_damage import random_runs, residual
from tests.tuner.planning.test_fitting import PLAN, material

STEPS = 12


@pytest.mark.parametrize("family", ["latte", "wan-2.2"])
def test_weights_of_a_fixed_predictor_replay_it(family: str) -> None:
    specimen = zoo.build(family)
    sampler, found = recorded(specimen, (0, 1), STEPS)
    computed = tuple(sorted({0, 2, 3, 7, *sampler.relations.starts}))
    steps = steps_of(specimen.pipe.scheduler, sampler.response.times)
    for name, predictor in FIXED.items():
        weights = fixed_weights(predictor, computed, steps, sampler.relations.starts)
        ours = replay(specimen.pipe, found.runs, sampler, computed, weights, finish=True).results
        theirs = replays(specimen, STEPS, computed, predictor)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), name


def test_isolated_damage_of_least_squares_weights_is_the_residual() -> None:
    runs = random_runs(6)
    matrix = np.zeros((7, 7))
    matrix[-1, 1:] = runs.impulse
    times = runs.trajectory.times
    scale = np.full(6, 2.0)
    response = Response("memoryless", times, matrix, runs.a, runs.b, 0, scale, False, 0.0)
    sampler = Sampler(response, Relations(scale, "", True, True, (0,), 1))
    computed, stretches, expected = (0, 1, 4), [], 0.0
    for past, start, end in (([1, 0], 2, 4), ([4, 1, 0], 5, 6)):
        columns = [runs.outputs[:, s].ravel() for s in past] + [runs.latents[:, past[0]].ravel()]
        whole = sum(runs.impulse[m] * runs.outputs[:, m] for m in range(start, end)).ravel()
        best = np.linalg.lstsq(np.stack(columns, axis=1), whole / runs.impulse[start:end].sum(), rcond=None)[0]
        stretches.append(Stretch(after=past[0], start=start, outputs=tuple(best[:-1]), input=best[-1] / 2.0))
        expected += residual(runs, past, end)
    assert isolated(runs.trajectory, sampler, computed, stretches) == pytest.approx(expected, rel=1e-6)
    moved = [stretches[0].model_copy(update={"input": 0.1}), stretches[1]]
    assert isolated(runs.trajectory, sampler, computed, moved) > expected * 1.001


def test_the_better_one_is_kept_and_its_calls_are_counted() -> None:
    specimen = zoo.build("latte")
    sampler, found = recorded(specimen, (0, 1), STEPS)
    trajectory, computed = found.profile.trajectory, (0, 3, 6, 9)
    good = fit(specimen.pipe, found.runs, sampler, computed)
    spoilt = [s.model_copy(update={"outputs": (0.3 * s.outputs[0], *s.outputs[1:])}) for s in good.stretches]
    run = replay(specimen.pipe, found.runs, sampler, computed, spoilt, finish=True)
    poor = FittedRuns(computed, spoilt, good.ends, [*good.errors[:-1], run.errors], True, run.calls, run.results)
    best = better_of(specimen.pipe, found.runs, sampler, trajectory, poor)
    assert best.errors[-1].mean() < run.errors.mean() and best.calls > run.calls
    assert (best.calls - run.calls) % (len(computed) * 2) == 0
    whole = best.calls - run.calls
    for most, spent in ((whole, whole), (whole - 1, whole - len(computed) * 2), (len(computed) * 2 - 1, 0)):
        calls = poor.calls
        assert better_of(specimen.pipe, found.runs, sampler, trajectory, poor, most=most).calls == calls + spent
        poor.calls = run.calls
    policy = fc.Planned(steps=STEPS, computed=computed, stand_in=best.predictor)
    with fc.attach(specimen.pipe, policy):
        assert torch.equal(specimen.generate(steps=STEPS, seed=1), best.results[1])
    assert better_of(specimen.pipe, found.runs, sampler, trajectory, best).errors[-1].mean() <= best.errors[-1].mean()


def test_a_fit_far_ahead_is_not_questioned() -> None:
    pipe = Pipe()
    sampler, runs = material(pipe)
    products = np.stack([gram([*run.reference.latents, *run.reference.outputs]) for run in runs])
    trajectory = Trajectory(products, sampler.response.times, np.zeros((len(runs), 0, 0)))
    found = fit(pipe, runs, sampler, PLAN)
    assert better_of(pipe, runs, sampler, trajectory, found) is found
    assert found.calls == len(PLAN) * len(runs)


# -- which rivals are run, with runs that are made up ----------------------------------------------------------------
GOOD = (Stretch(after=0, start=1, outputs=(1.0,), input=0.5),)


class Reruns:
    """Stands in for `replay`: by the predictor's name, the errors of three prompts. A prompt takes 7 calls."""

    def __init__(self, errors: dict[str, list[float]]) -> None:
        self.errors, self.ran = errors, list[tuple[str, int, bool]]()

    def replay(self, pipe: Any, runs: Any, sampler: Any, computed: Any, weights: Any, finish: bool = False) -> Any:
        name = weights[0]
        self.ran.append((name, len(runs), finish))
        return SimpleNamespace(errors=np.array(self.errors[name][: len(runs)]), calls=7 * len(runs), results=[name])


def contest(
    monkeypatch: pytest.MonkeyPatch,
    damages: dict[str, float],
    errors: dict[str, list[float]],
    *,
    prompts: int = 3,
    left: float | list[float] = 1e-2,
    **words: Any,
) -> tuple[FittedRuns, Reruns]:
    """A fit of two computed steps that left these errors, or one of each prompt, beside rivals of these damages."""
    reruns = Reruns(errors)
    predictors: Any = {name: SimpleNamespace(depth=1 + place, name=name) for place, name in enumerate(damages)}
    monkeypatch.setattr(module, "FIXED", predictors)
    monkeypatch.setattr(module, "steps_of", lambda scheduler, times: [])
    monkeypatch.setattr(module, "fixed_weights", lambda predictor, *_: [predictor.name])
    monkeypatch.setattr(module, "isolated", lambda trajectory, sampler, computed, weights: damages[weights[0]])
    monkeypatch.setattr(module, "replay", reruns.replay)
    sampler: Any = SimpleNamespace(
        response=SimpleNamespace(times=None), relations=SimpleNamespace(starts=(0,), calls=2), input=None
    )
    pipe, trajectory, runs = SimpleNamespace(scheduler=None), None, list(range(prompts))
    errors_left = np.full(prompts, left)
    fitted = FittedRuns((0, 3), list(GOOD), [1, 6], [np.full(prompts, 9.0), errors_left], True, 100, ["fit"])
    found = better_of(pipe, runs, sampler, trajectory, fitted, **words)  # type: ignore[arg-type]
    return found, reruns


def alike(names: str) -> dict[str, list[float]]:
    """As good as the fit."""
    return {name: [1e-2] * 3 for name in names}


def test_rivals_within_eight_decibels_are_run_in_the_order_of_their_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1e-2 * 10.0**0.8
    damages = {"a": limit * 1.001, "b": limit * 0.999, "c": 1e-3, "d": limit}
    found, reruns = contest(monkeypatch, damages, alike("abcd"))
    assert reruns.ran == [(name, count, finish) for name in "cbd" for count, finish in ((2, False), (3, True))]
    assert found.stretches == list(GOOD) and found.results == ["fit"], "one that is as good is no better"
    assert found.calls == 100 + 3 * 5 * 7


def test_the_limit_of_a_rivals_damage_is_the_mean_over_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [1e-3, 2e-3, 27e-3]  # 1e-2 on average
    limit = 1e-2 * 10.0**0.8
    _, reruns = contest(monkeypatch, {"a": limit * 1.001, "b": limit * 0.999}, alike("ab"), left=left)
    assert {name for name, *_ in reruns.ran} == {"b"}


def test_the_best_of_all_prompts_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"a": [9e-3, 9e-3, 9e-3], "b": [8e-3, 9e-3, 7e-3], "c": [8e-3, 8e-3, 9e-3]}
    found, _ = contest(monkeypatch, dict.fromkeys(errors, 1e-2) | {"b": 2e-2}, errors)
    assert found.stretches == ["b"] and found.results == ["b"] and found.calls == 100 + 3 * 5 * 7
    assert [list(one) for one in found.errors] == [[9.0] * 3, errors["b"]]


@pytest.mark.parametrize(("behind", "runs"), [(0.99, [2, 3]), (1.01, [2])])
def test_one_that_is_a_decibel_behind_on_two_prompts_is_not_run_on_all(
    monkeypatch: pytest.MonkeyPatch, behind: float, runs: list[int]
) -> None:
    glance = 1e-2 * 10.0 ** (behind / 10.0)
    found, reruns = contest(monkeypatch, {"a": 1e-2, "b": 2e-2}, {"a": [glance] * 3, "b": [1e-3] * 3})
    assert [(name, count) for name, count, _ in reruns.ran] == [("a", count) for count in runs] + [("b", 2), ("b", 3)]
    assert found.stretches == ["b"] and found.calls == 100 + 7 * (sum(runs) + 5)


@pytest.mark.parametrize(
    ("left", "behind", "runs"),
    [([1e-2, 1e-2, 1e-1], 1.01, [2]), ([1e-2, 1e-2, 1e-5], 0.99, [2, 3]), ([5e-3, 15e-3, 1e-5], 0.99, [2, 3])],
)
def test_a_glance_is_held_to_the_fit_on_the_same_two_prompts(
    monkeypatch: pytest.MonkeyPatch, left: list[float], behind: float, runs: list[int]
) -> None:
    glance = 1e-2 * 10.0 ** (behind / 10.0)
    _, reruns = contest(monkeypatch, {"a": 1e-3}, {"a": [glance] * 3}, left=left)
    assert [count for _, count, _ in reruns.ran] == runs


def test_two_prompts_are_not_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    found, reruns = contest(monkeypatch, {"a": 1e-2}, {"a": [1e-3, 1e-3]}, prompts=2)
    assert reruns.ran == [("a", 2, True)] and found.stretches == ["a"]


@pytest.mark.parametrize(("most", "ran"), [(19, ""), (20, "a"), (54, "a"), (55, "ab"), (1e9, "abc")])
def test_rivals_are_run_while_their_calls_fit_in(monkeypatch: pytest.MonkeyPatch, most: float, ran: str) -> None:
    """2 computed steps of 2 calls on 5 prompts, 2 of them twice, are 20 calls; the runs made up take 35 in truth."""
    _, reruns = contest(monkeypatch, {"a": 1e-2, "b": 2e-2, "c": 3e-2}, alike("abc"), most=most)
    assert [name for name, count, _ in reruns.ran if count == 3] == list(ran)


def test_predictors_that_look_back_too_far_and_weights_that_were_tried_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The predictors made up look 1, 2 and 3 outputs back."""
    damages = {"a": 1e-2, "b": 2e-2, "c": 3e-2}
    errors = alike("abc")
    _, reruns = contest(monkeypatch, damages, errors, history=2)
    assert {name for name, *_ in reruns.ran} == {"a", "b"}
    original = contest(monkeypatch, damages, errors)[1].ran
    assert len(original) == 6
    found, none = contest(monkeypatch, {"a": 1.0}, errors)
    assert not none.ran and found.calls == 100


# -- weights and damage of fixed predictors by hand --------------------------------------------------------------------
def of(n: int, sigmas: bool = False) -> list[Step]:
    return [Step(k, n, 1000.0 - 100.0 * k, 1.0 - 0.1 * k if sigmas else None) for k in range(n)]


def test_holding_and_the_line_through_two_by_hand() -> None:
    """Steps of one distance: the line through steps r and s is at k: (1 + d) F_s - d F_r with d = (k - s) / (s - r)."""
    held = fixed_weights(Hold(), (0, 3, 4), of(6), (0, 4))
    assert held == [Stretch(after=0, start=1, outputs=(1.0,)), Stretch(after=4, start=5, outputs=(1.0,))]
    lines = fixed_weights(Linear(), (0, 2), of(5), (0,))
    assert [(one.after, one.start, one.input) for one in lines] == [(0, 1, 0.0), (2, 3, 0.0), (2, 4, 0.0)]
    np.testing.assert_allclose(lines[1].outputs, (1.5, -0.5))
    np.testing.assert_allclose(lines[2].outputs, (2.0, -1.0))
    alone = fixed_weights(Linear(), (0, 2), of(5), (0, 2))
    assert {one.outputs for one in alone} == {(1.0,)}, "values of another denoiser are no history"


@pytest.mark.parametrize("scale", [None, 2.0])
def test_isolated_damage_is_what_each_stretch_leaves_of_the_explicit_values(scale: float | None) -> None:
    runs = random_runs(7)
    matrix = np.zeros((8, 8))
    matrix[-1, 1:] = runs.impulse
    scales = None if scale is None else np.full(7, scale)
    response = Response("memoryless", runs.trajectory.times, matrix, runs.a, runs.b, 0, np.ones(7), False, 0.0)
    sampler = Sampler(response, Relations(scales, "", True, True, (0,), 1))
    stretches = [
        Stretch(after=0, start=1, outputs=(0.9,), input=0.3),
        Stretch(after=2, start=3, outputs=(1.4, -0.5), input=0.1),
        Stretch(after=2, start=4, outputs=(1.9, -0.8), input=0.0),
        Stretch(after=5, start=6, outputs=(1.2, -0.3, 0.2), input=-0.2),
    ]
    expected = 0.0
    for steps in ((1,), (3, 4), (6,)):
        error = np.zeros_like(runs.latents[:, 0])
        for k in steps:
            one = [s for s in stretches if s.start <= k][-1]
            past = [s for s in (5, 2, 0) if s < k]
            mixed = sum(w * runs.outputs[:, s] for w, s in zip(one.outputs, past, strict=False))
            mixed = mixed + one.input * (scale or 0.0) * runs.latents[:, past[0]]
            error += runs.impulse[k] * (runs.outputs[:, k] - mixed)
        expected += float(np.mean(error**2))
    assert isolated(runs.trajectory, sampler, (0, 2, 5), stretches) == pytest.approx(expected, rel=1e-9)
    exact = [Stretch(after=5, start=6, outputs=(1.0,))]
    same = random_runs(7)
    same.outputs[:, 6] = same.outputs[:, 5]
    assert 0.0 <= isolated(same.trajectory, sampler, (0, 1, 2, 3, 4, 5), exact) < 1e-12


def test_sigmas_are_told_where_the_scheduler_is_set_to_the_run_s_times() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    times, sigmas = scheduler.timesteps.double().numpy(), scheduler.sigmas.tolist()
    whole = steps_of(scheduler, times)
    assert [step.sigma for step in whole] == sigmas[:6] and [step.index for step in whole] == list(range(6))
    assert [step.timestep for step in whole] == times.tolist() and {step.count for step in whole} == {6}
    assert [step.sigma for step in steps_of(scheduler, times[2:])] == sigmas[2:6], "a run may begin in the middle"
    assert {step.sigma for step in steps_of(scheduler, times[:5])} == {None}, "of other times nothing is known"
    longer = np.concatenate([times, [0.0]])
    assert {step.sigma for step in steps_of(scheduler, longer)} == {None}
    scheduler.sigmas = scheduler.sigmas[:6]
    assert [step.sigma for step in steps_of(scheduler, times)] == sigmas[:6]
    scheduler.sigmas = scheduler.sigmas[:5]
    assert {step.sigma for step in steps_of(scheduler, times)} == {None}
    for bare in (SimpleNamespace(timesteps=scheduler.timesteps), SimpleNamespace(sigmas=scheduler.sigmas)):
        assert {step.sigma for step in steps_of(bare, times)} == {None}

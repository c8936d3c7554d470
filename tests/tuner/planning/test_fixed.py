"""Fixed predictors as weights of a plan, and as rivals of a fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.response import Response
from fastercache.analysis.sampling import Relations
from fastercache.analysis.trajectory import Trajectory, gram
from fastercache.experiments.jobs.planning_families import recorded, replays
from fastercache.policies.predictors.fitted import Stretch
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

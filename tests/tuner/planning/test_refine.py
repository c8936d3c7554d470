"""One Gauss-Newton step on all weights beside the same step in a bare loop, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastercache.analysis.sampling import RunValues
from fastercache.policies.predictors.fitted import Stretch
from fastercache.tuner.planning.fitting import Sampler, SearchRun, fit, replay
from fastercache.tuner.planning.refine import refine
from tests.tuner.planning.bare import SHAPE, STEPS, Loops, Pipe
from tests.tuner.planning.test_fitting import PLAN, material

Floats = NDArray[np.float64]
Work = tuple[Pipe, Sampler, list[SearchRun]]
SEEDS = (0, 1, 2, 3, 4)
FITTED, OTHERS = SEEDS[:3], SEEDS[3:]
LAMBDAS = (0.1, 0.01, 0.001, 0.0001)


@pytest.fixture(scope="module")
def work() -> Work:
    pipe = Pipe()
    return (pipe, *material(pipe, SEEDS))


def cached(seeds: Sequence[int], stretches: Sequence[Stretch]) -> Loops:
    def rule(k: int, loops: Loops) -> Floats | None:
        if k in PLAN:
            return None
        serving = [stretch for stretch in stretches if stretch.start <= k][-1]
        past = [s for s in PLAN if s < k][::-1]
        mixed = sum(w * loops.outputs[s] for w, s in zip(serving.outputs, past, strict=False))
        return np.asarray(mixed + serving.input * loops.latents[past[0]])

    return Loops.run(seeds, rule)


def behind(seeds: Sequence[int], stretches: Sequence[Stretch]) -> Floats:
    """(P, d) x*_n - x_n."""
    return Loops.run(seeds).latents[-1] - cached(seeds, stretches).latents[-1]


def decibels(errors: Floats) -> float:
    return float(np.mean(-10.0 * np.log10(np.mean(errors**2, axis=1))))


def varied(stretch: Stretch, feature: int, step: float) -> Stretch:
    """More of [F_s, F_s - F_r, F_r - F_q ..., x_s]."""
    weights = [*stretch.outputs, stretch.input]
    weights[feature] -= step if 0 < feature < len(stretch.outputs) else -step
    if 0 < feature < len(stretch.outputs):
        weights[feature - 1] += step
    return Stretch(after=stretch.after, start=stretch.start, outputs=tuple(weights[:-1]), input=weights[-1])


def by_hand(stretches: Sequence[Stretch], off: Floats | float = 0.0) -> list[list[Stretch]]:
    """The candidates, one for each lambda. `off`: what the reference's last latent is moved by."""
    run, error = cached(FITTED, stretches), behind(FITTED, stretches) + off
    amount = np.sqrt(np.mean(error**2))
    length = np.linalg.norm(error, axis=1, keepdims=True)
    columns, steps, places = [], [], []
    for q, stretch in enumerate(stretches):
        past = [s for s in PLAN if s <= stretch.after][::-1][: len(stretch.outputs)]
        parts = [run.outputs[past[0]], *(run.outputs[a] - run.outputs[b] for a, b in itertools.pairwise(past))]
        parts.append(run.latents[past[0]])
        held = run.sigmas[min([s for s in PLAN if s > stretch.start], default=STEPS)] - run.sigmas[stretch.start]
        for f, part in enumerate(parts):
            steps.append(amount / (abs(held) * np.sqrt(np.mean(part**2))))
            places.append((q, f))
            moved = [*stretches[:q], varied(stretch, f, steps[-1]), *stretches[q + 1 :]]
            columns.append(((error - behind(FITTED, moved) - off) / length).ravel())
    jacobian = np.stack(columns, axis=1)
    normal, right = jacobian.T @ jacobian, jacobian.T @ (error / length).ravel()
    found = []
    for damping in LAMBDAS:
        solved = np.linalg.solve(normal + damping * np.mean(np.diagonal(normal)) * np.eye(len(normal)), right)
        candidate = list(stretches)
        for (q, f), delta in zip(places, solved * steps, strict=True):
            candidate[q] = varied(candidate[q], f, delta)
        found.append(candidate)
    return found


def numbers(stretches: Sequence[Stretch]) -> Floats:
    return np.array([number for stretch in stretches for number in (*stretch.outputs, stretch.input)])


def test_the_candidate_that_gains_most_on_other_prompts_is_taken(work: Work) -> None:
    pipe, sampler, runs = work
    stretches = fit(pipe, runs[:3], sampler, PLAN, history=3).stretches
    told: list[tuple[int, int]] = []
    found = refine(
        pipe, runs[:3], runs[3:], sampler, PLAN, stretches, told=lambda done, total: told.append((done, total))
    )
    levels = [decibels(behind(OTHERS, candidate)) for candidate in by_hand(stretches)]
    before = decibels(behind(OTHERS, stretches))
    assert max(levels) > before
    best = int(np.argmax(levels))
    assert found.gain == pytest.approx(levels[best] - before, abs=2e-2)
    change = numbers(by_hand(stretches)[best]) - numbers(stretches)
    np.testing.assert_allclose(numbers(found.stretches) - numbers(stretches), change, atol=2e-2 * np.abs(change).max())
    assert [(s.after, s.start) for s in found.stretches] == [(s.after, s.start) for s in stretches]
    weights = [len(stretch.outputs) + 1 for stretch in stretches]
    assert told == [(done, sum(weights)) for done in range(sum(weights))]
    later = [sum(step > stretch.after for step in PLAN) for stretch in stretches]
    varying = sum(count * calls for count, calls in zip(weights, later, strict=True)) * len(FITTED)
    assert found.calls == len(PLAN) * len(FITTED) + varying + (1 + len(LAMBDAS)) * len(PLAN) * len(OTHERS)


def test_each_prompt_counts_alike_however_far_off_it_is(work: Work) -> None:
    """The reference of the first prompt has another last output, so its error is many times that of the others."""
    pipe, sampler, runs = work
    stretches = fit(pipe, runs[:3], sampler, PLAN, history=3).stretches
    last = runs[0].reference.outputs[-1]
    other = RunValues(runs[0].reference.latents, [*runs[0].reference.outputs[:-1], last * 9.0])
    far = [SearchRun(runs[0].generate, other), *runs[1:3]]
    loops = Loops.run(FITTED)
    off = np.zeros((3, 1)) * loops.outputs[-1]
    off[0] = (loops.sigmas[-1] - loops.sigmas[-2]) * 8.0 * loops.outputs[-1][0]
    lengths = np.linalg.norm(behind(FITTED, stretches) + off, axis=1)
    assert lengths[0] > 3 * lengths[1:].max()
    found = refine(pipe, far, runs[3:], sampler, PLAN, stretches)
    candidates = by_hand(stretches, off)
    levels = [decibels(behind(OTHERS, candidate)) for candidate in candidates]
    before = decibels(behind(OTHERS, stretches))
    assert found.gain == pytest.approx(max(0.0, max(levels) - before), abs=5e-2)
    assert max(levels) > before


def test_weights_that_no_candidate_betters_stay(work: Work) -> None:
    """The prompt that decides has the cached run itself as its reference, so nothing comes nearer to it."""
    pipe, sampler, runs = work
    stretches = fit(pipe, runs[:1], sampler, PLAN, history=1).stretches
    outputs = [torch.from_numpy(output).float().reshape(SHAPE) for output in cached(OTHERS[:1], stretches).outputs]
    own = SearchRun(runs[3].generate, RunValues([], outputs))
    found = refine(pipe, runs[:1], [own], sampler, PLAN, stretches)
    assert found.stretches == stretches and found.gain == 0.0


def test_a_sampler_whose_latent_is_no_feature_has_weights_of_outputs_alone(work: Work) -> None:
    pipe, sampler, runs = work
    response = sampler.response
    blind: Any = type(sampler)(response, type(sampler.relations)(None, "hidden", True, True, (0,), 1))
    stretches = fit(pipe, runs[:1], blind, PLAN, history=1).stretches
    assert all(stretch.input == 0.0 for stretch in stretches)
    found = refine(pipe, runs[:1], runs[:1], blind, PLAN, stretches)
    assert all(stretch.input == 0.0 for stretch in found.stretches)
    errors = replay(pipe, runs[:1], blind, PLAN, found.stretches).errors
    before = replay(pipe, runs[:1], blind, PLAN, stretches).errors
    assert found.gain == pytest.approx(float(np.mean(-10.0 * np.log10(errors / before))), abs=1e-6) and found.gain > 0

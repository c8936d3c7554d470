"""Predictors with fixed weights as rivals of a fit, where the recording says that they come near it.

A fit brings each stretch's end as close to the uncached run as its features allow. It does not know what the denoiser
makes of what is left, so weights that are a little worse at each end can be a little better in the end. On real models
the fit is ahead by 10 dB and more, and nothing is run here. Where the isolated damage of a fixed predictor is within
`NEAR` of the error that the fit left, as with random weights, it is run too, and the better one is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastercache.analysis.predictability import weights_at
from fastercache.analysis.trajectory import Floats, Trajectory
from fastercache.policies.base import Hold, Predictor
from fastercache.policies.predictors.fitted import Stretch
from fastercache.policies.predictors.forecasts import AverageVelocity, FoCaForecast, Hermite
from fastercache.policies.predictors.history import Linear, Taylor
from fastercache.policies.vocabulary import Step
from fastercache.tuner.planning.fitting import FittedRuns, Sampler, SearchRun, Steps, replay

FIXED: dict[str, Predictor] = {
    "hold": Hold(),
    "linear": Linear(),
    "taylor 1": Taylor(order=1),
    "taylor 2": Taylor(order=2),
    "hermite": Hermite(),
    "foca": FoCaForecast(),
    "average velocity": AverageVelocity(),
}
"""The predictors whose weights depend on the steps alone."""

NEAR = 8.0
"""dB of isolated damage over the fit's error up to which a fixed predictor is run. With random weights FoCa was seen to
come out better than a fit from 6.4 dB above it."""

LOOK, BEHIND = 2, 1.0
"""A rival is run on so many prompts first, and on all of them if it is at most so many dB behind the fit there."""


def fixed_weights(predictor: Predictor, computed: Steps, steps: Sequence[Step], starts: Sequence[int]) -> list[Stretch]:
    """The weights of a linear predictor at every skipped step, read off unit vectors.

    Args:
        steps: all steps of the run. starts: first step of each denoiser; values of another one are no history.
    """
    found: list[Stretch] = []
    for k in range(len(steps)):
        if k in computed:
            continue
        begun = max(start for start in starts if start <= k)
        past = [s for s in computed if begun <= s < k][-predictor.depth :]
        weights = tuple(weights_at(predictor, [steps[s] for s in past], steps[k]).tolist()[::-1])
        if not found or (found[-1].after, found[-1].outputs) != (past[-1], weights):
            found.append(Stretch(after=past[-1], start=k, outputs=weights, input=0.0))
    return found


def isolated(trajectory: Trajectory, sampler: Sampler, computed: Steps, stretches: Sequence[Stretch]) -> float:
    """Damage of given weights as `Damage` has it: each stretch by itself, from the uncached runs' inner products."""
    gram = trajectory.products.mean(axis=0)
    impulse, scales = sampler.impulse, sampler.input
    total, error = 0.0, np.zeros(len(gram))
    for k in range(sampler.steps):
        if k not in computed:
            serving = [s for s in stretches if s.start <= k][-1]
            error[trajectory.output(k)] += impulse[k]
            past = [s for s in computed if s <= serving.after][::-1]
            for step, weight in zip(past, serving.outputs, strict=False):
                error[trajectory.output(step)] -= impulse[k] * weight
            if scales is not None:
                error[trajectory.latent(serving.after)] -= impulse[k] * serving.input * scales[serving.after]
        if k + 1 in computed or k + 1 == sampler.steps:
            total += max(float(error @ gram @ error), 0.0)
            error = np.zeros(len(gram))
    return total


def steps_of(scheduler: Any, times: Floats) -> list[Step]:
    """The steps of a run, with sigmas where the scheduler is still set to the same timesteps."""
    n = len(times)
    sigmas: list[float | None] = [None] * n
    known, raw = getattr(scheduler, "timesteps", None), getattr(scheduler, "sigmas", None)
    if known is not None and raw is not None and len(known) >= n:
        first = len(known) - n
        values = torch.as_tensor(raw).flatten().tolist()
        if np.allclose(torch.as_tensor(known).double().flatten()[first:].numpy(), times) and len(values) >= first + n:
            sigmas = [float(v) for v in values[first : first + n]]
    return [Step(i, n, float(t), sigma) for i, (t, sigma) in enumerate(zip(times, sigmas, strict=True))]


def better_of(
    pipe: Any,
    runs: Sequence[SearchRun],
    sampler: Sampler,
    trajectory: Trajectory,
    found: FittedRuns,
    *,
    history: int = 16,
    most: float = math.inf,
) -> FittedRuns:
    """A fit that was run to its end, or the fixed predictor that comes out better on the same prompts.

    `calls` counts what was run to decide.

    Args:
        history: predictors that combine more past outputs are left out.
        most: denoiser calls that may be made for it: rivals are run in the order of their isolated damage while they
            fit in.
    """
    if not found.stretches:
        return found
    limit = float(np.mean(found.errors[-1])) * 10.0 ** (NEAR / 10.0)
    steps = steps_of(pipe.scheduler, sampler.response.times)
    rivals: list[tuple[float, list[Stretch]]] = []
    for predictor in FIXED.values():
        if predictor.depth > history:
            continue
        weights = fixed_weights(predictor, found.computed, steps, sampler.relations.starts)
        damage = isolated(trajectory, sampler, found.computed, weights)
        if damage <= limit and all(weights != other for _, other in rivals):
            rivals.append((damage, weights))
    best, calls = found, found.calls
    one = len(found.computed) * sampler.relations.calls
    look = runs[:LOOK] if len(runs) > LOOK else []
    near = float(np.mean(found.errors[-1][: len(look)])) * 10.0 ** (BEHIND / 10.0) if look else math.inf
    for _, weights in sorted(rivals, key=lambda rival: rival[0]):
        if calls - found.calls + one * (len(look) + len(runs)) > most:
            break
        if look:
            glance = replay(pipe, look, sampler, found.computed, weights)
            calls += glance.calls
            if float(np.mean(glance.errors)) > near:
                continue
        run = replay(pipe, runs, sampler, found.computed, weights, finish=True)
        calls += run.calls
        if float(np.mean(run.errors)) < float(np.mean(best.errors[-1])):
            errors = [*found.errors[:-1], run.errors]
            best = replace(found, stretches=weights, errors=errors, results=run.results)
    return replace(best, calls=calls) if rivals else best

"""The last stage: all weights of a plan together towards the last latent, by Gauss-Newton with a validation set.

The fit in one pass is greedy: each stretch is brought as near to the reference as it can be, whatever that does later.
Here the effect of every weight on the last latent is measured by forward differences on the cached runs. A stretch's
weights change the run from its end on only, so everything before is shared. With e_p = x*_n - x_n of prompt p,

    min_delta  sum_p 1 / |e_p|² || e_p - J_p delta ||² + lambda sum_f (size_f delta_f)²

is solved for several lambda; which of them is used, or none, is decided by replaying other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastercache.analysis.trajectory import Floats, gram
from fastercache.policies.predictors.fitted import Stretch
from fastercache.tuner.planning.fitting import Memory, Sampler, SearchRun, Steps, replay

DAMPING = (1e-1, 1e-2, 1e-3, 1e-4)
"""lambda, relative to the mean diagonal of the normal equations."""


@dataclass(frozen=True)
class Refined:
    """Weights after the stage, the better of before and after on the validation prompts.

    Attributes:
        gain: dB that the validation prompts gained; 0 where the weights were left as they were.
        calls: denoiser calls made.
    """

    stretches: list[Stretch]
    gain: float
    calls: int


def refine(
    pipe: Any,
    runs: Sequence[SearchRun],
    validation: Sequence[SearchRun],
    sampler: Sampler,
    computed: Steps,
    stretches: Sequence[Stretch],
    *,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """One damped Gauss-Newton step on all weights.

    Args:
        runs: the prompts that the weights were fitted on. validation: others, which decide.
        told: progress: weights varied so far, and in all.
    """
    memory = Memory()
    base = replay(pipe, runs, sampler, computed, stretches, memory=memory)
    calls = base.calls
    amount = float(np.sqrt(base.errors.mean()))
    names = [(q, f) for q, stretch in enumerate(stretches) for f in range(_features(sampler, stretch))]
    vectors = [[tensor / tensor.norm().clamp(min=1e-30)] for tensor in base.behind]
    scales: list[float] = []
    for number, (q, f) in enumerate(names):
        told(number, len(names))
        stretch = stretches[q]
        held = _weight(sampler, stretch, computed)
        size = float(base.sizes[q][f if f < len(stretch.outputs) else -1])
        step = amount / max(abs(held) * size, 1e-30)
        varied = [*stretches[:q], _varied(sampler, stretch, f, step), *stretches[q + 1 :]]
        kept = Memory({key: value for key, value in memory.kept.items() if key[-1] <= stretch.after})
        moved = replay(pipe, runs, sampler, computed, varied, memory=kept, keep=False)
        calls += moved.calls
        scales.append(step)
        for p, (was, now) in enumerate(zip(base.behind, moved.behind, strict=True)):
            vectors[p].append((was - now) / was.norm().clamp(min=1e-30))
    total = sum((gram(v) * v[0].numel() for v in vectors), np.zeros((len(names) + 1, len(names) + 1)))
    before = replay(pipe, validation, sampler, computed, stretches)
    calls += before.calls
    best, level = list(stretches), _decibels(before.errors)
    start = level
    for damping in DAMPING:
        normal = total[1:, 1:] + damping * float(np.diagonal(total)[1:].mean()) * np.eye(len(names))
        delta = np.linalg.solve(normal, total[1:, 0]) * scales
        candidate = list(stretches)
        for (q, f), change in zip(names, delta, strict=True):
            candidate[q] = _varied(sampler, candidate[q], f, float(change))
        tried = replay(pipe, validation, sampler, computed, candidate)
        calls += tried.calls
        if _decibels(tried.errors) > level:
            best, level = candidate, _decibels(tried.errors)
    return Refined(best, level - start, calls)


def _decibels(errors: Floats) -> float:
    return float(np.mean(-10.0 * np.log10(errors + 1e-14)))


def _features(sampler: Sampler, stretch: Stretch) -> int:
    return len(stretch.outputs) + (sampler.input is not None)


def _weight(sampler: Sampler, stretch: Stretch, computed: Steps) -> float:
    """H: what the last latent moves per change of the output held over the stretch."""
    end = next((step for step in computed if step > stretch.start), sampler.steps)
    return float(sampler.impulse[stretch.start : end].sum())


def _varied(sampler: Sampler, stretch: Stretch, feature: int, step: float) -> Stretch:
    """The stretch with more of one feature: the newest output, a difference of neighbours, or the latent."""
    outputs, source = list(stretch.outputs), stretch.input
    if feature == len(outputs):
        assert sampler.input is not None
        source += step / float(sampler.input[stretch.after])
    elif feature == 0:
        outputs[0] += step
    else:
        outputs[feature - 1] += step
        outputs[feature] -= step
    return Stretch(after=stretch.after, start=stretch.start, outputs=tuple(outputs), input=source)

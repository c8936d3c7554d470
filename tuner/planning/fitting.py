"""Weights for a given set of computed steps, fitted on the cached runs themselves in one pass.

All prompts run together, stretches in order. Let U_m be the output that the cached run used at step m (computed or
predicted), F*_m the reference's, and h_m the sampler's impulse response (what the last latent moves per change of the
output at step m). The sampler is linear and both runs start from the same noise, so the cached run's last latent is off
by

    x_n - x*_n = sum_m h_m (U_m - F*_m).

After computing step s, one output Fhat is held over the skipped steps s + 1 .. j - 1. Demanding that the sum up to j be
zero gives its target, which repairs what earlier stretches did wrong, and least squares over all prompts its weights:

    H Fhat ~ sum_{m<j} h_m F*_m - sum_{m<=s} h_m U_m,    H = sum_{m=s+1}^{j-1} h_m,
    Fhat = sum_p w_p F_{s_p} + w_x x_s.

For a sampler x_{k+1} = a_k x_k + b_k F_k that is the same as steering x_j to x*_j; the form above also covers samplers
that look back at earlier outputs. Where the sampler is not linear (clipping), or what the pipeline hands it is not a
fixed combination of the denoiser's outputs, each skipped step is fitted to the reference's output by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from fastercache.analysis.least_squares import ridge
from fastercache.analysis.response import Response
from fastercache.analysis.sampling import Relations, RunValues
from fastercache.analysis.trajectory import Floats, gram
from fastercache.model.layout import rebuild_output
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.predictors.fitted import Fitted, Stretch, adds_input, mixed
from fastercache.run.sampler import DenoiserCall, SamplerStep
from fastercache.tuner.planning.lockstep import Generate, Lockstep

Steps = tuple[int, ...]
Calls = list[tuple[DenoiserCall, ...]]
"""The denoiser calls of one step, for each run."""

RIDGE = 1e-10
"""Added to the diagonal of the normal equations of unit columns."""


@dataclass(frozen=True)
class SearchRun:
    """One search prompt: how to generate it (only its latent), and its uncached run."""

    generate: Generate
    reference: RunValues


@dataclass(frozen=True)
class Sampler:
    """What fitting needs of the sampler: its response, and how the denoiser's calls relate to it."""

    response: Response
    relations: Relations

    @property
    def steps(self) -> int:
        return self.response.steps

    @property
    def held(self) -> bool:
        """Whether one output is held over a stretch and steered to the reference; otherwise each step by itself."""
        return self.response.kind != "nonlinear" and self.relations.guided and self.relations.steady

    @property
    def input(self) -> Floats | None:
        """c_k where the denoiser's input is c_k x_k, so that it can be a feature."""
        return self.relations.input if self.held else None

    @property
    def impulse(self) -> Floats:
        return self.response.impulse

    def first_of(self, step: int) -> int:
        """The first step of the denoiser that runs at `step`: values of another denoiser are no history of it."""
        return max(start for start in self.relations.starts if start <= step)


@dataclass
class FittedRuns:
    """Cached runs of some prompts under a fitted plan.

    Attributes:
        computed: its steps. stretches: the weights.
        ends: where each stretch ended. errors: for each, (P,): mean squared error that the last latent has by then.
        complete: whether it was run to the end.
        calls: denoiser calls made.
        results: what the generations returned, if they were run to the end.
    """

    computed: Steps
    stretches: list[Stretch] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    errors: list[Floats] = field(default_factory=list)
    complete: bool = False
    calls: int = 0
    results: list[Any] = field(default_factory=list)

    @property
    def predictor(self) -> Fitted | None:
        """The weights as a predictor; None where every step is computed."""
        return Fitted(stretches=tuple(self.stretches), variance=True) if self.stretches else None


@dataclass
class Memory:
    """Outputs of computed steps by the plan's `beginning` up to them: plans with one beginning share its calls."""

    kept: dict[Steps, Calls] = field(default_factory=dict)

    def only(self, whole: Steps) -> None:
        """Forget what belongs to other plans than one, `beginning` of its last step."""
        self.kept = {begun: calls for begun, calls in self.kept.items() if begun == whole[: len(begun)]}


def beginning(computed: Collection[int], exact: Collection[int], step: int) -> Steps:
    """The steps that a run computes up to one, in order; ~k for a step k whose output no stand-in combines."""
    return tuple(k if k in computed else ~k for k in sorted({*computed, *exact}) if k <= step)


def fit(
    pipe: Any,
    runs: Sequence[SearchRun],
    sampler: Sampler,
    computed: Steps,
    *,
    history: int = 5,
    ridge: float = RIDGE,
    exact: Collection[int] = (),
    memory: Memory | None = None,
    go_on: Callable[[FittedRuns], bool] = lambda found: True,
    finish: bool = True,
) -> FittedRuns:
    """Run all prompts under a plan and fit its weights on the way.

    Args:
        runs: the prompts. computed: the plan's steps, rising; the first of every denoiser is among them.
        history: K, how many computed outputs a stand-in combines.
        exact: steps beside the plan's at which the denoiser is computed too. The run uses what it gives, but no
            stand-in combines it. They are whole stretches.
        memory: outputs known from plans with the same beginning; what this plan computes is added.
        go_on: asked after each stretch; False gives the plan up.
        finish: whether the generations are run to their end, and `results` filled.

    Raises:
        FasterCacheError: if the plan does not compute the first step of each denoiser.
    """
    missing = set(sampler.relations.starts) - set(computed)
    if missing:
        raise FasterCacheError(f"a plan computes the first step of each denoiser: step {min(missing)} is left out")
    work = _Work(sampler, [run.reference for run in runs], history, ridge)
    found = FittedRuns(computed)
    chosen, every = set(computed), {*computed, *exact}
    with Lockstep(pipe, [run.generate for run in runs]) as lock:
        lock.start()
        for k in range(sampler.steps):
            if k in every:
                steps = _computed(lock, memory, beginning(computed, exact, k))
                (work.computed if k in chosen else work.used)(steps)
            else:
                stretch = work.stretch(k, computed)
                if not found.stretches or found.stretches[-1] != stretch:
                    found.stretches.append(stretch)
                steps = lock.advance(work.answer(stretch))
                work.used(steps)
            if k + 1 == sampler.steps or k + 1 in chosen:
                found.ends.append(k + 1)
                found.errors.append(work.errors())
                found.calls = lock.computed
                if k + 1 < sampler.steps and not go_on(found):
                    return found
        found.complete = True
        if finish:
            found.results = lock.results()
        found.calls = lock.computed
    return found


@dataclass(frozen=True)
class Replayed:
    """Prompts run under a plan with given weights.

    Attributes:
        behind: for each prompt, x*_n - x_n. calls: denoiser calls made. results: what the generations returned.
        sizes: for each stretch, root mean squares over all prompts of the outputs that its weights combine, of the
            differences between neighbours, and of the latent: (newest, differences ..., latent).
    """

    behind: list[Tensor]
    calls: int
    results: list[Any]
    sizes: list[Floats]

    @property
    def errors(self) -> Floats:
        """(P,) mean squared error of each last latent."""
        return np.array([float(tensor.square().mean()) for tensor in self.behind])


def replay(
    pipe: Any,
    runs: Sequence[SearchRun],
    sampler: Sampler,
    computed: Steps,
    stretches: Sequence[Stretch],
    *,
    exact: Collection[int] = (),
    memory: Memory | None = None,
    keep: bool = True,
    finish: bool = False,
    variance: bool | None = True,
) -> Replayed:
    """Run prompts under a plan with given weights.

    Args:
        exact: see `fit`.
        memory: outputs known from a run with the same beginning *and the same weights up to there*.
        keep: whether what is computed is added to the memory. finish: whether the generations are run to their end.
        variance: what `Fitted.variance` says of these weights.
    """
    depth = max((len(s.outputs) for s in stretches), default=1)
    work = _Work(sampler, [run.reference for run in runs], depth, RIDGE, variance)
    chosen, every = set(computed), {*computed, *exact}
    sizes: list[Floats] = []
    with Lockstep(pipe, [run.generate for run in runs]) as lock:
        lock.start()
        for k in range(sampler.steps):
            if k in every:
                steps = _computed(lock, memory, beginning(computed, exact, k), keep)
                (work.computed if k in chosen else work.used)(steps)
            else:
                serving = [stretch for stretch in stretches if stretch.start <= k][-1]
                if serving.start == k:
                    sizes.append(work.sizes())
                work.used(lock.advance(work.answer(serving)))
        results = lock.results() if finish else []
        calls = lock.computed
    return Replayed(work.behind, calls, results, sizes)


def _computed(lock: Lockstep, memory: Memory | None, begun: Steps, keep: bool = True) -> list[SamplerStep]:
    """A step of all runs with its outputs, from the memory where a plan with the same beginning made them."""
    if memory is None:
        return lock.advance()
    steps = lock.advance(_recalled(memory.kept.get(begun)))
    if keep:
        memory.kept[begun] = [step.calls for step in steps]
    return steps


def _recalled(known: Calls | None) -> Callable[[int, int, int, Tensor], Any | None]:
    """Answers with outputs that are known, or computes."""
    if known is None:
        return lambda run, call, denoiser, source: None
    return lambda run, call, denoiser, source: rebuild_output(known[run][call].template, known[run][call].outputs)


class _Work:
    """The state of a fit: what the runs have computed, and how far their last latents are off by now."""

    def __init__(
        self,
        sampler: Sampler,
        references: Sequence[RunValues],
        history: int,
        ridge: float,
        variance: bool | None = True,
    ) -> None:
        self.sampler, self.references, self.history, self.ridge = sampler, references, history, ridge
        self.variance = variance
        self.steps: list[list[SamplerStep]] = []  # newest first, those of the denoiser that runs now
        self.behind = [values.outputs[0].new_zeros(values.outputs[0].shape).double() for values in references]
        self._stretch: Stretch | None = None

    def computed(self, steps: list[SamplerStep]) -> None:
        first = self.sampler.first_of(steps[0].index)
        self.steps = [steps, *(older for older in self.steps if older[0].index >= first)][: self.history]
        self.used(steps)
        self._stretch = None

    def used(self, steps: Sequence[SamplerStep]) -> None:
        """Add h_m (F*_m - U_m) of this step to what the runs are behind by."""
        for run, step in enumerate(steps):
            target = self.references[run].outputs[step.index].double()
            used = step.output.detach().to("cpu").double()
            self.behind[run] += float(self.sampler.impulse[step.index]) * (target - used)
            if self.sampler.response.kind == "nonlinear" and step.index + 1 == self.sampler.steps:
                last = self.references[run].latents[-1].double()  # the sum above holds to first order only
                self.behind[run] = last - step.after.detach().to("cpu").double()

    def errors(self) -> Floats:
        """Mean squared error that the last latent has by now, (P,)."""
        return np.array([float(tensor.square().mean()) for tensor in self.behind])

    def stretch(self, step: int, computed: Steps) -> Stretch:
        """The weights that serve at a skipped step."""
        if self.sampler.held and self._stretch is not None:
            return self._stretch
        end = next((s for s in computed if s > step), self.sampler.steps)
        impulse = self.sampler.impulse[step:end]
        weight = float(impulse.sum())
        whole = self.sampler.held and abs(weight) > 1e-6 * float(np.abs(impulse).sum())
        targets = []
        for run, values in enumerate(self.references):
            if whole:
                ahead = sum(
                    (h * values.outputs[m].double() for m, h in zip(range(step, end), impulse.tolist(), strict=True)),
                    self.behind[run],
                )
                targets.append(ahead / weight)
            else:
                targets.append(values.outputs[step].double())
        self._stretch = self._solved(step, targets)
        return self._stretch

    def _solved(self, step: int, targets: Sequence[Tensor]) -> Stretch:
        """Least squares on the newest output, the differences of the older ones, and the latent."""
        newest = self.steps[0][0].index
        scale = None if self.sampler.input is None else float(self.sampler.input[newest])
        count = len(self.steps)
        total: Floats = np.zeros((count + 2, count + 2))
        for run, target in enumerate(targets):
            vectors = [steps[run].output.detach().to("cpu") for steps in self.steps]
            vectors.append(self.steps[0][run].latent.detach().to("cpu"))
            total += gram([*vectors, target])
        size = count + (scale is not None)
        change = np.zeros((size, count + 2))  # features in terms of [outputs, latent, target]
        change[0, 0] = 1.0
        for p in range(1, count):
            change[p, p - 1], change[p, p] = 1.0, -1.0
        if scale is not None:
            change[count, count] = 1.0
        rest = np.zeros(count + 2)  # the target less the newest output, so that the ridge draws towards holding it
        rest[-1], rest[0] = 1.0, -1.0
        matrix, right = change @ total @ change.T, change @ total @ rest
        solution = ridge(matrix, right, self.ridge)
        direct = solution @ change
        direct[0] += 1.0
        outputs = tuple(float(v) for v in direct[:count])
        latent = float(direct[count]) / scale if scale is not None else 0.0
        if not all(map(math.isfinite, (*outputs, latent))):
            raise FasterCacheError(f"the weights at step {step} are not finite: the recording holds NaN or infinity")
        return Stretch(after=newest, start=step, outputs=outputs, input=latent)

    def sizes(self) -> Floats:
        """Root mean squares over all prompts of what a stretch combines: newest output, differences, latent."""
        total = np.zeros(len(self.steps) + 1)
        for run in range(len(self.references)):
            outputs = [steps[run].output.detach().double() for steps in self.steps]
            parts = [outputs[0], *(a - b for a, b in pairwise(outputs)), self.steps[0][run].latent.detach().double()]
            total += [float(part.square().mean()) for part in parts]
        found: Floats = np.sqrt(total / len(self.references))
        return found

    def answer(self, stretch: Stretch) -> Callable[[int, int, int, Tensor], Any]:
        """Stands in for the denoiser's calls with the weights of a stretch."""

        def stand_in(run: int, call: int, denoiser: int, source: Tensor) -> Any:
            past = [steps[run].calls for steps in self.steps]
            if any(call >= len(calls) or calls[call].denoiser != denoiser for calls in past):
                raise FasterCacheError(
                    "the denoiser calls of a step changed within the run (guidance switched on or off): plan the part "
                    "of the run in which they stay the same"
                )
            newest = past[0][call]
            tensors: list[Tensor | None] = []
            for leaf, value in enumerate(newest.outputs):
                older = [calls[call].outputs[leaf] for calls in past]
                if value is None or any(tensor is None for tensor in older):
                    tensors.append(None)
                    continue
                shapes = value.shape, newest.input.shape
                fits = leaf == 0 and stretch.input != 0.0 and adds_input(*shapes, self.variance)
                given = [tensor for tensor in older if tensor is not None]
                tensors.append(mixed(stretch, given, newest.input if fits else None))
            return rebuild_output(newest.template, tensors)

        return stand_in

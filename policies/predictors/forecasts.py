"""Further predictors: Hermite (HiCache), FoCa, average velocity (MeanCache), aligned (DiCache), relative, zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from fastercache.policies.base import Hold, Now, Past, Predictor
from fastercache.policies.errors import AttachError
from fastercache.policies.predictors.history import combination, expansion
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Step


def hermite(order: int, x: float) -> float:
    """The physicists' Hermite polynomial H_order(x): H_0 = 1, H_1 = 2x, H_{n+1} = 2x H_n - 2n H_{n-1}."""
    before, now = 0.0, 1.0
    for n in range(order):
        before, now = now, 2.0 * x * now - 2.0 * n * before
    return now


@register
class Hermite(Predictor):
    """F = sum_i D_i s^i H_i(s k) / i!, k steps after the newest value [HiCache, arXiv 2508.16984].

    The D_i are TaylorSeer's finite differences and s is `scale`, the contraction that HiCache sets to 0.5. The paper
    writes H_i(-s k) for differences taken against the direction of sampling; ours are taken along it, which is the same
    number because H_i is even or odd as i is. The authors' code (github.com/yiming-l21/CFGCache) has the same factors.
    """

    name: ClassVar[str] = "hermite"
    order: Annotated[int, Field(ge=0, le=4)] = Field(
        default=2, description="highest derivative in the series (O in the paper); 0 holds the value"
    )
    scale: Annotated[float, Field(ge=0.1, le=1.0)] = Field(
        default=0.5, description="contraction s of the polynomials' argument, no unit (sigma in the paper)"
    )

    @property
    def depth(self) -> int:
        return self.order + 1

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        k, s = now.step.index - past[-1].step.index, self.scale
        return expansion(past, self.order, lambda i: s**i * hermite(i, s * k) / math.factorial(i))


@register
class FoCaForecast(Predictor):
    """A predictor-corrector forecast [FoCa, arXiv 2508.16211], in the form cache-dit 1.5.3 gives it:

        P_k = F_a + k / 2 (s_a + s_{k-1}),    s_a = (F_a - F_b) / (a - b),    s_{k-1} = P_{k-1} - P_{k-2}

    with P_0 = F_a and P_{-1} the value at the step before a: F_b, or, if that step was skipped too, the line through
    F_c and F_b. So the first correction is by how far the last forecast missed. Beyond `horizon` steps the change is
    that of `horizon`, damped by horizon / k.

    Two differences to cache-dit, so that the prediction is a pure function of three computed values: P_{-1} is a plain
    line instead of the recursion since the start of the run, and s_a is per step where cache-dit takes F_a - F_b
    whatever lies between. The paper's own variable-step BDF2 weights were not at hand, and other readings of it differ:
    an earlier cache-dit has 2 F_k - F_{k-1} plus half the difference of slopes, HiCache's authors compare with the mean
    of F_n and (4 F_n - F_{n-1}) / 3.
    """

    name: ClassVar[str] = "foca_forecast"
    horizon: Annotated[int, Field(ge=1, le=12)] = Field(
        default=3, description="how far the forecast runs before it is damped, in steps"
    )

    @property
    def depth(self) -> int:
        return 3

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        if len(past) < 2:
            value: Tensor = past[-1].value
            return value
        # The recursion runs on the weights of the past values, newest last.
        base = np.eye(len(past))
        a, b = past[-1].step.index, past[-2].step.index
        anchor = (base[-1] - base[-2]) / (a - b)
        before = base[-2]
        if a - 1 > b and len(past) > 2:
            c = past[-3].step.index
            before = before + (before - base[-3]) * ((a - 1 - b) / (b - c))
        k = now.step.index - a
        older, newer = before, base[-1]
        for i in range(1, min(k, self.horizon) + 1):
            older, newer = newer, base[-1] + (i / 2) * (anchor + newer - older)
        if k > self.horizon:
            newer = base[-1] + (newer - base[-1]) * (self.horizon / k)
        return combination(past, newer.tolist())


@register
class AverageVelocity(Predictor):
    """The velocity over the coming step, from how the last ones differed from their average [MeanCache, 2601.19961].

    With F_1 ... F_m the last `span` computed outputs at times s_1 < ... < s_m, s the time asked for and d one step,

        u = (sum_i F_i (s_{i+1} - s_i)) / (s - s_1),  s_{m+1} = s      average velocity since s_1
        J = (F_1 - u) / (s - s_1)                                      its Jacobian-vector product
        F = F_m - J d

    Times are sigmas where the scheduler has them, else timesteps. The official code (github.com/UnicomAI/MeanCache) has
    the same, and averages over what the sampler actually used, forecasts included; here a skipped step counts with the
    last computed output, so that the prediction is pure. Any rule may use the predictor, at the denoiser site.
    """

    name: ClassVar[str] = "average_velocity"
    span: Annotated[int, Field(ge=2, le=6)] = Field(
        default=2, description="how many computed outputs the average is taken over (m in the formula)"
    )

    @property
    def depth(self) -> int:
        return self.span

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        newest: Tensor = past[-1].value
        if len(past) < 2:
            return newest
        times = [_time(one.step) for one in past] + [_time(now.step)]
        whole = times[-1] - times[0]
        if whole == 0.0:
            return newest
        spans = [(after - now) / whole for now, after in pairwise(times)]  # what each value counts in the average
        ahead = (times[-1] - times[-2]) / (now.step.index - past[-1].step.index) / whole
        weights = [ahead * share for share in spans]
        weights[0] -= ahead
        weights[-1] += 1.0
        return combination(past, weights)


def _time(step: Step) -> float:
    return step.timestep if step.sigma is None else step.sigma


@register
class Zero(Predictor):
    """Nothing: a skipped guidance difference of zero means that guidance is off at that step."""

    name: ClassVar[str] = "zero"

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        value: Tensor = past[-1].value
        return value.new_zeros(()).expand_as(value)


@register
class Relative(Predictor):
    """At a denoiser site: what `inner` makes of the output less the denoiser's input, plus the input of now.

    A further output that has no input of its own (LTX-2's sound) is what `inner` makes of it.
    """

    name: ClassVar[str] = "relative"
    inner: AnyPredictor = Field(default_factory=Hold, description="predictor of the output less the denoiser's input")

    @model_validator(mode="after")
    def _needs_nothing_else(self) -> Relative:
        if self.inner.needs is not None:
            raise ValueError(f"'{self.inner.name}' needs a signal of its own, which the difference does not have")
        return self

    @property
    def depth(self) -> int:
        return self.inner.depth

    @property
    def needs(self) -> Signal:
        return Signal.INPUT

    def keep(self, value: Tensor, seen: Tensor | None) -> Any:
        if seen is not None and seen.shape != value.shape:
            raise AttachError(
                f"the denoiser's output {tuple(value.shape)} and its input {tuple(seen.shape)} differ in shape, so the "
                "one less the other does not exist: give the policy relative=False"
            )
        return self.inner.keep(value if seen is None else value - seen, None)

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        difference = self.inner.predict(past, Now(now.step))
        return difference if now.seen is None else difference + now.seen


@register
class Aligned(Predictor):
    """A residual moved along its last change by as far as the shallow blocks moved [DiCache, arXiv 2508.17356]:

        r = r_-2 + g (r_-1 - r_-2),   g = clip(mean|p_t - p_-2| / mean|p_-1 - p_-2|, 1, limit)

    p is what the blocks before the site added (the probe), r what the probe and the site together add, so the site's
    own stand-in is r - p_t. Values of another shape than the probe (a text stream) take the same g on themselves.
    """

    name: ClassVar[str] = "aligned"
    limit: Annotated[float, Field(ge=1.0, le=4.0)] = Field(
        default=2.0, description="upper bound on the gain g along the last change, no unit"
    )

    @property
    def depth(self) -> int:
        return 2

    @property
    def needs(self) -> Signal:
        return Signal.FIRST_BLOCK_RESIDUAL

    def keep(self, value: Tensor, seen: Tensor | None) -> Any:
        return value, seen

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        value: Tensor
        (value, newer), (before, older) = past[-1].value, past[max(len(past) - 2, 0)].value
        probe = now.seen
        if probe is None or newer is None or older is None or probe.shape != newer.shape:
            return value
        whole = value.shape == probe.shape
        if len(past) < 2:
            return value + newer - probe if whole else value
        moved = (newer - older).float().abs().mean()
        gain = ((probe - older).float().abs().mean() / moved.clamp(min=1e-12)).clamp(1.0, self.limit)
        moved_on: Tensor = before.lerp(value, gain.to(value.dtype))
        if not whole:
            return moved_on
        ahead: Tensor = moved_on + older.lerp(newer, gain.to(value.dtype)) - probe
        return ahead

"""What stands in for a skipped value: differences, lines, Taylor, Hermite.

All are gap-aware: `history` carries the steps at which values were computed, and extrapolation uses those distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Config, Now, Past, Predictor
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Step


class Ramp(Config):
    """A weight rising linearly in progress from 0 at `start` to 1 at the end of sampling [FasterCache eq. 5]."""

    name: ClassVar[str] = "ramp"
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="point of the run at which the weight begins to rise from 0 (progress, 0 to 1)"
    )

    def at(self, step: Step) -> float:
        """The weight at a step, in [0, 1]: 0 until `start`, then in proportion to progress."""
        if self.start >= 1.0:
            return 0.0
        return min(max((step.progress - self.start) / (1.0 - self.start), 0.0), 1.0)


@register
class Difference(Predictor):
    """A weighted step along the last differences [FasterCache eq. 5, arXiv 2410.19355].

    With F_a the newest value, F_b and F_c those before it, and differences taken per `gap` steps,

        d1 = (F_a - F_b) gap / (a - b),   d2 = d1 - (F_b - F_c) gap / (b - c)
        F  = F_a + w d1                        (order 1; with a - b = gap, the paper's equation)
        F  = F_a + w d1 + w (w + 1) / 2 d2     (order 2, Newton's backward form)

    Where only one value is known yet, the prediction is a hold.
    """

    name: ClassVar[str] = "difference"
    weight: Annotated[float, Field(ge=-1.0, le=2.0)] | Ramp = Field(
        default=0.5, description="factor w on the last difference, no unit (w(t) in eq. 5); a number, or a ramp"
    )
    order: Literal[0, 1, 2] = Field(
        default=1,
        description="how many differences are used: 0 holds the value, 1 is eq. 5, 2 adds the second difference",
    )
    gap: Annotated[int, Field(ge=1, le=100)] = Field(
        default=2, description="the distance that differences are scaled to, in steps (2 in eq. 5)"
    )

    @property
    def depth(self) -> int:
        return self.order + 1

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        newest = past[-1]
        value: Tensor = newest.value
        w = self.weight.at(now.step) if isinstance(self.weight, Ramp) else self.weight
        if w == 0.0 or self.order == 0 or len(past) < 2:
            return value
        before = past[-2]
        rate = self.gap / (newest.step.index - before.step.index)
        if self.order == 1 or len(past) < 3:
            return combination(past, [-rate * w, 1.0 + rate * w])
        oldest = past[-3]
        rate2 = self.gap / (before.step.index - oldest.step.index)
        half = w * (w + 1.0) / 2.0
        # F_a + w d1 + half (d1 - (F_b - F_c) rate2) with d1 = (F_a - F_b) rate
        first, second = (w + half) * rate, half * rate2
        return combination(past, [second, -first - second, 1.0 + first])


@register
class Linear(Predictor):
    """The line through the last two values, extended by the true distance: F_a + weight (F_a - F_b) (t - a)/(a - b)."""

    name: ClassVar[str] = "linear"
    weight: Annotated[float, Field(ge=0.0, le=2.0)] = Field(
        default=1.0, description="factor on the line's slope, no unit; 1 follows the line, 0 holds the value"
    )

    @property
    def depth(self) -> int:
        return 2

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        if len(past) < 2:
            value: Tensor = past[-1].value
            return value
        a, b = past[-1].step.index, past[-2].step.index
        ahead = self.weight * (now.step.index - a) / (a - b)
        return combination(past, [-ahead, 1.0 + ahead])


def combination(history: Sequence[Past], weights: Sequence[float]) -> Tensor:
    """sum_i w_i F_i over the last `len(weights)` values, which must sum to 1, in one pass over memory for each value.

    A prediction that is linear in the past is best written so: the weights are plain numbers, and no intermediate
    differences are stored.
    """
    newest: Tensor = history[-1].value
    pairs = [(w, past.value) for w, past in zip(weights[:-1], history[-len(weights) : -1], strict=True) if w != 0.0]
    if not pairs:
        return newest
    if len(pairs) == 1:
        ((_, older),) = pairs
        mixed: Tensor = older.lerp(newest, weights[-1])
        return mixed
    total = newest * weights[-1]
    for weight, value in pairs:
        total.add_(value, alpha=weight)
    return total


def weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum_i w_i F_i for any weights, in one pass over memory for each value, accumulated in float32 at least.

    A value that is half as long as the first one along an axis is added to the half that `before_variance` names; one
    that has more axes is read with its leading ones joined (`joined`).
    """
    first = values[0]
    total = first.to(torch.promote_types(first.dtype, torch.float32)) * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        more = len(value.shape) > len(total.shape)
        rows = value.reshape(joined(value.shape, len(total.shape))) if more else value
        before_variance(total, rows.shape).add_(rows, alpha=weight)
    return total.to(first.dtype)


def joined(shape: Sequence[int], axes: int) -> tuple[int, ...]:
    """A shape with its leading axes joined until so many are left; as it is where it has no more.

    Vchitect-2.0's denoiser takes latents of shape (videos, frames, C, H, W) and returns (videos * frames, C, H, W).
    """
    if len(shape) <= axes:
        return tuple(shape)
    ahead = len(shape) - axes + 1
    return (math.prod(shape[:ahead]), *shape[ahead:])


def variance_axis(output: Sequence[int], shape: Sequence[int]) -> int | None:
    """The axis along which an output of one shape is a prediction and, behind it, a learned variance of the same shape.

    So do DiT, PixArt and Latte answer [Nichol & Dhariwal 2021]: twice the channels of the latent, of which samplers use
    the first half. None where the shapes do not fit together so.
    """
    if len(output) != len(shape):
        return None
    unlike = [axis for axis, (a, b) in enumerate(zip(output, shape, strict=True)) if a != b]
    return unlike[0] if len(unlike) == 1 and unlike[0] > 0 and output[unlike[0]] == 2 * shape[unlike[0]] else None


def before_variance(output: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of an output that has a latent's shape, a view: all of it, or what comes before a learned variance.

    Raises:
        ValueError: if it is neither.
    """
    if output.shape == torch.Size(shape):
        return output
    axis = variance_axis(output.shape, shape)
    if axis is None:
        raise ValueError(f"an output {tuple(output.shape)} is no prediction for a latent {tuple(shape)}")
    return output.narrow(axis, 0, shape[axis])


def derivatives(history: Sequence[Past], order: int) -> list[NDArray[np.float64]]:
    """Finite-difference derivatives D_0..D_m at the newest value, m = min(order, len(history) - 1).

    Each is given by its weights on the values of `history`.

    D_{i+1} = (D_i - D_i at the previous computed step) / (distance between the two newest computed steps)
    [TaylorSeer, arXiv 2503.06923, as its code and diffusers' have it: each order divides by its own newest gap].
    """
    levels: list[NDArray[np.float64]] = list(np.eye(len(history)))
    steps = [past.step.index for past in history]
    result = [levels[-1]]
    for _ in range(min(order, len(history) - 1)):
        # The difference table: entry i of a level ends at computed step i + (level).
        offset = len(steps) - len(levels)
        levels = [
            (levels[i + 1] - levels[i]) / (steps[offset + i + 1] - steps[offset + i]) for i in range(len(levels) - 1)
        ]
        result.append(levels[-1])
    return result


def expansion(history: Sequence[Past], order: int, factors: Callable[[int], float]) -> Tensor:
    """sum_i factors(i) D_i over the finite-difference derivatives; `factors(0)` is 1."""
    terms = derivatives(history, order)
    return combination(
        history, sum((factors(i) * term for i, term in enumerate(terms)), np.zeros(len(history))).tolist()
    )


@register
class Taylor(Predictor):
    """Taylor extrapolation F = sum_i D_i k^i / i!, k steps after the newest value [TaylorSeer, arXiv 2503.06923]."""

    name: ClassVar[str] = "taylor"
    order: Annotated[int, Field(ge=0, le=4)] = Field(
        default=1, description="highest derivative in the series (O in the paper); 0 holds the value"
    )

    @property
    def depth(self) -> int:
        return self.order + 1

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        k = now.step.index - past[-1].step.index
        return expansion(past, self.order, lambda i: k**i / math.factorial(i))

"""What stands in for a skipped value: differences, lines, Taylor, Hermite.

All are gap-aware: `history` carries the steps at which values were computed, and extrapolation uses those distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from policies.base import Config, Past, Predictor
from policies.vocabulary import Step


class Ramp(Config):
    """A weight rising linearly in progress from 0 at `start` to 1 at the end of sampling [FasterCache eq. 5]."""

    name: ClassVar[str] = "ramp"
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    def at(self, step: Step) -> float:
        if self.start >= 1.0:
            return 0.0
        return min(max((step.progress - self.start) / (1.0 - self.start), 0.0), 1.0)


class Difference(Predictor):
    """A weighted step along the last differences [FasterCache eq. 5, arXiv 2410.19355].

    With F_a the newest value, F_b and F_c those before it, and differences taken per `gap` steps,

        d1 = (F_a - F_b) gap / (a - b),   d2 = d1 - (F_b - F_c) gap / (b - c)
        F  = F_a + w d1                        (order 1; with a - b = gap, the paper's equation)
        F  = F_a + w d1 + w (w + 1) / 2 d2     (order 2, Newton's backward form)

    Where only one value is known yet, the prediction is a hold.
    """

    name: ClassVar[str] = "difference"
    weight: Annotated[float, Field(ge=-1.0, le=2.0)] | Ramp = 0.5
    order: Literal[0, 1, 2] = 1
    gap: Annotated[int, Field(ge=1, le=100)] = 2

    @property
    def history(self) -> int:
        return self.order + 1

    def predict(self, history: Sequence[Past], step: Step) -> Tensor:
        newest = history[-1]
        value: Tensor = newest.value
        w = self.weight.at(step) if isinstance(self.weight, Ramp) else self.weight
        if w == 0.0 or self.order == 0 or len(history) < 2:
            return value
        before = history[-2]
        rate = self.gap / (newest.step.index - before.step.index)
        if self.order == 1 or len(history) < 3:
            # lerp(F_b, F_a, 1 + r w) = F_a + (F_a - F_b) r w, in one pass over memory
            moved: Tensor = before.value.lerp(value, 1.0 + rate * w)
            return moved
        oldest = history[-3]
        rate2 = self.gap / (before.step.index - oldest.step.index)
        half = w * (w + 1.0) / 2.0
        first: Tensor = (value - before.value) * rate
        second: Tensor = first - (before.value - oldest.value) * rate2
        return value + w * first + half * second


class Linear(Predictor):
    """The line through the last two values, extended by the true distance: F_a + weight (F_a - F_b) (t - a)/(a - b)."""

    name: ClassVar[str] = "linear"
    weight: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0

    @property
    def history(self) -> int:
        return 2

    def predict(self, history: Sequence[Past], step: Step) -> Tensor:
        a = history[-1]
        value: Tensor = a.value
        if len(history) < 2:
            return value
        b = history[-2]
        distance = (step.index - a.step.index) / (a.step.index - b.step.index)
        moved: Tensor = b.value.lerp(value, 1.0 + self.weight * distance)
        return moved


def derivatives(history: Sequence[Past], order: int) -> list[Tensor]:
    """Finite-difference derivatives D_0..D_m at the newest value, m = min(order, len(history) - 1).

    D_{i+1} = (D_i - D_i at the previous computed step) / (distance between the two newest computed steps)
    [TaylorSeer, arXiv 2503.06923, as its code and diffusers' have it: each order divides by its own newest gap].
    """
    levels: list[Tensor] = [past.value for past in history]
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


class Taylor(Predictor):
    """Taylor extrapolation F = sum_i D_i k^i / i!, k steps after the newest value [TaylorSeer, arXiv 2503.06923]."""

    name: ClassVar[str] = "taylor"
    order: Annotated[int, Field(ge=0, le=4)] = 1

    @property
    def history(self) -> int:
        return self.order + 1

    def predict(self, history: Sequence[Past], step: Step) -> Tensor:
        k = step.index - history[-1].step.index
        terms = derivatives(history, self.order)
        total = terms[0]
        for i, term in enumerate(terms[1:], start=1):
            total = total + term * (k**i / math.factorial(i))
        return total

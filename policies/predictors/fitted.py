"""Weights fitted to a recording: the best linear stand-in for exactly the steps that a schedule computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from fastercache.policies.base import Config, Now, Past, Predictor
from fastercache.policies.errors import ScheduleMismatch
from fastercache.policies.predictors.history import joined, variance_axis, weighted
from fastercache.policies.registry import register
from fastercache.policies.signals import Signal

Number = Annotated[float, Field(allow_inf_nan=False)]


class Stretch(Config):
    """The weights that serve from one step on, until the next entry's step."""

    name: ClassVar[str] = "stretch"
    after: Annotated[int, Field(ge=0, description="the computed step that the weights build on, the newest one")]
    start: Annotated[int, Field(ge=1, description="the first skipped step that they serve")]
    outputs: Annotated[
        tuple[Number, ...],
        Field(min_length=1, max_length=16, description="weights of the computed outputs, the newest first"),
    ]
    input: Number = Field(0.0, description="weight of the denoiser's input at the newest computed step")

    @model_validator(mode="after")
    def _in_order(self) -> Stretch:
        if self.start <= self.after:
            raise ValueError(f"weights that build on step {self.after} serve later steps, not step {self.start}")
        return self


@register
class Fitted(Predictor):
    """A combination of the last K computed outputs and the denoiser's input, with weights for each stretch:

        F(t) = sum_p w_p F_{s_p} + w_x x_s,    s = s_0 the newest computed step, s_p the p-th before it

    The weights solve a least-squares problem over recorded runs, for one set of computed steps: docs/planning.md has
    it. They are the same for every guidance branch, because guidance is linear. Steps without weights of their own, and
    runs that compute other steps than the weights were fitted for, are refused. Where a learned variance stands behind
    the prediction (DiT, PixArt, Latte), the input is added to the prediction alone.
    """

    name: ClassVar[str] = "fitted"
    stretches: tuple[Stretch, ...] = Field(min_length=1, description="weights by stretch of skipped steps, in order")
    variance: bool | None = Field(
        None,
        description="where the denoiser returns a learned variance behind its prediction: whether the input's weights "
        "were fitted to be added to the prediction; files of older versions do not say, and there they were left out",
    )

    @model_validator(mode="after")
    def _rising(self) -> Fitted:
        starts = [stretch.start for stretch in self.stretches]
        if starts != sorted(set(starts)):
            raise ValueError(f"stretches must come in the order of their steps, each once, found {starts}")
        return self

    @property
    def depth(self) -> int:
        return max(len(stretch.outputs) for stretch in self.stretches)

    @property
    def needs(self) -> Signal | None:
        return Signal.INPUT if any(stretch.input for stretch in self.stretches) else None

    def keep(self, value: Tensor, seen: Tensor | None) -> Any:
        """The output and, where weights ask for it, the input. Raises ScheduleMismatch if their shapes do not fit."""
        if self.needs is None or seen is None or not adds_input(value.shape, seen.shape, self.variance):
            return value
        return value, seen

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        stretch = self._at(now.step.index)
        newest = past[-1].step.index
        if stretch is None or newest != stretch.after or len(past) < len(stretch.outputs):
            raise ScheduleMismatch(
                f"no weights were fitted for step {now.step.index} after computing step {newest}: the schedule "
                "computes other steps than the one that the weights are for; plan it again"
            )
        kept = [entry.value for entry in past[: -len(stretch.outputs) - 1 : -1]]
        return mixed(stretch, [k[0] if isinstance(k, tuple) else k for k in kept], _input(kept[0]))

    def _at(self, step: int) -> Stretch | None:
        serving = [stretch for stretch in self.stretches if stretch.start <= step]
        return serving[-1] if serving else None


def adds_input(output: Sequence[int], source: Sequence[int], variance: bool | None) -> bool:
    """Whether weights add the denoiser's input to its output, given their shapes and `Fitted.variance`.

    Raises:
        ScheduleMismatch: if the shapes do not fit; if a learned variance makes them differ and the weights, which are
            of an older version, do not say what they were fitted for.
    """
    rows = joined(source, len(output))
    if tuple(output) == rows:
        return True
    if variance_axis(output, rows) is None:
        raise ScheduleMismatch(
            f"the weights add the denoiser's input {tuple(source)} to its output {tuple(output)}, which has another "
            "shape: plan again on this pipeline"
        )
    if variance is None:
        raise ScheduleMismatch(
            "the weights do not say whether they add the denoiser's input to an output that holds a learned variance "
            "too (older versions fitted such a weight and left it out): plan again, or write "
            '"variance": false beside "stretches" to run an old file as it was measured'
        )
    return variance


def _input(kept: Any) -> Tensor | None:
    return kept[1] if isinstance(kept, tuple) else None


def mixed(stretch: Stretch, outputs: Sequence[Tensor], source: Tensor | None) -> Tensor:
    """sum_p w_p F_p + w_x x in one pass over memory for each, accumulated in float32 at least.

    x is added to all of the output, or to the prediction before a learned variance.

    Args:
        stretch: the weights. outputs: computed values, the newest first. source: x, or None to leave its term out.
    """
    weights, values = list(stretch.outputs), list(outputs)
    if stretch.input and source is not None:
        weights.append(stretch.input)
        values.append(source)
    return weighted(weights, values)

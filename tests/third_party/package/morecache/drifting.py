"""A predictor that needs the denoiser's input."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

import fastercache as fc


class Drifting(fc.Predictor):
    """F = F_a + weight mean(x - x_a), the mean being over one row of the denoiser's input."""

    name: ClassVar[str] = "drifting"
    weight: Annotated[float, Field(ge=-10.0, le=10.0)] = 0.2

    @property
    def needs(self) -> fc.Signal:
        return fc.Signal.INPUT

    def keep(self, value: Tensor, seen: Tensor | None) -> Any:
        return value, seen

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        value, seen = past[-1].value
        moved = (now.seen - seen).flatten(1).mean(1).repeat_interleave(len(value) // len(seen))
        return value + self.weight * moved.reshape(-1, *[1] * (value.ndim - 1)).to(value.dtype)

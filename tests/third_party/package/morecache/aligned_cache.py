"""A method with constants that are measured on the model, by a measure of its own."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

import fastercache as fc


def turned(newer: Tensor, older: Tensor) -> float:
    """1 - the cosine of the angle between two values."""
    return 1.0 - float(cosine_similarity(newer.flatten().float(), older.flatten().float(), dim=0))


class AlignedCache(fc.SitePolicy, fc.StaticRule[int | None]):
    """Attention outputs are reused while they turn by less than `angle` from one step to the next."""

    name: ClassVar[str] = "aligned_cache"
    unsearched: ClassVar[frozenset[str]] = frozenset({"turns"})
    off: ClassVar[dict[str, Any]] = {"angle": 0.0}
    measures: ClassVar[dict[str, fc.Measure]] = {"turn": fc.Measure("attention", turned, apart=2.0)}
    constants: ClassVar[dict[str, Any]] = {"turns": (0.0,)}
    turns: tuple[float, ...]
    angle: Annotated[float, Field(ge=0.0, le=2.0)] = 0.5

    @classmethod
    def calibrated(cls, measured: fc.Measurements, **fields: Any) -> Self:
        return cls(**{"turns": measured.own(cls.name)["turn"][0]} | fields)

    @property
    def query(self) -> str:
        return "attention"

    def reuse(self, state: int | None, step: fc.Step) -> bool:
        at = round(step.progress * (len(self.turns) - 1))
        return state is not None and step.index - state < 3 and self.turns[at] < self.angle

    def update(self, state: int | None, step: fc.Step) -> int:
        return step.index

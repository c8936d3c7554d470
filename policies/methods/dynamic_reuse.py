"""Dynamic feature reuse of FasterCache [eq. 5, arXiv 2410.19355]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fastercache.policies.base import Citation, Predictor, SitePolicy
from fastercache.policies.methods.static_interval import anchor, due
from fastercache.policies.predictors.history import Difference, Ramp
from fastercache.policies.registry import register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Run, Site, Step
from fastercache.policies.wrappers import within

FASTERCACHE = Citation(
    "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality",
    "Lv et al.",
    2024,
    "https://arxiv.org/abs/2410.19355",
    "self-attention outputs (dynamic feature reuse) and the unconditional branch (CFG-Cache)",
)

# Fields that `FasterCache` has too.
Weight = Annotated[
    Literal["ramp"] | Annotated[float, Field(ge=0.0, le=1.5)],
    Field(
        description=(
            "factor on the last difference, no unit: w(t) of eq. 5; `ramp` rises from 0 to 1, a number is constant"
        )
    ),
]
Order = Annotated[
    Literal[0, 1, 2],
    Field(
        description=(
            "how many differences the extrapolation uses: 0 holds the value, 1 is eq. 5, 2 adds the second difference"
        )
    ),
]


@register
class DynamicReuse(SitePolicy, StaticRule[int | None]):
    """Self-attention outputs are computed every `interval` steps; in between they are extrapolated,

        F_{t-1} = F_t + (F_t - F_{t+2}) w(t)                                     [eq. 5]

    with `w` rising linearly from 0 at the first reuse to 1 at the end (`weight="ramp"`), or constant. `order` 0 is a
    plain hold, 2 adds the second difference. Each branch is judged by its own age: where CFG-Cache skipped a branch
    for longer than `interval` steps, its attention is computed afresh at the next full step, not reused stale.
    """

    name: ClassVar[str] = "dynamic_reuse"
    citation: ClassVar[Citation] = FASTERCACHE
    unsearched: ClassVar[frozenset[str]] = frozenset({"offset"})
    sites: str = Field(
        default="attention", description="site query: what is reused; by default every self-attention's output"
    )
    off: ClassVar[Mapping[str, Any]] = {"interval": 1}
    interval: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description=("computed every this many steps, extrapolated in between (the paper has 2); 1: never reused"),
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=1 / 3, description="everything is computed before this point of the run (progress, 0 to 1)"
    )
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=1.0,
        description="everything is computed from this point on (progress, 0 to 1); 1 includes the last step",
    )
    weight: Weight = "ramp"
    order: Order = 1
    offset: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description="index of a step from which intervals are counted; by default the first step at `start`",
    )

    @property
    def query(self) -> str:
        return self.sites

    def reuse(self, state: int | None, step: Step) -> bool:
        if not within(step, self.start, self.stop) or due(step, self.interval, self.start, self.offset):
            return False
        return state is not None and step.index - state < self.interval

    def update(self, state: int | None, step: Step) -> int:
        return step.index

    def predictor(self, site: Site, run: Run) -> Predictor:
        weight: float | Ramp
        if self.weight == "ramp":
            first = anchor(run.count, self.start)
            while first < run.count - 1 and due(run.steps[first], self.interval, self.start, self.offset):
                first += 1
            weight = Ramp(start=run.steps[first].progress)
        else:
            weight = self.weight
        return Difference(weight=weight, order=self.order, gap=self.interval)

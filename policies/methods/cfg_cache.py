"""CFG-Cache of FasterCache [eqs. 6-11, arXiv 2410.19355]: reuse of the unconditional branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fastercache.policies.base import Citation, Predictor, SitePolicy
from fastercache.policies.methods.dynamic_reuse import FASTERCACHE
from fastercache.policies.methods.static_interval import due
from fastercache.policies.predictors.frequency import GuidanceDelta
from fastercache.policies.registry import register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Kind, Run, Site, Step
from fastercache.policies.wrappers import within

# The fields of CFG-Cache, which `FasterCache` has too.
CfgInterval = Annotated[
    int,
    Field(
        ge=1, le=12, description="all branches are computed every this many steps; only the conditional one in between"
    ),
]
CfgStart = Annotated[
    float,
    Field(ge=0.0, le=1.0, description="all branches are computed before this point of the run (progress, 0 to 1)"),
]
CfgStop = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="all branches are computed from this point on (progress, 0 to 1); 1 includes the last step",
    ),
]
AlphaLow = Annotated[
    float,
    Field(
        ge=-0.5,
        le=0.5,
        description=(
            "the low band of the guidance difference counts 1 + this before `switch`, no unit (alpha_1 in the paper)"
        ),
    ),
]
AlphaHigh = Annotated[
    float,
    Field(
        ge=-0.5,
        le=0.5,
        description="the high band counts 1 + this from `switch_high` on, no unit (alpha_2 in the paper)",
    ),
]
Switch = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="point of the run at which the low band's factor ends (progress, 0 to 1); the paper's t_0",
    ),
]
SwitchHigh = Annotated[
    Annotated[float, Field(ge=0.0, le=1.0)] | None,
    Field(
        description="point of the run at which the high band's factor begins (progress, 0 to 1); by default `switch`"
    ),
]
Weighting = Annotated[
    Literal["paper", "repo"],
    Field(description="`paper`: factors apply once; `repo`: once more at every reused step, as in the published code"),
]
Radius = Annotated[
    Annotated[int, Field(ge=0, le=512)] | None,
    Field(
        description=(
            "radius of the low band, in spectral bins of the latent; by default min(height, width) // `divisor`"
        )
    ),
]
Divisor = Annotated[
    int,
    Field(
        ge=1,
        le=1000,
        description="the low band's radius is min(height, width) // divisor where no `radius` is given, no unit",
    ),
]


@register
class CFGCache(SitePolicy, StaticRule[None]):
    """The unconditional branch is computed every `interval` steps; in between it is the conditional one plus the cached
    difference of the two, weighted by frequency band:

        F(uncond)_low = F(cond)_low + w1 dLF,   F(uncond)_high = F(cond)_high + w2 dHF

    with w1 = 1 + alpha_low before `switch` (in progress) and w2 = 1 + alpha_high from `switch_high` (default:
    `switch`) on. `weighting="repo"` compounds the factors on every reused step, as the published code does.
    `radius` of the low band in spectral bins; by default min(H, W) // `divisor`.

    Paper and text give alpha = 0.2, interval = 5 and start = 1/3, but no number for the switch t0; two thirds of the
    way is between the values of the published presets.
    """

    name: ClassVar[str] = "cfg_cache"
    citation: ClassVar[Citation] = FASTERCACHE
    unsearched: ClassVar[frozenset[str]] = frozenset({"divisor", "offset"})
    off: ClassVar[Mapping[str, Any]] = {"interval": 1}
    interval: CfgInterval = 5
    start: CfgStart = 1 / 3
    stop: CfgStop = 1.0
    alpha_low: AlphaLow = 0.2
    alpha_high: AlphaHigh = 0.2
    switch: Switch = 2 / 3
    switch_high: SwitchHigh = None
    weighting: Weighting = "paper"
    radius: Radius = None
    divisor: Divisor = 5
    offset: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description="index of a step from which intervals are counted; by default the first step at `start`",
    )

    @property
    def query(self) -> str:
        return str(Kind.BRANCH)

    def reuse(self, state: None, step: Step) -> bool:
        return within(step, self.start, self.stop) and not due(step, self.interval, self.start, self.offset)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return GuidanceDelta(
            alpha_low=self.alpha_low,
            alpha_high=self.alpha_high,
            switch=self.switch,
            switch_high=self.switch_high,
            weighting=self.weighting,
            radius=self.radius,
            divisor=self.divisor,
        )

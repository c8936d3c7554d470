"""Reuse of guidance branches beyond CFG-Cache: any predictor, an interval that follows the drift, a guidance window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation, Hold, Predictor, SitePolicy
from fastercache.policies.methods.dynamic import Threshold, relative_l1
from fastercache.policies.methods.static_interval import Interval, Periodic
from fastercache.policies.predictors.forecasts import Zero
from fastercache.policies.predictors.frequency import GuidanceDelta, band_radius, split_bands
from fastercache.policies.predictors.history import Linear
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.rules import StaticRule, WatchingRule
from fastercache.policies.vocabulary import COND, Branch, Kind, Run, Site, Step
from fastercache.policies.wrappers import within


@register
class GuidanceReuse(Interval):
    """CFG-Cache's rule with any predictor of the difference uncond - cond: hold, its line, its Taylor series.

    A full step every `interval`; on the others only the conditional branch runs.
    """

    name: ClassVar[str] = "guidance_reuse"
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 1 / 3
    interval: Annotated[int, Field(ge=1, le=12)] = 5
    stand_in: AnyPredictor = Field(
        default_factory=Linear,
        description="predictor of the guidance difference, uncond - cond, at the steps without the other branch",
    )

    @property
    def query(self) -> str:
        return str(Kind.BRANCH)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in


@register
class BranchReuse(Periodic, StaticRule[int]):
    """Each branch's whole output at an interval of its own: the conditional one every `interval`-th step, every other
    one each `other_interval`-th, with any predictor of the outputs themselves.

    With `interval=1` the conditional branch always runs, and the other's output is held (or forecast) as it was instead
    of its difference to the conditional one. With both above 1 both branches are reused. A multiple of `interval` for
    the others spares steps at which only they run.
    """

    name: ClassVar[str] = "branch_reuse"
    unsearched: ClassVar[frozenset[str]] = Interval.unsearched | {"sites"}
    sites: str = Field(
        default=str(Kind.DENOISER),
        description="site query: what is reused of each branch; by default the denoiser's whole output",
    )
    off: ClassVar[Mapping[str, Any]] = {"interval": 1, "other_interval": 1}
    interval: Annotated[int, Field(ge=1, le=12)] = Field(
        default=1, description="the conditional branch is computed every this many steps; 1: always"
    )
    other_interval: Annotated[int, Field(ge=1, le=12)] = Field(
        default=3, description="every other branch is computed every this many steps"
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 1 / 3
    stand_in: AnyPredictor = Field(default_factory=Hold, description="predictor of a branch's skipped outputs")

    @property
    def query(self) -> str:
        return self.sites

    def begin(self, site: Site, branch: Branch, run: Run) -> int:
        """The branch's interval."""
        return self.interval if branch == COND else self.other_interval

    def reuse(self, state: int, step: Step) -> bool:
        return self.rests(step, state)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in


@dataclass(slots=True)
class _Drift:
    """The difference at the last full step, and the step from which the next full one is due."""

    step: int
    delta: Tensor
    due: int


@register
class AdaptiveGuidance(SitePolicy, WatchingRule[_Drift | None]):
    """CFG-Cache whose interval follows how fast the guidance difference drifts.

    At each full step the relative L1 change of the difference per step, d, is measured in the low band, the high band,
    the larger of both, or over all; the next full step is due after floor(`threshold` / d) steps, at least 1 and at
    most `max_interval`. So the change expected over a stretch without the other branch stays below `threshold`.
    """

    name: ClassVar[str] = "adaptive_guidance"
    unsearched: ClassVar[frozenset[str]] = frozenset({"divisor"})
    threshold: Threshold = Field(
        default=0.3,
        description="how much the guidance difference may change between two full steps, as a relative L1 change",
    )
    max_interval: Annotated[int, Field(ge=2, le=20)] = Field(
        default=8, description="the longest distance between two full steps, in steps"
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.2, description="all branches are computed before this point of the run (progress, 0 to 1)"
    )
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=1.0,
        description="all branches are computed from this point on (progress, 0 to 1); 1 includes the last step",
    )
    band: Literal["low", "high", "larger", "all"] = Field(
        default="larger",
        description="the frequency band whose change counts: low, high, the larger of the two, or all frequencies",
    )
    divisor: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="the low band's radius is min(height, width) // divisor, in spectral bins of the latent"
    )
    stand_in: AnyPredictor = Field(
        default_factory=lambda: GuidanceDelta(alpha_low=0.0, alpha_high=0.0),
        description="predictor of the guidance difference, uncond - cond, at the steps without the other branch",
    )

    @property
    def query(self) -> str:
        return str(Kind.BRANCH)

    @property
    def signal(self) -> None:
        return None

    @property
    def remembers(self) -> int:
        return 1

    def reuse(self, state: _Drift | None, step: Step, seen: Tensor | None) -> bool:
        return state is not None and within(step, self.start, self.stop) and step.index < state.due

    def update(self, state: _Drift | None, step: Step, value: Tensor) -> _Drift:
        distance = 1
        if state is not None:
            change = self._change(value, state.delta) / (step.index - state.step)
            reach = self.threshold / change if change > 0 else float(self.max_interval)
            distance = min(max(int(reach), 1), self.max_interval)
        return _Drift(step.index, value, step.index + distance)

    def _change(self, new: Tensor, old: Tensor) -> float:
        if self.band == "all" or new.shape != old.shape:
            return relative_l1(new, old)
        radius = band_radius(new.shape[-2], new.shape[-1], self.divisor)
        bands = list(zip(split_bands(new, radius), split_bands(old, radius), strict=True))
        chosen = {"low": bands[:1], "high": bands[1:], "larger": bands}[self.band]
        return max(relative_l1(a, b) for a, b in chosen)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in


@register
class GuidanceInterval(SitePolicy, StaticRule[None]):
    """Guidance only while `start` <= progress < `stop`; outside, the other branch is not computed and taken to equal
    the conditional one, which is what switching guidance off means.

    The other branch's shape is known once it was computed, so the first step of a run is always guided.
    """

    name: ClassVar[str] = "guidance_interval"
    citation: ClassVar[Citation] = Citation(
        "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models",
        "Kynkäänniemi et al.",
        2024,
        "https://arxiv.org/abs/2404.07724",
        "the unconditional branch outside a window of progress",
    )
    off: ClassVar[Mapping[str, Any]] = {"start": 0.0, "stop": 1.0}
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.1,
        description=(
            "guidance is off before this point of the run (progress, 0 to 1); the paper's upper noise level sigma_hi"
        ),
    )
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.8,
        description="guidance is off from this point on (progress, 0 to 1); the paper's lower noise level sigma_lo",
    )

    @property
    def query(self) -> str:
        return str(Kind.BRANCH)

    def reuse(self, state: None, step: Step) -> bool:
        return not within(step, self.start, self.stop)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return Zero()

"""MagCache [arXiv 2506.09045]: how far residual magnitudes would drift, known beforehand from calibrated ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from fastercache.policies.base import Citation, Hold, Predictor, SitePolicy
from fastercache.policies.measurements import Curve, Measurements
from fastercache.policies.methods.calibrated import nearest
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Branch, Run, Site, Step


@dataclass(slots=True)
class _Drift:
    """Since the last computed step: the product of ratios, the summed error, the steps skipped."""

    ratios: Curve | None  # of the branch
    product: float = 1.0
    error: float = 0.0
    skipped: int = 0


@register
class MagCache(SitePolicy, StaticRule[_Drift]):
    """The stack's residual is held while its magnitude is expected to stay:

        p *= gamma_t,   E += |1 - p|,   n += 1;   reuse while E <= threshold and n <= max_skip

    from step `retention` x steps on, gamma_t = mean over tokens of |r_t| / |r_{t-1}|. `ratios` holds gamma by branch,
    or under `*` for all: see `fastercache.analysis.calibrate`. They resample to other step counts by nearest neighbour.
    Nothing is watched while the model runs, so the policy compiles to a schedule.
    """

    name: ClassVar[str] = "magcache"
    citation: ClassVar[Citation] = Citation(
        "MagCache: Fast Video Generation with Magnitude-Aware Cache",
        "Ma et al.",
        2025,
        "https://arxiv.org/abs/2506.09045",
        "the residual of all blocks, held while calibrated magnitude ratios allow",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"ratios"})
    constants: ClassVar[Mapping[str, Any]] = {"ratios": {"*": (1.0,)}}
    off: ClassVar[Mapping[str, Any]] = {"retention": 1.0}
    ratios: dict[str, Curve] = Field(
        description=(
            "magnitude ratios gamma_t by branch (or *), one a step, no unit; measured on the model by calibration"
        ),
    )
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.06, description="bound on the accumulated magnitude error E, no unit (delta in the paper)"
    )
    max_skip: Annotated[int, Field(ge=1, le=12)] = Field(
        default=3, description="how many steps may be reused in a row (K in the paper)"
    )
    retention: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.2,
        description="share of the run's steps at the start that are computed, 0 to 1 (the paper's retention ratio)",
    )
    sites: str = Field(default="stack", description="site query: what is reused; by default the residual of all blocks")
    stand_in: AnyPredictor = Field(default_factory=Hold, description="predictor that stands in for a skipped value")

    @model_validator(mode="after")
    def _measured(self) -> MagCache:
        if not self.ratios or not all(self.ratios.values()):
            raise ValueError(
                "needs magnitude ratios by branch (or '*'): measure them with fastercache.analysis.calibrate"
            )
        return self

    @classmethod
    def calibrated(cls, measured: Measurements, *, together: bool = False, **fields: Any) -> Self:
        """With a model's measured ratios.

        `together`: all branches go by their mean ratio and so by one decision. Where guidance is batched, a stack is
        skipped for all of them or for none, and branches that decide apart save little.
        """
        return cls(**{"ratios": {"*": measured.mean_ratios} if together else measured.ratios} | fields)

    @property
    def query(self) -> str:
        return self.sites

    def begin(self, site: Site, branch: Branch, run: Run) -> _Drift:
        return _Drift(self.ratios.get(branch, self.ratios.get("*")))

    def reuse(self, state: _Drift, step: Step) -> bool:
        if state.ratios is None or step.index < int(self.retention * step.count + 0.5):
            return False
        state.product *= nearest(state.ratios, step.index, step.count)
        state.error += abs(1.0 - state.product)
        state.skipped += 1
        return state.error <= self.threshold and state.skipped <= self.max_skip

    def update(self, state: _Drift, step: Step) -> _Drift:
        return _Drift(state.ratios)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in

"""MagCache [arXiv 2506.09045]: how far residual magnitudes would drift, known beforehand from calibrated ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from fastercache.policies.base import Citation, Hold, Policy, Predictor
from fastercache.policies.methods.calibrated import Curve, nearest
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.vocabulary import Branch, Run, Site, Step


@dataclass(slots=True)
class _Drift:
    """Since the last computed step: the product of ratios, the summed error, the steps skipped."""

    product: float = 1.0
    error: float = 0.0
    skipped: int = 0


@register
class MagCache(Policy):
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

    @property
    def query(self) -> str:
        return self.sites

    def init(self, run: Run) -> dict[tuple[str, Branch], _Drift]:
        return {}

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        ratios = self.ratios.get(branch, self.ratios.get("*"))
        if ratios is None or step.index < int(self.retention * step.count + 0.5):
            return False
        drift = state.setdefault((site.name, branch), _Drift())
        drift.product *= nearest(ratios, step.index, step.count)
        drift.error += abs(1.0 - drift.product)
        drift.skipped += 1
        return bool(drift.error <= self.threshold and drift.skipped <= self.max_skip)

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        state.pop((site.name, branch), None)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in

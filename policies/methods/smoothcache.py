"""SmoothCache [arXiv 2411.10510]: each layer type reuses as long as its calibrated error stays small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from fastercache.policies.base import Citation, SitePolicy
from fastercache.policies.errors import RecordingError
from fastercache.policies.measurements import Lags, Measurements
from fastercache.policies.methods.calibrated import lagged
from fastercache.policies.registry import register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Branch, Run, Site, Step, matches


@dataclass(slots=True)
class _Known:
    """A site's measured errors by lag, and the index of the step it was last computed at."""

    lags: Lags
    last: int | None = None


@register
class SmoothCache(SitePolicy, StaticRule[_Known]):
    """A layer type is reused while mean|L(t) - L(computed)| / mean|L(t)|, measured beforehand, is below `alpha`, at
    most `lookahead` steps in a row.

    `curves` maps a site query (a layer type: `spatial`, `ff`, ...) to its measured errors by lag, averaged over the
    type's layers: see `fastercache.analysis.calibrate`. They resample to other step counts. Since nothing is watched,
    the policy compiles to a schedule.
    """

    name: ClassVar[str] = "smoothcache"
    citation: ClassVar[Citation] = Citation(
        "SmoothCache: A Universal Inference Acceleration Technique for Diffusion Transformers",
        "Liu et al.",
        2024,
        "https://arxiv.org/abs/2411.10510",
        "each layer type's outputs where a calibrated error curve allows",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"curves"})
    constants: ClassVar[Mapping[str, Any]] = {"curves": {"ff": ((0.0,),)}}
    off: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}
    curves: dict[str, Lags] = Field(
        description=(
            "layer type (a site query) -> its relative L1 error by lag and step, no unit; measured by calibration"
        ),
    )
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.1, description="reused while the calibrated error is below this, no unit (alpha in the paper)"
    )
    lookahead: Annotated[int, Field(ge=1, le=12)] = Field(
        default=3, description="how many steps may be reused in a row"
    )

    @model_validator(mode="after")
    def _measured(self) -> SmoothCache:
        for query, lags in self.curves.items():
            if not lags or not lags[0] or len({len(curve) for curve in lags}) != 1:
                raise ValueError(f"the curves of '{query}' must be one list per lag, all of the same number of steps")
        if not self.curves:
            raise ValueError("needs at least one layer type's curves: measure them with fastercache.analysis.calibrate")
        return self

    @classmethod
    def calibrated(cls, measured: Measurements, *, roles: str | None = None, **fields: Any) -> Self:
        """With a model's measured curves, of all roles or of those named (`spatial|ff`).

        Raises:
            RecordingError: for a role of which no curve was measured.
        """
        chosen = list(measured.curves) if roles is None else roles.split("|")
        for role in chosen:
            if role not in measured.curves:
                raise RecordingError(f"no curve of '{role}' was recorded; there are {', '.join(measured.curves)}")
        return cls(**{"curves": {role: measured.curves[role] for role in chosen}} | fields)

    @property
    def query(self) -> str:
        return "|".join(self.curves)

    def begin(self, site: Site, branch: Branch, run: Run) -> _Known:
        named = [query for query in self.curves if matches(query, (site,))]
        return _Known(self.curves[named[-1]])

    def reuse(self, state: _Known, step: Step) -> bool:
        if state.last is None or step.index - state.last > self.lookahead:
            return False
        error = lagged(state.lags, step.index, step.index - state.last, step.count)
        return error is not None and error < self.alpha

    def update(self, state: _Known, step: Step) -> _Known:
        return _Known(state.lags, step.index)

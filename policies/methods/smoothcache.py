"""SmoothCache [arXiv 2411.10510]: each layer type reuses as long as its calibrated error stays small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from fastercache.policies.base import Citation, Policy
from fastercache.policies.methods.calibrated import Lags, lagged
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Branch, Run, Site, Step, select


@register
class SmoothCache(Policy):
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

    @property
    def query(self) -> str:
        return "|".join(self.curves)

    def init(self, run: Run) -> tuple[dict[str, Lags], dict[tuple[str, Branch], int]]:
        by_site = {site.name: lags for query, lags in self.curves.items() for site in select(query, run.sites)}
        return by_site, {}

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        by_site, computed = state
        last = computed.get((site.name, branch))
        if last is None or step.index - last > self.lookahead:
            return False
        error = lagged(by_site[site.name], step.index, step.index - last, step.count)
        return error is not None and error < self.alpha

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        state[1][site.name, branch] = step.index

    def claims(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        return select(self.query, sites)

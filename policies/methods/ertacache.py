"""ERTACache [arXiv 2508.21091]: reuse planned from profiled residuals, with the reused residual corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from fastercache.policies.base import Citation, Now, Past, Predictor, SitePolicy
from fastercache.policies.measurements import Lags, Measurements
from fastercache.policies.methods.calibrated import lagged
from fastercache.policies.registry import register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Run, Site, Step


@register
class Rectified(Predictor):
    """The newest value, calibrated: F = g F_a + b, both by step and by how many steps ago F_a was computed."""

    name: ClassVar[str] = "rectified"
    gains: Lags = Field(default=(), description="factors g on the held value, by lag and step, no unit; empty: 1")
    offsets: Lags = Field(
        default=(), description="numbers b added to the held value, by lag and step, in the value's unit; empty: 0"
    )

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        newest = past[-1]
        value: Tensor = newest.value
        lag = now.step.index - newest.step.index
        gain = lagged(self.gains, now.step.index, lag, now.step.count) if self.gains else None
        if gain is not None:
            value = value * gain
        offset = lagged(self.offsets, now.step.index, lag, now.step.count) if self.offsets else None
        return value if offset is None else value + offset


@register
class ERTACache(SitePolicy, StaticRule[int | None]):
    """The stack's residual is reused while its profiled change since the last computed step is below `threshold`:

        mean|r_t - r_computed| / mean|r_t| < threshold,   r reused = g_t r_computed + b_t

    `errors`, `gains` and `offsets` are measured by lag (`fastercache.analysis.calibrate`); g and b are the regression
    of r_t on r_computed. As a summary of the paper has it, the error e of a reused output v is fitted by sigmoid(K v +
    B), linearised to (K v + B) / 4 + 1/2 with K = 4 cov(v, e) / var(v), and taken off: with the B of that fit it is
    this regression. The paper reuses the model's output less its input, here it is the residual of all blocks. It also
    scales the sampler's steps by clip(1 - |e| / |v_t - v_{t+1}|, 0, 1), no part of a cache. Nothing is watched, so the
    policy compiles to a schedule.
    """

    name: ClassVar[str] = "ertacache"
    citation: ClassVar[Citation] = Citation(
        "ERTACache: Error Rectification and Timesteps Adjustment for Efficient Diffusion",
        "Peng et al.",
        2025,
        "https://arxiv.org/abs/2508.21091",
        "the residual of all blocks at profiled steps, with a calibrated correction",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"errors", "gains", "offsets"})
    constants: ClassVar[Mapping[str, Any]] = {"errors": ((0.0,),), "gains": (), "offsets": ()}
    off: ClassVar[Mapping[str, Any]] = {"threshold": 0.0}
    errors: Lags = Field(
        description="relative L1 change of the residual, by lag and step, no unit; measured on the model by calibration"
    )
    gains: Lags = Field(
        default=(),
        description="factors g on the reused residual, by lag and step, no unit; measured by calibration; empty: 1",
    )
    offsets: Lags = Field(
        default=(),
        description=(
            "numbers b added to the reused residual, by lag and step, in its unit; measured by calibration; empty: 0"
        ),
    )
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.1,
        description="reused while the profiled relative change since the last computed step is below this, no unit",
    )
    max_skip: Annotated[int, Field(ge=1, le=12)] = Field(default=6, description="how many steps may be reused in a row")
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.1, description="everything is computed before this point of the run (progress, 0 to 1)"
    )
    sites: str = Field(default="stack", description="site query: what is reused; by default the residual of all blocks")

    @model_validator(mode="after")
    def _measured(self) -> ERTACache:
        for name, lags in (("errors", self.errors), ("gains", self.gains), ("offsets", self.offsets)):
            if len({len(curve) for curve in lags}) > 1 or (name == "errors" and not (lags and lags[0])):
                raise ValueError(f"{name} must be one list per lag, all of the same number of steps")
        return self

    @classmethod
    def calibrated(cls, measured: Measurements, **fields: Any) -> Self:
        """With a model's measured errors and their correction."""
        found = {"errors": measured.errors, "gains": measured.gains, "offsets": measured.offsets}
        return cls(**found | fields)

    @property
    def query(self) -> str:
        return self.sites

    def reuse(self, state: int | None, step: Step) -> bool:
        if state is None or step.progress < self.start or step.index - state > self.max_skip:
            return False
        error = lagged(self.errors, step.index, step.index - state, step.count)
        return error is not None and error < self.threshold

    def update(self, state: int | None, step: Step) -> int:
        return step.index

    def predictor(self, site: Site, run: Run) -> Predictor:
        return Rectified(gains=self.gains, offsets=self.offsets)

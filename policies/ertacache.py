"""ERTACache [arXiv 2508.21091]: reuse planned from profiled residuals, with the reused residual corrected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from policies.base import Citation, Past, Policy, Predictor
from policies.calibrated import Lags, lagged
from policies.registry import register
from policies.vocabulary import Branch, Run, Site, Step


class Rectified(Predictor):
    """The newest value times a calibrated gain: F = g F_a, g by step and by how many steps ago F_a was computed."""

    name: ClassVar[str] = "rectified"
    gains: Lags = ()

    def predict(self, history: Sequence[Past], step: Step) -> Tensor:
        newest = history[-1]
        value: Tensor = newest.value
        if not self.gains:
            return value
        gain = lagged(self.gains, step.index, step.index - newest.step.index, step.count)
        return value if gain is None else value * gain


@register
class ERTACache(Policy):
    """The stack's residual is reused while its profiled change since the last computed step is below `threshold`:

        mean|r_t - r_computed| / mean|r_t| < threshold,   r reused = g_t r_computed

    `errors` and `gains` are measured by lag (`analysis.calibrate`), the gain being the least-squares one,
    g = <r_t, r_computed> / <r_computed, r_computed>. As a summary of the paper has it, the error e of a reused output v
    is fitted by sigmoid(K v + B), linearised to (K v + B) / 4 + 1/2 with K = 4 cov(v, e) / var(v), and taken off: that
    is a gain 1 - cov(v, e) / var(v) and an offset. Ours is the gain of a fit without offset, on the residual of all
    blocks where the paper takes the model's output less its input. The paper also scales the sampler's steps by
    clip(1 - |e| / |v_t - v_{t+1}|, 0, 1), which is no part of a cache. Nothing is watched, so the policy compiles to a
    schedule.
    """

    name: ClassVar[str] = "ertacache"
    citation: ClassVar[Citation] = Citation(
        "ERTACache: Error Rectification and Timesteps Adjustment for Efficient Diffusion",
        "Peng et al.",
        2025,
        "https://arxiv.org/abs/2508.21091",
        "the residual of all blocks at profiled steps, with a calibrated correction",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"errors", "gains"})
    errors: Lags
    gains: Lags = ()
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    max_skip: Annotated[int, Field(ge=1, le=12)] = 6
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    sites: str = "stack"

    @model_validator(mode="after")
    def _measured(self) -> ERTACache:
        for name, lags in (("errors", self.errors), ("gains", self.gains)):
            if len({len(curve) for curve in lags}) > 1 or (name == "errors" and not (lags and lags[0])):
                raise ValueError(f"{name} must be one list per lag, all of the same number of steps")
        return self

    @property
    def query(self) -> str:
        return self.sites

    def init(self, run: Run) -> dict[tuple[str, Branch], int]:
        return {}

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        last = state.get((site.name, branch))
        if last is None or step.progress < self.start or step.index - last > self.max_skip:
            return False
        error = lagged(self.errors, step.index, step.index - last, step.count)
        return error is not None and error < self.threshold

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        state[site.name, branch] = step.index

    def predictor(self, site: Site, run: Run) -> Predictor:
        return Rectified(gains=self.gains)

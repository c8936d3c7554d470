"""Spectrum [arXiv 2603.01623]: Chebyshev forecasts over gaps that grow along the run."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Predictor
from fastercache.policies.methods.static_interval import anchor
from fastercache.policies.methods.taylorseer import Forecast
from fastercache.policies.predictors.chebyshev import Chebyshev
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Run, Site, Step
from fastercache.policies.wrappers import within


@register
class Spectrum(Forecast):
    """What all blocks add is computed at gaps that grow, and forecast in between; see `Chebyshev`.

    After the warm-up the m-th gap is floor(interval + m growth) steps, m = 0, 1, ... With the official code's settings
    that computes 14 of 50 steps.
    """

    name: ClassVar[str] = "spectrum"
    citation: ClassVar[Citation] = Citation(
        "Adaptive Spectral Feature Forecasting for Diffusion Sampling Acceleration",
        "Han et al.",
        2026,
        "https://arxiv.org/abs/2603.01623",
        "the block stack's residual, forecast by Chebyshev polynomials",
    )
    sites: str = "stack"
    interval: Annotated[int, Field(ge=1, le=12)] = Field(
        default=2,
        description="the first gap between computed steps (N in the paper); 1: never reused, whatever the growth",
    )
    growth: Annotated[float, Field(ge=0.0, le=4.0)] = Field(
        default=0.75, description="by how much each gap is longer than the last one, in steps (alpha in the paper)"
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 5 / 49
    degree: Annotated[int, Field(ge=0, le=8)] = Field(default=4, description="highest polynomial (M in the paper)")
    ridge: Annotated[float, Field(ge=1e-6, le=10.0)] = Field(
        default=0.1, description="penalty on the squared coefficients, no unit (lambda in the paper)"
    )
    blend: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.5, description="share of the polynomial; the rest is the line through the two newest values (w)"
    )

    def reuse(self, state: None, step: Step) -> bool:
        return within(step, self.start, self.stop) and step.index not in self.computed(step.count)

    def computed(self, count: int) -> frozenset[int]:
        """The computed steps of `count`: those of the warm-up, where the first gap begins, then one a gap."""
        step = max(anchor(count, self.start) - 1, 0) if self.offset is None else self.offset
        computed, gap = set(range(step + 1)), float(self.interval)
        while step < count:
            step += math.floor(round(gap, 3))
            computed.add(step)
            gap += self.growth if self.interval > 1 else 0.0
        return frozenset(computed)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return Chebyshev(degree=self.degree, ridge=self.ridge, blend=self.blend)

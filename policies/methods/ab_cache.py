"""AB-Cache [arXiv 2504.10540]: the denoiser's output from the last k computed ones."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Predictor
from fastercache.policies.methods.taylorseer import Forecast
from fastercache.policies.predictors.adams_bashforth import AdamsBashforth
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Run, Site


@register
class ABCache(Forecast):
    """The denoiser is computed every `interval`-th step from `start` on; see `AdamsBashforth` for the steps between."""

    name: ClassVar[str] = "ab_cache"
    citation: ClassVar[Citation] = Citation(
        "AB-Cache: Training-Free Acceleration of Diffusion Models via Adams-Bashforth Cached Feature Reuse",
        "Yu et al.",
        2025,
        "https://arxiv.org/abs/2504.10540",
        "the denoiser's output, from the polynomial through the last computed ones",
    )
    sites: str = "denoiser"
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 5 / 49
    order: Annotated[int, Field(ge=1, le=5)] = Field(
        default=3, description="how many computed outputs are combined (k in the paper); 1 holds the value"
    )

    def predictor(self, site: Site, run: Run) -> Predictor:
        return AdamsBashforth(order=self.order)

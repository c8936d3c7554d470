"""TaylorSeer [arXiv 2503.06923] and its successors HiCache and FoCa: an interval rule, three ways to forecast."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Predictor
from fastercache.policies.methods.static_interval import SiteInterval
from fastercache.policies.predictors.forecasts import FoCaForecast, Hermite
from fastercache.policies.predictors.history import Taylor
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Run, Site

WARM_UP = 3 / 49
"""Three of fifty steps: what diffusers and the official code compute before the first forecast."""


class Forecast(SiteInterval):
    """Base of methods that compute every module each `interval`-th step from `start` on and forecast it in between."""

    sites: str = "all"
    interval: Annotated[int, Field(ge=1, le=12)] = Field(
        default=4,
        description="computed every this many steps, forecast in between (N in the paper); 1: never reused",
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = WARM_UP


@register
class TaylorSeer(Forecast):
    """Module outputs are computed every `interval`-th step from `start` on and forecast by a Taylor series in between.

    D_{i+1} = (D_i - D_i before) / (distance of the two newest computed steps),  F = sum_i D_i k^i / i!
    """

    name: ClassVar[str] = "taylorseer"
    citation: ClassVar[Citation] = Citation(
        "From Reusable to Forecastable: Accelerating Diffusion Models with TaylorSeers",
        "Liu et al.",
        2025,
        "https://arxiv.org/abs/2503.06923",
        "every attention and feed-forward output, forecast by a Taylor series",
    )
    order: Annotated[int, Field(ge=0, le=4)] = Field(
        default=1, description="highest derivative in the Taylor series (O in the paper); 0 holds the value"
    )

    def predictor(self, site: Site, run: Run) -> Predictor:
        return Taylor(order=self.order)


@register
class HiCache(Forecast):
    """As TaylorSeer with the monomials k^i replaced by scaled Hermite polynomials s^i H_i(s k)."""

    name: ClassVar[str] = "hicache"
    citation: ClassVar[Citation] = Citation(
        "HiCache: A Plug-in Scaled-Hermite Upgrade for Taylor-Style Cache-then-Forecast Diffusion Acceleration",
        "Feng et al.",
        2025,
        "https://arxiv.org/abs/2508.16984",
        "every attention and feed-forward output, forecast in a Hermite basis",
    )
    order: Annotated[int, Field(ge=0, le=4)] = Field(
        default=2, description="highest derivative in the Hermite series (O in the paper); 0 holds the value"
    )
    scale: Annotated[float, Field(ge=0.1, le=1.0)] = Field(
        default=0.5, description="contraction of the Hermite polynomials' argument, no unit (sigma in the paper)"
    )

    def predictor(self, site: Site, run: Run) -> Predictor:
        return Hermite(order=self.order, scale=self.scale)


@register
class FoCa(Forecast):
    """As TaylorSeer with the forecast of an ODE solver's predictor and corrector; see `FoCaForecast`."""

    name: ClassVar[str] = "foca"
    citation: ClassVar[Citation] = Citation(
        "Forecast then Calibrate: Feature Caching as ODE for Efficient Diffusion Transformers",
        "Zheng et al.",
        2025,
        "https://arxiv.org/abs/2508.16211",
        "every attention and feed-forward output, forecast as an ODE",
    )
    horizon: Annotated[int, Field(ge=1, le=12)] = Field(
        default=3, description="how far the forecast runs before it is damped, in steps"
    )

    def predictor(self, site: Site, run: Run) -> Predictor:
        return FoCaForecast(horizon=self.horizon)

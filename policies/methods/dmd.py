"""The exponential forecast of HiCache++ and cache-dit's DMD calibrator, at an interval."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Predictor
from fastercache.policies.methods.taylorseer import Forecast
from fastercache.policies.predictors.exponential import FEWEST, Exponential
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Run, Site


@register
class DMDCache(Forecast):
    """What all blocks add is computed every `interval`-th step from `start` on; in between see `Exponential`."""

    name: ClassVar[str] = "dmd"
    citation: ClassVar[Citation] = Citation(
        "HiCache++: an exponential basis by dynamic mode decomposition (cache-dit's DMD calibrator)",
        "github.com/Archerkattri/hicache-plus-plus",
        2026,
        "https://github.com/Archerkattri/hicache-plus-plus",
        "the block stack's residual, forecast by damped and oscillating exponentials",
    )
    sites: str = "stack"
    history: Annotated[int, Field(ge=FEWEST, le=12)] = Field(
        default=6, description="how many computed values the exponentials are identified from, at most"
    )

    def predictor(self, site: Site, run: Run) -> Predictor:
        return Exponential(history=self.history)

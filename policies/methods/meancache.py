"""MeanCache [arXiv 2601.19961]: the whole velocity is skipped and corrected towards its average over the way ahead."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Predictor
from fastercache.policies.errors import UnknownPolicy, suggest
from fastercache.policies.methods.static_interval import SiteInterval
from fastercache.policies.predictors.forecasts import AverageVelocity
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Run, Site, Step

PLANS: dict[str, tuple[int, ...]] = {
    "qwen-image-25": (*range(17), 24, 32, 40, 43, 45, 47, 48, 49),
    "qwen-image-17": (*range(9), 10, 17, 24, 31, 38, 45, 48, 49),
    "qwen-image-10": (0, 1, 3, 7, 14, 21, 28, 35, 42, 49),
}
"""The computed steps that the official code ships, of 50."""


@register
class MeanCache(SiteInterval):
    """The denoiser runs at the steps of `plan`, or at every `interval`-th where there is none (at all steps with an
    interval of 1); in between its output is the last one corrected by `AverageVelocity` over the last `span` outputs.

    The paper finds the computed steps as a shortest path over measured spans of steps, and a span for each of them; its
    code (github.com/UnicomAI/MeanCache) ships plans for Qwen-Image at 50 steps. `plan` holds such steps as progress, so
    that they serve other step counts; one `span` serves all. To plan for another model, tune a schedule with this
    predictor.
    """

    name: ClassVar[str] = "meancache"
    citation: ClassVar[Citation] = Citation(
        "MeanCache: From Instantaneous to Average Velocity for Accelerating Flow Matching Inference",
        "Gao et al.",
        2026,
        "https://arxiv.org/abs/2601.19961",
        "the denoiser's output, corrected from instantaneous to average velocity",
    )
    unsearched: ClassVar[frozenset[str]] = SiteInterval.unsearched | {"sites", "plan"}
    sites: str = Field(
        default="denoiser", description="site query: what is reused; by default the denoiser's whole output"
    )
    interval: Annotated[int, Field(ge=1, le=12)] = Field(
        default=3, description="without a `plan`, computed every this many steps; 1: never reused"
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    span: Annotated[int, Field(ge=2, le=6)] = Field(
        default=2, description="how many computed outputs the average velocity is taken over"
    )
    plan: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = Field(
        default=(),
        description="the computed steps, each as a point of the run (progress, 0 to 1); empty: go by `interval`",
    )

    def reuse(self, state: None, step: Step) -> bool:
        if not self.plan or self.interval == 1:
            return super().reuse(state, step)
        return step.index not in {round(u * (step.count - 1)) for u in self.plan}

    def predictor(self, site: Site, run: Run) -> Predictor:
        return AverageVelocity(span=self.span)

    @classmethod
    def published(cls, name: str, **fields: Any) -> MeanCache:
        """With the computed steps of the official code. Raises UnknownPolicy, naming the plans there are."""
        if name not in PLANS:
            raise UnknownPolicy(f"MeanCache has no published plan '{name}'{suggest(name, PLANS)}")
        return cls(plan=tuple(i / 49 for i in PLANS[name]), **fields)

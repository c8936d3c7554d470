"""Whole steps computed where a plan says so, and predicted elsewhere."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from fastercache.policies.base import Citation, Hold, Predictor, SitePolicy
from fastercache.policies.errors import ScheduleMismatch
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Branch, Run, Site, Step


@register
class Planned(SitePolicy, StaticRule[frozenset[int]]):
    """The denoiser runs at the planned steps only; at all others a predictor stands in for its output.

    `fastercache plan` finds the steps and fits the weights from one recording (docs/planning.md). A plan belongs to one
    model, sampler and number of steps.
    """

    name: ClassVar[str] = "planned"
    made_with: ClassVar[str] = "`fastercache plan`, which finds both from a recording"
    citation: ClassVar[Citation | None] = Citation(
        "The schedule from one recording: planned steps and fitted predictors",
        "the authors of this toolkit",
        2026,
        "docs/planning.md",
        "the whole denoiser at the steps that a plan skips",
    )
    steps: Annotated[int, Field(ge=1, le=10_000, description="number of denoising steps that the plan is for (n)")]
    computed: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(min_length=1, description="steps at which the denoiser is computed, rising from 0 (s_0 < s_1 < ...)"),
    ]
    stand_in: AnyPredictor = Field(default_factory=Hold, description="the predictor of the skipped steps' outputs")

    @model_validator(mode="after")
    def _a_plan(self) -> Planned:
        if (
            list(self.computed) != sorted(set(self.computed))
            or self.computed[0] != 0
            or self.computed[-1] >= self.steps
        ):
            raise ValueError(f"computed steps must rise from 0 to at most {self.steps - 1}, each once")
        return self

    @property
    def query(self) -> str:
        return "denoiser"

    def begin(self, site: Site, branch: Branch, run: Run) -> frozenset[int]:
        """The steps to compute. Raises ScheduleMismatch for a run of another number of steps."""
        if run.count != self.steps:
            raise ScheduleMismatch(
                f"this plan is for {self.steps} steps, the run has {run.count}: plan again for that number of steps"
            )
        return frozenset(self.computed)

    def reuse(self, state: frozenset[int], step: Step) -> bool:
        return step.index not in state

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in

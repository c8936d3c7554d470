"""Delta-DiT [arXiv 2406.01125]: the rear blocks' residual early, the front blocks' late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Hold, Predictor
from fastercache.policies.methods.static_interval import Periodic
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Branch, Run, Site, Step, select


@register
class DeltaDiT(Periodic, StaticRule[bool]):
    """What a range of blocks adds is cached: the rear range's while progress < `gate`, from there the front range's.

    Outlines form early and depend on the front blocks, details late and on the rear ones, so each stage computes the
    blocks it needs. `share` is the part of the model's blocks in each range (at least one block).
    """

    name: ClassVar[str] = "delta_dit"
    citation: ClassVar[Citation] = Citation(
        "Δ-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers",
        "Chen et al.",
        2024,
        "https://arxiv.org/abs/2406.01125",
        "the residual of the rear blocks before a gate step, of the front blocks after it",
    )
    share: Annotated[float, Field(ge=0.05, le=0.5)] = Field(
        default=0.5,
        description="share of the model's blocks in the cached range, 0 to 1 (N_c in the paper, which counts blocks)",
    )
    gate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.5,
        description=(
            "rear blocks are reused before this point of the run, front blocks from it on (progress, 0 to 1); b "
            "in the paper"
        ),
    )
    stand_in: AnyPredictor = Field(default_factory=Hold, description="predictor that stands in for a skipped value")

    @property
    def query(self) -> str:
        return "stack"

    def where(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        terms = []
        for whole in select("stack", sites):  # one for each denoiser
            blocks = whole.span[1]
            size = max(math.floor(self.share * blocks), 1)
            terms += [f"{whole}[0:{size}]", f"{whole}[{max(blocks - size, size)}:{blocks}]"]
        return select("|".join(terms), sites)

    def begin(self, site: Site, branch: Branch, run: Run) -> bool:
        """Whether the site is the front range."""
        return site.span[0] == 0

    def reuse(self, state: bool, step: Step) -> bool:
        return state == (step.progress >= self.gate) and self.rests(step, self.interval)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in

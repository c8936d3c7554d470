"""T-GATE [arXiv 2404.02747]: cross-attention is frozen once the layout stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, SitePolicy
from fastercache.policies.registry import register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Branch, Role, Run, Site, Step
from fastercache.policies.wrappers import within


@register
class TGate(SitePolicy, StaticRule[Role | None]):
    """Cross-attention is computed up to `gate` (in progress) and held from there on; self-attention is computed every
    `self_interval`-th step between `start` and the gate, and always after it.

    The published code freezes the mean of both branches' cross-attention and then drops guidance. Here each branch
    keeps its own value, since no value may cross branches; to drop guidance too, compose it with a GuidanceInterval.
    """

    name: ClassVar[str] = "tgate"
    citation: ClassVar[Citation] = Citation(
        "Faster Diffusion Through Temporal Attention Decomposition",
        "Liu, Zhang et al.",
        2024,
        "https://arxiv.org/abs/2404.02747",
        "cross-attention after a gate step, self-attention at an interval before it",
    )
    off: ClassVar[Mapping[str, Any]] = {"gate": 1.0, "self_interval": 1}
    gate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.4,
        description="cross-attention is held from this point of the run on (progress, 0 to 1); the paper's gate step m",
    )
    self_interval: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description=("before the gate, self-attention is computed every this many steps (k in the paper); 1: always"),
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.1,
        description=(
            "self-attention is always computed before this point of the run (progress, 0 to 1); the paper's warm- up"
        ),
    )

    @property
    def query(self) -> str:
        return "cross|attention" if self.self_interval > 1 else "cross"

    def begin(self, site: Site, branch: Branch, run: Run) -> Role | None:
        return site.role

    def reuse(self, state: Role | None, step: Step) -> bool:
        if state is Role.CROSS:
            return not within(step, 0.0, self.gate)
        return within(step, self.start, self.gate) and step.index % self.self_interval != 0

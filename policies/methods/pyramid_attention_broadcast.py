"""Pyramid Attention Broadcast [arXiv 2408.12588]: each role of attention at its own interval in a timestep window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, SitePolicy
from fastercache.policies.errors import UnknownPolicy, suggest
from fastercache.policies.registry import register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Branch, Role, Run, Site, Step, matches, select

Range = Annotated[int, Field(ge=1, le=12)]
Timestep = Annotated[float, Field(ge=0.0, le=1000.0)]


@register
class PyramidAttentionBroadcast(SitePolicy, StaticRule[int]):
    """A site of a role with range r is computed when step % r == 0 or the timestep lies outside (`low`, `high`).

    Ranges are per role; 1 leaves a role alone, and a role the model does not have is passed over. The window is in
    the scheduler's timesteps (0 to 1000, both ends excluded), as published: the same settings serve other step counts.
    The paper's rule for feed-forwards names single blocks and timesteps per model; here `ff` is one more range.
    """

    name: ClassVar[str] = "pab"
    citation: ClassVar[Citation] = Citation(
        "Real-Time Video Generation with Pyramid Attention Broadcast",
        "Zhao et al.",
        2024,
        "https://arxiv.org/abs/2408.12588",
        "attention outputs, held; the range grows from spatial over temporal to cross",
    )
    off: ClassVar[Mapping[str, Any]] = {"spatial": 1, "temporal": 1, "cross": 1, "joint": 1, "ff": 1}
    spatial: Range = Field(
        default=2,
        description=(
            "spatial self-attention is computed every this many steps (the paper's broadcast range); 1: always"
        ),
    )
    temporal: Range = Field(
        default=3,
        description="temporal self-attention is computed every this many steps (broadcast range); 1: always",
    )
    cross: Range = Field(
        default=6,
        description="cross-attention is computed every this many steps (broadcast range); 1: always",
    )
    joint: Range = Field(
        default=2,
        description="joint attention (text and video together) is computed every this many steps; 1: always",
    )
    ff: Range = Field(default=1, description="feed-forwards are computed every this many steps; 1: always")
    low: Timestep = Field(default=100.0, description="reuse only above this timestep (the scheduler's, 0 to 1000)")
    high: Timestep = Field(default=800.0, description="reuse only below this timestep (the scheduler's, 0 to 1000)")

    def _ranges(self) -> dict[Role, int]:
        return {role: int(getattr(self, role)) for role in Role}

    @property
    def query(self) -> str:
        return "|".join(role for role, interval in self._ranges().items() if interval > 1) or "attention"

    def where(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        return matches(self.query, sites) or select(self.query, sites)

    def begin(self, site: Site, branch: Branch, run: Run) -> int:
        """The range of the site's role."""
        assert site.role is not None  # only roles are claimed
        return self._ranges()[site.role]

    def reuse(self, state: int, step: Step) -> bool:
        return self.low < step.timestep < self.high and step.index % state != 0

    @classmethod
    def preset(cls, model: str) -> PyramidAttentionBroadcast:
        """The published settings for a model. Raises UnknownPolicy, naming those there are."""
        if model not in _PRESETS:
            raise UnknownPolicy(f"PyramidAttentionBroadcast has no preset '{model}'{suggest(model, _PRESETS)}")
        return cls(**_PRESETS[model])


_PRESETS: dict[str, dict[str, Any]] = {
    "latte": {"spatial": 2, "temporal": 3, "cross": 6, "low": 100.0, "high": 800.0},
    "open-sora": {"spatial": 2, "temporal": 4, "cross": 6, "low": 450.0, "high": 930.0},
    "cogvideox": {"spatial": 2, "temporal": 1, "cross": 1, "joint": 2, "low": 100.0, "high": 800.0},
}

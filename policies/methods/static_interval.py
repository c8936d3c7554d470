"""Fixed-interval reuse, and the policy that reuses nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Hold, Policy, Predictor, SitePolicy
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Run, Site, Step
from fastercache.policies.wrappers import within


@register
class NoCache(SitePolicy, StaticRule[None]):
    """Claims sites and reuses none: the baseline of every comparison and of the runtime's own overhead."""

    name: ClassVar[str] = "no_cache"
    sites: str = Field(default="all|denoiser", description="site query: the sites that are watched and never reused")

    @property
    def query(self) -> str:
        return self.sites

    def reuse(self, state: None, step: Step) -> bool:
        return False

    def switched_off(self) -> Policy:
        return self


def anchor(run_count: int, start: float) -> int:
    """Index of the first step whose progress is at least `start`."""
    return math.ceil(start * (run_count - 1) - 1e-9)


def due(step: Step, interval: int, start: float, offset: int | None) -> bool:
    """Whether an interval rule computes at `step`: every `interval`-th step, counted from `offset`.

    With `offset=None` the count starts at the first step of the window, so that one is computed.
    """
    origin = anchor(step.count, start) if offset is None else offset
    return (step.index - origin) % interval == 0


class Periodic(SitePolicy):
    """Base of policies that compute every `interval`-th step from `start` to `stop` (in progress)."""

    unsearched: ClassVar[frozenset[str]] = frozenset({"offset"})
    off: ClassVar[Mapping[str, Any]] = {"interval": 1}
    interval: Annotated[int, Field(ge=1, le=12)] = Field(
        default=2,
        description="computed every this many steps, reused in between (N in most papers); 1: never reused",
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="everything is computed before this point of the run (progress, 0 to 1)"
    )
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=1.0,
        description="everything is computed from this point on (progress, 0 to 1); 1 includes the last step",
    )
    offset: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description="index of a step from which intervals are counted; by default the first step at `start`",
    )

    def rests(self, step: Step, interval: int) -> bool:
        """Whether a rule of this window and `interval` reuses at `step`."""
        return within(step, self.start, self.stop) and not due(step, interval, self.start, self.offset)


class Interval(Periodic, StaticRule[None]):
    """Base of policies that do so at all their sites in every branch."""

    def reuse(self, state: None, step: Step) -> bool:
        return self.rests(step, self.interval)


class SiteInterval(Interval):
    """An interval rule at the sites of a query: `attention` (every self-attention) unless a method says otherwise."""

    sites: str = Field(default="attention", description="site query: what is reused")

    @property
    def query(self) -> str:
        return self.sites


@register
class StaticInterval(SiteInterval):
    """Compute every `interval`-th step from `start` to `stop` (in progress), stand in for the rest.

    All branches together, as the common static caches do. Sites: any query; `attention` is every self-attention.
    """

    name: ClassVar[str] = "static_interval"
    citation: ClassVar[Citation] = Citation(
        "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration",
        "Selvaraju et al.",
        2024,
        "https://arxiv.org/abs/2407.01425",
        "any site's value at a fixed interval",
    )
    stand_in: AnyPredictor = Field(default_factory=Hold, description="predictor that stands in for a skipped value")

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in

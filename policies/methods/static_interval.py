"""Fixed-interval reuse, and the policy that reuses nothing."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation, Hold, Predictor, SitePolicy
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.rules import StaticRule
from fastercache.policies.vocabulary import Run, Site, Step
from fastercache.policies.wrappers import within


@register
class NoCache(SitePolicy, StaticRule[None]):
    """Claims sites and reuses none: the baseline of every comparison and of the runtime's own overhead."""

    name: ClassVar[str] = "no_cache"
    sites: str = "all|denoiser"

    @property
    def query(self) -> str:
        return self.sites

    def reuse(self, state: None, step: Step) -> bool:
        return False


def anchor(run_count: int, start: float) -> int:
    """Index of the first step whose progress is at least `start`."""
    return min(max(math.ceil(start * (run_count - 1) - 1e-9), 0), run_count)


def due(step: Step, interval: int, start: float, offset: int | None) -> bool:
    """Whether an interval rule computes at `step`: every `interval`-th step, counted from `offset`.

    With `offset=None` the count starts at the first step of the window, so that one is computed.
    """
    origin = anchor(step.count, start) if offset is None else offset
    return (step.index - origin) % interval == 0


class Interval(SitePolicy, StaticRule[None]):
    """Base of policies that compute every `interval`-th step from `start` to `stop` (in progress), in every branch."""

    unsearched: ClassVar[frozenset[str]] = frozenset({"offset"})
    interval: Annotated[int, Field(ge=1, le=12)] = 2
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    offset: Annotated[int, Field(ge=0, le=1000)] | None = None

    def reuse(self, state: None, step: Step) -> bool:
        return within(step, self.start, self.stop) and not due(step, self.interval, self.start, self.offset)


class SiteInterval(Interval):
    """An interval rule at the sites of a query: `attention` (every self-attention) unless a method says otherwise."""

    sites: str = "attention"

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
    stand_in: AnyPredictor = Field(default_factory=Hold)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in

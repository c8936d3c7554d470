"""Constraints that wrap any policy: warm-up, a window of progress, a bound on consecutive reuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation, Policy, Predictor
from fastercache.policies.compose import Parts
from fastercache.policies.registry import AnyPolicy, register
from fastercache.policies.vocabulary import Branch, Run, Signal, Site, Step


class Wrapper(Policy):
    """Base of policies that pass everything on to `inner` and may veto its reuses."""

    inner: AnyPolicy = Field(description="the policy whose reuses are restricted")

    def allows(self, state: Any, site: Site, step: Step, branch: Branch) -> bool:
        """Whether `inner` may reuse here. `state` is the wrapper's own."""
        return True

    def own_state(self, run: Run) -> Any:
        """The wrapper's own state of one run."""
        return None

    def noted(self, state: Any, site: Site, branch: Branch, reused: bool) -> None:
        """Called with the answer to every question; an outer wrapper may still turn a reuse into a computation."""

    def computed(self, state: Any, site: Site, branch: Branch) -> None:
        """Called after every computation of a claimed site."""

    @property
    def query(self) -> str:
        return self.inner.query

    @property
    def signal(self) -> Signal | None:
        return self.inner.signal

    @property
    def static(self) -> bool:
        return self.inner.static

    def claims(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        return self.inner.claims(sites)

    def owner(self, site: Site, sites: Sequence[Site]) -> Policy:
        return self.inner.owner(site, sites)

    def init(self, run: Run) -> tuple[Any, Any]:
        return self.own_state(run), self.inner.init(run)

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        own, inner = state
        # The inner policy is always asked, so that accumulating rules see every step.
        wanted = self.inner.reuse(inner, site, step, branch, signal)
        reused = wanted and self.allows(own, site, step, branch)
        self.noted(own, site, branch, reused)
        return reused

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        own, inner = state
        self.computed(own, site, branch)
        self.inner.observe(inner, site, step, branch, value)

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.inner.predictor(site, run)


@register
class WarmUp(Wrapper):
    """Computes every step at the start of a run, as many as `steps` says; then the inner policy decides."""

    name: ClassVar[str] = "warm_up"
    steps: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=1, description="how many steps at the start are computed"
    )

    def allows(self, state: Any, site: Site, step: Step, branch: Branch) -> bool:
        return step.index >= self.steps


@register
class Window(Wrapper):
    """Reuse only while `start <= progress < stop` (a stop of 1 includes the last step)."""

    name: ClassVar[str] = "window"
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="no reuse before this point of the run (progress, 0 to 1)"
    )
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=1.0, description="no reuse from this point on (progress, 0 to 1); 1 includes the last step"
    )

    def allows(self, state: Any, site: Site, step: Step, branch: Branch) -> bool:
        return within(step, self.start, self.stop)


@register
class MaxConsecutive(Wrapper):
    """At most `limit` reuses of a site in a row, per branch."""

    name: ClassVar[str] = "max_consecutive"
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="how often a site may be reused in a row, in steps"
    )

    def own_state(self, run: Run) -> dict[tuple[str, Branch], int]:
        return {}

    def allows(self, state: Any, site: Site, step: Step, branch: Branch) -> bool:
        return bool(state.get((site.name, branch), 0) < self.limit)

    def noted(self, state: Any, site: Site, branch: Branch, reused: bool) -> None:
        if reused:
            state[site.name, branch] = state.get((site.name, branch), 0) + 1

    def computed(self, state: Any, site: Site, branch: Branch) -> None:
        state[site.name, branch] = 0


def within(step: Step, start: float, stop: float) -> bool:
    """Whether a step's progress lies in [start, stop), the last step included when stop is 1.

    The tolerance keeps windows such as 15 / 49 exact for step counts that they were computed from.
    """
    u = step.progress
    return u >= start - 1e-9 and (u < stop - 1e-9 or stop >= 1.0)


def citations_of(policy: Policy) -> list[Citation]:
    """The works behind a policy, its parts and what it wraps, each once."""
    found: dict[str, Citation] = {}
    pending: list[Policy] = [policy]
    while pending:
        one = pending.pop(0)
        if one.citation is not None:
            found.setdefault(one.citation.url, one.citation)
        if isinstance(one, Parts):
            pending.extend(one.parts())
        if isinstance(one, Wrapper):
            pending.append(one.inner)
    return list(found.values())

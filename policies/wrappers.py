"""Constraints that wrap any policy: warm-up, a window of progress, a bound on consecutive reuses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar, final

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Assigned, Citation, Policy
from fastercache.policies.compose import Parts
from fastercache.policies.registry import AnyPolicy, register
from fastercache.policies.rules import Rule, StaticRule, WatchingRule
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Branch, Run, Scope, Site, Step

S = TypeVar("S")


class Wrapper(Policy):
    """Base of policies that assign what `inner` does, and may turn its reuses into computations."""

    inner: AnyPolicy = Field(description="the policy whose reuses are restricted")

    @abstractmethod
    def allows(self, step: Step, reused: int) -> bool:
        """Whether a site may be reused at `step`, after `reused` reuses of it in a row."""

    @property
    def static(self) -> bool:
        return self.inner.static

    def switched_off(self) -> Policy | None:
        """With what it wraps at its own."""
        inner = self.inner.switched_off()
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return None if inner is None else type(self)(**fields | {"inner": inner})

    @final
    def assign(self, run: Run) -> Mapping[Site, Assigned]:
        wrapped: dict[int, StaticRule[Any] | WatchingRule[Any]] = {}  # one for each rule, so that sites stay together
        table = {}
        for site, assigned in self.inner.assign(run).items():
            rule = assigned.rule
            if id(rule) not in wrapped:
                wrapped[id(rule)] = _Static(self, rule) if isinstance(rule, StaticRule) else _Watching(self, rule)
            table[site] = Assigned(wrapped[id(rule)], assigned.predictor)
        return table


@dataclass(slots=True)
class _Wrapped(Generic[S]):
    """The inner rule's state, and how often the site was reused since it was computed."""

    inner: S
    reused: int = 0

    def after(self, wanted: bool, wrapper: Wrapper, step: Step) -> bool:
        """The answer to a question: the inner rule was asked first, so that accumulating rules see every step."""
        answer = wanted and wrapper.allows(step, self.reused)
        self.reused += answer
        return answer


class _Constrained(Rule[_Wrapped[S]]):
    def __init__(self, wrapper: Wrapper, rule: Rule[S]) -> None:
        self.wrapper, self.inner = wrapper, rule

    def begin(self, site: Site, branch: Branch, run: Run) -> _Wrapped[S]:
        return _Wrapped(self.inner.begin(site, branch, run))

    def begin_beside(self, first: _Wrapped[S], site: Site, branch: Branch, run: Run) -> _Wrapped[S]:
        return _Wrapped(self.inner.begin_beside(first.inner, site, branch, run))


class _Static(_Constrained[S], StaticRule[_Wrapped[S]]):
    def __init__(self, wrapper: Wrapper, rule: StaticRule[S]) -> None:
        super().__init__(wrapper, rule)
        self.rule = rule

    def reuse(self, state: _Wrapped[S], step: Step) -> bool:
        return state.after(self.rule.reuse(state.inner, step), self.wrapper, step)

    def update(self, state: _Wrapped[S], step: Step) -> _Wrapped[S]:
        return _Wrapped(self.rule.update(state.inner, step))


class _Watching(_Constrained[S], WatchingRule[_Wrapped[S]]):
    def __init__(self, wrapper: Wrapper, rule: WatchingRule[S]) -> None:
        super().__init__(wrapper, rule)
        self.rule = rule

    @property
    def signal(self) -> Signal | None:
        return self.rule.signal

    @property
    def decides(self) -> Scope:
        return self.rule.decides

    @property
    def remembers(self) -> int:
        return self.rule.remembers

    def reuse(self, state: _Wrapped[S], step: Step, seen: Tensor | None) -> bool:
        return state.after(self.rule.reuse(state.inner, step, seen), self.wrapper, step)

    def update(self, state: _Wrapped[S], step: Step, value: Tensor) -> _Wrapped[S]:
        return _Wrapped(self.rule.update(state.inner, step, value))


@register
class WarmUp(Wrapper):
    """Computes every step at the start of a run, as many as `steps` says; then the inner policy decides."""

    name: ClassVar[str] = "warm_up"
    steps: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=1, description="how many steps at the start are computed"
    )

    def allows(self, step: Step, reused: int) -> bool:
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

    def allows(self, step: Step, reused: int) -> bool:
        return within(step, self.start, self.stop)


@register
class MaxConsecutive(Wrapper):
    """At most `limit` reuses of a site in a row, per branch."""

    name: ClassVar[str] = "max_consecutive"
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="how often a site may be reused in a row, in steps"
    )

    def allows(self, step: Step, reused: int) -> bool:
        return reused < self.limit


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

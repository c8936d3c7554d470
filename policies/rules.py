"""When a site is reused: rules, and the state that the runtime keeps of each, site by site and branch by branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor

from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Branch, Run, Scope, Site, Step

S = TypeVar("S")


class Rule(ABC, Generic[S]):
    """Decides at which steps a site is reused. A rule is a `StaticRule` or a `WatchingRule`.

    `S` is the type of its state. The runtime makes one state for each site and branch at the start of a run and hands
    it to every question about them, so nothing that a rule learns crosses from one branch to another. The rule itself
    never changes.
    """

    def begin(self, site: Site, branch: Branch, run: Run) -> S:
        """The state of one site and branch at the start of a run; None unless overridden."""
        return None  # type: ignore[return-value]

    def begin_beside(self, first: S, site: Site, branch: Branch, run: Run) -> S:
        """The state of a further site of this rule in the same denoiser and branch, `first` being that of the first.

        Override it where the sites decide together and share a part of their states.
        """
        return self.begin(site, branch, run)


class StaticRule(Rule[S]):
    """Decides from the step and its state alone, so all decisions are known before the run: it sees no value."""

    @abstractmethod
    def reuse(self, state: S, step: Step) -> bool:
        """Whether to reuse (True) or compute (False). Asked at every step at which the site is reached."""

    def update(self, state: S, step: Step) -> S:
        """The state after the site was computed at this step."""
        return state


class WatchingRule(Rule[S]):
    """Decides while the model runs, from a signal it watches or from the values that are computed."""

    @property
    @abstractmethod
    def signal(self) -> Signal | None:
        """The cheap value watched before each decision; None for a rule that learns from computed values alone."""

    @property
    def decides(self) -> Scope:
        """Who decides for whom.

        With `branch`, `reuse` and `update` are called for each branch with its own rows. With `call` they are called
        once a denoiser call, with the rows of all its branches, under the conditional branch's name if it is among
        them. With `cond` they are called for the conditional branch alone, and the answer holds for the whole step; a
        branch that is called before the conditional one is asked by itself.
        """
        return Scope.BRANCH

    @property
    def remembers(self) -> int:
        """How many watched or computed values a state holds at most, so that memory is known before the run."""
        return 3

    @abstractmethod
    def reuse(self, state: S, step: Step, seen: Tensor | None) -> bool:
        """Whether to reuse (True) or compute (False). `seen`: the rows of `signal`, by `decides`; None without one."""

    def update(self, state: S, step: Step, value: Tensor) -> S:
        """The state after the site was computed at this step with this value."""
        return state


def begin_all(rule: Rule[S], site: Site, run: Run, firsts: dict[tuple[int, str], dict[Branch, S]]) -> dict[Branch, S]:
    """The states of one site by branch. `firsts` collects, over a run, those of each rule's first site."""
    first = firsts.get((id(rule), site.denoiser))
    if first is None:
        states = {branch: rule.begin(site, branch, run) for branch in run.branches}
        firsts[id(rule), site.denoiser] = states
        return states
    return {branch: rule.begin_beside(first[branch], site, branch, run) for branch in run.branches}

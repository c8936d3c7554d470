"""The best of many plans by their true error on a few prompts, within a number of generations.

The planner's prediction ranks plans over many orders of magnitude, but not those within a few dB of the best. What
decides is a fitted cached run of two prompts, `2 (B - 1) / n` of an uncached generation. So first a portfolio of
planned paths is run, then moves of single computed steps from the best so far, cheapest prediction first; a plan starts
from the kept state of the longest beginning that it shares with the incumbent, and is given up on when it falls behind.
Everything is deterministic: no clock and no random numbers decide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Steps = tuple[int, ...]


@dataclass(frozen=True)
class Judged:
    """A plan that was run.

    Attributes:
        computed: its steps.
        error: mean over prompts of the logarithm of the mean squared error of the last latent; infinite if given up.
        spent: generations' worth of denoiser calls that judging it took.
    """

    computed: Steps
    error: float
    spent: float

    @property
    def decibels(self) -> float:
        """-10 log10 of the error."""
        return -10.0 / math.log(10.0) * self.error


Referee = Callable[[Steps, "Judged | None"], Judged]
"""Runs a plan; told the incumbent, to give up early and to share its beginning."""


@dataclass
class Search:
    """What was found: every plan judged in order, and the generations spent."""

    judged: dict[Steps, Judged] = field(default_factory=dict)
    spent: float = 0.0

    @property
    def best(self) -> Judged:
        """The plan with the least true error."""
        return min(self.judged.values(), key=lambda one: (one.error, one.computed))

    def ranked(self) -> list[Judged]:
        """All plans that were run to the end, best first."""
        whole = [one for one in self.judged.values() if math.isfinite(one.error)]
        return sorted(whole, key=lambda one: (one.error, one.computed))


def search(
    portfolio: Sequence[Steps],
    referee: Referee,
    predicted: Callable[[Steps], float],
    steps: int,
    generations: float,
    *,
    prompts: int = 1,
    worse: float = 3.0,
    tick: Callable[[Judged], None] = lambda judged: None,
    known: Mapping[Steps, Judged] | None = None,
    fixed: Sequence[int] = (0,),
) -> Search:
    """Judge the portfolio, then single moves from the best, until the generations are spent.

    Args:
        portfolio: planned paths with one number of computed steps, most promising first.
        predicted: damage of a plan.
        steps: n.
        generations: what may be spent; a plan is begun only if it fits in, run on all prompts.
        prompts: how many prompts judge a plan at the most.
        worse: decibels of predicted damage over the incumbent's beyond which a move is not tried.
        known: plans judged before, e.g. by an interrupted search: they are not run again.
        fixed: steps that every plan computes.
    """
    state = Search()
    stored = dict(known or {})

    def judge(plan: Steps) -> bool:
        cost = prompts * len(plan) / steps
        if plan in state.judged:
            return True
        one = stored.get(plan)
        if one is None:
            incumbent = state.best if state.judged else None
            if state.spent + cost > generations:
                return False
            one = referee(plan, incumbent)
        state.judged[plan] = one
        state.spent += one.spent
        tick(one)
        return True

    def allowed(plan: Steps) -> bool:
        return plan not in state.judged and set(fixed) <= set(plan)

    for plan in portfolio:
        if not judge(plan):
            return state
    while True:
        incumbent = state.best
        limit = predicted(incumbent.computed) * 10.0 ** (worse / 10.0)
        options = [(predicted(plan), plan) for plan in moves(incumbent.computed, steps) if allowed(plan)]
        options = sorted(option for option in options if option[0] <= limit)
        if not options:
            return state
        for _, plan in options:
            if not judge(plan):
                return state
            if state.best is not incumbent:
                break


def moves(computed: Steps, steps: int) -> Iterator[Steps]:
    """Plans of as many steps: one step one or two further, two neighbours together, or all from one step on.

    Several moves may lead to one plan.
    """
    taken = set(computed)
    for q in range(1, len(computed)):
        for shift in (-2, -1, 1, 2):
            single = computed[q] + shift
            if 0 < single < steps and single not in taken:
                yield tuple(sorted((*computed[:q], single, *computed[q + 1 :])))
        for shift in (-1, 1):
            for last in (q + 2, len(computed)):
                plan = (*computed[:q], *(step + shift for step in computed[q:last]), *computed[last:])
                if plan[-1] < steps and all(a < b for a, b in itertools.pairwise(plan)):
                    yield plan

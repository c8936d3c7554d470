"""The answer to a budget: the cheapest plan that keeps it, with a margin for prompts that were not searched on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from fastercache.policies.errors import BudgetNotMet
from fastercache.policies.wording import counted
from fastercache.tuner.budget import Budget
from fastercache.tuner.planning.front import Point
from fastercache.tuner.planning.scale import Scale

if TYPE_CHECKING:
    from fastercache.tuner.planning.planner import Planner

SPREAD, WEIGHT = 3.0, 4.0
"""Spread over prompts that is assumed before any was measured, dB, and how many prompts' worth that counts."""
NEARLY, SURE = 0.5, 3.0
"""dB: fewer steps are tried where at most so much is missing to a budget, and the last plan that can be paid for is one
that is expected to exceed it by so much."""
CONFIDENCE = 0.9
"""Share of times that the mean over unseen prompts keeps a budget for which the margin was left."""


def margin_of(values: Sequence[float]) -> float:
    """dB that a mean over some search prompts must exceed a level by, so that unseen prompts keep it.

    One-sided `CONFIDENCE` bound of the mean: t s / sqrt(P), the spread s shrunk towards `SPREAD`.
    """
    count = len(values)
    own = float(np.var(values)) * count if count > 1 else 0.0
    spread = math.sqrt((own + WEIGHT * SPREAD**2) / (max(count - 1, 0) + WEIGHT))
    freedom = max(count - 1, 0) + WEIGHT
    return float(stats.t.ppf(CONFIDENCE, freedom)) * spread / math.sqrt(count)


class Within:
    """One budget put to a planner.

    Args:
        planner: what is known, and what runs plans.
        margin: dB that the search prompts must exceed the budget by; by default `margin_of` what they have.
    """

    def __init__(self, planner: Planner, budget: Budget, margin: float | None = None) -> None:
        self.planner, self.budget, self.margin = planner, budget, margin
        self._anchors: dict[int, tuple[float, float]] = {}  # by computed steps: foreseen level, dB over the budget

    def cheapest(self) -> Point:
        """The cheapest plan that keeps the budget, within the effort's generations.

        Raises:
            BudgetNotMet: if only computing every step keeps it, or the generations ran out before a plan did.
        """
        planner, steps = self.planner, self.planner.steps
        offset = self._look()
        count, tried = self._fewest(), dict[int, float]()
        while count < steps and count not in tried:
            planner.search(count, (planner.left - 2.5 * planner.cost(count)) / 2.0)
            found = planner.known[count]
            if found.level is not None:
                self._anchors[count] = planner.foreseen(found.plan), found.level + offset
            tried[count] = Scale(self._anchors.values())(planner.level(count)) - self._asked(count)
            planner.told(f"{count} computed steps: {tried[count]:+.1f} dB over the budget and its margin")
            count = self._fewest(-NEARLY) if tried[count] >= 0.0 else self._fewest(above=count)
            if planner.left < 3.0 * planner.cost(max(count, *tried)):
                break
        count = min((c for c, slack in tried.items() if slack >= 0.0), default=count)
        while count < steps and planner.left >= planner.cost(count):
            planner.verify(count, keep=planner.cost(count + 1))
            known = planner.known[count]
            over = self.budget.margin(known.quality)
            if over - self._asked(count) >= 0.0:
                return planner.point(count)
            self._anchors[count] = planner.foreseen(known.plan), over
            following = self._fewest(above=count)
            last = planner.left < planner.cost(following) + planner.cost(min(following + 1, steps))
            count = self._fewest(SURE, above=count) if last else following
        raise BudgetNotMet(self._unmet(count))

    def _look(self) -> float:
        """Two plans run on two prompts: how levels translate into dB over the budget.

        Returns:
            What is to be added to the level of a plan's last latents to have its dB over the budget.
        """
        planner = self.planner
        least = len(planner.sampler.relations.starts)
        offsets = []
        for parts in (4, 10):
            count = min(max(least, planner.steps // parts), max(planner.predicted))
            if count in self._anchors or count == planner.steps:
                continue
            look = planner.look(count)
            self._anchors[count] = planner.foreseen(look.plan), self.budget.margin(look.quality)
            assert look.level is not None
            offsets.append(self._anchors[count][1] - look.level)
        return float(np.mean(offsets))

    def _fewest(self, more: float = 0.0, above: int = 0) -> int:
        """The fewest computed steps that are expected to keep the budget, its margin and `more` dB."""
        planner, scale = self.planner, Scale(self._anchors.values())
        for count in sorted(planner.predicted):
            asked = self._asked(count) + more
            if above < count < planner.steps and scale(planner.level(count)) >= asked:
                return count
        return planner.steps

    def _asked(self, count: int) -> float:
        """dB over the budget that are asked of `count` computed steps."""
        if self.margin is not None:
            return self.margin
        known, prompts = self.planner.known.get(count), self.planner.prompts
        values = known.quality if known else {}
        if not values:
            return margin_of([SPREAD * x for x in stats.norm.ppf((np.arange(prompts) + 0.5) / prompts)])
        single = [self.budget.margin({name: [v[i]] for name, v in values.items()}) for i in range(len(values["psnr"]))]
        return margin_of(single)

    def _unmet(self, count: int) -> str:
        """What to say where no plan was found. `count`: computed steps of the plan that would be run next."""
        planner, steps = self.planner, self.planner.steps
        prompts = counted(planner.prompts, "search prompt")
        asked = f"{self.budget} on {prompts} with the margin for unseen ones"
        over = {count: self.budget.margin(known.quality) for count, known in planner.verified.items() if count < steps}
        if not over and count < steps:
            return (
                f"{planner.effort.generations:g} generations are too few to run a plan on {prompts}, so none is known "
                f"to keep {self.budget}: raise --effort, or give fewer prompts"
            )
        if not over or max(over) + 1 >= steps:
            return f"no plan with fewer than {steps} computed steps keeps {asked}: lower the budget or the margin"
        count = max(over, key=lambda one: over[one])
        return (
            f"no plan within {planner.effort.generations:g} generations keeps {asked}; the closest, with {count} "
            f"computed steps, is {over[count]:+.1f} dB from the budget where {self._asked(count):.1f} dB are asked: "
            "raise --effort, or set --margin"
        )

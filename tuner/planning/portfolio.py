"""Several paths worth running: what the prediction cannot tell apart, from differently minded predictions.

Plans within a decibel of each other in predicted damage differ by up to 5 dB in truth, so a handful is run. They come
from the planner itself, without a run of their own. First the shortest paths, then single steps of them are moved for
as long as the prediction for the whole plan (`Foresight`) gets better, which costs milliseconds a plan. Beside the best
of those stand the best by isolated damage alone and by the rehearsal alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from fastercache.tuner.planning.fitting import Steps
from fastercache.tuner.planning.paths import plans
from fastercache.tuner.planning.rehearsal import Foresight
from fastercache.tuner.planning.search import moves

ROUNDS = 40
"""Most moves from one shortest path."""


def portfolio(foresight: Foresight, count: int, *, width: int = 32) -> list[Steps]:
    """Distinct plans with `count` computed steps, the most promising first; up to 10 of them."""
    damage = foresight.damage
    least = [path.computed for path in plans(damage, counts=[count], width=width, best=3, apart=2)[count]]
    found = [bettered(least, foresight.of, damage.steps, damage.starts, best=6), least[:2]]
    if foresight.rehearsal is not None:
        found.insert(1, bettered(least, foresight.rehearsal.of, damage.steps, damage.starts, best=2))
    return list(dict.fromkeys(_in_turn(found)))


def bettered(
    beginnings: Sequence[Steps],
    predicted: Callable[[Steps], float],
    steps: int,
    fixed: Sequence[int],
    *,
    best: int = 1,
    apart: int = 2,
) -> list[Steps]:
    """Plans that moves of single steps lead to: from each beginning always to the best neighbour, until none is better.

    Args:
        predicted: damage of a plan. steps: n. fixed: steps that every plan computes.
        best: how many of all plans looked at are returned, best first.
        apart: each of them has at least so many steps that are in none of the better ones.
    """
    seen: dict[Steps, float] = {}

    def value(plan: Steps) -> float:
        if plan not in seen:
            seen[plan] = predicted(plan)
        return seen[plan]

    for plan in beginnings:
        value(plan)
        for _ in range(ROUNDS):
            near = [other for other in moves(plan, steps) if set(fixed) <= set(other)]
            nearest = min(near, key=lambda other: (value(other), other), default=plan)
            if value(nearest) >= value(plan):
                break
            plan = nearest
    found: list[Steps] = []
    for plan in sorted(seen, key=lambda one: (seen[one], one)):
        if all(len(set(plan) - set(other)) >= apart for other in found):
            found.append(plan)
            if len(found) == best:
                break
    return found


def _in_turn(lists: Sequence[Sequence[Steps]]) -> Iterator[Steps]:
    """The first of each list, then the second of each, and so on."""
    for row in zip_longest(*lists):
        yield from (plan for plan in row if plan is not None)

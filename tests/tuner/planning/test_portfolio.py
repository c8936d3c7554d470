"""Which plans are worth running, beside a descent and a choice by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fastercache.tuner.planning import portfolio as module
from fastercache.tuner.planning.paths import Path
from fastercache.tuner.planning.portfolio import bettered, portfolio
from fastercache.tuner.planning.rehearsal import Foresight
from fastercache.tuner.planning.search import Steps, moves

N = 24
SHORTEST = [(0, 2, 4, 6, 8, 10), (0, 11, 12, 13, 14, 15), (0, 5, 9, 14, 18, 22)]


class Predictor:
    """A made-up prediction with many local minima; it stands for a rehearsal too."""

    def __init__(self, seed: int) -> None:
        self.table = np.random.default_rng(seed).uniform(1.0, 2.0, (6, N))

    def of(self, plan: Sequence[int]) -> float:
        return float(np.prod([self.table[place, step] for place, step in enumerate(plan)]))


class Isolated(Predictor):
    """Stands for the isolated damage."""

    steps, starts = N, (0,)


def descended(beginnings: Sequence[Steps], predicted: Callable[[Steps], float]) -> list[Steps]:
    """All plans looked at on the way down from each beginning, best first."""
    seen = set(beginnings)
    for plan in beginnings:
        while True:
            near = set(moves(plan, N))
            seen |= near
            best = min(near, key=lambda other: (predicted(other), other))
            if predicted(best) >= predicted(plan):
                break
            plan = best
    return sorted(seen, key=lambda plan: (predicted(plan), plan))


def apart(plans: Sequence[Steps], least: int, most: int) -> list[Steps]:
    found: list[Steps] = []
    for plan in plans:
        if min((len(set(plan) - set(other)) for other in found), default=least) >= least:
            found.append(plan)
    return found[:most]


@pytest.mark.parametrize("rehearsed", [True, False])
def test_by_foresight_by_the_rehearsal_and_the_shortest_paths_take_turns(
    monkeypatch: pytest.MonkeyPatch, rehearsed: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def plans(damage: Any, **words: Any) -> dict[int, list[Path]]:
        asked.append(words)
        return {6: [Path(plan, 0.0) for plan in SHORTEST]}

    monkeypatch.setattr(module, "plans", plans)
    damage: Any = Isolated(0)
    rehearsal: Any = Predictor(1) if rehearsed else None
    foresight = Foresight(damage, rehearsal)
    found = portfolio(foresight, 6)
    assert asked == [{"counts": [6], "width": 32, "best": 3, "apart": 2}]
    first = apart(descended(SHORTEST, foresight.of), 2, 6)
    second = apart(descended(SHORTEST, rehearsal.of), 2, 2) if rehearsed else []
    assert len(first) == 6 and len(second) == (2 if rehearsed else 0)
    lists = [first, second, SHORTEST[:2]] if rehearsed else [first, SHORTEST[:2]]
    turns = [one[place] for place in range(6) for one in lists if place < len(one)]
    assert found == list(dict.fromkeys(turns))


def test_a_descent_ends_after_forty_moves() -> None:
    """The second step would be at 150; a move takes it two further at the most."""
    found = bettered([(0, 1)], lambda plan: float(abs(plan[1] - 150)), 200, (0,))
    assert found == [(0, 1 + 2 * 40)]


def test_a_descent_ends_where_no_neighbour_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Steps] = []

    def counting(plan: Steps, steps: int) -> Any:
        looked.append(plan)
        return moves(plan, steps)

    monkeypatch.setattr(module, "moves", counting)
    found = bettered([(0, 4, 8)], lambda plan: 1.0, 12, (0,), best=1000, apart=1)
    assert looked == [(0, 4, 8)], "an equal one is no better one"
    assert found == sorted({(0, 4, 8), *moves((0, 4, 8), 12)})
    assert bettered([(0, 4, 8)], lambda plan: 1.0, 12, (0, 4, 8)) == [(0, 4, 8)], "where nothing may be moved"


def test_one_plan_is_given_where_no_number_is_asked_and_others_differ_in_two_steps() -> None:
    def predicted(plan: Steps) -> float:
        return float(abs(plan[1] - 3) + abs(plan[2] - 6) + abs(plan[3] - 9))

    assert bettered([(0, 3, 6, 9)], predicted, 12, (0,)) == [(0, 3, 6, 9)]
    some = bettered([(0, 3, 6, 9)], predicted, 12, (0,), best=3)
    assert some == apart(descended_in(12, (0, 3, 6, 9), predicted), 2, 3) and len(some) == 3


def descended_in(steps: int, best: Steps, predicted: Callable[[Steps], float]) -> list[Steps]:
    return sorted({best, *moves(best, steps)}, key=lambda plan: (predicted(plan), plan))

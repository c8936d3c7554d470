"""Which plans are run, in which order and when the search stops, with a referee whose errors are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastercache.tuner.planning.search import Judged, Search, Steps, moves, search

N = 10


class Referee:
    """Gives out known errors, half a generation each."""

    def __init__(self, error: Callable[[Steps], float], spent: float = 0.5) -> None:
        self.error, self.spent = error, spent
        self.asked: list[tuple[Steps, Steps | None]] = []

    def __call__(self, plan: Steps, incumbent: Judged | None) -> Judged:
        self.asked.append((plan, None if incumbent is None else incumbent.computed))
        return Judged(plan, self.error(plan), self.spent)

    @property
    def plans(self) -> list[Steps]:
        return [plan for plan, _ in self.asked]


def found(
    referee: Referee,
    portfolio: list[Steps],
    predicted: Callable[[Steps], float],
    generations: float = 100.0,
    **more: object,
) -> Search:
    return search(portfolio, referee, predicted, N, generations, **more)  # type: ignore[arg-type]


def distance(plan: Steps) -> float:
    return float(sum(abs(a - b) for a, b in zip(plan, (0, 4, 8), strict=True)))


def test_the_portfolio_comes_first_and_the_referee_knows_the_best_so_far() -> None:
    errors = {(0, 1, 2): 3.0, (0, 5, 7): 1.0, (0, 8, 9): 2.0}
    referee = Referee(lambda plan: errors.get(plan, 9.0))
    state = found(referee, list(errors), lambda plan: 1.0 if plan in errors else 100.0)
    assert referee.asked == [((0, 1, 2), None), ((0, 5, 7), (0, 1, 2)), ((0, 8, 9), (0, 5, 7))]
    assert state.best.computed == (0, 5, 7)
    assert [one.computed for one in state.ranked()] == [(0, 5, 7), (0, 8, 9), (0, 1, 2)]
    assert state.spent == pytest.approx(1.5)


def test_moves_go_from_the_best_with_the_cheapest_prediction_first() -> None:
    """Predicted and true alike: each move judged is the predicted best neighbour, down to the best plan there is."""
    referee = Referee(distance)
    state = found(referee, [(0, 2, 5)], lambda plan: distance(plan) + 10.0)
    assert state.best.computed == (0, 4, 8)
    assert referee.plans[:2] == [(0, 2, 5), min(moves((0, 2, 5), N), key=lambda p: (distance(p), p))]
    assert len(set(referee.plans)) == len(referee.plans)
    untried = [plan for plan in moves((0, 4, 8), N) if plan not in referee.plans]
    assert all(distance(plan) + 10.0 > 10.0 * 10.0**0.3 for plan in untried), "all within 3 dB were tried"


def test_a_plan_is_begun_only_if_it_fits_in_on_all_prompts() -> None:
    """3 computed of 10 steps on 4 prompts may cost 1.2 generations, whatever the last one did cost."""
    for generations, judged in ((1.1, 0), (1.2, 1), (1.6, 1), (1.7, 2), (2.2, 3)):
        referee = Referee(distance)
        state = found(referee, [(0, 1, 2), (0, 2, 3), (0, 3, 4)], distance, generations, prompts=4)
        assert len(referee.asked) == judged, generations
        assert state.spent == pytest.approx(0.5 * judged)


def test_known_plans_are_not_run_again_but_paid_for() -> None:
    whole = found(Referee(distance), [(0, 2, 5)], distance)
    half = dict(list(whole.judged.items())[:4])
    referee = Referee(distance)
    again = found(referee, [(0, 2, 5)], distance, known=half)
    assert again.judged == whole.judged and list(again.judged) == list(whole.judged)
    assert again.spent == pytest.approx(whole.spent)
    assert referee.plans == [plan for plan in whole.judged if plan not in half]


def test_steps_that_every_plan_computes_are_not_moved() -> None:
    referee = Referee(distance)
    state = found(referee, [(0, 2, 5)], distance, fixed=(0, 2))
    assert all(2 in plan for plan in state.judged)
    assert state.best.computed == (0, 2, 8)


def test_a_plan_that_was_given_up_is_not_the_best() -> None:
    referee = Referee(lambda plan: math.inf if plan == (0, 1, 2) else 1.0)
    state = found(referee, [(0, 1, 2), (0, 3, 6)], lambda plan: 1.0 if plan in ((0, 1, 2), (0, 3, 6)) else 100.0)
    assert state.best.computed == (0, 3, 6)
    assert [one.computed for one in state.ranked()] == [(0, 3, 6)]


def test_moves_by_hand() -> None:
    assert set(moves((0, 2, 4), 6)) == {
        *((0, 1, 4), (0, 3, 4), (0, 2, 3), (0, 2, 5)),  # one step by one
        *((0, 1, 3), (0, 3, 5)),  # both together
    }
    assert set(moves((0, 3), 9)) == {(0, 1), (0, 2), (0, 4), (0, 5)}
    assert list(moves((0,), 9)) == []


@given(st.sets(st.integers(1, 11), min_size=1, max_size=6).map(lambda steps: (0, *sorted(steps))))
def test_moves_are_all_that_are_described(plan: Steps) -> None:
    """One step one or two further, two neighbours together, or all from one step on; the first stays."""
    n, expected = 12, set[Steps]()
    changes = [{q: by} for q in range(1, len(plan)) for by in (-2, -1, 1, 2)]
    for q in range(1, len(plan) - 1):
        for by in (-1, 1):
            changes += [{q: by, q + 1: by}, dict.fromkeys(range(q, len(plan)), by)]
    for change in changes:
        moved = [step + change.get(q, 0) for q, step in enumerate(plan)]
        steps = tuple(sorted(moved))
        together = len(change) > 1
        if (
            len(set(steps)) == len(plan)
            and min(steps[1:]) > 0
            and steps[-1] < n
            and (not together or moved == [*steps])
        ):
            expected.add(steps)
    assert set(moves(plan, n)) == expected


def test_decibels() -> None:
    assert Judged((0,), math.log(1e-4), 0.0).decibels == pytest.approx(40.0)


def test_what_is_predicted_as_good_as_the_best_is_tried_where_nothing_worse_may_be() -> None:
    referee = Referee(lambda plan: float(plan != (0, 2, 5)))
    state = found(referee, [(0, 2, 5)], lambda plan: 7.0, worse=0.0)
    assert set(state.judged) == {(0, 2, 5), *moves((0, 2, 5), N)}
    equal = sorted(set(state.judged) - {(0, 2, 5)})
    assert [one.computed for one in state.ranked()] == [(0, 2, 5), *equal], "of equal ones the first by its steps"
    alike = found(Referee(lambda plan: 1.0), equal[::-1], lambda plan: 7.0, generations=4.0)
    assert alike.best.computed == min(alike.judged)


def test_each_move_goes_from_the_best_so_far_and_stays_within_three_decibels() -> None:
    """True and predicted damage differ, so that the best changes in the middle of its neighbours."""

    def true(plan: Steps) -> float:
        return distance(plan) + 0.1 * (sum(plan) % 3)

    def predicted(plan: Steps) -> float:
        return abs(plan[1] - 4.3) + abs(plan[2] - 7.4) + 3.0

    referee, heard = Referee(true), list[Judged]()
    state = found(referee, [(0, 1, 3)], predicted, tick=heard.append)
    assert heard == list(state.judged.values())
    best = None
    for plan, incumbent in referee.asked:
        assert incumbent == best
        if incumbent is not None:
            assert plan in set(moves(incumbent, N))
            assert predicted(plan) <= predicted(incumbent) * 10.0**0.3
        best = plan if best is None or (true(plan), plan) < (true(best), best) else best
    assert state.best.computed == best


def test_without_further_words_one_prompt_judges() -> None:
    """3 computed of 10 steps cost 0.3 generations."""
    for generations, judged in ((0.29, 0), (0.3, 1)):
        assert len(found(Referee(distance), [(0, 1, 2)], distance, generations).judged) == judged

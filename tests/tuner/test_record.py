"""What is chosen from a study's trials, on trials whose figures are set by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

import fastercache as fc
from fastercache.tuner import Budget, Outcome
from fastercache.tuner.record import SPENT, Record, cheapest, front, is_interrupted, records

BUDGET = Budget.parse("psnr>=40")


def trial(
    number: int, ratio: float | None, psnr: float | None, outcome: Outcome = Outcome.MEASURED, **fields: Any
) -> Record:
    """A trial that reached `psnr` on its prompts."""
    missed = None if psnr is None else 40.0 - psnr
    margin = None if psnr is None else psnr - 40.0
    given = {"violation": missed, "margin": margin} | fields
    values = {} if psnr is None else {"psnr": [psnr]}
    return Record(
        number, outcome, "search", fc.NoCache(), {}, ratio, values, seconds=1.0, cached_bytes=0, reason=None, **given
    )


def test_the_cheapest_that_meets_the_budget_is_chosen() -> None:
    trials = [
        trial(0, 1.0, 100.0, Outcome.EXACT),
        trial(1, 0.5, 41.0),
        trial(2, 0.3, 39.9),  # cheaper, and not good enough
        trial(3, 0.4, 40.0),  # just good enough
        trial(4, 0.2, 50.0, Outcome.STOPPED),  # only projected
        trial(5, 0.45, 60.0),
    ]
    assert cheapest(trials, BUDGET).number == 3
    assert [t.number for t in trials if t.feasible] == [0, 1, 3, 5]
    assert trials[3].speedup_flops == pytest.approx(2.5) and trial(0, None, None).speedup_flops is None


def test_of_equally_cheap_trials_the_better_one_is_chosen() -> None:
    assert cheapest([trial(0, 0.5, 41.0), trial(1, 0.5, 43.0), trial(2, 0.5, 42.0)], BUDGET).number == 1


def test_a_trial_that_meets_the_budget_with_nothing_to_spare_is_no_better_than_its_like() -> None:
    """A violation or a margin of exactly 0 is a figure like any other."""
    assert cheapest([trial(0, 0.5, 40.0), trial(1, 0.5, 40.5)], BUDGET).number == 1
    assert [t.number for t in front([trial(0, 0.5, 39.5), trial(1, 0.5, 40.0)])] == [1]
    assert [t.number for t in front([trial(0, 0.5, 40.0), trial(1, 0.5, 39.5), trial(2, 0.6, 40.0)])] == [0]
    assert [t.number for t in front([trial(0, 0.5, 39.5), trial(1, 0.6, 40.0), trial(2, 0.7, 39.8)])] == [0, 1]


def test_what_reuses_so_little_that_only_rounding_tells_saves_nothing() -> None:
    with pytest.raises(fc.BudgetNotMet, match="no policy that saves anything"):
        cheapest([trial(0, 1.0 - 1e-10, 50.0)], BUDGET)
    assert cheapest([trial(0, 1.0 - 1e-8, 50.0)], BUDGET).number == 0


def test_the_closest_miss_is_named_and_a_measured_one_before_a_projected_one() -> None:
    missed = [trial(1, 0.5, 30.0), trial(2, 0.25, 39.0), trial(3, 0.4, 35.0), trial(4, 0.3, 39.5, Outcome.STOPPED)]
    with pytest.raises(
        fc.BudgetNotMet, match=r"none of 4 trials .* closest reached psnr 39 at 4\.00x \(trial 2, search\)"
    ):
        cheapest([trial(0, 1.0, 100.0, Outcome.EXACT), *missed], BUDGET)
    with pytest.raises(fc.BudgetNotMet, match=r"psnr 39\.5, as projected from its first prompts, at 3\.33x"):
        cheapest(missed[3:], BUDGET)
    with pytest.raises(fc.BudgetNotMet, match="no policy that saves anything was measured"):
        cheapest([trial(0, 1.0, 100.0, Outcome.EXACT), trial(1, 0.5, None, Outcome.DOMINATED)], BUDGET)


def test_the_front_rises_in_margin_from_the_cheapest_on() -> None:
    trials = [
        trial(0, 0.5, 42.0), trial(1, 0.2, 30.0), trial(2, 0.3, 29.0), trial(3, 0.4, 36.0), trial(4, 0.4, 35.0),
        trial(5, 0.6, 42.0), trial(6, 0.1, 50.0, Outcome.STOPPED), trial(7, 0.9, 45.0),
        trial(8, 1.0, 44.0, Outcome.EXACT),
    ]  # fmt: skip
    assert [t.number for t in front(trials)] == [1, 3, 0, 7]


POLICY = fc.dump(fc.NoCache())


def noted(state: TrialState, **attributes: Any) -> Any:
    value = 0.5 if state is TrialState.COMPLETE else None
    return create_trial(state=state, value=value, user_attrs=attributes)


@pytest.mark.parametrize(
    ("state", "attributes", "outcome"),
    [
        (TrialState.RUNNING, {"policy": POLICY}, None),
        (TrialState.WAITING, {"policy": POLICY, "outcome": "measured"}, None),
        (TrialState.COMPLETE, {"outcome": "measured"}, None),  # nobody knows of what
        (TrialState.COMPLETE, {"policy": POLICY}, None),  # nor how it ended
        (TrialState.COMPLETE, {"policy": POLICY, "outcome": "measured"}, Outcome.MEASURED),
        (TrialState.PRUNED, {"policy": POLICY, "outcome": "stopped"}, Outcome.STOPPED),
        (TrialState.FAIL, {"policy": POLICY, "outcome": "failed"}, Outcome.FAILED),
        (TrialState.FAIL, {"policy": POLICY, "outcome": "invalid"}, Outcome.INVALID),
        (TrialState.FAIL, {"policy": POLICY, "outcome": "interrupted"}, Outcome.INTERRUPTED),
        (TrialState.FAIL, {"policy": POLICY}, Outcome.INTERRUPTED),  # its worker died
        (TrialState.FAIL, {"policy": POLICY, "outcome": "measured"}, Outcome.INTERRUPTED),  # and at the last moment
        (TrialState.FAIL, {}, None),
    ],
)
def test_a_trial_is_read_once_it_has_ended_and_says_of_what(
    state: TrialState, attributes: dict[str, Any], outcome: Outcome | None
) -> None:
    made = noted(state, **attributes)
    found = Record.of(made)
    assert (None if found is None else found.outcome) == outcome
    ended = attributes.get("outcome") in ("failed", "invalid")
    assert is_interrupted(made) is (state is TrialState.FAIL and not ended)


def test_a_record_holds_what_was_noted() -> None:
    made = noted(
        TrialState.COMPLETE, policy=POLICY, outcome="measured", source="mild", forecast=0.4, ratio=0.5,
        values={"psnr": [41.0]}, violation=-1.0, margin=1.0, seconds=2.0, cached_bytes=7, reason="why",
        foreseen=2.5, hardware="a machine", clocked=0.75,
    )  # fmt: skip
    found = Record.of(made)
    assert found is not None and (found.source, found.ratio, found.speedup_flops) == ("mild", 0.5, 2.0)
    assert (found.values, found.violation, found.margin) == ({"psnr": [41.0]}, -1.0, 1.0)
    assert (found.seconds, found.cached_bytes, found.reason, found.policy) == (2.0, 7, "why", fc.NoCache())
    assert (found.foreseen, found.hardware, found.clocked, found.cost) == (2.5, "a machine", 0.75, 0.75)
    skipped = Record.of(noted(TrialState.PRUNED, policy=POLICY, outcome="dominated", forecast=0.4))
    assert skipped is not None and skipped.ratio == 0.4, "what did not run costs what was forecast"
    assert set(SPENT) == {Outcome.MEASURED, Outcome.STOPPED, Outcome.FAILED}


def test_trials_that_were_read_before_are_not_read_again() -> None:
    measured = noted(TrialState.COMPLETE, policy=POLICY, outcome="measured")
    trials = [create_trial(state=TrialState.RUNNING), copy.copy(measured), copy.copy(measured)]
    for number, one in enumerate(trials):
        one.number = number
    study: Any = SimpleNamespace(get_trials=lambda deepcopy: trials)
    before = trial(1, 0.5, 41.0)
    known = {1: before}
    found = records(study, known)
    assert [record.number for record in found] == [1, 2] and found[0] is before and set(known) == {1, 2}
    assert [record.number for record in records(study)] == [1, 2]

"""How one trial goes, with an evaluator that is told what its runs give: no pipeline is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

import fastercache as fc
from fastercache.policies.errors import NotFinite
from fastercache.run.memory import CacheTooLarge
from fastercache.tuner import Budget, CostModel, Outcome, SearchSpace, Seconds
from fastercache.tuner.attempts import Attempts, under_way
from fastercache.tuner.clock import Timekeeper
from fastercache.tuner.codec import Notes, enqueue, note
from fastercache.tuner.evaluate import Evaluation
from fastercache.tuner.propose import Proposer
from fastercache.tuner.record import Record, records
from fastercache.tuner.storage import this_worker

SITES = [fc.Site("b.0.attn1", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1)), fc.Site("branch", fc.Kind.BRANCH)]
STEPS, HERE = 4, "this machine"
MODEL = CostModel(fc.Run.of(STEPS, sites=SITES), (100,) * STEPS, {"b.0.attn1": 0.5})
TABLE = Seconds(STEPS, computed=1.0, skipped=0.0, rest=4.0, kinds={"spatial": 0.5}, hardware=HERE)
"""8 s for an uncached call, half a second less for each step at which the attention is reused."""
SPACE = SearchSpace.of(fc.StaticInterval())


def reusing(steps: str) -> fc.Schedule:
    """A policy that reuses the attention where a letter is R: each saves an eighth of the FLOPs."""
    return fc.Schedule(rows=(fc.Row(sites="b.0.attn1", steps=steps),))


class Runs:
    """Stands in for the evaluator: what each policy gives on three prompts, or what it raises.

    A run takes `seconds`, one value for each prompt.
    """

    def __init__(self, given: Sequence[tuple[fc.Policy, Any]], seconds: Sequence[float] = (3.0, 1.0, 2.0)) -> None:
        self.given, self.seconds = list(given), seconds
        self.closed = 0

    def evaluate(self, policy: fc.Policy, cases: Sequence[Any], stop: Callable[[Evaluation], str | None]) -> Evaluation:
        given = next(values for known, values in self.given if known == policy)
        if isinstance(given, BaseException):
            raise given
        result = Evaluation({"psnr": []}, cached_bytes=7)
        table = fc.compile_policy(policy, MODEL.run) if policy.static else None
        for place, value in enumerate(given):
            result.values["psnr"].append(value)
            result.seconds.append(self.seconds[place])
            result.flops += 3
            result.flops_full += 4
            result.tables += [table] if table is not None else []
            if place + 1 < len(given) and (said := stop(result)) is not None:
                result.stopped = said
                break
        return result

    def exact(self, cases: Sequence[Any]) -> dict[str, list[float]]:
        return {"psnr": [100.0] * len(cases)}

    def close(self) -> None:
        self.closed += 1


def attempts(
    given: Sequence[tuple[fc.Policy, Any]],
    *,
    budget: str = "psnr>=30",
    space: Any = SPACE,
    table: Seconds | None = None,
    by_clock: bool = False,
    runs: Runs | None = None,
) -> tuple[Attempts, optuna.Study]:
    """The trials of a study in memory whose queue holds the given policies, named a, b, c ..."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    parsed = Budget.parse(budget)
    model = dataclasses.replace(MODEL, clock=table, by_clock=by_clock)
    made_up: Any = runs or Runs(given)
    made = Attempts(
        study,
        study._storage,
        space=space,
        proposer=Proposer(SPACE, model.forecast),
        evaluator=made_up,
        search=["one", "two", "three"],  # type: ignore[list-item]
        budget=parsed,
        time=Timekeeper(table, parsed.time, HERE),
        cost_model=lambda: model,
        records=lambda: records(study),
    )
    for name, (policy, _) in zip("abcdef", given, strict=False):
        enqueue(study, SPACE.encode(fc.StaticInterval()).params, policy=fc.dump(policy), source=name)
    return made, study


def tried(given: Sequence[tuple[fc.Policy, Any]], **words: Any) -> list[Record]:
    made, _ = attempts(given, **words)
    found = [made.next() for _ in given]
    assert all(record is not None for record in found)
    return [record for record in found if record is not None]


def missed(trial: optuna.trial.FrozenTrial) -> dict[str, float]:
    """By term how far it is missed; beside these stand the numbered ones of optuna-dashboard."""
    return {term: amount for term, amount in trial.constraints.items() if not term.isdigit()}


GOOD = [28.0, 29.0, 36.0]
"""31 dB on average."""


def test_a_stopped_trial_is_judged_by_its_projection_from_those_that_ran_whole() -> None:
    """One whole trial is off its mean by [-3, -2, 5], half of which counts: from 1 dB on the first prompt 1.5 and 5
    follow. What reuses nothing is equal everywhere and tells nothing of the prompts."""
    exact, whole, stopped = tried([
        (reusing("CCCC"), None), (reusing("CRCC"), GOOD), (reusing("CRRR"), [1.0, 99.0, 99.0]),
    ])  # fmt: skip
    assert (exact.outcome, whole.outcome, stopped.outcome) == (Outcome.EXACT, Outcome.MEASURED, Outcome.STOPPED)
    assert stopped.values == {"psnr": [1.0]} and not stopped.feasible
    assert stopped.violation == pytest.approx(30.0 - (1.0 + 1.5 + 5.0) / 3)
    assert stopped.margin == pytest.approx((1.0 + 1.5 + 5.0) / 3 - 30.0)
    assert (exact.violation, exact.margin, exact.ratio, exact.cost) == (-70.0, 70.0, 1.0, 1.0)
    assert whole.violation == pytest.approx(-1.0) and whole.margin == pytest.approx(1.0)


def test_what_is_told_of_a_trial_that_ran() -> None:
    (found,) = tried([(reusing("CRCC"), GOOD)])
    assert found.seconds == 2.0 and found.cached_bytes == 7 and found.values == {"psnr": GOOD}
    assert found.ratio == 0.75, "as counted, where 7 / 8 was forecast"
    assert found.policy == reusing("CRCC") and found.source == "a" and found.reason is None
    assert found.foreseen is None and found.clocked is None and found.hardware is None


@pytest.mark.parametrize(
    ("psnr", "outcome"), [(29.9, Outcome.MEASURED), (30.0, Outcome.DOMINATED), (30.1, Outcome.DOMINATED)]
)
@pytest.mark.parametrize("steps", ["CRRC", "CCRR"])
def test_what_costs_as_much_as_the_best_that_keeps_the_budget_is_not_run(
    psnr: float, outcome: Outcome, steps: str
) -> None:
    """The first was counted at 3 / 4, and the second is forecast at as much: two of four steps at half a share."""
    _, second = tried([(reusing("CRCC"), [psnr] * 3), (reusing(steps), GOOD)])
    assert second.outcome is outcome
    if outcome is Outcome.DOMINATED:
        assert second.reason == "costs 0.7500 of the uncached FLOPs, the best so far 0.7500"
        assert second.ratio == 0.75 and not second.values


def test_what_reuses_nothing_is_not_the_reference_where_something_cheaper_is_known() -> None:
    _, nothing = tried([(reusing("CRCC"), GOOD), (reusing("CCCC"), None)])
    assert nothing.outcome is Outcome.DOMINATED and nothing.violation is None


def test_by_the_clock_costs_are_seconds() -> None:
    """By FLOPs the second saves more, by this table it does not: a branch is not timed faster than 7.2 s."""
    slow = dataclasses.replace(TABLE, kinds={"spatial": 0.5, "branch": 0.9})
    branch = fc.Schedule(rows=(fc.Row(sites="branch", branch="uncond", steps="CRRC"),))
    made, study = attempts([(reusing("CRRC"), GOOD), (branch, GOOD)], table=slow, by_clock=True)
    first, second = made.next(), made.next()
    assert first is not None and second is not None
    assert (first.foreseen, first.clocked, first.cost, first.hardware) == (7.0, 7 / 8, 7 / 8, HERE)
    assert second.outcome is Outcome.DOMINATED and second.clocked == pytest.approx(7.8 / 8)
    assert second.reason == "costs 0.9750 of the uncached seconds, the best so far 0.8750"
    assert study.trials[0].value == 7 / 8 and study.trials[1].intermediate_values == {0: pytest.approx(0.975)}
    assert Notes.of(study.trials[0]).words == (
        f"{reusing('CRRC')!r}: 1.33x fewer FLOPs, 1.14x by the clock; psnr 31, keeps psnr>=30"
    )


@pytest.mark.parametrize(("limit", "runs"), [("7s", True), ("6.99s", False)])
def test_what_is_foreseen_to_take_just_as_long_as_is_allowed_is_run(limit: str, runs: bool) -> None:
    (found,) = tried([(reusing("CRRC"), GOOD)], budget=f"psnr>=30,time<={limit}", table=TABLE)
    assert found.foreseen == 7.0 and found.clocked is None, "it minimises FLOPs"
    assert found.outcome is (Outcome.MEASURED if runs else Outcome.INVALID)
    if not runs:
        assert found.reason == "would take 7 s a call, more than time<=6.99s" and not found.values


def test_a_call_that_took_longer_than_foreseen_misses_the_limit_by_decibels() -> None:
    made, study = attempts(
        [(reusing("CRRC"), GOOD)],
        budget="psnr>=30,time<=7.5s",
        table=TABLE,
        runs=Runs([(reusing("CRRC"), GOOD)], (1.0, 75.0, 99.0)),
    )
    found = made.next()
    assert found is not None and found.outcome is Outcome.MEASURED and not found.feasible
    assert found.violation == pytest.approx(10.0) and found.margin == pytest.approx(1.0)
    assert missed(study.trials[0]) == {"psnr>=30": pytest.approx(-1.0), "time<=7.5s": 67.5}
    assert study.trials[0].system_attrs["constraints"] == [pytest.approx(-1.0), 67.5]


def test_a_stopped_trial_is_not_held_to_the_limit_by_the_seconds_it_took() -> None:
    whole, stopped = reusing("CRCC"), reusing("CRRR")
    given = [(whole, GOOD), (stopped, [1.0, 99.0, 99.0])]
    made, study = attempts(given, budget="psnr>=30,time<=8s", table=TABLE, runs=Runs(given, (60.0, 1.0, 1.0)))
    made.next()
    found = made.next()
    assert found is not None and found.outcome is Outcome.STOPPED
    assert missed(study.trials[1]) == {"psnr>=30": pytest.approx(27.5)}


def joint() -> Any:
    """A space of two policies, of which only the number is asked."""
    return SimpleNamespace(bases={"one": None, "two": None}, suggest=SPACE.suggest, build=SPACE.build)


@pytest.mark.parametrize(
    ("error", "outcome", "closed"),
    [
        (NotFinite("psnr is nan"), Outcome.FAILED, 0),
        (CacheTooLarge("too much"), Outcome.INVALID, 0),
        (torch.OutOfMemoryError("no more"), Outcome.FAILED, 1),
        (fc.AttachError("no such value"), Outcome.INVALID, 0),
    ],
)
def test_a_trial_that_cannot_run_ends_alone(error: Exception, outcome: Outcome, closed: int) -> None:
    """With several policies to search, one that cannot be applied is a candidate less."""
    runs = Runs([(reusing("CRCC"), error)])
    made, study = attempts(runs.given, runs=runs, space=joint())
    found = made.next()
    assert found is not None and found.outcome is outcome and runs.closed == closed
    assert str(error) in str(found.reason) and found.violation is None
    assert study.trials[0].state is TrialState.FAIL and not study.trials[0].intermediate_values


def test_a_draw_that_cannot_be_applied_is_passed_over_and_the_only_policys_own_settings_end_the_search() -> None:
    error = fc.AttachError("spans no block")
    made, study = attempts([(reusing("CRCC"), error)])
    with pytest.raises(fc.AttachError, match="spans no block"):
        made.next()
    assert (study.trials[0].state, Notes.of(study.trials[0]).outcome) == (TrialState.FAIL, "failed")
    space = SearchSpace.of(fc.StaticInterval(), fixed={"start": 0.0, "stop": 1.0}, bounds={"interval": (2, 3)})
    drawn, of_draws = attempts([], space=space)
    drawn._evaluator = SimpleNamespace(evaluate=lambda *_: (_ for _ in ()).throw(error))  # type: ignore[assignment]
    found = drawn.next()
    assert found is not None and (found.source, found.outcome) == ("search", Outcome.INVALID)
    assert len(of_draws.trials) == 1


def test_a_draw_that_is_no_policy_is_passed_over() -> None:
    def refused(params: Any) -> fc.Policy:
        raise fc.InvalidPolicy("start lies behind stop")

    space = SimpleNamespace(bases=SPACE.bases, suggest=SPACE.suggest, build=refused)
    made, study = attempts([], space=space)
    assert made.next() is None, "there is no policy to tell of"
    noted = Notes.of(study.trials[0])
    assert (noted.outcome, noted.reason, study.trials[0].state) == (
        "invalid", "start lies behind stop", TrialState.FAIL
    )  # fmt: skip


def test_an_error_of_another_kind_ends_the_search_and_its_trial() -> None:
    made, study = attempts([(reusing("CRCC"), RuntimeError("a fault of the pipeline"))])
    with pytest.raises(RuntimeError, match="a fault of the pipeline"):
        made.next()
    assert Notes.of(study.trials[0]).outcome == "failed" and study.trials[0].state is TrialState.FAIL
    assert len(study.trials) == 1, "it is not tried again"


@pytest.mark.parametrize("source", ["given", "planned:3"])
def test_what_was_interrupted_is_queued_again_as_it_was(source: str) -> None:
    """A plan has no parameters of the space; it is tried again all the same."""
    made, study = attempts([])
    made._evaluator = Runs([(reusing("CRCC"), KeyboardInterrupt())])  # type: ignore[assignment]
    params = {} if source == "planned:3" else SPACE.encode(fc.StaticInterval(interval=3)).params
    enqueue(study, params, policy=fc.dump(reusing("CRCC")), source=source)
    with pytest.raises(KeyboardInterrupt):
        made.next()
    ended, again = study.trials
    assert (ended.state, Notes.of(ended).outcome) == (TrialState.FAIL, "interrupted")
    noted = Notes.of(again)
    assert again.state is TrialState.WAITING and again.system_attrs["fixed_params"] == params
    assert (noted.policy, noted.source, noted.outcome, noted.worker) == (
        fc.dump(reusing("CRCC")), source, None, None
    )  # fmt: skip


def test_what_is_under_way_is_what_runs_and_is_known() -> None:
    _, study = attempts([(reusing("CRCC"), GOOD), (reusing("CCRC"), GOOD), (reusing("CCCR"), GOOD)])
    first, second = study.ask(), study.ask()
    unknown = optuna.trial.create_trial(state=TrialState.RUNNING)
    study.add_trial(unknown)
    study.tell(first, 0.5)
    assert under_way(study) == [reusing("CCRC")]
    study.tell(second, 0.5)
    assert under_way(study) == []


def test_a_trial_is_signed_by_its_worker() -> None:
    made, study = attempts([(reusing("CRCC"), GOOD)])
    made.next()
    assert Notes.of(study.trials[0]).worker == this_worker()


@pytest.mark.parametrize(
    ("state", "outcome", "same"),
    [
        (TrialState.RUNNING, None, 0),
        (TrialState.COMPLETE, "measured", 0),
        (TrialState.FAIL, "failed", 0),
        (TrialState.FAIL, "interrupted", None),
        (TrialState.FAIL, None, None),  # its worker died
    ],
)
def test_what_an_interrupted_trial_was_trying_is_tried(
    state: TrialState, outcome: str | None, same: int | None
) -> None:
    """The other one was at the same policy when this one began."""
    made, study = attempts([(reusing("CRCC"), GOOD), (reusing("CRCC"), GOOD)])
    other, own = study.ask(), study.ask()
    if outcome is not None:
        note(other, outcome=outcome)
    if state.is_finished():
        study.tell(other, 0.5 if state is TrialState.COMPLETE else None, state=state)
    assert made._same_under_way(own, MODEL.forecast(reusing("CRCC"))) == same
    assert made._same_under_way(own, MODEL.forecast(reusing("CCRC"))) is None

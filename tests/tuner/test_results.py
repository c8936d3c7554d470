"""What a study tells of its trials, on trials whose figures are set by hand, and what it is known by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

import fastercache as fc
from fastercache.tuned import Measured
from fastercache.tuner import Budget, JointSpace, Outcome, SearchSpace, Seconds, Study
from fastercache.tuner import study as module
from fastercache.tuner.export import searched
from fastercache.tuner.fields import Parameter
from fastercache.tuner.logbook import figures
from fastercache.tuner.propose import make_sampler
from fastercache.tuner.record import Record, cheapest, front
from fastercache.tuner.setting import Case
from fastercache.tuner.storage import open_storage
from fastercache.tuner.study import FINGERPRINT

HERE = "this machine"


def record(number: int, **fields: Any) -> Record:
    given: dict[str, Any] = {
        "outcome": Outcome.MEASURED, "source": "search", "policy": fc.FORA(interval=2 + number), "ratio": 0.5,
        "params": {"interval": 2}, "values": {"psnr": [41.0, 43.0], "ssim": [0.5]}, "violation": -2.0, "margin": 2.0,
        "seconds": 3.0, "cached_bytes": 7, "reason": None,
    }  # fmt: skip
    return Record(number, **{**given, **fields})


def of(*found: Record, **more: Any) -> Any:
    """A study of these trials, as far as it is asked."""
    return SimpleNamespace(records=list(found), **more)


def test_a_row_holds_every_figure_of_its_trial() -> None:
    one = record(3, foreseen=2.5, reason="why", outcome=Outcome.STOPPED)
    (row,) = Study.rows(of(one))
    assert row == {
        "number": 3, "policy": "fora", "fields": fc.dump(fc.FORA(interval=5)), "source": "search", "outcome": "stopped",
        "speedup_flops": 2.0, "within_budget": False, "margin": 2.0, "seconds": 3.0, "foreseen": 2.5, "cached_bytes": 7,
        "reason": "why", "psnr": 42.0, "ssim": 0.5,
    }  # fmt: skip
    (nothing,) = Study.rows(of(record(0, values={"psnr": []}, ratio=None)))
    assert nothing["speedup_flops"] is None and "psnr" not in nothing


def test_the_proposer_is_told_costs_by_the_clock_and_of_failures_that_they_miss_by_far() -> None:
    found = Study.seen(of(
        record(0, clocked=0.75),
        record(1, outcome=Outcome.FAILED, margin=None, violation=None),
        record(2, outcome=Outcome.STOPPED, margin=-3.0, violation=3.0),
        record(3, params={}),
        record(4, margin=None),
        record(5, ratio=None),
        record(6, margin=0.0, violation=0.0),
    ))  # fmt: skip
    assert [(one.policy, one.cost, one.margin, one.feasible) for one in found] == [
        (fc.FORA(interval=2), 0.75, 2.0, True),
        (fc.FORA(interval=3), 0.5, -15.0, False),
        (fc.FORA(interval=4), 0.5, -3.0, False),
        (fc.FORA(interval=8), 0.5, 0.0, True),
    ]
    assert {tuple(one.params.items()) for one in found} == {(("interval", 2),)}


def test_foresight_is_of_trials_that_ran_where_the_table_was_measured() -> None:
    table = Seconds(4, 1.0, 0.5, 1.0, {}, HERE)
    found = [
        record(0, foreseen=2.0, seconds=3.0, hardware=HERE),
        record(1, foreseen=4.0, seconds=5.0, hardware=HERE, outcome=Outcome.STOPPED),
        record(2, foreseen=1.0, seconds=9.0, hardware="another"),
        record(3, foreseen=1.0, seconds=9.0, hardware=HERE, outcome=Outcome.FAILED),
        record(4, foreseen=None, seconds=9.0, hardware=HERE),
        record(5, foreseen=1.0, seconds=None, hardware=HERE),
    ]
    get: Any = Study.foresight
    told = get.fget(of(*found, time=SimpleNamespace(table=table)))
    assert tuple(told) == pytest.approx((2, 1.0, (1.5 + 1.25) / 2))
    assert get.fget(of(*found[2:], time=SimpleNamespace(table=table))) is None
    # without a table no trial has a machine
    assert get.fget(of(record(0, seconds=3.0), time=SimpleNamespace(table=None))) is None


def test_what_a_study_shows_of_itself() -> None:
    good, better = record(0), record(1, ratio=0.8, clocked=0.25)
    found = [good, better, record(2, ratio=0.1, violation=1.0), record(3, ratio=0.1, outcome=Outcome.STOPPED)]
    facts = Study._facts(of(*found, budget=Budget.parse("psnr>=40"), search=["a", "b"]))
    assert facts == {
        "budget": "psnr>=40", "trials": 4, "within budget": 2, "best": "4.00x", "best policy": better.policy,
        "search prompts": 2,
    }  # fmt: skip
    none = Study._facts(of(found[2], budget=Budget.parse("psnr>=40"), search=["a"]))
    assert (none["best"], none["best policy"], none["within budget"]) == ("none yet", None, 0)


def test_trials_that_made_videos_are_counted() -> None:
    get: Any = Study.spent
    found = [record(place, outcome=outcome) for place, outcome in enumerate(Outcome)]
    assert get.fget(of(*found)) == 3


def test_by_the_clock_the_cheapest_and_the_front_are_those_of_the_seconds() -> None:
    """By FLOPs the order is the other way round."""
    slow, fast = record(0, ratio=0.2, clocked=0.9, margin=5.0), record(1, ratio=0.8, clocked=0.4, margin=1.0)
    budget = Budget.parse("psnr>=40")
    assert (
        cheapest([slow, fast], budget) is fast and cheapest([record(2, ratio=0.2, clocked=1.0), slow], budget) is slow
    )
    assert front([slow, fast]) == [fast, slow]
    assert front([slow, fast, record(2, ratio=0.1, clocked=0.95, margin=4.0)]) == [fast, slow]


def test_figures_for_tensorboard() -> None:
    assert figures(record(0, seconds=None)) == {
        "psnr": 42.0, "ssim": 0.5, "prompts": 2.0, "speedup_flops": 2.0, "violation": -2.0
    }  # fmt: skip
    assert figures(record(0, violation=0.0))["violation"] == 0.0 and figures(record(0))["seconds"] == 3.0
    assert figures(record(0, values={"psnr": []})) == {} == figures(record(0, values={}))


def test_a_policy_and_prompts_are_verified_as_asked() -> None:
    asked: list[Any] = []

    def compare(*given: Any) -> tuple[str, str]:
        asked.append(given)
        return "measured", "the rest"

    evaluator = SimpleNamespace(cases=lambda prompts: [f"case of {prompt}" for prompt in prompts], compare=compare)
    study = of(evaluator=evaluator, held_out=["held out"], best=lambda: record(3))
    assert Study.verify(study) == "measured"  # type: ignore[comparison-overlap]
    assert Study.verify(study, fc.FORA(), ["a", "b"], repeats=3) == "measured"  # type: ignore[comparison-overlap]
    assert asked == [(fc.FORA(interval=5), ["held out"], 1), (fc.FORA(), ["case of a", "case of b"], 3)]


# -- what a study is known by -----------------------------------------------------------------------------------------
class Fake:
    """An evaluator whose setting is a few words."""

    def __init__(self, **identity: str) -> None:
        self.setting = SimpleNamespace(identity={"model": "a", "weights": "b", **identity}, hardware=HERE)
        self.offset = 0

    def cases(self, prompts: Any) -> list[Case]:
        return [Case(prompt, place + self.offset) for place, prompt in enumerate(prompts)]


def opened(
    place: Any, evaluator: Fake | None = None, space: Any = None, prompts: Any = ("a", "b"), **words: Any
) -> Study:
    words = {"budget": "psnr>=40", **words}
    budget = Budget.parse(words.pop("budget"))
    space = space or SearchSpace.of(fc.StaticInterval(sites="all"), fixed={"stop": 1.0})
    made_up: Any = evaluator or Fake()
    return Study(made_up, space, budget, prompts, storage=place, **words)


def shifted() -> Fake:
    made = Fake()
    made.offset = 1
    return made


CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"evaluator": Fake(weights="c")},
    "scheduler": {"evaluator": Fake(scheduler="another")},
    "budget": {"budget": "psnr>=40.5"},
    "budget, its limit": {"budget": "psnr>=40,cache<=1GiB"},
    "prompts": {"prompts": ("a", "c")},
    "prompts, their order": {"prompts": ("b", "a")},
    "prompts, their seeds": {"evaluator": shifted()},
    "prompts, fewer": {"prompts": ("a",)},
    "policy": {"space": SearchSpace.of("fora")},
    "search space, of a value that is kept": {
        "space": SearchSpace.of(fc.StaticInterval(sites="all"), fixed={"stop": 0.9})
    },
    "search space, of sites": {"space": SearchSpace.of(fc.StaticInterval(sites="ff"), fixed={"stop": 1.0})},
    "search space, of bounds": {
        "space": SearchSpace.of(fc.StaticInterval(sites="all"), fixed={"stop": 1.0}, bounds={"interval": (2, 3)})
    },
    "objective": {"objective": "time"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_study_of_something_else_is_not_gone_on_with(what: str, tmp_path: Any) -> None:
    place = tmp_path / "study.journal"
    first = opened(place)
    assert opened(place).fingerprint() == first.fingerprint()
    with pytest.raises(fc.ConfigMismatch, match=f"was made with {what.split(',')[0]} "):
        opened(place, **CHANGES[what])


def test_a_study_that_knows_no_objective_went_by_flops(tmp_path: Any) -> None:
    place = tmp_path / "study.journal"
    old = opened(place)
    old.optuna.set_user_attr(FINGERPRINT, {k: v for k, v in old.fingerprint().items() if k != "objective"})
    assert opened(place).objective == "flops"
    with pytest.raises(fc.ConfigMismatch, match="was made with objective flops, this call has time"):
        opened(place, objective="time")


def test_a_study_of_another_program_is_refused(tmp_path: Any) -> None:
    place = tmp_path / "study.journal"
    other = optuna.create_study(storage=open_storage(place), study_name="another")
    other.add_trial(create_trial(value=1.0, params={"x": 1}, distributions={"x": IntDistribution(0, 9)}))
    with pytest.raises(fc.ConfigUnreadable, match="holds a study that is not of this tuner"):
        opened(place)


def test_a_resumed_study_draws_on_from_where_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    original = make_sampler

    def noting(name: Any, proposer: Any, seen: Any, seed: int, drawn: int) -> Any:
        asked.append((name, proposer.most, seed, drawn))
        return original(name, proposer, seen, seed, drawn)

    monkeypatch.setattr(module, "make_sampler", noting)
    first = opened(tmp_path / "study.journal", seed=5, sampler="tpe")
    for _ in range(3):
        first.optuna.ask()
    opened(tmp_path / "study.journal", seed=5)
    opened(tmp_path / "limited.journal", budget="psnr>=40,time<=8s")
    assert [(seed, drawn) for _, _, seed, drawn in asked] == [(5, 0), (5, 3), (0, 0)]
    assert [name for name, *_ in asked] == ["tpe", "known-cost", "known-cost"]
    assert [most for _, most, *_ in asked] == [float("inf"), float("inf"), 8.0]


def test_a_seed_that_was_interrupted_and_not_queued_again_is_queued(tmp_path: Any) -> None:
    """Its worker died between the two. One that failed by itself is not tried again."""
    policies = {
        "mild": fc.StaticInterval(sites="all", interval=4),
        "broken": fc.StaticInterval(sites="all", interval=5),
    }
    study = opened(tmp_path / "study.journal", seeds=policies)
    study._enqueue_seeds()
    mild, broken = study.optuna.ask(), study.optuna.ask()
    broken.set_user_attr("outcome", "failed")
    for trial in (mild, broken):
        study.optuna.tell(trial, state=TrialState.FAIL)
    opened(tmp_path / "study.journal", seeds=policies)._enqueue_seeds()
    (again,) = [trial for trial in study.optuna.trials if trial.state is TrialState.WAITING]
    assert again.user_attrs == {"policy": fc.dump(policies["mild"]), "source": "mild"}


@pytest.mark.parametrize(("policy", "static"), [("fora", True), ("teacache", False)])
def test_costs_are_known_where_every_policy_is_static(policy: str, static: bool) -> None:
    both = JointSpace.of({"static_interval": SearchSpace.of("static_interval"), policy: SearchSpace.of(policy)})
    assert both.static is static and SearchSpace.of(policy).static is static


def test_a_point_lies_where_its_values_do_and_in_the_middle_where_it_has_none() -> None:
    space = SearchSpace.of("fastercache", bounds={"radius": (0, 4)})
    params = space.encode(fc.FasterCache()).params | {"radius": 3, "start": 0.25}
    missing = next(p.name for p in space.parameters if p.name not in params)
    at = dict(zip((p.name for p in space.parameters), space.position(params).tolist(), strict=True))
    start: Parameter = next(p for p in space.parameters if p.name == "start")
    span: Any = start.distribution
    assert at["radius"] == 0.75 and at[missing] == 0.5
    assert at["start"] == pytest.approx((0.25 - span.low) / (span.high - span.low))


def test_what_a_dead_worker_was_trying_comes_before_the_search_is_given_up(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(tmp_path / "study.journal")
    study.evaluator = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]
    looks = iter([[], ["a trial"], [], []])
    monkeypatch.setattr(module, "recover", lambda optuna: next(looks))
    steps: list[int] = []
    monkeypatch.setattr(type(study._attempts), "next", lambda self: steps.append(1))
    study.optimise(trials=1)
    assert len(steps) == 3 + 3 and next(looks, "no more") == "no more"


def test_what_a_trial_measured_is_exported_with_the_machine_and_no_speedup_by_the_clock() -> None:
    study = of(search=["a", "b", "c"], evaluator=SimpleNamespace(setting=SimpleNamespace(hardware=HERE)))
    assert searched(study, record(0)) == Measured(
        prompts=3, quality={"psnr": 42.0, "ssim": 0.5}, speedup_flops=2.0, seconds=3.0, cached_bytes=7, hardware=HERE
    )
    assert searched(study, record(0, cached_bytes=0)).cached_bytes == 0
    for missing in ("ratio", "seconds", "cached_bytes"):
        with pytest.raises(fc.ConfigUnreadable, match=r"trial 4 was not measured \(dominated\)"):
            searched(study, record(4, outcome=Outcome.DOMINATED, **{missing: None}))

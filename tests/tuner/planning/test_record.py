"""The study that keeps judged plans."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from fastercache.policies.errors import ConfigMismatch
from fastercache.tuner.planning.record import PlanRecord
from fastercache.tuner.planning.search import Judged

WHOLE, GIVEN_UP = Judged((0, 3, 7), math.log(1e-5), 0.8), Judged((0, 1, 2), math.inf, 0.1)


def test_plans_come_back_as_they_were(tmp_path: Path) -> None:
    record = PlanRecord(tmp_path / "plans.journal", "this model")
    assert record.known == {}
    unit = Judged((0, 2, 5), 0.0, 0.3)  # the logarithm of an error of 1
    for plan in (WHOLE, GIVEN_UP, WHOLE, unit):
        record.add(plan)
    again = PlanRecord(tmp_path / "plans.journal", "this model")
    assert again.known == {plan.computed: plan for plan in (WHOLE, GIVEN_UP, unit)}
    again.add(WHOLE)
    assert len(again.study.trials) == 3


def test_a_plan_is_a_trial(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path / 'plans.db'}"
    record = PlanRecord(place, "this model", name="of-this")
    record.add(WHOLE)
    record.add(GIVEN_UP)
    study = optuna.load_study(study_name="of-this", storage=place)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert study.best_value == pytest.approx(50.0)
    assert study.best_trial.params == {"computed": 3, "history": 5}
    assert study.best_trial.user_attrs["computed_steps"] == [0, 3, 7]
    assert study.metric_names == ["decibels"]


def test_plans_of_something_else_are_refused(tmp_path: Path) -> None:
    PlanRecord(tmp_path / "plans.journal", "this model").add(WHOLE)
    with pytest.raises(ConfigMismatch, match="another model, call, set of prompts or effort"):
        PlanRecord(tmp_path / "plans.journal", "that model")


def test_steps_and_history_are_numbers_of_their_range(tmp_path: Path) -> None:
    """Optuna's own viewers read the ranges."""
    record = PlanRecord(tmp_path / "plans.journal", "this model", history=3)
    record.add(WHOLE)
    (trial,) = record.study.trials
    assert record.study.study_name == "plans" and trial.params == {"computed": 3, "history": 3}
    assert trial.distributions == {"computed": IntDistribution(1, 10_000), "history": IntDistribution(1, 16)}
    assert trial.user_attrs == {"computed_steps": [0, 3, 7], "generations": 0.8, "error": WHOLE.error}
    assert record.study.user_attrs == {"made_for": "this model"}
    assert record.study.direction is StudyDirection.MAXIMIZE

"""What a study tells readers of optuna-dashboard and of Optuna's own plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import fastercache as fc
from fastercache import zoo
from fastercache.tuner import tune
from fastercache.tuner.storage import open_storage
from fastercache.tuner.study import Study

CALL = {"num_inference_steps": 6, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}


def tuned(folder: Path, **more: Any) -> Study:
    return tune(
        zoo.build("latte").pipe,
        ["a", "b"],
        budget="psnr>=1,ssim>=0.999",
        policy=fc.StaticInterval,
        call=CALL,
        out=folder,
        **more,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    policies = {str(n): fc.StaticInterval(sites="denoiser", interval=n) for n in (2, 3, 5)}
    return tuned(
        folder,
        trials=5,
        seeds=policies,
    )


def test_the_objective_has_a_name(study: Study) -> None:
    assert study.optuna.metric_names == ["computed FLOPs, share of uncached"]


def test_what_misses_the_budget_is_marked_where_the_dashboard_looks(study: Study) -> None:
    judged = [trial for trial in study.optuna.trials if "constraints" in trial.system_attrs]
    assert judged
    for trial in judged:
        listed = trial.system_attrs["constraints"]
        assert len(listed) == 2
        feasible = all(amount <= 0.0 for amount in listed)
        assert feasible == (trial.user_attrs["violation"] <= 0.0)
        assert feasible == all(amount <= 0.0 for amount in trial.constraints.values())


def test_each_trial_says_what_it_was_and_what_came_of_it(study: Study) -> None:
    by_number = {record.number: record for record in study.records}
    for trial in study.optuna.trials:
        record, words = by_number[trial.number], trial.user_attrs["words"]
        assert words.startswith(repr(record.policy)) and f"{record.speedup_flops:.2f}x fewer FLOPs" in words
        if record.outcome == "measured":
            verb = "keeps" if record.feasible else "misses"
            assert f"psnr {sum(record.values['psnr']) / 2:.4g}" in words and f"{verb} psnr>=1,ssim>=0.999" in words


def test_what_was_stopped_or_passed_over_has_its_cost_as_value(study: Study) -> None:
    pruned = [trial for trial in study.optuna.trials if trial.state is TrialState.PRUNED]
    assert pruned
    by_number = {record.number: record for record in study.records}
    for trial in pruned:
        assert trial.value == by_number[trial.number].ratio
    assert study.optuna.best_trial.number == study.best().number


def test_a_file_holds_one_study_whatever_it_is_called(study: Study, folder: Path) -> None:
    again = tuned(
        folder,
        trials=0,
        name="another",
    )
    assert len(again.records) == len(study.records)
    assert optuna.get_all_study_names(open_storage(folder / "study.journal")) == ["tuning"]

"""`tune` over `planned` and other policies: the plans are made from one recording and judged beside the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache import zoo
from fastercache.policies.errors import InvalidPolicy
from fastercache.tuner import Budget, tune
from fastercache.tuner.attempts import GUEST
from fastercache.tuner.planning import planner as module
from fastercache.tuner.planning.planner import Effort
from fastercache.tuner.record import Record
from fastercache.tuner.setting import Setting

STEPS, PROMPTS, BUDGET = 10, ["one", "two"], "psnr>=20"
CALL = {"height": 32, "width": 32, "video_length": 4, "num_inference_steps": STEPS, "clean_caption": False}


@pytest.fixture(scope="module")
def pipe() -> Any:
    found = zoo.build("latte").pipe
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EFFORTS", (Effort(2, 8.0), Effort(2, 9.0, ((0,), (1,)))))


def planned(records: list[Record]) -> list[Record]:
    return [record for record in records if record.source.startswith(GUEST)]


def test_plans_are_trials_beside_the_searched_policies_and_made_once(pipe: Any, tmp_path: Path) -> None:
    doing: list[str] = []
    policies = ["planned", "foca"]
    arguments: dict[str, Any] = {"budget": BUDGET, "policy": policies, "call": CALL, "out": tmp_path}
    study = tune(pipe, PROMPTS, trials=3, told=lambda what, spent: doing.append(what), **arguments)
    plans = planned(study.records)
    assert plans and any("recording" in what for what in doing)
    setting = Setting(pipe, CALL)
    for record in plans:
        policy = record.policy
        assert isinstance(policy, fc.Planned) and record.source == f"{GUEST}{len(policy.computed)}"
        assert record.ratio is None or record.ratio == pytest.approx(len(policy.computed) / STEPS)
    measured = [record for record in plans if record.values]
    assert measured
    for record in measured[:1]:  # its figures are those of a run by hand
        for prompt, value in zip(setting.cases(PROMPTS), record.values["psnr"], strict=False):
            bare = setting.generate(prompt).double()
            with fc.attach(pipe, record.policy):
                error = (setting.generate(prompt).double() - bare).square().flatten(1).mean(1)
            assert value == pytest.approx(float((-10.0 * error.log10()).mean()), abs=1e-3)
    assert any(record.source in ("default:foca", "search", "no_cache") for record in study.records)
    best = study.best()
    feasible = [r for r in study.records if r.feasible and r.ratio is not None and r.ratio < 1.0]
    assert best.ratio == min(r.ratio or 1.0 for r in feasible)
    doing.clear()
    again = tune(pipe, PROMPTS, trials=4, told=lambda what, spent: doing.append(what), **arguments)
    assert not doing, "a continued study plans nothing anew"
    assert [r.number for r in planned(again.records)] == [r.number for r in plans]


def test_a_plan_that_keeps_the_budget_at_the_least_cost_is_the_best(pipe: Any, tmp_path: Path) -> None:
    """FORA at its mildest interval cannot go beyond 2x here, a plan can."""
    study = tune(
        pipe, PROMPTS, budget="psnr>=5", policy=["fora", fc.Planned], call=CALL, out=tmp_path, trials=4,
        bounds={"interval": (2, 2)},
    )  # fmt: skip
    best = study.best()
    assert isinstance(best.policy, fc.Planned)
    assert np.mean(best.values["psnr"]) >= 5.0 and Budget.parse("psnr>=5").violation(best.values) <= 0


def test_planned_alone_is_sent_to_plan(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidPolicy, match="`fastercache plan` makes a plan from a recording"):
        tune(pipe, PROMPTS, budget=BUDGET, policy="planned", call=CALL, out=tmp_path)
    assert not list(tmp_path.iterdir())

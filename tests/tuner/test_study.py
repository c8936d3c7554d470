"""A study finds the cheapest policy within its budget, reports honestly, and continues where it was interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

import fastercache as fc
from fastercache import zoo
from fastercache.prompts import prompt_hash
from fastercache.tuner import Budget, Evaluator, Outcome, Study, export, tune
from fastercache.tuner.attempts import Attempts
from fastercache.tuner.codec import Notes
from fastercache.tuner.evaluate import Evaluation
from fastercache.tuner.record import SPENT, Record
from fastercache.zoo.videos import latte
from tests.tuner.conftest import CALL, HELD_OUT, SEARCH

ROOT = Path(__file__).resolve().parents[2]
LEVERS = {"weighting": "paper", "stop": 1.0, "cfg_stop": 1.0}
SIMPLE = {"sites": "all", "stop": 1.0}
"""Static reuse of every module: two seeds, then search trials."""
HARD = "psnr>=95"
"""Met by next to nothing, so the search does not run out of candidates."""


def study(pipe: Any, out: Path, trials: int = 12, budget: str = "psnr>=55", **changes: Any) -> Study:
    arguments: dict[str, Any] = {"held_out": HELD_OUT, "call": CALL, "out": out}
    arguments |= {"policy": "static_interval", "fixed": SIMPLE}
    return tune(pipe, SEARCH, budget=budget, trials=trials, **{**arguments, **changes})


def told(record: Record) -> tuple[Any, ...]:
    return record.source, record.outcome, record.policy, record.ratio, record.violation


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study, searched once for the tests that only read it."""
    pipe = zoo.build("latte").pipe
    out = tmp_path_factory.mktemp("study")
    loose = paper_quality(pipe, out) - 4.0
    return study(pipe, out, budget=f"psnr>={loose:.4f}", policy="fastercache", fixed=LEVERS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """What the studies that are stopped in the fifth run would be, had nothing stopped them."""
    return study(zoo.build("latte").pipe, tmp_path_factory.mktemp("whole"), trials=5)


def paper_quality(pipe: Any, out: Path) -> float:
    with Evaluator(pipe, CALL, store=out / "references") as evaluator:
        values = evaluator.evaluate(fc.FasterCache(), evaluator.cases(SEARCH)).values["psnr"]
    return sum(values) / len(values) - 1e-3


def test_best_is_the_cheapest_that_meets_the_budget(finished: Study) -> None:
    best = finished.best()
    paper = next(r for r in finished.records if r.source == "default")
    assert best.outcome is Outcome.MEASURED and best.violation is not None and best.violation <= 0
    assert best.ratio is not None and paper.ratio is not None and best.ratio <= paper.ratio
    assert all(r.ratio >= best.ratio for r in finished.records if r.feasible and r.ratio is not None)
    with finished.evaluator as evaluator:
        values = evaluator.evaluate(best.policy, finished.search).values
    assert finished.budget.violation(values) == pytest.approx(best.violation, abs=1e-5)


def test_it_starts_with_no_reuse_the_paper_and_the_presets(finished: Study) -> None:
    sources = [r.source for r in finished.records]
    assert sources[:2] == ["no_cache", "default"]
    assert {f"preset:{name}" for name in fc.PRESETS} <= set(sources)


def test_states_are_honest(finished: Study) -> None:
    """Optuna's states say the same as ours, no value is claimed for what was not measured, and nothing ran in vain."""
    incumbent = 1.0
    for record in finished.records:
        trial = finished.optuna.trials[record.number]
        if record.outcome in (Outcome.MEASURED, Outcome.EXACT):
            assert trial.state is TrialState.COMPLETE and trial.value == pytest.approx(record.ratio)
            assert (max(trial.constraints.values()) <= 0) == record.feasible
        else:
            assert trial.state is TrialState.PRUNED and not record.feasible
            assert trial.intermediate_values == {0: record.ratio}, "its place in a plot"
        if record.outcome is Outcome.STOPPED:
            assert 0 < len(record.values["psnr"]) < len(SEARCH) and max(trial.constraints.values()) > 0
        if record.outcome is Outcome.DOMINATED:
            assert not record.values and record.ratio is not None and record.ratio >= incumbent
        elif record.outcome is not Outcome.EXACT:
            assert record.ratio is not None and record.ratio < incumbent
        if record.feasible and record.ratio is not None:
            incumbent = min(incumbent, record.ratio)


def test_each_trial_is_told_in_one_line(finished: Study) -> None:
    for record in finished.records:
        said = Notes.of(finished.optuna.trials[record.number]).words
        assert record.ratio is not None and said is not None
        expected = f"{record.policy!r}: {1 / record.ratio:.2f}x fewer FLOPs"
        if record.outcome in (Outcome.MEASURED, Outcome.STOPPED):
            mean = sum(record.values["psnr"]) / len(record.values["psnr"])
            expected += f"; psnr {mean:.4g}, {'keeps' if record.feasible else 'misses'} {finished.budget}"
        if record.reason is not None:
            expected += f" ({record.reason})"
        assert said == expected, record.outcome
    kinds = {record.outcome for record in finished.records}
    assert kinds >= {Outcome.MEASURED, Outcome.EXACT, Outcome.DOMINATED}


def test_a_study_shown_in_a_notebook_tells_its_best(finished: Study) -> None:
    facts, best = finished._facts(), finished.best()
    assert facts["best"] == f"{best.speedup_flops:.2f}x" and facts["best policy"] == best.policy
    assert facts["trials"] == len(finished.records) and facts["search prompts"] == len(SEARCH)
    assert facts["within budget"] == sum(record.feasible for record in finished.records)


def test_rows_hold_the_means_of_what_was_run(finished: Study) -> None:
    for row, record in zip(finished.rows(), finished.records, strict=True):
        assert (row["number"], row["within_budget"]) == (record.number, record.feasible)
        if record.values:
            assert row["psnr"] == pytest.approx(sum(record.values["psnr"]) / len(record.values["psnr"]))


def test_the_proposer_learns_from_what_has_parameters_a_cost_and_a_margin(finished: Study) -> None:
    told = [
        (r.policy, r.ratio, r.margin, r.feasible)
        for r in finished.records
        if r.params and r.margin is not None  # not from what was skipped
    ]
    assert [(s.policy, s.cost, s.margin, s.feasible) for s in finished.seen()] == told and told


def test_front_holds_what_nothing_beats(finished: Study) -> None:
    front = finished.front()
    assert front and front[0].ratio == min(
        r.ratio for r in finished.records if r.outcome is Outcome.MEASURED and r.ratio
    )
    for a in front:
        for b in finished.records:
            if b.outcome is Outcome.MEASURED and b.ratio is not None and a.ratio is not None:
                assert not (b.ratio < a.ratio and (b.margin or 0) > (a.margin or 0))


def test_exported_config_says_what_was_measured_on_which_prompts(finished: Study, tmp_path: Path) -> None:
    held_out = finished.verify()
    tuned = fc.load(export(finished, held_out=held_out).save(tmp_path / "tuned.json"))
    assert tuned.measured.held_out == held_out and held_out.prompts == len(HELD_OUT)
    assert tuned.measured.search is not None and tuned.measured.search.prompts == len(SEARCH)
    # Prompts of other lengths have other FLOPs of cross-attention.
    assert tuned.measured.search.speedup_flops == pytest.approx(held_out.speedup_flops, rel=0.01)
    assert (tuned.steps, tuned.guidance, tuned.guidance_scale) == (CALL["num_inference_steps"], "batched", 4.0)
    assert tuned.budget == str(finished.budget)
    assert tuned.seen == tuple(sorted(prompt_hash(prompt) for prompt in (*SEARCH, *HELD_OUT)))
    assert (tuned.policy, tuned.certificate) == (finished.best().policy, None)
    with fc.attach(finished.evaluator.pipe, tuned) as session:
        finished.evaluator.pipe("x", output_type="latent", **CALL)
    assert session.last.speedup_flops == pytest.approx(held_out.speedup_flops, rel=0.01)


def test_certificate_counts_prompts_used_for_nothing_else(finished: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["one more", "and another", "a third"]
    policy = finished.best().policy
    with finished.evaluator as evaluator:
        worst, second, _ = sorted(evaluator.evaluate(policy, evaluator.cases(prompts)).values["psnr"])
    assert worst < second
    monkeypatch.setattr(finished, "budget", Budget.parse(f"psnr>={(worst + second) / 2:.6f}"))
    made = finished.certify(prompts, confidence=0.8)
    assert (made.prompts, made.violations, made.confidence) == (3, 1, 0.8)
    # P(Binomial(3, p) <= 1) = (1 - p)^3 + 3 p (1 - p)^2 is 1 - 0.8 at the bound
    assert (1 - made.rate) ** 3 + 3 * made.rate * (1 - made.rate) ** 2 == pytest.approx(0.2)
    with pytest.raises(fc.ConfigUnreadable, match="disjoint"):
        finished.certify(HELD_OUT)


def test_a_prompt_that_just_keeps_the_budget_is_no_miss(finished: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished, "budget", Budget.parse("psnr>=40"))
    values = Evaluation({"psnr": [40.0, 39.5, 41.0]})
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, policy, cases: values)
    assert finished.certify(["one more", "and another", "a third"], fc.NoCache()).violations == 1
    with pytest.raises(fc.ConfigUnreadable, match="no held-out prompts"):
        finished.verify(fc.NoCache(), prompts=[])


def test_guidance_is_that_of_the_pipelines_own_call(finished: Study, tiny_latte: Any, tmp_path: Path) -> None:
    assert finished.guidance == "batched"
    unguided = study(tiny_latte, tmp_path, trials=0, call={**CALL, "guidance_scale": 1.0})
    assert unguided.guidance == "none"


def test_where_not_even_the_defaults_can_be_applied_there_is_nothing_to_search(tiny_latte: Any, tmp_path: Path) -> None:
    with pytest.raises(fc.NoSiteMatched, match="spans no block"):
        study(tiny_latte, tmp_path, trials=3, fixed={**SIMPLE, "sites": "stack[50:60]"})


def test_a_budget_no_trial_meets_names_the_closest_miss(tiny_latte: Any, tmp_path: Path) -> None:
    whole = {**SIMPLE, "start": 0.0}  # reuse only near the end may go unnoticed by 100 dB
    tried = study(tiny_latte, tmp_path, budget="psnr>=99.9", trials=3, fixed=whole)
    with pytest.raises(fc.BudgetNotMet, match=r"none of 3 trials .* met psnr>=99.9; the closest reached psnr") as error:
        tried.best()
    assert "\n" not in str(error.value)


def test_search_and_held_out_prompts_must_differ(tiny_latte: Any, tmp_path: Path) -> None:
    with pytest.raises(fc.ConfigUnreadable, match="disjoint"):
        study(tiny_latte, tmp_path, held_out=["A  red SEVEN"])
    with pytest.raises(fc.ConfigUnreadable, match="at least one search prompt"):
        tune(tiny_latte, [], budget="psnr>=30", out=tmp_path)


def test_calling_again_continues_to_the_total(tiny_latte: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    first = list(study(tiny_latte, tmp_path, trials=3, budget=HARD).records)
    again = study(tiny_latte, tmp_path, trials=5, budget=HARD, on_trial=lambda _, r: seen.append(r.number))
    spent = [r for r in again.records if r.outcome in SPENT]
    assert len(spent) == 5 and list(map(told, again.records))[: len(first)] == list(map(told, first))
    assert min(seen) == len(first)
    whole = study(tiny_latte, tmp_path / "at once", trials=5, budget=HARD)
    assert list(map(told, whole.records)) == list(map(told, again.records))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": "psnr>=31"}, "budget psnr>=55, this call has psnr>=31"),
        ({"call": {**CALL, "num_inference_steps": 5}}, "call"),
        ({"fixed": {"sites": "all"}}, "search space"),
        ({"seed": 5}, "prompts"),
    ],
)
def test_another_question_is_not_mixed_into_a_study(
    tiny_latte: Any, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    study(tiny_latte, tmp_path, trials=0)
    with pytest.raises(fc.ConfigMismatch, match=says) as error:
        study(tiny_latte, tmp_path, trials=0, **changes)
    assert "\n" not in str(error.value)


def test_another_models_study_is_refused(tiny_latte: Any, tmp_path: Path) -> None:
    study(tiny_latte, tmp_path, trials=0)
    deeper = latte(layers=3).build("deeper").pipe
    with pytest.raises(fc.ConfigMismatch, match="model LatteTransformer3DModel"):
        study(deeper, tmp_path, trials=0)


def test_foreign_study_files_are_refused(tiny_latte: Any, tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("this is no journal\nat all\n")
    with pytest.raises(fc.ConfigUnreadable, match="no study file"):
        study(tiny_latte, tmp_path)


def test_ctrl_c_loses_nothing(
    tiny_latte: Any, tmp_path: Path, uninterrupted: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, runs = Evaluator.run, []

    def interrupted(self: Evaluator, policy: fc.Policy, case: Any) -> Any:
        runs.append(policy)
        if len(runs) == 5:
            raise KeyboardInterrupt  # in the middle of the first search trial
        return original(self, policy, case)

    monkeypatch.setattr(Evaluator, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(tiny_latte, tmp_path, trials=5)
    assert "forward" not in vars(tiny_latte.transformer)  # detached
    monkeypatch.undo()
    check_continues_like_uninterrupted(tiny_latte, tmp_path, uninterrupted)


SCRIPT = """
import os, signal, sys
from fastercache import zoo
from tests.tuner.test_study import study
from fastercache.tuner import Evaluator
import torch
torch.set_num_threads(1)
original, runs = Evaluator.run, []
def killed(self, policy, case):
    runs.append(policy)
    if len(runs) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, policy, case)
Evaluator.run = killed
study(zoo.build("latte").pipe, __import__("pathlib").Path(sys.argv[1]), trials=5)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing(tiny_latte: Any, tmp_path: Path, uninterrupted: Study) -> None:
    """The process kills itself in the middle of a trial, leaving it running and perhaps a half-written line."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == -signal.SIGKILL
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code": 5, "worker')
    check_continues_like_uninterrupted(tiny_latte, tmp_path, uninterrupted)


def check_continues_like_uninterrupted(pipe: Any, out: Path, whole: Study) -> None:
    """The interrupted trial is told as failed and repeated; the rest is as if nothing had happened."""
    resumed = study(pipe, out, trials=5)
    assert [t for t in resumed.optuna.trials if t.state is TrialState.RUNNING] == []
    interrupted = [r for r in resumed.records if r.outcome is Outcome.INTERRUPTED]
    assert len(interrupted) == 1
    kept = [r for r in resumed.records if r.outcome is not Outcome.INTERRUPTED]
    assert list(map(told, kept)) == list(map(told, whole.records))


def test_a_trial_with_nan_fails_with_a_reason_and_the_search_goes_on(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Evaluator.quality

    def broken(self: Evaluator, video: Any, case: Any) -> dict[str, float]:
        if self._session is not None and self._session.policy == fc.StaticInterval(**SIMPLE):
            raise fc.NotFinite("psnr is nan")
        return original(self, video, case)

    monkeypatch.setattr(Evaluator, "quality", broken)
    tried = study(tiny_latte, tmp_path, trials=3)
    (failed,) = [r for r in tried.records if r.outcome is Outcome.FAILED]
    assert failed.source == "default" and failed.reason == "psnr is nan"
    assert tried.optuna.trials[failed.number].state is TrialState.FAIL
    assert any(r.outcome is Outcome.MEASURED for r in tried.records)
    (learnt,) = [s for s in tried.seen() if s.policy == failed.policy]
    assert (learnt.margin, learnt.feasible) == (-15.0, False), "it counts as a miss by far"


def scripted(monkeypatch: pytest.MonkeyPatch, *told: tuple[str, Outcome] | None) -> list[int]:
    """Trials that end as a test says, by source and outcome, in turn and then without any record; how many there were
    is noted."""
    steps: list[int] = []

    def step(self: Attempts) -> Any:
        steps.append(1)
        given = told[len(steps) - 1] if len(steps) <= len(told) else None
        return None if given is None else SimpleNamespace(source=given[0], outcome=given[1])

    monkeypatch.setattr(Attempts, "next", step)
    return steps


SKIPPED, RAN = ("search", Outcome.DOMINATED), ("search", Outcome.MEASURED)


@pytest.mark.parametrize(
    ("told", "ran"),
    [
        ((), 3),
        ((SKIPPED, SKIPPED, SKIPPED), 3),
        ((SKIPPED, SKIPPED, RAN), 6),  # counted anew after a video
        ((("default", Outcome.DOMINATED), ("preset:latte", Outcome.DOMINATED)), 5),  # a seed is no proposal
        ((SKIPPED, ("search", Outcome.FAILED), None), 5),
    ],
)
def test_the_search_ends_after_three_proposals_in_a_row_that_cannot_win(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[Any, ...], ran: int
) -> None:
    tried = study(tiny_latte, tmp_path, trials=0)
    steps = scripted(monkeypatch, *told)
    tried.optimise(trials=1)
    assert len(steps) == ran and tried.ended == "3 proposals in a row could not be cheaper than the best"


def test_a_sampler_that_knows_no_costs_may_take_a_hundred(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, changes in {"tpe": {"sampler": "tpe"}, "dynamic": {"policy": "first_block_cache", "fixed": {}}}.items():
        tried = study(tiny_latte, tmp_path / name, trials=0, **changes)
        assert tried.ended == "0 trials done"
        steps = scripted(monkeypatch)
        tried.optimise(trials=1)
        assert len(steps) == 100 and tried.ended.startswith("100 proposals in a row"), name
        monkeypatch.undo()


def test_dead_workers_are_looked_for_at_the_beginning_now_and_then_and_at_the_end(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = study(tiny_latte, tmp_path, trials=0)
    found: list[Any] = []
    monkeypatch.setattr("fastercache.tuner.study.recover", found.append)
    scripted(monkeypatch)
    tried.optimise(trials=1)
    at_the_end = 2  # before it gives up, and after
    assert found == [tried.optuna] * (1 + at_the_end)
    monkeypatch.setattr("fastercache.tuner.study.HEARTBEAT", -1)  # its time is always over
    tried.optimise(trials=1)
    assert len(found) == 1 + at_the_end + 3 + at_the_end


def test_the_seconds_of_a_trial_are_the_median_of_its_calls(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seconds = Evaluator.run, iter((9.0, 1.0, 4.0))

    def timed(self: Evaluator, policy: fc.Policy, case: Any) -> Any:
        return (*run(self, policy, case)[:2], next(seconds))

    monkeypatch.setattr(Evaluator, "run", timed)
    tried = tune(
        tiny_latte, [*SEARCH, "a third"], budget="psnr>=1", trials=1, call=CALL, out=tmp_path, policy="static_interval",
        fixed=SIMPLE,
    )  # fmt: skip
    assert [r.seconds for r in tried.records if r.outcome is Outcome.MEASURED] == [4.0]


MILD = fc.StaticInterval(interval=3, start=0.5, **SIMPLE)


def test_a_database_takes_the_place_of_the_file(tiny_latte: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study(tiny_latte, tmp_path, trials=1, storage=url)
    again = study(tiny_latte, tmp_path, trials=2, storage=url)
    assert sum(r.outcome in SPENT for r in again.records) == 2
    assert not (tmp_path / "study.journal").exists()
    with pytest.raises(fc.ConfigUnreadable, match="cannot open the study database"):
        study(tiny_latte, tmp_path, storage="sqlite:////nowhere/at/all.db")


def test_the_general_sampler_and_own_seeds(tiny_latte: Any, tmp_path: Path) -> None:
    tried = study(tiny_latte, tmp_path, budget=HARD, trials=4, sampler="tpe", seeds={"mild": MILD})
    assert [r.source for r in tried.records][:3] == ["no_cache", "default", "mild"]
    assert tried.records[2].policy == MILD
    assert sum(r.outcome in SPENT for r in tried.records) == 4


def test_other_policies_are_tuned_through_their_bounds(tiny_latte: Any, tmp_path: Path) -> None:
    tried = study(tiny_latte, tmp_path, budget="psnr>=20", trials=4)
    assert isinstance(tried.best().policy, fc.StaticInterval) and tried.best().policy.sites == "all"


def test_a_time_limit_ends_the_search(tiny_latte: Any, tmp_path: Path) -> None:
    tried = study(tiny_latte, tmp_path, trials=50, timeout=0.0)
    assert "seconds passed" in tried.ended and len(tried.records) <= 1


def test_quiet(tiny_latte: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tiny_latte, tmp_path, trials=1)
    assert capsys.readouterr() == ("", "")


def test_trials_reach_tensorboard(tiny_latte: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tried = study(tiny_latte, tmp_path, trials=2, logdir=tmp_path / "board")
    spent = [r for r in tried.records if r.outcome in SPENT]
    folders = sorted(p for p in (tmp_path / "board").iterdir() if p.is_dir())
    assert [p.name for p in folders] == [f"trial-{r.number:04d}" for r in spent]
    events = EventAccumulator(str(folders[0]))
    events.Reload()
    assert events.Scalars("psnr")[0].value == pytest.approx(sum(spent[0].values["psnr"]) / 2, rel=1e-4)
    assert events.Scalars("speedup_flops")[0].value == pytest.approx(spent[0].speedup_flops, rel=1e-4)

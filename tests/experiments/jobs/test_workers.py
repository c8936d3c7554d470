"""Worker processes: what they are told, that they end with the command, and that one that fails ends alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import fastercache as fc
from fastercache.experiments import pipelines
from fastercache.experiments.jobs import searching, workers
from fastercache.experiments.jobs.study_job import Job
from fastercache.experiments.jobs.workers import (
    Orphaned,
    Recording,
    Searching,
    devices,
    joined,
    recorders,
    shared,
    threads_shared,
    work,
)
from fastercache.experiments.pipelines import Subject
from fastercache.tuner.entry import JOURNAL
from fastercache.tuner.planning.material import material, recorded
from fastercache.tuner.record import SPENT, records
from fastercache.tuner.setting import References, Setting
from fastercache.tuner.storage import open_storage
from tests.tuner.conftest import CALL, SEARCH

ECHO = """
import os, sys
print(sys.stdin.read(), os.environ["OMP_NUM_THREADS"], len(sys.argv))
"""
WAITING = """
import signal, sys, time, pathlib
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
except KeyboardInterrupt:
    print("put back")
"""


def order(folder: Path, **changes: Any) -> Searching:
    given: dict[str, Any] = {"folder": folder, "device": "cpu", "trials": 5, "place": 0}
    return Searching(**given | changes)


def instead(monkeypatch: pytest.MonkeyPatch, script: str, *words: str) -> None:
    monkeypatch.setattr(workers, "command", lambda: [sys.executable, "-c", script, *words])


def test_gpus_are_taken_in_turn_where_the_choice_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices("auto", 3) == devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices("cuda:1", 2) == ["cuda:1", "cuda:1"] and devices("cpu", 2) == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices("auto", 2) == ["auto", "auto"]


def test_all_workers_together_have_the_threads_of_one() -> None:
    torch.set_num_threads(6)
    with threads_shared(3) as share:
        assert share == torch.get_num_threads() == 2
    assert torch.get_num_threads() == 6
    with threads_shared(8) as share:
        assert share == torch.get_num_threads() == 1


def test_an_order_goes_over_standard_input_and_stands_in_no_list_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, ECHO)
    told = order(tmp_path, storage="postgresql://me:secret@host/x", place=3)
    torch.set_num_threads(4)
    with joined([told]):
        pass
    text, threads, words = (tmp_path / "workers" / "2.log").read_text().rsplit(maxsplit=2)
    assert Searching.model_validate_json(text) == told
    assert (threads, words) == ("2", "1")


def test_one_that_fails_is_named_with_its_log_and_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead(monkeypatch, "import sys; print('gone'); sys.exit(3)")
    done = []
    with joined([order(tmp_path)]):
        done.append(1)
    said = " ".join(capsys.readouterr().err.split())
    assert done and "worker 2 ended with status 3" in said and "2.log" in said
    assert (tmp_path / "workers" / "2.log").read_text() == "gone\n"


def test_an_interrupted_command_stops_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, WAITING, str(tmp_path / "begun"))
    with pytest.raises(KeyboardInterrupt), joined([order(tmp_path)]):
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert (tmp_path / "workers" / "2.log").read_text() == "put back\n"


@pytest.fixture
def study(tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the job of a search over FORA, planned ones beside it, of a pipeline that opens."""
    monkeypatch.setattr(Job, "open", lambda job: Subject(job.device, tiny_latte, dict(CALL), False))
    job = Job(pipe="tiny", prompts=tuple(SEARCH), budget="psnr>=20", policies=("fora", "planned"))
    job.save(tmp_path / "study")
    return tmp_path / "study"


def test_a_worker_searches_the_study_without_planning_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    original = workers.study_of

    def watching(subject: Subject, job: Job, folder: Path, **given: Any) -> Any:
        seen.update(given, device=subject.name, policies=job.policies)
        seen["study"] = original(subject, job, folder, **given)
        return seen["study"]

    monkeypatch.setattr(workers, "study_of", watching)
    work(order(study, trials=2, place=1))
    assert (seen["device"], seen["policies"], seen["place"]) == ("cpu", ("fora",), 1)
    assert sum(r.outcome in SPENT for r in seen["study"].records) == 2


def test_a_worker_ends_after_its_trial_once_the_command_is_gone(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    with pytest.raises(Orphaned, match="can go on"):
        work(order(study, trials=9))
    kept = optuna.load_study(storage=open_storage(study / JOURNAL), study_name=None)
    assert [r.source for r in records(kept)] == ["no_cache", "default"]  # what was finished before and in this trial


def test_workers_begin_with_different_references(tiny_latte: Any, tmp_path: Path) -> None:
    from fastercache.tuner.evaluate import Evaluator

    made: list[int] = []
    evaluator = Evaluator(tiny_latte, CALL, store=tmp_path, place=1)
    cases = evaluator.cases(["a", "b", "c"])
    original = evaluator.run_bare
    evaluator.run_bare = lambda case: (made.append(cases.index(case)), original(case))[1]  # type: ignore[method-assign]
    with evaluator:
        found = evaluator.evaluate(fc.NoCache(), cases)
    assert made == [1, 2, 0] and len(found.values["psnr"]) == 3


def test_recordings_are_shared_and_all_of_them_are_read_afterwards(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers and the command make every second and third; then nothing is generated again."""
    monkeypatch.setattr(pipelines, "open_pipeline", lambda name, **_: Subject(name, tiny_latte, dict(CALL), False))
    prompts = ("a", "b", {"prompt": "c", "seed": 40}, "d")
    for place in (1, 2):
        work(
            Recording(
                folder=tmp_path, device="cpu", place=place, pipe="tiny", dtype="auto", call={}, prompts=prompts, seed=5,
                of=3,
            )
        )  # fmt: skip
    setting = Setting(tiny_latte, CALL, 5)
    references, cases = References(setting, tmp_path / "references"), setting.cases(prompts)
    assert [case.seed for case in recorded(references, cases)] == [6, 40]
    material(references, cases[::3])
    monkeypatch.setattr(Setting, "generate", lambda *_: pytest.fail("nothing is generated twice"))
    assert material(references, cases).spent == 4.0


def test_the_command_records_its_own_share_and_each_worker_another(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, prompts = Subject("tiny", tiny_latte, dict(CALL), False), ["a", "b", "c", "d", "e"]
    team = recorders(subject, prompts, tmp_path, 3, device="cpu", dtype="auto", seed=5)
    assert [(one.place, one.of, one.pipe, one.call) for one in team] == [(i, 3, "tiny", CALL) for i in (1, 2)]
    assert recorders(subject, prompts, tmp_path, 1, device="cpu", dtype="auto", seed=5) == []
    assert [one.place for one in recorders(subject, ["a", "b"], tmp_path, 9, device="cpu", dtype="auto", seed=5)] == [1]
    at_work: list[Any] = []

    @contextmanager
    def noted(orders: Any) -> Iterator[None]:
        at_work.extend(orders)
        yield

    monkeypatch.setattr(workers, "joined", noted)
    setting = Setting(tiny_latte, CALL, 5)
    references, cases = References(setting, tmp_path / "references"), setting.cases(prompts)
    shared([], lambda doing, spent: None, lambda seconds: None)(references, cases)
    assert at_work == recorded(references, cases) == []
    shared(team, lambda doing, spent: None, lambda seconds: None)(references, cases)
    assert at_work == team and recorded(references, cases) == [cases[0], cases[3]]


@pytest.mark.usefixtures("loaded_once")
def test_a_study_that_is_done_starts_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    job = Job(
        pipe="latte-digits",
        prompts=("a",),
        budget="psnr>=1",
        policies=("static_interval",),
        call={"num_inference_steps": 4},
    )
    started: list[list[Any]] = []

    @contextmanager
    def noted(team: list[Any]) -> Iterator[None]:
        started.append(team)
        yield

    monkeypatch.setattr(searching, "joined", noted)
    for trials in (1, 1, 2):
        searching.search(job, tmp_path, tmp_path / "tuned.json", trials=trials, seconds=None, workers=2, show=False)
    assert [len(team) for team in started] == [1, 0, 1]
    assert capfd.readouterr().err.count("all 1 trials are done: no further worker is started") == 1

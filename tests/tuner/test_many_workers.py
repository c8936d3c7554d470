"""Several workers on one study: none dies of another, no trial is lost, and a database may go away for a while."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import TrialState

import fastercache as fc
import fastercache.tuner.database
from fastercache.policies.errors import ConfigUnreadable, MissingDependency
from fastercache.tuner import Outcome, tune
from fastercache.tuner.attempts import Attempts, _beside
from fastercache.tuner.codec import Notes, enqueue, note
from fastercache.tuner.database import driver_hint, open_database, without_password
from fastercache.tuner.storage import open_storage, recover, requeue, this_worker
from tests.tuner.conftest import CALL, SEARCH
from tests.tuner.postgresql import Server, server


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("postgresql")) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    database: Server = request.getfixturevalue("postgresql")
    return database.url(f"d{abs(hash(request.node.name)) % 10**9}")


def together(count: int, work: Callable[[int], None]) -> list[int]:
    """Exit codes of `count` processes that begin at one moment."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)

    def body(i: int) -> None:
        torch.set_num_threads(1)
        barrier.wait()
        work(i)

    processes = [context.Process(target=body, args=(i,)) for i in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [-1 if process.exitcode is None else process.exitcode for process in processes]


def test_workers_that_begin_on_an_empty_database_all_get_in(url: str) -> None:
    def enter(i: int) -> None:
        open_storage(url)

    count = 8 if url.startswith("postgresql") else 4  # a file is locked by one after the other, which takes long
    assert together(count, enter) == [0] * count


def test_a_missing_driver_is_named_as_sqlalchemy_would_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.dialects import postgresql as dialect

    real = __import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("psycopg", "psycopg2"):
            raise ImportError(f"No module named '{name}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", missing)
    with pytest.raises(MissingDependency, match="pip install") as caught:
        open_storage("postgresql://nobody:secret@127.0.0.1:1/x")
    wanted = dialect.dialect.driver
    assert {"psycopg": "'psycopg[binary]'", "psycopg2": "'psycopg2-binary'"}[wanted] in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "psycopg2-binary" in driver_hint("postgresql+psycopg2://x")


@pytest.mark.parametrize("url", ["postgresql+nothing://x", "nonsense://x/y", "://", "sqlite:////no/such/folder/x.db"])
def test_a_url_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises((ConfigUnreadable, MissingDependency)) as caught:
        open_storage(url)
    assert str(caught.value).isprintable()


def test_a_password_is_not_shown() -> None:
    assert without_password("postgresql://me:secret@host:5432/x") == "postgresql://me:***@host:5432/x"


def test_an_abandoned_trial_is_queued_once_however_many_notice(tmp_path: Path) -> None:
    place = tmp_path / "study.journal"
    study = optuna.create_study(storage=open_storage(place), study_name="tuning")
    trial = study.ask()
    trial.suggest_int("x", 0, 9)
    note(trial, worker=f"{os.uname().nodename}/999999999/1")

    def look(i: int) -> None:
        recover(optuna.load_study(storage=open_storage(place), study_name="tuning"))

    assert together(6, look) == [0] * 6
    states = [t.state for t in optuna.load_study(storage=open_storage(place), study_name="tuning").trials]
    assert states == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_without_signs_of_life_is_found_in_a_database(url: str) -> None:
    """Its worker ran on another machine, so that nothing but its heartbeat tells."""
    study = optuna.create_study(storage=open_storage(url), study_name="tuning")
    trial = study.ask()
    trial.suggest_int("x", 0, 9)
    note(trial, worker="elsewhere/1/1")
    study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    time.sleep(2.2)
    again = open_database(url, requeue)
    again.heartbeat_interval, again.grace_period = 1, 1
    recover(optuna.load_study(storage=again, study_name="tuning"))
    assert [t.state for t in optuna.load_study(storage=again, study_name="tuning").trials] == [
        TrialState.FAIL,
        TrialState.WAITING,
    ]


def test_opening_a_study_cuts_off_no_line_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line is of a dead writer only while nobody holds the lock."""
    monkeypatch.setattr("fastercache.tuner.storage.JournalStorage", lambda backend: backend)
    place = tmp_path / "study.journal"
    lock = JournalFileOpenLock(str(place))
    lock.acquire()
    place.write_bytes(b'{"half": ')
    opening = threading.Thread(target=open_storage, args=(place,))
    opening.start()
    time.sleep(0.3)
    with place.open("ab") as file:
        file.write(b"1}\n")
    lock.release()
    opening.join()
    assert place.read_bytes() == b'{"half": 1}\n'
    place.write_bytes(b'{"whole": 1}\n{"half": ')
    open_storage(place)
    assert place.read_bytes() == b'{"whole": 1}\n'


# -- whole searches ----------------------------------------------------------------------------------------------------


def search(pipe: Any, folder: Path, **changes: Any) -> Any:
    return tune(pipe, SEARCH, **{"budget": "psnr>=55", "call": CALL, "trials": 5, "out": folder} | changes)


def test_a_trial_that_another_worker_took_over_does_not_end_the_search(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second trial another worker takes this one for dead."""
    original, taken = Attempts._tell, []

    def meanwhile(self: Attempts, trial: Any, *rest: Any) -> None:
        if not taken:
            taken.append(trial.number)
            other = optuna.load_study(storage=open_storage(tmp_path / "study.journal"), study_name="tuning")
            other.tell(trial.number, state=TrialState.FAIL)
            requeue(other, other.trials[trial.number])
        original(self, trial, *rest)

    monkeypatch.setattr(Attempts, "_tell", meanwhile)
    study = search(tiny_latte, tmp_path)
    assert taken and study.optuna.trials[taken[0]].state is TrialState.FAIL
    sources = [Notes.of(trial).source for trial in study.optuna.trials]
    assert sources.count(sources[taken[0]]) == 2  # queued again, once
    assert [r for r in study.records if r.number > taken[0] and r.outcome in (Outcome.MEASURED, Outcome.STOPPED)]


def test_a_trial_that_runs_out_of_memory_fails_alone(tiny_latte: Any, tmp_path: Path) -> None:
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 45:
            raise torch.OutOfMemoryError("simulated")

    handle = tiny_latte.transformer.transformer_blocks[1].attn1.register_forward_hook(hook)
    study = search(tiny_latte, tmp_path, trials=6)
    handle.remove()
    failed = [r for r in study.records if r.outcome is Outcome.FAILED]
    assert [r.reason for r in failed] == ["out of memory: simulated"] and len(study.records) > failed[0].number + 1


def test_workers_that_begin_together_queue_each_seed_once(tiny_latte: Any, url: str, tmp_path: Path) -> None:
    def work(i: int) -> None:
        search(tiny_latte, tmp_path / f"worker-{i}", storage=url, trials=0, references=tmp_path / "references")

    assert together(4, work) == [0] * 4
    waiting = optuna.load_study(storage=open_storage(url), study_name="tuning").trials
    sources = [t.user_attrs["source"] for t in waiting]
    assert len(sources) == len(set(sources)) > 3


def test_what_another_worker_is_trying_is_not_tried_again(tiny_latte: Any, tmp_path: Path) -> None:
    study = search(tiny_latte, tmp_path, trials=0, policy="fora")
    taken = [study.optuna.ask(), study.optuna.ask()]
    for trial in taken:
        note(trial, worker=this_worker())  # alive, and still at it
    assert [Notes.of(trial).source for trial in taken] == ["no_cache", "default"]
    again = study.space.encode(fc.FORA())
    enqueue(study.optuna, again.params, policy=fc.dump(fc.FORA()), source="again")
    other = search(tiny_latte, tmp_path, trials=2, policy="fora")
    by_source = {r.source: r for r in other.records}
    assert by_source["again"].outcome is Outcome.DOMINATED
    assert by_source["again"].reason == f"trial {taken[1].number}, of another worker, does the same"
    tried = [fc.dump(r.policy) for r in other.records if r.source == "search"]
    assert tried and fc.dump(fc.FORA()) not in tried


def test_of_two_that_come_to_the_same_policy_at_once_the_lower_number_tries_it(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker has begun its trial and is still proposing; what it proposes is known only after a while."""
    study = search(tiny_latte, tmp_path, trials=0, policy="fora")
    first, second = study.optuna.ask(), study.optuna.ask()
    for trial in (first, second):
        note(trial, worker=this_worker())
    third = study.optuna.ask()  # beyond the seeds: nothing is noted of it
    encoded = study.space.encode(fc.FORA(interval=5))
    enqueue(study.optuna, encoded.params, policy=fc.dump(fc.FORA(interval=5)), source="again")
    threading.Timer(0.3, lambda: note(third, policy=fc.dump(fc.FORA(interval=5)), source="search")).start()
    found = {r.source: r for r in search(tiny_latte, tmp_path, trials=1, policy="fora").records}
    assert found["again"].reason == f"trial {third.number}, of another worker, does the same"


def test_what_ended_while_this_one_was_proposed_is_not_tried_again(tiny_latte: Any, tmp_path: Path) -> None:
    study = search(tiny_latte, tmp_path, trials=2, policy="fora")
    ended = next(r for r in study.records if r.source == "default")
    own = study.optuna.ask()
    forecast = study._proposer.forecast(ended.policy)
    assert forecast is not None
    assert study._attempts._same_under_way(own, forecast) is None  # it ended before this one began
    other = study.optuna.trials[ended.number]
    assert other.datetime_complete is not None
    late = replace_start(study.optuna.trials[own.number], other.datetime_complete - timedelta(seconds=1))
    assert _beside(other, late) and not _beside(other, study.optuna.trials[own.number])


def replace_start(trial: optuna.trial.FrozenTrial, start: datetime) -> optuna.trial.FrozenTrial:
    trial.datetime_start = start
    return trial


def test_a_search_ends_with_no_trial_of_a_dead_worker_running(tiny_latte: Any, tmp_path: Path) -> None:
    study = search(tiny_latte, tmp_path, trials=0, policy="fora")
    left = study.optuna.ask(), study.optuna.ask()
    note(left[0], worker=this_worker())
    note(left[1], worker=f"{os.uname().nodename}/999999999/1")
    died: list[int] = []

    def dies(_: Any, record: Any) -> None:  # after the look that begins a search
        if not died:
            third = study.optuna.ask()
            note(
                third, worker=f"{os.uname().nodename}/999999999/1", policy=fc.dump(fc.FORA(interval=4)), source="search"
            )
            died.append(third.number)

    done = search(tiny_latte, tmp_path, trials=2, policy="fora", on_trial=dies)
    running = [t.number for t in done.optuna.trials if t.state is TrialState.RUNNING]
    assert died and running == [left[0].number]


def test_who_plans_second_queues_no_plan_twice(tiny_latte: Any, tmp_path: Path) -> None:
    """While this worker plans, another one has queued its plans."""
    study = search(tiny_latte, tmp_path, trials=0, policy="fora")
    plan = fc.Planned(steps=6, computed=(0, 2, 4))

    def guests() -> dict[str, fc.Policy]:
        enqueue(study.optuna, {}, policy=fc.dump(plan), source="planned:3")
        return {"planned:3": plan}

    study._guests = guests
    study._enqueue_seeds()
    assert [Notes.of(t).source for t in study.optuna.trials].count("planned:3") == 1


@pytest.mark.slow
def test_a_server_that_restarts_in_the_middle_loses_nothing(
    tiny_latte: Any, postgresql: Server, tmp_path: Path
) -> None:
    url = postgresql.url("restarted")
    stopped: list[int] = []

    def interrupt(study: Any, record: Any) -> None:
        if len(study.records) == 2 and not stopped:
            stopped.append(record.number)
            postgresql.stop()
            threading.Timer(1.0, postgresql.start).start()

    study = search(tiny_latte, tmp_path, storage=url, trials=4, on_trial=interrupt)
    numbers = [t.number for t in study.optuna.trials]
    assert stopped and numbers == list(range(len(numbers)))
    assert not [t for t in study.optuna.trials if t.state is TrialState.RUNNING]
    behaviours = [(r.source, str(fc.dump(r.policy))) for r in study.records]
    assert len(behaviours) == len(set(behaviours))


def test_a_server_that_stays_away_is_one_line(postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastercache.tuner.database, "PATIENCE", 0.5)
    storage = open_storage(postgresql.url("gone"))
    study = optuna.create_study(storage=storage, study_name="tuning")
    postgresql.stop()
    try:
        with pytest.raises(ConfigUnreadable, match="does not answer"):
            study.set_user_attr("a", 1)
    finally:
        postgresql.start()

"""What becomes of trials whose worker is gone: who is alive, what is queued again, which signs of life are given."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

import fastercache as fc
from fastercache.policies.errors import ConfigUnreadable
from fastercache.tuner import storage as module
from fastercache.tuner.codec import Notes, checked, enqueue, note
from fastercache.tuner.storage import alive, heartbeat, open_storage, recover, requeue, this_worker

POLICY = fc.dump(fc.FORA(interval=4))
GONE = f"{socket.gethostname()}/999999999/1"


def failed(fixed: dict[str, Any], params: dict[str, Any], **notes: Any) -> optuna.trial.FrozenTrial:
    ranges = {"x": IntDistribution(0, 9), "y": FloatDistribution(0.0, 1.0)}
    made = create_trial(
        state=TrialState.FAIL, params=params, distributions={name: ranges[name] for name in params}, user_attrs=notes
    )
    made.system_attrs = {"fixed_params": fixed} if fixed else {}
    return made


@pytest.mark.parametrize(
    ("trial", "params", "notes"),
    [
        (failed({}, {"x": 3}), {"x": 3}, {}),
        (failed({"x": 3, "y": 0.5}, {}), {"x": 3, "y": 0.5}, {}),  # it died before it asked for them
        (failed({"x": 3, "y": 0.5}, {"x": 4}), {"x": 4, "y": 0.5}, {}),
        (
            failed(
                {"x": 3}, {"x": 3}, policy=POLICY, source="preset:latte", worker=GONE, ratio=0.5, outcome="interrupted"
            ),
            {"x": 3},
            {"policy": POLICY, "source": "preset:latte"},
        ),
        (failed({}, {}, policy=POLICY, source="planned:4"), {}, {"policy": POLICY, "source": "planned:4"}),
    ],
    ids=["drawn", "queued", "both", "a preset", "a plan"],
)
def test_what_it_was_going_to_try_is_queued_again(
    trial: optuna.trial.FrozenTrial, params: dict[str, Any], notes: dict[str, Any]
) -> None:
    study = optuna.create_study()
    requeue(study, trial)
    (again,) = study.trials
    assert again.state is TrialState.WAITING and again.system_attrs["fixed_params"] == params
    assert again.user_attrs == notes


def test_what_died_before_anything_was_proposed_is_not_queued() -> None:
    study = optuna.create_study()
    requeue(study, failed({}, {}))
    assert study.trials == []


def test_who_is_alive() -> None:
    """A worker is told from a later process of its number by when it began; of another machine nothing is known."""
    host, pid, started = this_worker().rsplit("/", 2)
    assert (host, int(pid)) == (socket.gethostname(), os.getpid())
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert alive(this_worker()) and alive(f"another-host/{pid}/0") and alive("another-host/999999999/1")
    assert not alive(f"{host}/{pid}/{started}0") and not alive(f"{host}/{int(done.stdout)}/{started}")


def test_a_process_of_somebody_else_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert alive(this_worker()) and not alive(f"{this_worker()}9")


def test_trials_of_dead_workers_end_and_are_queued_again() -> None:
    """Of four that run: one of a worker that is gone, one of this, one of elsewhere, and one that was never signed."""
    study = optuna.create_study()
    for worker in (GONE, this_worker(), "elsewhere/1/1", None):
        trial = study.ask()
        trial.suggest_int("x", trial.number, 9)
        if worker is not None:
            note(trial, worker=worker)
    enqueue(study, {"x": 9})
    assert [trial.number for trial in recover(study)] == [0]
    assert [trial.state for trial in study.trials] == [
        TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING, TrialState.RUNNING,
        TrialState.WAITING, TrialState.WAITING,
    ]  # fmt: skip
    assert study.trials[5].system_attrs["fixed_params"] == {"x": study.trials[0].params["x"]}
    assert recover(study) == []


@pytest.mark.parametrize(("minutes", "dead"), [(1.9, False), (2.1, True)])
def test_a_trial_that_was_never_signed_is_given_two_minutes(minutes: float, dead: bool) -> None:
    study = optuna.create_study()
    begun = create_trial(state=TrialState.RUNNING, params={"x": 1}, distributions={"x": IntDistribution(0, 9)})
    begun.datetime_start = datetime.now() - timedelta(minutes=minutes)
    study.add_trial(begun)
    assert [trial.number for trial in recover(study)] == [0] * dead


def test_a_trial_that_another_worker_took_over_is_not_queued_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    for _ in range(2):
        note(study.ask(), worker=GONE)
    answers = iter([optuna.exceptions.UpdateFinishedTrialError, None])

    def late(trial_id: int, state: TrialState) -> bool:
        answer = next(answers)
        if answer is not None:
            raise answer
        return False

    monkeypatch.setattr(study._storage, "set_trial_state_values", late)
    queued: list[Any] = []
    monkeypatch.setattr(module, "requeue", lambda study, trial: queued.append(trial))
    assert recover(study) == [] and queued == []


class Database(RDBStorage):
    """Notes signs of life, and is no database."""

    def __init__(self) -> None:
        self.beats: list[int] = []
        self.enough = threading.Event()

    def record_heartbeat(self, trial_id: int) -> None:
        self.beats.append(trial_id)
        if len(self.beats) == 3:
            self.enough.set()


def test_a_trial_gives_signs_of_life_from_its_beginning_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.001)
    database = Database()
    with pytest.raises(KeyError), heartbeat(database, 7):
        assert database.enough.wait(60)
        raise KeyError
    ended = list(database.beats)
    assert set(ended) == {7} and not [thread for thread in threading.enumerate() if thread.name.endswith("(beat)")]
    monkeypatch.setattr(module, "HEARTBEAT", 1e6)
    once = Database()
    with heartbeat(once, 8):
        pass
    assert once.beats == [8], "also of a trial that is over at once"


def test_where_a_study_cannot_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(ConfigUnreadable, match="cannot open the study file"):
        open_storage(tmp_path / "a file" / "study.journal")
    open_storage(tmp_path / "new" / "folder" / "study.journal")
    assert (tmp_path / "new" / "folder").is_dir()


def test_only_notes_are_noted() -> None:
    assert checked({"worker": "a", "ratio": 0.5}) == {"worker": "a", "ratio": 0.5}
    with pytest.raises(AssertionError, match="no note rato"):
        checked({"rato": 0.5})


def test_costs_are_what_was_counted_and_by_the_clock_what_was_foreseen() -> None:
    """What did not run costs what was forecast."""
    for given, computed, cost in (
        ({}, None, None),
        ({"forecast": 0.5}, 0.5, 0.5),
        ({"forecast": 0.5, "ratio": 0.0}, 0.0, 0.0),
        ({"forecast": 0.5, "ratio": 0.25}, 0.25, 0.25),
        ({"forecast": 0.5, "ratio": 0.25, "clocked": 0.75}, 0.25, 0.75),
        ({"forecast": 0.5, "clocked": 0.75}, 0.5, 0.75),
    ):
        trial: Any = SimpleNamespace(user_attrs={**given, "of another program": 1})
        noted = Notes.of(trial)
        assert (noted.computed, noted.cost) == (computed, cost), given

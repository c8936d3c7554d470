"""Where a study lives: a journal file for one machine, a database for many; and what a crash leaves behind."""

from __future__ import annotations

import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState

from fastercache.policies.errors import ConfigUnreadable
from fastercache.tuner.codec import Notes, enqueue
from fastercache.tuner.database import HEARTBEAT, open_database


def open_storage(place: str | Path) -> BaseStorage:
    """A journal file by path, or a database by URL (`postgresql://...`), with heartbeats.

    Raises:
        MissingDependency: the database's driver is not installed.
        ConfigUnreadable: the file or database cannot be opened, or is none of ours.
    """
    if "://" in str(place):
        return open_database(str(place), requeue)
    path = Path(place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path), grace_period=10)
        with get_lock_file(lock):  # who holds it is not writing, so half a line is of a writer that died
            _drop_partial_line(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise ConfigUnreadable(f"cannot open the study file {path}: {error.strerror or error}") from None
    except Exception as error:
        # Optuna raises whatever its parsing meets in a file that is no journal.
        reason = f"{type(error).__name__}: {error}"
        raise ConfigUnreadable(f"{path} is no study file ({reason:.120}): give another path") from None


def _drop_partial_line(path: Path) -> None:
    """Cut off a line whose writer was killed in the middle: the next line appended would make both unreadable."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


@contextmanager
def heartbeat(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """Signs of life while a trial runs, where the storage keeps them."""
    if not isinstance(storage, RDBStorage):
        yield
        return
    done = threading.Event()

    def beat() -> None:
        storage.record_heartbeat(trial_id)
        while not done.wait(HEARTBEAT):
            storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def this_worker() -> str:
    """This process, told apart from a later one with the same process id by its start time."""
    return f"{socket.gethostname()}/{os.getpid()}/{_start_time(os.getpid())}"


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "-"  # no /proc: the process id alone must do


def alive(worker: str) -> bool:
    host, pid, started = worker.rsplit("/", 2)
    if host != socket.gethostname():
        return True  # nothing can be said from here; a database's heartbeat tells
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_time(int(pid)) == started


def _unsigned_for_long(trial: FrozenTrial) -> bool:
    """Whether a trial was begun long ago by a worker that died before it could sign it."""
    return trial.datetime_start is not None and datetime.now() - trial.datetime_start > timedelta(minutes=2)


def recover(study: optuna.Study) -> list[FrozenTrial]:
    """Fail the trials whose worker is gone, and queue their parameters again. Returns those of this machine.

    Of several workers that notice it, one fails a trial and queues it again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)  # by heartbeat, where the storage has them; it calls `requeue`
    abandoned = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = Notes.of(trial).worker
        if not (_unsigned_for_long(trial) if worker is None else not alive(worker)):
            continue
        try:
            if not study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                continue
        except UpdateFinishedTrialError:  # another worker was first
            continue
        requeue(study, trial)
        abandoned.append(trial)
    return abandoned


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial's parameters again, with the policy it was going to run."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    params, noted = {**fixed, **trial.params}, Notes.of(trial)
    if params or noted.policy is not None:  # a plan has no parameters of the space
        kept = {} if noted.policy is None else {"policy": noted.policy, "source": noted.source}
        enqueue(study, params, **kept)

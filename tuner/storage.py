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
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from fastercache.policies.errors import ConfigUnreadable, MissingDependency

HEARTBEAT = 30
"""Seconds between a worker's signs of life in a database; after four of them missed its trial counts as abandoned."""

WORKER = "worker"


def open_storage(place: str | Path) -> BaseStorage:
    """A journal file by path, or a database by URL (`postgresql://...`), with heartbeats.

    Raises:
        MissingDependency: the database's driver is not installed.
        ConfigUnreadable: the file or database cannot be opened, or is none of ours.
    """
    if "://" in str(place):
        return _database(str(place))
    path = Path(place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_partial_line(path)
        lock = JournalFileOpenLock(str(path), grace_period=10)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise ConfigUnreadable(f"cannot open the study file {path}: {error.strerror or error}") from None
    except Exception as error:
        # Optuna raises whatever its parsing meets in a file that is no journal.
        reason = f"{type(error).__name__}: {error}"
        raise ConfigUnreadable(f"{path} is no study file ({reason:.120}): give another path") from None


def _database(url: str) -> BaseStorage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(url, heartbeat_interval=HEARTBEAT, grace_period=4 * HEARTBEAT)
    except ImportError as error:
        raise MissingDependency(
            f"the database {url.split('://')[0]} needs a driver that is not installed ({error}): "
            "for PostgreSQL, pip install psycopg2-binary"
        ) from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigUnreadable(f"cannot open the study database {_without_password(url)}: {reason:.200}") from None


def _without_password(url: str) -> str:
    head, _, tail = url.rpartition("@")
    return f"{head.rsplit(':', 1)[0]}:***@{tail}" if head.count(":") > 1 else url


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


def _alive(worker: str) -> bool:
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
    """Fail the trials whose worker is gone, and queue their parameters again. Returns the abandoned trials."""
    storage = study._storage
    abandoned = []
    if isinstance(storage, RDBStorage):
        before = {t.number for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        abandoned = [t for t in failed if t.number in before]
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if not (_unsigned_for_long(trial) if worker is None else not _alive(str(worker))):
            continue
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        abandoned.append(trial)
    for trial in abandoned:
        requeue(study, trial)
    return abandoned


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial's parameters again, with the policy it was going to run."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    params = {**fixed, **trial.params}
    if params:
        kept = {k: v for k, v in trial.user_attrs.items() if k in ("policy", "source")}
        study.enqueue_trial(params, user_attrs=kept)

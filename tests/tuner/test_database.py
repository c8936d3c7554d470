"""Calls that find the database gone are made again, and errors of another kind are not."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from fastercache.policies.errors import ConfigUnreadable
from fastercache.tuner import database as module
from fastercache.tuner.database import _lost, _patient, driver_hint, refused, without_password


def of(kind: type[DBAPIError], text: str = "gone", invalid: bool = False) -> DBAPIError:
    return kind("select 1", {}, Exception(text), connection_invalidated=invalid)


def caused(error: BaseException) -> StorageInternalError:
    wrapped = StorageInternalError("optuna says")
    wrapped.__cause__ = error
    return wrapped


GONE = of(OperationalError)


class Storage:
    """Raises the errors of a list in turn, then answers. Time passes only where it is waited for."""

    place = "postgresql://host/x"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: BaseException) -> None:
        self.errors, self.asked, self.now = list(errors), 0, 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += 25.0

    def ask(self, *args: Any, **words: Any) -> Any:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return args, words


def patiently(storage: Storage, name: str = "get_trial") -> Any:
    def method(self: Storage, *args: Any, **words: Any) -> Any:
        return self.ask(*args, **words)

    method.__name__ = name
    made_up: Any = storage
    return _patient(method)(made_up, 1, deep=True)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (GONE, True),
        (of(InterfaceError), True),
        (of(IntegrityError), False),
        (of(IntegrityError, invalid=True), True),
        (caused(GONE), True),
        (caused(caused(GONE)), True),
        (caused(of(IntegrityError)), False),
        (StorageInternalError("by itself"), False),
    ],
)
def test_a_database_that_is_gone_is_asked_again(monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool) -> None:
    assert _lost(error) is lost
    storage = Storage(monkeypatch, error)
    if lost:
        assert patiently(storage) == ((1,), {"deep": True}) and storage.asked == 2
    else:
        with pytest.raises(type(error)):
            patiently(storage)
        assert storage.asked == 1


def test_one_that_stays_away_is_told_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(monkeypatch, *[caused(GONE)] * 9)
    with pytest.raises(ConfigUnreadable, match=r"postgresql://host/x does not answer \(.*gone"):
        patiently(storage)
    assert storage.asked == 4, "after 0, 25, 50 and 75 s"


def test_a_trial_that_was_ended_by_the_call_before_the_loss_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = UpdateFinishedTrialError("it has ended")
    assert patiently(Storage(monkeypatch, GONE, ended), "set_trial_state_values") is True
    for name, errors in (("set_trial_state_values", [ended]), ("set_trial_param", [GONE, ended])):
        with pytest.raises(UpdateFinishedTrialError):
            patiently(Storage(monkeypatch, *errors), name)


@pytest.mark.parametrize(
    ("error", "nothing_answers"),
    [
        (of(OperationalError, "Connection refused"), True),
        (of(OperationalError, "table studies Already Exists"), False),
        (of(OperationalError, "database is locked"), False),
        (of(IntegrityError, "Connection refused"), False),
    ],
)
def test_where_nothing_answers_an_empty_database_is_not_waited_for(error: DBAPIError, nothing_answers: bool) -> None:
    assert refused(error) is nothing_answers


def test_what_installs_a_driver() -> None:
    assert driver_hint("mysql+pymysql://x") == "pip install 'pymysql'"
    assert driver_hint("postgresql+psycopg://x") == "pip install 'psycopg[binary]', or 'fastercache[postgresql]'"
    assert driver_hint("nonsense://x") == "install it"
    assert without_password("no url://me:secret@host") == "no url://..."

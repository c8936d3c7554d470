"""A study in a database that many machines share: opening it at once, and going on after a lost connection."""

from __future__ import annotations

import functools
import random
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError

from fastercache.policies.errors import ConfigUnreadable, MissingDependency
from fastercache.policies.wording import first_line

HEARTBEAT = 30
"""Seconds between a worker's signs of life; after four of them missed its trial counts as abandoned."""
PATIENCE = 60.0
"""Seconds for which a call is tried again while the database does not answer."""
ATTEMPTS = 12
"""How often an empty database is opened while other workers make its tables."""

PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "mysqldb": "mysqlclient", "pymysql": "pymysql"}
"""What installs a driver, by SQLAlchemy's name of it."""

F = TypeVar("F", bound=Callable[..., Any])


def _lost(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a database that did not answer or was busy, and no fault of the call."""
    while error is not None:
        if isinstance(error, (OperationalError, InterfaceError)):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False


def _patient(method: F) -> F:
    @functools.wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        until, again = time.monotonic() + PATIENCE, False
        while True:
            try:
                return method(self, *args, **kwargs)
            except UpdateFinishedTrialError:
                if again and method.__name__ == "set_trial_state_values":
                    return True  # it was done before the connection was lost
                raise
            except (StorageInternalError, DBAPIError) as error:
                if not _lost(error):
                    raise
                if time.monotonic() > until:
                    raise ConfigUnreadable(
                        f"the study database {self.place} does not answer ({_cause(error)}): what was finished is "
                        "kept, and the same call goes on once it answers"
                    ) from error
            again = True
            time.sleep(0.1 + 0.4 * random.random())

    return call  # type: ignore[return-value]


class PatientStorage(RDBStorage):
    """Optuna's database storage; a call that finds the database gone is tried again for `PATIENCE` seconds."""

    place = ""


for _name in (
    "_create_new_trial", "_get_stale_trial_ids", "_get_trials", "_set_trial_param", "create_new_study",
    "create_new_trial", "get_all_studies", "get_all_trials", "get_study_directions", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_system_attrs", "get_study_user_attrs", "get_trial",
    "get_trial_id_from_study_id_trial_number", "record_heartbeat", "set_study_system_attr", "set_study_user_attr",
    "set_trial_param", "set_trial_state_values", "set_trial_system_attr", "set_trial_user_attr",
):  # fmt: skip
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))


def open_database(url: str, on_stale: Callable[[optuna.Study, FrozenTrial], None]) -> RDBStorage:
    """The storage at `postgresql://...`, `mysql://...` or `sqlite://...`; its tables are made where it is empty.

    Args:
        on_stale: called by the one worker that finds a trial abandoned.

    Raises:
        MissingDependency: the database's driver is not installed.
        ConfigUnreadable: it cannot be opened.
    """
    place = without_password(url)
    for attempt in range(ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = PatientStorage(
                    url,
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=HEARTBEAT,
                    grace_period=4 * HEARTBEAT,
                    heartbeat_stale_trial_callback=on_stale,
                )
            storage.place = place
            return storage
        except ImportError as error:
            raise MissingDependency(f"the database {place} needs a driver ({error}): {driver_hint(url)}") from None
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigUnreadable(f"{place} is no database that can be opened: {_cause(error)}") from None
        except Exception as error:
            # Several workers that find it empty make its tables at once; all but one are told that they exist.
            made_by_another = isinstance(error, DBAPIError) and not refused(error)
            if not made_by_another or attempt + 1 == ATTEMPTS:
                reason = _cause(error)
                raise ConfigUnreadable(f"cannot open the study database {place}: {reason}") from None
        time.sleep(random.random() * 0.2 * (attempt + 1))
    raise AssertionError("the loop returns or raises")


def refused(error: DBAPIError) -> bool:
    """Whether nothing answers at all, so that trying again is of no use."""
    text = str(error.orig).lower()
    busy = ("already exists", "duplicate", "unique", "locked", "deadlock", "no such table", "does not exist")
    return isinstance(error, OperationalError) and not any(word in text for word in busy)


def driver_hint(url: str) -> str:
    """The command that installs the driver which SQLAlchemy loads for this URL."""
    try:
        driver = make_url(url).get_dialect().driver
    except Exception:
        driver = ""
    package = PACKAGES.get(driver, driver)
    extra = ", or 'fastercache[postgresql]'" if driver == "psycopg" else ""
    return f"pip install '{package}'{extra}" if package else "install it"


def _cause(error: BaseException) -> str:
    """The first line of an error, or of what Optuna wrapped."""
    return first_line(error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error)


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.split("://")[0] + "://..."

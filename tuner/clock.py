"""Searching by the clock: the table of seconds that all workers of a study go by, and its limit of time.

Seconds belong to a machine. So one worker measures the table, it is kept in the study, and all candidates are compared
by it, wherever the study goes on. What runs take is compared with a limit only where the table was measured.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import optuna
from scipy import stats

from fastercache.bounds import Limit
from fastercache.policies.errors import InvalidPolicy
from fastercache.policies.wording import counted
from fastercache.tuner.budget import Budget
from fastercache.tuner.database import HEARTBEAT
from fastercache.tuner.seconds import Seconds
from fastercache.tuner.storage import alive, this_worker

TABLE, TIMING = "seconds", "timing"
"""Attributes of a study: its table, and who measures it with a number that grows while that worker lives."""
UNSIGNED = 10.0
"""Seconds after which a worker measures that sees nobody do it."""


class Objective(StrEnum):
    """What a speedup is of: computed FLOPs, or seconds of a call on this machine."""

    FLOPS = "flops"
    TIME = "time"


def objective_called(name: str) -> Objective:
    """The objective of this name. Raises InvalidPolicy."""
    if name not in set(Objective):
        raise InvalidPolicy(f"no objective is called '{name}': give {' or '.join(Objective)}")
    return Objective(name)


def needs_table(objective: Objective, *budgets: Budget) -> bool:
    """Whether steps have to be timed: for a search by the clock, or a budget that limits time."""
    return objective is Objective.TIME or any(budget.time is not None for budget in budgets)


@dataclass(frozen=True)
class Timekeeper:
    """What a study knows of time.

    Attributes:
        table: what steps take, where that was measured. limit: of a call's seconds, if there is one.
        here: the machine of this worker, in words.
    """

    table: Seconds | None
    limit: Limit | None
    here: str

    @property
    def elsewhere(self) -> str | None:
        """What to say where steps were timed on another machine than this one."""
        if self.table is None or self.table.hardware == self.here:
            return None
        return (
            f"the seconds of this study are those of {self.table.hardware}, where it was begun; what calls take here, "
            f"on {self.here}, does not count"
        )

    def too_long(self, foreseen: float | None) -> str | None:
        """Why a candidate is passed over that would take so many seconds a call; None where it is not."""
        return self._longer(foreseen, "would take")

    def took_too_long(self, measured: float | None) -> str | None:
        """What to say of a call that took so many seconds, if that was too long."""
        return None if self.elsewhere else self._longer(measured, "took")

    def _longer(self, seconds: float | None, verb: str) -> str | None:
        if self.limit is None or seconds is None or seconds <= self.limit.most:
            return None
        return f"{verb} {seconds:.3g} s a call, more than {self.limit}"

    def excess(self, measured: float | None) -> dict[str, float]:
        """By the limit, how many seconds a call took longer (at most 0 where it was kept), if that counts here."""
        if self.limit is None or measured is None or self.elsewhere:
            return {}
        return {str(self.limit): measured - self.limit.most}

    def violation(self, measured: float | None) -> float:
        """How far a call took too long, in decibels; minus infinity where it did not."""
        if not self.took_too_long(measured):
            return -math.inf
        assert self.limit is not None and measured is not None
        return 10.0 * math.log10(measured / self.limit.most)


class Foresight(NamedTuple):
    """How well foreseen seconds fit the measured ones of `trials`.

    `rank`: Spearman's correlation of both; None where either is the same for all. `ratio`: mean of measured over
    foreseen seconds.
    """

    trials: int
    rank: float | None
    ratio: float

    @property
    def words(self) -> str:
        """`over 22 trials the measured seconds are 1.03x the foreseen ones on average, rank correlation 0.97`."""
        rank = "" if self.rank is None else f", rank correlation {self.rank:.2f}"
        trials = counted(self.trials, "trial")
        return f"over {trials} the measured seconds are {self.ratio:.2f}x the foreseen ones on average{rank}"


def foresight(pairs: Sequence[tuple[float, float]]) -> Foresight | None:
    """Of foreseen and measured seconds, one pair for each trial; None where there is none."""
    if not pairs:
        return None
    foreseen, measured = zip(*pairs, strict=True)
    differ = len(set(foreseen)) > 1 and len(set(measured)) > 1
    rank = float(stats.spearmanr(foreseen, measured).statistic) if differ else None
    return Foresight(len(pairs), rank, statistics.fmean(m / f for f, m in pairs))


def agreed(study: optuna.Study, made: bool, measured: Callable[[], Seconds] | None) -> Seconds | None:
    """The study's table. Where there is none yet, the worker that made the study measures it; should that one die,
    another does.

    Args:
        made: whether this worker made the study.
        measured: measures the table; None where no search follows: the table, or None if there is none.
    """
    sign, since = "", time.monotonic()
    while (found := study.user_attrs.get(TABLE)) is None:
        if measured is None:
            return None
        seen = study.user_attrs.get(TIMING, "")
        if seen != sign:
            sign, since = seen, time.monotonic()
        waited = time.monotonic() - since
        lost = waited > 4 * HEARTBEAT or not alive(sign.rpartition(" ")[0]) if sign else waited > UNSIGNED
        if made or lost:
            with _signed(study):
                table = measured()
            if TABLE not in study.user_attrs:  # else another worker took this one for dead and was faster
                study.set_user_attr(TABLE, table.payload())
            made = False
            continue
        time.sleep(0.1)
    return Seconds(**found)


@contextmanager
def _signed(study: optuna.Study) -> Iterator[None]:
    """Signs of life of who measures."""
    worker, done = this_worker(), threading.Event()
    study.set_user_attr(TIMING, f"{worker} 0")

    def sign() -> None:
        number = 0
        while not done.wait(HEARTBEAT):
            number += 1
            study.set_user_attr(TIMING, f"{worker} {number}")

    thread = threading.Thread(target=sign, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

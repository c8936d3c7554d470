"""Two calls take turns, one step at a time, and each one's seconds are its own."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fastercache.experiments.jobs.abreast import abreast


class Scheduler:
    def step(self) -> None:
        """Ends a step."""


def caller(name: str, steps: int, log: list[str], scheduler: Scheduler, pause: float = 0.0) -> Any:
    def call() -> None:
        for i in range(steps):
            time.sleep(pause)
            log.append(f"{name}{i}")
            scheduler.step()
        log.append(f"{name} ends")

    return call, scheduler


def test_calls_take_turns_at_every_step() -> None:
    log: list[str] = []
    found = abreast([caller("a", 2, log, Scheduler()), caller("b", 3, log, Scheduler())])
    assert log == ["a0", "b0", "a1", "b1", "a ends", "b2", "b ends"]
    assert [len(seconds) for seconds in found] == [3, 4]


def test_the_time_in_which_the_other_moves_is_not_counted() -> None:
    """One call sleeps for 0.3 s in all; the other, which waits all that time, took next to nothing."""
    slow, quick = abreast([caller("a", 3, [], Scheduler(), 0.1), caller("b", 3, [], Scheduler())])
    assert sum(slow) >= 0.3
    assert sum(quick) < sum(slow) / 3


def test_what_a_call_raises_is_raised_and_the_scheduler_is_left_as_it_was() -> None:
    scheduler, log = Scheduler(), list[str]()

    def fails() -> None:
        scheduler.step()
        raise ValueError("in its second step")

    with pytest.raises(ValueError, match="second step"):
        abreast([(fails, scheduler), caller("b", 5, log, Scheduler())])
    assert "step" not in vars(scheduler)
    assert log[-1] == "b ends"

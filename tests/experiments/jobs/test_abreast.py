"""Two calls take turns, one step at a time, and each one's seconds are its own."""

from __future__ import annotations

from typing import Any

import pytest

from fastercache.experiments.jobs import abreast as abreast_module
from fastercache.experiments.jobs.abreast import abreast


class Scheduler:
    def step(self) -> None:
        """Ends a step."""


def caller(name: str, steps: int, log: list[str], scheduler: Scheduler) -> Any:
    def call() -> None:
        for i in range(steps):
            log.append(f"{name}{i}")
            scheduler.step()
        log.append(f"{name} ends")

    return call, scheduler


def test_calls_take_turns_at_every_step() -> None:
    log: list[str] = []
    found = abreast([caller("a", 2, log, Scheduler()), caller("b", 3, log, Scheduler())])
    assert log == ["a0", "b0", "a1", "b1", "a ends", "b2", "b ends"]
    assert [len(seconds) for seconds in found] == [3, 4]


def test_the_time_in_which_the_other_moves_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the first call's steps move on: the second took no time, though it waited for all of it."""
    now = [0.0]
    monkeypatch.setattr(abreast_module, "now", lambda: now[0])

    def slow() -> None:
        for _ in range(3):
            now[0] += 2.0
            scheduler.step()
        now[0] += 5.0

    scheduler = Scheduler()
    found = abreast([(slow, scheduler), caller("b", 3, [], Scheduler())])
    assert found == [[2.0, 2.0, 2.0, 5.0], [0.0, 0.0, 0.0, 0.0]]


def test_what_a_call_raises_is_raised_and_the_scheduler_is_left_as_it_was() -> None:
    scheduler, log = Scheduler(), list[str]()

    def fails() -> None:
        scheduler.step()
        raise ValueError("in its second step")

    with pytest.raises(ValueError, match="second step"):
        abreast([(fails, scheduler), caller("b", 5, log, Scheduler())])
    assert "step" not in vars(scheduler)
    assert log[-1] == "b ends"

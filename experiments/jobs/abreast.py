"""Two pipeline calls timed side by side, step by step, so that a machine's ups and downs hit both alike.

Each call runs in a thread of its own. One makes a step while the other stands still, then the other does. What lasts
longer than a step (another process, a lower clock) slows both down, and leaves the ratio of their seconds as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from fastercache.model.hooks import MethodTap
from fastercache.run.writer import now


class _Runner:
    """A call that stands still at the end of each step until it is moved on."""

    def __init__(self, call: Callable[[], object], scheduler: Any) -> None:
        self.seconds: list[float] = []  # of each stretch up to a step's end; the last ends with the call
        self.over = False
        self._call, self._scheduler = call, scheduler
        self._error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._started = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def move(self) -> None:
        """Go on to the end of the next step, or of the call. Raises what the call raised."""
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Run to the end, whatever comes of it."""
        while not self.over:
            self._go.release()
            self._back.acquire()

    def _run(self) -> None:
        self._go.acquire()
        tap = MethodTap(self._scheduler, "step", self._stepped)
        self._started = now()
        try:
            self._call()
            self._note()
        except BaseException as error:
            self._error = error
        finally:
            tap.remove()
            self.over = True
            self._back.release()

    def _stepped(self, result: Any) -> None:
        self._note()
        self._back.release()
        self._go.acquire()
        self._started = now()

    def _note(self) -> None:
        self.seconds.append(now() - self._started)


def abreast(calls: Sequence[tuple[Callable[[], object], Any]]) -> list[list[float]]:
    """Seconds of each call, stretch by stretch.

    Args:
        calls: functions that call a pipeline, each with the scheduler that this pipeline steps.
    """
    runners = [_Runner(call, scheduler) for call, scheduler in calls]
    try:
        while not all(runner.over for runner in runners):
            for runner in runners:
                if not runner.over:
                    runner.move()
    finally:
        for runner in runners:
            runner.finish()
    return [runner.seconds for runner in runners]

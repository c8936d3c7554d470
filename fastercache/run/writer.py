"""Writes the trace of one run while the run goes on."""

from __future__ import annotations

import time

import torch

from fastercache.model.flops import FlopBook
from fastercache.policies.registry import dump
from fastercache.policies.vocabulary import Run
from fastercache.run.plan import RunPlan
from fastercache.run.trace import Trace


class TraceWriter:
    """The trace of the run that goes on.

    Attributes:
        trace: as far as the run has come.
    """

    def __init__(
        self, run: Run, plan: RunPlan, rows: list[list[bytearray]], latent: tuple[int, ...], book: FlopBook
    ) -> None:
        """`run`: the one that begins, which its observations carry too; the plan may have been made for one like it.
        `rows`: for each governed site and branch what its unit notes, step by step; `book` counts FLOPs."""
        none = [0] * run.count
        self.trace = Trace(
            run,
            tuple(plan.assigned),
            rows,
            tuple(one.predictor for one in plan.assigned.values()),
            dump(plan.policy),
            latent=latent,
            flops=none.copy(),
            flops_full=none.copy(),
            bytes_per_step=none.copy(),
        )
        self._book, self._started, self._open = book, 0.0, False
        book.seconds = 0.0

    def start(self) -> None:
        """The run's first call is about to be made."""
        self._open = True
        self._started = now() - self._book.seconds  # all counting is taken off again when the run ends

    def called(self, index: int, computed: int, full: int) -> None:
        """A denoiser call of step `index` was made: FLOPs that it computed, and those of all of it."""
        self.trace.calls += 1
        self.trace.flops[index] += computed
        self.trace.flops_full[index] += full

    def step_ended(self, index: int, held: int) -> None:
        """Step `index` has ended with `held` bytes cached."""
        self.trace.reached = index + 1
        self.trace.bytes_per_step[index] = held
        self.trace.complete = index == self.trace.run.count - 1

    def close(self) -> None:
        """The run is over, complete or not. Calling it again does nothing."""
        if self._open:
            self._open = False
            self.trace.counting_seconds = self._book.seconds
            self.trace.seconds = now() - self._started - self.trace.counting_seconds


def now() -> float:
    """Seconds of wall time, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

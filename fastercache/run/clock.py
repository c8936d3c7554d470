"""Which run, which step? The clock reads the scheduler, since no pipeline tells its denoiser.

`set_timesteps` announces a run, each `step` ends a step. Pipelines pass the denoiser t, t / 1000 or 1000 - t, and may
start in the middle of the timesteps, so the scheduler's own list and index are what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastercache.model.hooks import MethodTap
from fastercache.policies.errors import ClockError
from fastercache.policies.vocabulary import Branch, Step


class Clock:
    """Steps of the current run.

    `on_step_end` is called after each completed step with its index, `on_announce` when the scheduler announces a run.
    `in_call` tells whether a call of the pipeline goes on: copies that it makes of its scheduler then, one for each
    frame in diffusion forcing, are followed like the scheduler itself.
    """

    def __init__(
        self,
        scheduler: Any | None,
        on_step_end: Callable[[int], None],
        on_announce: Callable[[], None],
        in_call: Callable[[], bool],
    ) -> None:
        self.on_step_end, self.on_announce, self.in_call = on_step_end, on_announce, in_call
        self.steps: tuple[Step, ...] = ()
        self.index = 0
        self.pending = False  # set_timesteps was called; the run begins with the next denoiser call
        self.scheduler: Any | None = None
        self._taps: list[MethodTap] = []
        self._manual: list[float] | None = None
        self._seen: set[Branch] = set()  # branches of the current step that were called
        if scheduler is not None:
            self.tap(scheduler)

    def tap(self, scheduler: Any) -> None:
        """Follow this scheduler instead of the one before."""
        self.remove()
        self.scheduler = scheduler
        self._taps = [
            MethodTap(scheduler, "set_timesteps", self._announced, self.in_call),
            MethodTap(scheduler, "step", self._stepped, self.in_call),
        ]

    def remove(self) -> None:
        for tap in self._taps:
            tap.remove()
        self._taps = []

    def replaced(self, pipe: Any | None) -> bool:
        """Whether the pipeline has another scheduler than the one followed, whose announcement was missed."""
        return self.scheduler is not None and getattr(pipe, "scheduler", self.scheduler) is not self.scheduler

    @property
    def manual(self) -> bool:
        """Whether the run is of a loop of the user's own, announced by `start`."""
        return self._manual is not None

    def start(self, timesteps: Sequence[float] | torch.Tensor) -> None:
        """Announce a run of a loop of the user's own: its timesteps, in order."""
        values = timesteps.tolist() if isinstance(timesteps, torch.Tensor) else [float(t) for t in timesteps]
        if not values:
            raise ClockError("a run needs at least one timestep, found none")
        self._manual = values
        self.pending = True

    def _announced(self, result: Any) -> None:
        self.on_announce()  # refuses another thread's
        self._manual = None
        self.pending = True

    def _stepped(self, result: Any) -> None:
        # A second scheduler step without a denoiser call between (Cosmos: x0, then epsilon; the next frame's copy of
        # the scheduler) ends nothing.
        if self.pending or not self.steps or not self._seen:
            return
        self._advance()

    def begin(self, timestep: float | None, pipe: Any | None = None) -> None:
        """Start the announced run at its first denoiser call; `timestep` is what that call was given.

        How many of the scheduler's timesteps a run takes is read off the pipeline where it says so.

        Raises:
            ClockError: if no run was announced.
        """
        if self._manual is not None:
            values, sigmas = self._manual, None
        else:
            if self.scheduler is None:
                raise ClockError("the denoiser was called before session.start(timesteps): call it before each loop")
            values = [float(t) for t in torch.as_tensor(self.scheduler.timesteps).flatten().tolist()]
            raw = getattr(self.scheduler, "sigmas", None)
            sigmas = None if raw is None else [float(s) for s in torch.as_tensor(raw).flatten().tolist()]
        first = 0 if self._manual is not None else self._first(values, timestep)
        count = len(values) - first
        told = None if self._manual is not None else self._told(pipe, len(values))
        if told is not None:
            first, count = min(first, len(values) - told), told
        self.steps = tuple(
            Step(i, count, t, sigmas[first + i] if sigmas is not None and first + i < len(sigmas) else None)
            for i, t in enumerate(values[first : first + count])
        )
        self.index = 0
        self.pending = False
        self._seen.clear()

    def _told(self, pipe: Any | None, listed: int) -> int | None:
        """The number of steps that a diffusers pipeline sets before its loop, which may stop short of the list's end.

        Schedulers of a higher order list a timestep for each of their denoiser calls, which that number may not count.

        Raises:
            ClockError: where frames are denoised one behind the other, so that a call has no timestep of its own.
        """
        told = getattr(pipe, "_num_timesteps", None)
        if isinstance(told, int) and told > listed and hasattr(pipe, "generate_timestep_matrix"):
            raise ClockError(
                f"asynchronous diffusion forcing takes {told} steps for {listed} timesteps, each with frames at "
                "several of them, which no policy is written for: call the pipeline with ar_step=0"
            )
        if not isinstance(told, int) or not 0 < told <= listed or getattr(self.scheduler, "order", 1) != 1:
            return None
        return told

    def _first(self, values: list[float], timestep: float | None) -> int:
        """Where the run starts in the scheduler's list: image-to-image starts in the middle of it."""
        begin = getattr(self.scheduler, "begin_index", None)
        if begin is not None:
            return int(begin)
        if timestep is None:
            return 0
        as_given = (timestep, timestep * 1000.0, 1000.0 - timestep)
        # A first timestep of at most 1 is t / 1000: read as t it would be the end of the list, where no run begins.
        for scaled in as_given if timestep > 1.0 or max(values) <= 1.0 else (timestep * 1000.0, *as_given):
            for i, value in enumerate(values):
                if abs(value - scaled) < 1e-3:
                    return i
        return 0

    def now(self, branches: Sequence[Branch]) -> Step:
        """The step a denoiser call belongs to.

        In a loop of the user's own there is no scheduler to follow: a step ends when one of its branches comes again.
        """
        if self._manual is not None and not self._seen.isdisjoint(branches):
            self._advance()
        if self.index >= len(self.steps):
            raise ClockError(
                f"the denoiser was called after the last of {len(self.steps)} steps: "
                "a new run must be announced by the scheduler's set_timesteps or by session.start(timesteps)"
            )
        self._seen.update(branches)
        return self.steps[self.index]

    def called(self, every: Sequence[Branch]) -> None:
        """A denoiser call returned. The last step of a loop of the user's own ends with its last branch."""
        if self._manual is not None and self.index == len(self.steps) - 1 and self._seen.issuperset(every):
            self._advance()

    def finish(self) -> None:
        """End a loop of the user's own whose last step did not call every branch."""
        if self._manual is not None and self._seen and self.index == len(self.steps) - 1:
            self._advance()

    def _advance(self) -> None:
        self._seen.clear()
        self.index += 1
        self.on_step_end(self.index - 1)

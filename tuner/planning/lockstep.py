"""Several generations of one pipeline, side by side, step by step.

Weights that serve all prompts are fitted on the cached runs of all prompts together, one stretch after the other, so
the runs have to stand still at the same step. A pipeline cannot be stopped in mid-loop, but a thread that waits inside
the denoiser's call can: each generation has a thread of its own, and only one of them moves at a time, in the order of
the prompts, so that the outcome does not depend on the machine.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fastercache.policies.errors import FasterCacheError
from fastercache.run.sampler import Denoisers, Lane, SamplerStep

Answer = Callable[[int, int, int, Tensor], Any | None]
"""Generation, number of the call within the step, denoiser, its input -> output to return instead; None: compute."""
Generate = Callable[[Any], Any]
"""Runs one generation with the pipeline it is given, and returns its result."""


class _Cancelled(BaseException):
    """Ends a waiting generation; not an Exception, so that no pipeline takes it for its own."""


class Lockstep:
    """Generations that advance together. A context manager; leaving it ends those that are not finished.

    Args:
        pipe: a diffusers pipeline; each generation gets a shallow copy with a scheduler of its own.
        generations: one function for each generation.

    Raises:
        AttachError: as `Denoisers`.
    """

    def __init__(self, pipe: Any, generations: Sequence[Generate]) -> None:
        self._denoisers = Denoisers(pipe)
        self._answer: Answer = lambda generation, call, denoiser, source: None
        self._back = threading.Semaphore(0)
        self._runners = [_Runner(self, number, pipe, generate) for number, generate in enumerate(generations)]

    @property
    def computed(self) -> int:
        """Denoiser calls made so far, by all generations."""
        return sum(runner.lane.computed for runner in self._runners)

    def start(self) -> None:
        """Bring every generation to its first denoiser call."""
        for runner in self._runners:
            runner.move()

    def advance(self, answer: Answer | None = None) -> list[SamplerStep]:
        """All generations make one step, in order; `answer` may stand in for their denoiser calls.

        Raises:
            FasterCacheError: if a generation has no further step.
        """
        self._answer = answer or (lambda generation, call, denoiser, source: None)
        steps: list[SamplerStep] = []
        for runner in self._runners:
            runner.last = None
            runner.move()
            if runner.last is None:
                raise FasterCacheError("a generation ended before its last step: give calls that run to their end")
            steps.append(runner.last)
        return steps

    def results(self) -> list[Any]:
        """What the generations returned; they are run to their end first, computing what is left."""
        self._answer = lambda generation, call, denoiser, source: None
        for runner in self._runners:
            while not runner.over:
                runner.move()
        return [runner.result for runner in self._runners]

    def close(self) -> None:
        for runner in self._runners:
            runner.cancel()
        self._denoisers.close()

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Runner:
    """One generation in its thread. It is the listener of its lane."""

    def __init__(self, owner: Lockstep, number: int, pipe: Any, generate: Generate) -> None:
        self.owner, self.number = owner, number
        self.pipe = copy.copy(pipe)
        self.pipe.scheduler = copy.deepcopy(pipe.scheduler)
        self.lane = Lane(self.pipe.scheduler, self)
        self.last: SamplerStep | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.over = False
        self._go = threading.Semaphore(0)
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, args=(generate,), daemon=True)
        self._thread.start()

    def _run(self, generate: Generate) -> None:
        self._go.acquire()
        try:
            if not self._cancelled:
                self.owner._denoisers.lead(self.lane)
                with torch.no_grad():
                    self.result = generate(self.pipe)
        except BaseException as error:
            self.error = error
        finally:
            self.owner._denoisers.lead(None)
            self.over = True
            self.owner._back.release()

    def move(self) -> None:
        """Let the generation go on until its next step begins, or it ends. Raises what it raised."""
        if self.over:
            return
        self._go.release()
        self.owner._back.acquire()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        if not self.over:
            self._cancelled = True
            self._go.release()
            self.owner._back.acquire()
        self._thread.join()
        self.lane.close()

    def begun(self, lane: Lane) -> None:
        """Nothing to do: the generation stops at its first denoiser call."""

    def arrived(self, lane: Lane) -> None:
        self.owner._back.release()
        self._go.acquire()
        if self._cancelled:
            raise _Cancelled

    def stand_in(self, lane: Lane, call: int, denoiser: int, source: Tensor) -> Any | None:
        return self.owner._answer(self.number, call, denoiser, source)

    def stepped(self, lane: Lane, step: SamplerStep) -> None:
        self.last = _owned(step)


def _owned(step: SamplerStep) -> SamplerStep:
    """The step with copies of what belongs to the pipeline: some write the next latents over the present ones."""
    calls = tuple(replace(call, input=call.input.clone()) for call in step.calls)
    return replace(step, latent=step.latent.clone(), after=step.after.clone(), calls=calls)

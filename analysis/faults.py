"""The runs of an injection: the uncached one, which is kept, and one with an error at a single step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastercache.analysis.response import Response
from fastercache.analysis.sampling import Recording, RunRecorder
from fastercache.model.layout import flatten_output, rebuild_output
from fastercache.policies.errors import RecordingError
from fastercache.run.sampler import DenoiserCall, Lane, SamplerStep

Error = Literal["noise", "hold"]
"""Kinds of error: see `fastercache.analysis.injection`."""


class Uncached(RunRecorder):
    """The uncached run: its steps with all that the denoiser returned, and the sampler's response."""

    made = 0

    def __init__(self) -> None:
        self.recordings: list[Recording] = []
        super().__init__(self.recordings.append)
        self.steps: list[SamplerStep] = []

    def begun(self, lane: Lane) -> None:
        self.steps = []
        super().begun(lane)

    def stepped(self, lane: Lane, step: SamplerStep) -> None:
        calls = tuple(replace(call, outputs=[_copied(t) for t in call.outputs]) for call in step.calls)
        self.steps.append(replace(step, output=step.output.clone(), after=step.after.clone(), calls=calls))
        super().stepped(lane, step)

    def ended(self) -> None:
        if len(self.recordings) != 1:
            raise RecordingError(
                f"one call of the pipeline made {len(self.recordings)} complete runs of its scheduler: injection needs "
                "one"
            )

    @property
    def response(self) -> Response:
        """Of the sampler."""
        return self.recordings[0].response


class Fault:
    """The error that is put in, and how large it was."""

    def __init__(self, error: Error, size: float, seed: int) -> None:
        self.error, self.size = error, size
        self._generator = torch.Generator().manual_seed(seed)
        self.reached = False
        self._added = self._values = 0.0
        self._before: dict[int, list[list[Tensor | None]]] = {}

    @property
    def relative(self) -> float:
        """Its size over that of the values."""
        return float(np.sqrt(self._added / self._values)) if self._values else 0.0

    def of(self, value: Tensor, before: Tensor | None) -> Tensor:
        """The value with the error in it."""
        self.reached = True
        if self.error == "noise":
            noise = torch.randn(value.shape, generator=self._generator).to(value)
            wrong = value + self.size * value.float().square().mean().sqrt().to(value) * noise
        else:
            assert before is not None
            wrong = before
        self._added += float((wrong - value).double().square().sum())
        self._values += float(value.double().square().sum())
        return wrong

    def spoiled(self, outputs: Sequence[Tensor | None], before: Sequence[Tensor | None]) -> list[Tensor | None]:
        pairs = zip(outputs, before, strict=True)
        return [self.of(t, old) if t is not None and t.is_floating_point() else t for t, old in pairs]

    @contextmanager
    def around(self, modules: Sequence[nn.Module], run: Injecting) -> Iterator[None]:
        """Spoils the modules' outputs at the run's step, while it lasts."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            known = self._before.setdefault(id(module), [])
            if run.now == run.step - 1 and self.error == "hold":
                known.append([_copied(t) for t in flatten_output(output)])
            elif run.now == run.step:
                leaves = flatten_output(output)
                before = known.pop(0) if self.error == "hold" else [None] * len(leaves)
                return rebuild_output(output, self.spoiled(leaves, before))
            return output

        with ExitStack() as stack:
            for module in modules:
                stack.callback(module.register_forward_hook(hook).remove)
            yield


class Injecting:
    """A run with an error at one step: answers what is known, computes the rest."""

    def __init__(self, known: list[SamplerStep], step: int, fault: Fault, *, whole: bool, follow: bool) -> None:
        self.known, self.step, self.fault, self.whole, self.follow = known, step, fault, whole, follow
        self.begins = step - (fault.error == "hold" and not whole)
        self.now = -1
        self.made = 0
        self._output: Tensor | None = None
        self._last: Tensor | None = None

    def begun(self, lane: Lane) -> None:
        self.now = -1

    def arrived(self, lane: Lane) -> None:
        self.now = lane.index

    def stand_in(self, lane: Lane, call: int, denoiser: int, source: Tensor) -> Any | None:
        now = lane.index
        mine = self.known[now].calls[call]
        if now == self.step and self.whole:
            before = self.known[now - 1].calls
            older = before[call].outputs if self.fault.error == "hold" else [None] * len(mine.outputs)
            return _answer(mine, self.fault.spoiled(mine.outputs, older))
        if now < self.begins or (now > self.step and not self.follow):
            return _answer(mine, mine.outputs)
        return None

    def stepped(self, lane: Lane, step: SamplerStep) -> None:
        if step.index == self.step:
            self._output = step.output - self.known[step.index].output
        if step.index == len(self.known) - 1:
            self._last = step.after - self.known[-1].after

    def ended(self) -> None:
        if self._output is None or self._last is None:
            raise RecordingError(
                "an injected run did not make the steps of the uncached one: is the call always alike?"
            )

    def sizes(self) -> tuple[float, float]:
        assert self._output is not None and self._last is not None
        return rms(self._output), rms(self._last)


def _answer(call: DenoiserCall, outputs: Sequence[Tensor | None]) -> Any:
    return rebuild_output(call.template, [_copied(t) for t in outputs])


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())

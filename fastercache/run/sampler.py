"""Generations followed at the sampler's level: what the denoiser was given and returned, what the sampler made of it.

A pipeline shows its sampler's quantities in one place only: the call of `scheduler.step(output, t, latent)`. There the
output is the one that the sampler uses (guidance done, extra channels taken off) and the latent is neither scaled nor
doubled nor packed for the denoiser. So a generation is followed there, and at the denoiser's own calls between two
steps.

A `Lane` is one generation. Several lanes of one pipeline run in threads of their own, of which only one moves at a time
(`fastercache.tuner.planning.lockstep`); each has its own copy of the scheduler, and all share the denoiser.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn

from fastercache.attachment import denoisers_of
from fastercache.model.hooks import Inner, MethodTap, SiteForward, is_hooked
from fastercache.model.layout import flatten_output, leading_tensor, strip
from fastercache.policies.errors import AttachError


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """One call of a denoiser.

    Attributes:
        denoiser: which one of the pipeline's.
        input: its main input.
        outputs: the tensors of its output, in the order of `flatten_output`.
        template: the output without its tensors, for `rebuild_output`.
        computed: whether it was made, not answered by the listener.
    """

    denoiser: int
    input: Tensor
    outputs: list[Tensor | None]
    template: Any
    computed: bool


@dataclass(frozen=True, slots=True)
class SamplerStep:
    """One step of the sampler.

    Attributes:
        index: the step, from 0.
        output: F_k, what `scheduler.step` was given as the denoiser's output.
        latent: x_k, the latent before the step.
        after: x_{k+1}, the latent that the scheduler returned.
        time: the timestep `scheduler.step` was given.
        settings: what else it was given, `eta` for instance.
        calls: the denoiser calls of the step, in order.
    """

    index: int
    output: Tensor
    latent: Tensor
    after: Tensor
    time: float
    settings: Mapping[str, Any]
    calls: tuple[DenoiserCall, ...]


class Listener(Protocol):
    """Who is told what happens in a lane."""

    def begun(self, lane: Lane) -> None:
        """The scheduler's timesteps were set: a run begins."""

    def arrived(self, lane: Lane) -> None:
        """The first denoiser call of step `lane.index` is about to be made."""

    def stand_in(self, lane: Lane, call: int, denoiser: int, source: Tensor) -> Any | None:
        """What to return instead of making call number `call` of the step; None to make it."""

    def stepped(self, lane: Lane, step: SamplerStep) -> None:
        """The sampler has made a step."""


class Lane:
    """One generation: follows a scheduler and the denoiser calls made between its steps.

    Attributes:
        index: the step that is going on, from 0.
        computed: denoiser calls that were really made, over all runs of the lane.
    """

    def __init__(self, scheduler: Any, listener: Listener) -> None:
        self.scheduler, self.listener = scheduler, listener
        self.index = 0
        self.computed = 0
        self._calls: list[DenoiserCall] = []
        self._taps = [
            MethodTap(scheduler, "set_timesteps", self._begun),
            StepTap(scheduler, "step", self._stepped),
        ]

    def call(self, denoiser: int, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A denoiser call of this generation: made, or answered by the listener."""
        if not self._calls:
            self.listener.arrived(self)
        number = len(self._calls)
        source = leading_tensor(args, kwargs)
        given = self.listener.stand_in(self, number, denoiser, source)
        if given is None:
            output = inner(*args, **kwargs)
            self.computed += 1
        else:
            output = given
        self._calls.append(DenoiserCall(denoiser, source, flatten_output(output), strip(output), given is None))
        return output

    def _begun(self, result: Any) -> None:
        self.index, self._calls = 0, []
        self.listener.begun(self)

    def _stepped(self, given: dict[str, Any], after: Tensor) -> None:
        if not self._calls:  # a second scheduler step without a denoiser call between
            return
        output, time, latent = (given.pop(name) for name in ("model_output", "timestep", "sample"))
        step = SamplerStep(self.index, output, latent, after, float(time), given, tuple(self._calls))
        self._calls = []
        self.index += 1
        self.listener.stepped(self, step)

    def close(self) -> None:
        for tap in self._taps:
            tap.remove()


class StepTap(MethodTap):
    """Stands in for `scheduler.step` and tells what it was given and what it returned."""

    def __init__(self, owner: Any, name: str, stepped: Any) -> None:
        super().__init__(owner, name, lambda result: None)
        self._told = stepped

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        named = dict(zip(("model_output", "timestep", "sample"), args, strict=False)) | kwargs
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        self._told(named, after)
        return result


class Denoisers:
    """The denoisers of a pipeline, whose calls are told to the lane of the thread that makes them.

    Raises:
        AttachError: if the pipeline has no denoiser or no scheduler, or a session is attached.
    """

    def __init__(self, pipe: Any) -> None:
        if isinstance(pipe, nn.Module) or not hasattr(getattr(pipe, "scheduler", None), "step"):
            raise AttachError(f"{type(pipe).__name__} has no scheduler to follow: give a diffusers pipeline")
        self.modules = [module for _, module in denoisers_of(pipe)]
        if any(is_hooked(module) for module in self.modules):
            raise AttachError(f"{type(self.modules[0]).__name__} has a session attached: detach it first")
        self._lanes: dict[int, Lane] = {}
        self._hooks = [SiteForward(module, outermost=True) for module in self.modules]
        for number, hook in enumerate(self._hooks):
            hook.handler = partial(self._call, number)
            hook.install()

    def _call(self, number: int, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lane = self._lanes.get(threading.get_ident())
        return inner(*args, **kwargs) if lane is None else lane.call(number, inner, args, kwargs)

    def lead(self, lane: Lane | None) -> None:
        """From now on the calls of this thread belong to `lane`; None: to nobody."""
        if lane is None:
            self._lanes.pop(threading.get_ident(), None)
        else:
            self._lanes[threading.get_ident()] = lane

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Denoisers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

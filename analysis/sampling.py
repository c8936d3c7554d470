"""Recording at the sampler's level: the runs of a pipeline as `Trajectory` and `Response`, together a profile.

>>> with record_trajectory(pipe) as recorder:                                              # doctest: +SKIP
...     for prompt in prompts:
...         pipe(prompt)
>>> profile = TrajectoryProfile.of(recorder.recordings, pipe)                              # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastercache.analysis.response import Response, probe
from fastercache.analysis.trajectory import Floats, Trajectory, gram
from fastercache.policies.errors import RecordingError
from fastercache.policies.predictors.history import before_variance, joined, variance_axis
from fastercache.run.sampler import Denoisers, Lane, SamplerStep

MAX_BYTES = 4 << 30
"""Host memory that the values of one run may take by default."""
EXACT = 1e-3
"""Relative deviation up to which a relation between recorded values is taken to hold, in float32."""


@dataclass(frozen=True)
class RunValues:
    """The values of one run, on the host in float32.

    Attributes:
        latents: n + 1 tensors, x_0 .. x_n. outputs: n tensors, F_0 .. F_{n-1}.
    """

    latents: list[Tensor]
    outputs: list[Tensor]

    @property
    def steps(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True)
class Relations:
    """How the denoiser's calls relate to the sampler's quantities, as read off a run.

    Attributes:
        input: (n,) c_k where the denoiser's main input is c_k x_k, row by row; None where it is something else.
        why: why `input` is None; empty otherwise.
        guided: F_k is the same linear combination of the step's raw outputs at every step (guidance of a fixed scale).
        steady: x_k is what the scheduler returned, so nothing changes latents between steps.
        starts: first step of each denoiser that has a part of the steps, rising, the first is 0.
        calls: denoiser calls in each step.
    """

    input: Floats | None
    why: str
    guided: bool
    steady: bool
    starts: tuple[int, ...]
    calls: int

    def merged(self, other: Relations) -> Relations:
        """What holds in both runs. Raises RecordingError where they cannot be of one setting."""
        if self.starts != other.starts or self.calls != other.calls:
            raise RecordingError("the runs differ in their denoiser calls (guidance on and off?): record them apart")
        same = self.input is not None and other.input is not None and np.allclose(self.input, other.input, rtol=EXACT)
        return replace(
            self,
            input=self.input if same else None,
            why=self.why or other.why or ("" if same else "its scale differs between runs"),
            guided=self.guided and other.guided,
            steady=self.steady and other.steady,
        )


@dataclass(frozen=True)
class Recording:
    """One run: its Gram matrices, the sampler's response, and how its calls relate to the sampler's quantities."""

    trajectory: Trajectory
    response: Response
    relations: Relations
    values: RunValues


class RunRecorder:
    """Listens to one lane and turns each complete run into a `Recording`, handed to `done`.

    A run that ends early (interrupted, stopped by `denoising_end`) is counted in `discarded`.
    """

    def __init__(self, done: Callable[[Recording], None], *, max_bytes: int = MAX_BYTES) -> None:
        self.done, self.max_bytes = done, max_bytes
        self.discarded = 0
        self._steps: list[SamplerStep] = []
        self._response: Response | None = None
        self._sampler: Any = None

    @property
    def unfinished(self) -> int:
        """1 while a run has made some of its steps, or has ended among them; else 0."""
        return int(bool(self._steps))

    # -- listening ---------------------------------------------------------------------------------------------------
    def begun(self, lane: Lane) -> None:
        self.discarded += self.unfinished
        self._steps, self._response = [], None

    def arrived(self, lane: Lane) -> None:
        if self._response is None:
            self._sampler = copy.deepcopy(lane.scheduler)

    def stand_in(self, lane: Lane, call: int, denoiser: int, source: Tensor) -> Any | None:
        return None

    def stepped(self, lane: Lane, step: SamplerStep) -> None:
        if self._response is None:
            self._response = _response(self._sampler, step)
            self._check_size(step)
        self._steps.append(_on_host(step))
        if len(self._steps) == self._response.steps:
            steps, response = self._steps, self._response
            self._steps, self._response = [], None
            self.done(_recording(steps, response))

    def _check_size(self, step: SamplerStep) -> None:
        assert self._response is not None
        tensors = [
            step.output,
            step.latent,
            *(t for call in step.calls for t in (call.input, *call.outputs) if t is not None),
        ]
        needed = 4 * self._response.steps * sum(tensor.numel() for tensor in tensors)
        if needed > self.max_bytes:
            raise RecordingError(
                f"the values of one run take {needed / 2**30:.1f} GiB of host memory, more than max_bytes="
                f"{self.max_bytes / 2**30:.1f} GiB: raise it, or record at a smaller size"
            )


def record_trajectory(pipe: Any, *, max_bytes: int = MAX_BYTES) -> TrajectoryRecorder:
    """Record every run that a pipeline makes inside the context.

    Args:
        pipe: a diffusers pipeline with nothing attached.
        max_bytes: host memory that the values of one run may take while it goes on. Afterwards (2n + 1)^2 numbers
            remain.

    Raises:
        AttachError: if there is no scheduler to follow, or a session is attached.
    """
    return TrajectoryRecorder(pipe, max_bytes)


class TrajectoryRecorder:
    """A recording going on. `recordings` are the complete runs; `keep_values=False` below drops their tensors."""

    def __init__(self, pipe: Any, max_bytes: int = MAX_BYTES, done: Callable[[Recording], None] | None = None) -> None:
        self.pipe = pipe
        self.recordings: list[Recording] = []
        self._runs = RunRecorder(done or self._keep, max_bytes=max_bytes)
        self._denoisers = Denoisers(pipe)
        self._lane = Lane(pipe.scheduler, self._runs)
        self._denoisers.lead(self._lane)

    def _keep(self, recording: Recording) -> None:
        self.recordings.append(replace(recording, values=RunValues([], [])))

    @property
    def discarded(self) -> int:
        """Runs that did not reach their last step; one that is going on counts until it does."""
        return self._runs.discarded + self._runs.unfinished

    @property
    def computed(self) -> int:
        """Denoiser calls made."""
        return self._lane.computed

    def close(self) -> None:
        """Stop recording; what was recorded stays."""
        self._lane.close()
        self._denoisers.close()

    def __enter__(self) -> TrajectoryRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _response(sampler: Any, step: SamplerStep) -> Response:
    """The response of a scheduler as it stood before its first step, which is given. Raises RecordingError."""
    first = getattr(sampler, "begin_index", None)
    if first is None:
        times = torch.as_tensor(sampler.timesteps).flatten().to(torch.float64)
        first = int((times - step.time).abs().argmin())
    settings = {key: value for key, value in step.settings.items() if key not in ("generator", "return_dict")}
    try:
        return probe(sampler, first=int(first), step=settings)
    except ValueError as error:
        raise RecordingError(f"the sampler cannot be probed: {error}") from error


def _on_host(step: SamplerStep) -> SamplerStep:
    """The step with its tensors copied to the host in float32."""

    def host(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float32, copy=True)

    calls = tuple(
        replace(call, input=host(call.input), outputs=[None if t is None else host(t) for t in call.outputs[:1]])
        for call in step.calls
    )
    return replace(step, output=host(step.output), latent=host(step.latent), after=host(step.after), calls=calls)


def _recording(steps: Sequence[SamplerStep], response: Response) -> Recording:
    """Everything that is kept of a run, from its steps on the host."""
    values = RunValues([*(step.latent for step in steps), steps[-1].after], [step.output for step in steps])
    parts = [_parts(step) for step in steps]
    uniform = all(part and len(part) == len(parts[0]) for part in parts)
    raw = [part[c] for c in range(len(parts[0])) for part in parts] if uniform else []
    trajectory = Trajectory(gram([*values.latents, *values.outputs])[None], response.times, gram(raw)[None])
    scales, why = _input_scales(steps)
    starts = tuple(
        k for k, step in enumerate(steps) if k == 0 or step.calls[0].denoiser != steps[k - 1].calls[0].denoiser
    )
    counts = {len(step.calls) for step in steps}
    if len(counts) > 1:
        raise RecordingError(
            f"the steps of a run make {' or '.join(map(str, sorted(counts)))} denoiser calls: guidance switched "
            "on and off within a run cannot be planned over whole steps"
        )
    relations = Relations(
        input=scales,
        why=why,
        guided=uniform and _combined(parts, values.outputs),
        steady=all(_close(a.after, b.latent) for a, b in pairwise(steps)),
        starts=starts,
        calls=counts.pop(),
    )
    return Recording(trajectory, response, relations, values)


def _parts(step: SamplerStep) -> list[Tensor]:
    """The step's raw outputs by branch, each of the shape of F_k; empty where they do not have it row by row."""
    found: list[Tensor] = []
    for call in step.calls:
        raw = call.outputs[0]
        if raw is None:
            return []
        shape = joined(step.output.shape, raw.ndim)
        if raw.ndim != len(shape) or raw.shape[0] % shape[0]:
            return []
        for rows in raw.split(shape[0]):
            if rows.shape != shape and variance_axis(rows.shape, shape) is None:
                return []
            found.append(before_variance(rows, shape).reshape(step.output.shape))
    return found


def _input_scales(steps: Sequence[SamplerStep]) -> tuple[Floats | None, str]:
    """c_k with input = c_k x_k at every step, or None and why not."""
    scales = []
    for step in steps:
        latent, source = step.latent, step.calls[0].input
        if source.ndim != latent.ndim or source.shape[1:] != latent.shape[1:] or source.shape[0] % latent.shape[0]:
            shapes = f"{tuple(source.shape)} where the latent has {tuple(latent.shape)}"
            return None, f"the denoiser's input has the shape {shapes}"
        for rows in (call.input for call in step.calls):
            for part in rows.split(latent.shape[0]):
                scale = float((part * latent).sum() / (latent * latent).sum())
                if not _close(part, scale * latent):
                    return None, "the denoiser's input is not the latent times a number"
        scales.append(scale)
    return np.array(scales), ""


def _combined(parts: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor]) -> bool:
    """Whether F_k = sum_c g_c D_{c,k} with the same g at every step."""
    flat = [torch.stack([p.reshape(-1) for p in part]).double() for part in parts]
    target = [output.reshape(-1).double() for output in outputs]
    matrix = sum((rows @ rows.T for rows in flat), torch.zeros(1, dtype=torch.float64))
    right = sum((rows @ f for rows, f in zip(flat, target, strict=True)), torch.zeros(1, dtype=torch.float64))
    weights = torch.linalg.lstsq(matrix, right).solution
    return all(_close(weights @ rows, f) for rows, f in zip(flat, target, strict=True))


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether a and b agree up to rounding, in the norm."""
    return a.shape == b.shape and float((a - b).norm()) <= EXACT * max(float(b.norm()), 1e-12)

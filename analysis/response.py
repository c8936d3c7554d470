"""What a sampler does with the denoiser's outputs, found by probing a copy of the scheduler and not from its name.

Samplers act on every element of the latent alike and, nearly all, linearly: with the noise that a stochastic one draws
held fixed,

    x_k = M[k, 0] x_0 + sum_{m<k} M[k, 1 + m] F_m + noise_k

One run on a tensor of n + 1 elements, each with a change in one of the n + 1 inputs (x_0, F_0 .. F_{n-1}), reads off
the whole of M; a second one with everything changed at once shows whether it holds. Then x_{k+1} = a_k x_k + b_k F_k is
a question about the rows of M, and so is how far back a multistep method looks.

The last row of M is the impulse response: what an error of the output at step m does to the last latent, as far as the
sampler alone is concerned.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Kind = Literal["memoryless", "memory", "nonlinear"]

SEED = 0
REPEATS = 8
"""Elements that carry the same change from different starting points: their median is robust to clipped ones."""


@dataclass(frozen=True)
class Response:
    """How a sampler of n denoiser calls turns outputs into latents.

    Attributes:
        kind: `memoryless`, x_{k+1} = a_k x_k + b_k F_k; `memory`, linear, but earlier outputs matter; `nonlinear`, e.g.
            clipping or thresholding, where `matrix` is the derivative around the probe only.
        times: `(n,)`, what the denoiser is told at each call.
        matrix: `(n + 1, n + 1)`, M: row k are the coefficients of x_k in `[x_0, F_0 .. F_{n-1}]`.
        scale, gain: `(n,)`, a_k and b_k; for `memory`, what x_k and F_k themselves contribute at best.
        reach: how many calls before the current one matter; 0 for `memoryless`, -1 for `nonlinear`.
        input_scale: `(n,)`, what `scale_model_input` multiplies the latent by.
        stochastic: whether noise is added.
        residual: largest relative deviation of the probe from M.
    """

    kind: Kind
    times: Floats
    matrix: Floats
    scale: Floats
    gain: Floats
    reach: int
    input_scale: Floats
    stochastic: bool
    residual: float

    @property
    def steps(self) -> int:
        """Number of denoiser calls, n."""
        return len(self.times)

    @property
    def impulse(self) -> Floats:
        """`(n,)`, h_m: change of the last latent per change of the output at call m."""
        return self.matrix[-1, 1:]


def probe(
    scheduler: Any,
    steps: int | None = None,
    *,
    first: int = 0,
    timesteps: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
) -> Response:
    """The response of a scheduler, which is left as it is.

    Args:
        scheduler: any diffusers scheduler. Without `steps`, one that `set_timesteps` has just been called on.
        steps: number of inference steps.
        first: where in the list of timesteps the run begins (image-to-image starts in the middle).
        timesteps: further keyword arguments of `set_timesteps`, such as `mu` or `sigmas`.
        step: further keyword arguments of `step`, such as `eta`.
        tolerance: relative deviation up to which a relation is taken to hold; schedulers compute in float32 inside.

    Raises:
        ValueError: if the scheduler has no timesteps, or does not take outputs of the latent's shape.
    """
    settings = dict(timesteps or {})
    arguments = dict(step or {})

    def fresh() -> Any:
        sampler = copy.deepcopy(scheduler)
        for name, value in vars(sampler).items():
            setattr(sampler, name, _on_host(value))
        if steps is not None:
            sampler.set_timesteps(steps, **settings)
        return sampler

    times = fresh().timesteps
    times = None if times is None else times[first:]
    if times is None or not len(times):
        raise ValueError(f"{type(scheduler).__name__} has no timesteps: give the number of steps")
    n = len(times)
    generator = torch.Generator().manual_seed(SEED)
    size = float(getattr(scheduler, "init_noise_sigma", 1.0))
    shape = (1, REPEATS, n + 1, 1)
    start = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    outputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    def run(x0: Tensor, f: Tensor, seed: int = SEED) -> Floats:  # (n + 1, REPEATS, n + 1)
        return _run(fresh, times, x0, f, arguments, seed)[0]

    base, scales = _run(fresh, times, start, outputs, arguments, SEED)
    single_x, single_f = start.clone(), outputs.clone()
    single_x[:, :, 0] += size
    for k in range(n):
        single_f[k, :, :, 1 + k] += 1.0
    change = run(single_x, single_f) - base
    change[:, :, 0] /= size
    matrix: Floats = np.median(change, axis=1)  # (n + 1, n + 1): latent, input

    dense_x = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    dense_f = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    moved = run(start + dense_x, outputs + dense_f) - base
    inputs = torch.cat([dense_x[None], dense_f]).reshape(base.shape).numpy()  # (n + 1, REPEATS, n + 1)
    expected = np.einsum("km,mre->kre", matrix, inputs)
    magnitude = np.sqrt(np.mean(np.square(base), axis=(1, 2)) + np.mean(np.square(expected), axis=(1, 2)))
    residual = float(np.max(np.abs(moved - expected).max(axis=(1, 2)) / np.maximum(magnitude, 1e-12)))
    stochastic = bool(np.abs(run(start, outputs, SEED + 1) - base).max() > tolerance * magnitude.max())

    scale, gain, reach = _relations(matrix, tolerance)
    kind: Kind = "nonlinear" if residual > tolerance else "memory" if reach else "memoryless"
    return Response(
        kind=kind,
        times=np.asarray([float(t) for t in times], dtype=np.float64),
        matrix=matrix,
        scale=scale,
        gain=gain,
        reach=-1 if kind == "nonlinear" else reach,
        input_scale=scales,
        stochastic=stochastic,
        residual=residual,
    )


def _on_host(value: Any) -> Any:
    """A scheduler's attribute with its tensors on the CPU: a pipeline on a GPU leaves timesteps and tables there."""
    if isinstance(value, Tensor):
        return value.to("cpu")
    if type(value) is dict and any(isinstance(part, (Tensor, list, tuple)) for part in value.values()):
        return {key: _on_host(part) for key, part in value.items()}
    if type(value) in (list, tuple) and any(isinstance(part, (Tensor, list, tuple, dict)) for part in value):
        return type(value)(_on_host(part) for part in value)
    return value


def _run(
    fresh: Callable[[], Any], times: Any, x: Tensor, outputs: Tensor, arguments: Mapping[str, Any], seed: int
) -> tuple[Floats, Floats]:
    """Latents `(n + 1, REPEATS, n + 1)` of one run with given outputs, and the scales of the denoiser's input."""
    sampler = fresh()
    given = dict(arguments)
    if "generator" in inspect.signature(sampler.step).parameters:
        given["generator"] = torch.Generator().manual_seed(seed)
    latents, scales = [x], []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for output, time in zip(outputs, times, strict=True):
            scaled = sampler.scale_model_input(x, time) if hasattr(sampler, "scale_model_input") else x
            scales.append(float((scaled * x).sum() / (x * x).sum()))
            try:
                x = sampler.step(output, time, x, return_dict=False, **given)[0].to(torch.float64)
            except (RuntimeError, IndexError, TypeError) as error:
                raise ValueError(
                    f"{type(sampler).__name__} does not take outputs of the latent's shape: {error}"
                ) from error
            latents.append(x)
    return torch.stack(latents).squeeze((1, 4)).numpy().astype(np.float64), np.array(scales)


def _relations(matrix: Floats, tolerance: float) -> tuple[Floats, Floats, int]:
    """(a, b, reach): each row of M from the row before and the newest output, and how far back it needs to look."""
    n = len(matrix) - 1
    units = np.eye(n + 1)[1:]  # row m: the output of call m
    scale, gain = np.zeros(n), np.zeros(n)
    reach = 0
    for k in range(n):
        size = max(float(np.linalg.norm(matrix[k + 1])), 1e-12)
        for back in range(k + 1):
            known = np.concatenate([matrix[k - back : k + 1][::-1], units[k - back : k + 1][::-1]])
            solution, *_ = np.linalg.lstsq(known.T, matrix[k + 1], rcond=1e-9)
            if back == 0:
                scale[k], gain[k] = solution
            if np.linalg.norm(solution @ known - matrix[k + 1]) <= tolerance * size:
                break
        reach = max(reach, back)
    return scale, gain, reach

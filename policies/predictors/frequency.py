"""Band split of 2-D spectra and the frequency-weighted guidance delta of CFG-Cache [FasterCache eqs. 6-11]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Now, Past, Predictor
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Step


@lru_cache(maxsize=64)
def low_pass_mask(height: int, width: int, radius: int, device: torch.device) -> Tensor:
    """Disc of `radius` around the centre of the shifted spectrum, shifted back to FFT order: (H, W // 2 + 1) floats."""
    y = torch.fft.fftfreq(height, d=1.0 / height, device=device)[:, None]
    x = torch.fft.rfftfreq(width, d=1.0 / width, device=device)[None, :]
    inside: Tensor = (y**2 + x**2) <= radius**2
    return inside.to(torch.float32)


def band_radius(height: int, width: int, divisor: int = 5) -> int:
    """The paper's radius of the low band: `min(H, W) // 5`."""
    return min(height, width) // divisor


def split_bands(x: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Low and high band of `x`, shape (..., H, W), over its last two axes: `low + high == x` up to rounding.

    The transform is linear and the mask symmetric, so both bands are real and weighting them in space equals
    weighting the spectrum. Half precision is computed in float32, since FFTs of it do not exist on every device.
    """
    height, width = x.shape[-2:]
    full = x.float().contiguous()  # MKL refuses some strided transforms
    spectrum = torch.fft.rfft2(full) * low_pass_mask(height, width, radius, x.device)
    low = torch.fft.irfft2(spectrum, s=(height, width))
    return low.to(x.dtype), (full - low).to(x.dtype)


def wiener(x: Tensor, noise: float, power: float = 3.0, channels: int = 1) -> Tensor:
    """`x` with each frequency weighted by how much of it is signal at noise level `noise` in [0, 1] [SeaCache eq. 7].

    Over every axis but the batch (0) and `channels`, with a = 1 - noise and a clean power spectrum S = 1 / |f|^power,

        gain(f) = a S / (a^2 S + noise^2) per axis, multiplied over axes and scaled to a mean of 1.

    In float32; the shape and dtype of `x`.
    """
    axes = tuple(axis for axis in range(1, x.ndim) if axis != channels)
    noise = max(1e-6, min(1.0 - 1e-6, noise))
    gain = torch.ones((), device=x.device)
    for axis in axes:
        frequency = torch.fft.fftfreq(x.shape[axis], device=x.device, dtype=torch.float32)
        clean = 1.0 / (frequency.abs() ** power + 1e-16)
        factor = (1.0 - noise) * clean / ((1.0 - noise) ** 2 * clean + noise**2 + 1e-16)
        gain = gain * factor.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    spectrum = torch.fft.fftn(x.float(), dim=axes) * (gain / gain.mean())
    filtered: Tensor = torch.fft.ifftn(spectrum, dim=axes).real
    return filtered.to(x.dtype)


@register
class GuidanceDelta(Predictor):
    """The cached difference uncond - cond, its low and high band weighted by the stage of sampling.

    `weighting="paper"` [eqs. 8-11]: w_low = 1 + alpha_low while progress < switch, w_high = 1 + alpha_high from
    `switch_high` (default: `switch`) on. `weighting="repo"`, as the published code does it: the factors apply again
    on every step since the delta was computed, so they compound until it is refreshed.

    The bands are split once, when the delta is computed, not on every reused step.
    """

    name: ClassVar[str] = "guidance_delta"
    alpha_low: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        default=0.2, description="the low band counts 1 + this before `switch`, no unit (alpha_1 in the paper)"
    )
    alpha_high: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        default=0.2, description="the high band counts 1 + this from `switch_high` on, no unit (alpha_2 in the paper)"
    )
    switch: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=2 / 3,
        description="point of the run at which the low band's factor ends (progress, 0 to 1); the paper's t_0",
    )
    switch_high: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None,
        description="point of the run at which the high band's factor begins (progress, 0 to 1); by default `switch`",
    )
    weighting: Literal["paper", "repo"] = Field(
        default="paper",
        description="`paper`: factors apply once; `repo`: once more at every reused step, as in the published code",
    )
    radius: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description=(
            "radius of the low band, in spectral bins of the latent; by default min(height, width) // `divisor`"
        ),
    )
    divisor: Annotated[int, Field(ge=1)] = Field(
        default=5,
        description="the low band's radius is min(height, width) // divisor where no `radius` is given, no unit",
    )

    def weights(self, since: Step, step: Step) -> tuple[float, float]:
        """(w_low, w_high) at `step` for a delta computed at step `since`."""
        later = self.switch if self.switch_high is None else self.switch_high
        low = high = 1.0
        first = step.index if self.weighting == "paper" else since.index + 1
        for index in range(first, step.index + 1):
            progress = Step(index, step.count, 0.0).progress
            low *= 1.0 + self.alpha_low * (progress < self.switch)
            high *= 1.0 + self.alpha_high * (progress >= later)
        return low, high

    def keep(self, value: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        height, width = value.shape[-2:]
        radius = self.radius if self.radius is not None else band_radius(height, width, self.divisor)
        return split_bands(value, radius)

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        newest = past[-1]
        low, high = newest.value
        w_low, w_high = self.weights(newest.step, now.step)
        predicted: Tensor = w_low * low + w_high * high
        return predicted

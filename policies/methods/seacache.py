"""SeaCache [arXiv 2602.18993]: the input seen through the filter that matches its noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation
from fastercache.policies.methods.dynamic import Dynamic, Memo, Threshold
from fastercache.policies.predictors.frequency import wiener
from fastercache.policies.predictors.history import Linear
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Step


@register
class SeaCache(Dynamic):
    """Accumulate the relative L1 change of the Wiener-filtered denoiser input, relative to the step before; reuse while
    the sum is below `threshold` and at most `max_consecutive` times in a row. The first `warm_up` and the last
    `cool_down` steps are computed. Each branch decides for itself.

    The filter passes what is signal at the step's noise level and suppresses what is noise, over frames, height and
    width of the latent (see `fastercache.policies.predictors.frequency.wiener`). The level is the scheduler's sigma for
    flow matching; a sigma above 1 counts as sigma / (1 + sigma); without sigmas it is timestep / 1000.
    """

    name: ClassVar[str] = "seacache"
    citation: ClassVar[Citation] = Citation(
        "SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models",
        "Chung et al.",
        2026,
        "https://arxiv.org/abs/2602.18993",
        "the residual of all blocks, while the filtered input's accumulated change is small",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"scope", "channels", "power"})
    off: ClassVar[Mapping[str, Any]] = {"threshold": 0.0}
    threshold: Threshold = Field(
        default=0.25,
        description="reused while the filtered input's accumulated relative L1 change is below this, no unit",
    )
    max_consecutive: Annotated[int, Field(ge=1, le=12)] = Field(
        default=2, description="how many steps may be reused in a row"
    )
    warm_up: Annotated[int, Field(ge=0, le=20)] = Field(
        default=1, description="how many steps at the start are computed"
    )
    cool_down: Annotated[int, Field(ge=0, le=20)] = Field(
        default=1, description="how many steps at the end are computed"
    )
    power: Annotated[float, Field(gt=0.0, le=6.0)] = Field(
        default=3.0,
        description="exponent of the clean power spectrum 1 / |f|^power that the filter expects, no unit (eq. 7)",
    )
    channels: Literal[1, 2] = Field(
        default=1, description="the axis of the latent that holds channels and is not filtered: 1 or 2"
    )
    stand_in: AnyPredictor = Field(default_factory=Linear)

    @property
    def signal(self) -> Signal:
        return Signal.INPUT

    def reuse(self, state: Memo, step: Step, seen: Tensor | None) -> bool:
        if seen is not None:
            seen = wiener(seen, noise_level(step), self.power, self.channels)
        return super().reuse(state, step, seen)

    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        if (
            memo.seen is None
            or signal is None
            or not self.warm_up <= step.index < step.count - self.cool_down
            or memo.skipped >= self.max_consecutive
        ):
            return False
        memo.total += _mean_relative_l1(signal, memo.seen)
        return memo.total < self.threshold


def noise_level(step: Step) -> float:
    """The share of noise in [0, 1] at a step."""
    level = step.timestep / 1000.0 if step.sigma is None else step.sigma
    return level if level <= 1.0 else level / (1.0 + level)


def _mean_relative_l1(new: Tensor, old: Tensor) -> float:
    """Relative L1 of each row, relative to the older one, averaged over the rows."""
    if new.shape != old.shape:
        return float("inf")
    axes = tuple(range(1, new.ndim))
    change = (new.float() - old.float()).abs().mean(axes) / (old.float().abs().mean(axes) + 1e-16)
    return float(change.mean())

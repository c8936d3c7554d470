"""EasyCache [arXiv 2507.02860]: how strongly the output follows the input, measured while the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation, Predictor
from fastercache.policies.methods.dynamic import Dynamic, Memo, Threshold
from fastercache.policies.predictors.forecasts import Relative
from fastercache.policies.registry import register
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Branch, Kind, Run, Scope, Site, Step


@dataclass(slots=True)
class _Rate:
    """Input and output at the last computed step, the output's mean magnitude, and the rate k between the last two."""

    x: Tensor
    v: Tensor
    scale: float
    k: float | None

    @classmethod
    def after(cls, before: _Rate | None, x: Tensor, v: Tensor) -> _Rate:
        scale = max(float(v.abs().mean()), 1e-12)
        if before is None or before.x.shape != x.shape or before.v.shape != v.shape:
            return cls(x, v, scale, None)
        moved = float((x.float() - before.x.float()).abs().mean())
        return cls(x, v, scale, float((v - before.v).abs().mean()) / moved if moved > 0 else None)


@dataclass
class RateMemo(Memo):
    """With the rate at which the output follows the input."""

    rate: _Rate | None = None


@register
class EasyCache(Dynamic):
    """At each computed step k = mean|v - v_before| / mean|x - x_before|, v being the denoiser's output, x its input and
    "before" the computed step before; at every step E += k mean|x_t - x_{t-1}| / mean|v_computed|; reuse while
    E < `threshold`, from progress `start` on. The last step is computed. The conditional branch decides for all.

    Reused is the difference output - input, which needs both in one shape (`relative=False` holds the output itself).
    """

    name: ClassVar[str] = "easycache"
    citation: ClassVar[Citation] = Citation(
        "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching",
        "Zhou et al.",
        2025,
        "https://arxiv.org/abs/2507.02860",
        "the denoiser's output less its input, while the predicted change of the output is small",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"scope", "relative"})
    sites: str = Field(
        default="denoiser", description="site query: what is reused; by default the denoiser's whole output"
    )
    scope: Scope = Scope.COND
    off: ClassVar[Mapping[str, Any]] = {"threshold": 0.0}
    threshold: Threshold = Field(
        default=0.05,
        description=(
            "reused while the accumulated predicted change E of the output is below this, no unit (tau in the paper)"
        ),
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.2,
        description=(
            "everything is computed before this point of the run (progress, 0 to 1); the paper's warm-up R, which "
            "counts steps"
        ),
    )
    relative: bool = Field(
        default=True, description="true: output less input is reused, as in the paper; false: the output itself"
    )

    @property
    def signal(self) -> Signal:
        return Signal.INPUT

    def predictor(self, site: Site, run: Run) -> Predictor:
        relative = self.relative and site.kind is Kind.DENOISER
        return Relative(inner=self.stand_in) if relative else self.stand_in

    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        assert isinstance(memo, RateMemo)
        rate = memo.rate
        if rate is None or rate.k is None or memo.seen is None or signal is None or signal.shape != memo.seen.shape:
            return False
        memo.total += rate.k * float((signal.float() - memo.seen.float()).abs().mean()) / rate.scale
        return step.progress >= self.start and step.index < step.count - 1 and memo.total < self.threshold

    def begin(self, site: Site, branch: Branch, run: Run) -> Memo:
        return RateMemo()

    @property
    def remembers(self) -> int:
        return 6  # in single precision, which half precision's values take twice the room in

    def learn(self, memo: Memo, step: Step, value: Tensor) -> None:
        assert isinstance(memo, RateMemo)
        if memo.now is not None:
            memo.rate = _Rate.after(memo.rate, memo.now, value.float())

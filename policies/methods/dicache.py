"""DiCache [arXiv 2508.17356]: a shallow probe decides and aligns what is reused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation
from fastercache.policies.methods.dynamic import Dynamic, Memo, Threshold, relative_l1
from fastercache.policies.predictors.forecasts import Aligned
from fastercache.policies.registry import AnyPredictor, register
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Step


@register
class DiCache(Dynamic):
    """The first block is always computed, as a probe. The relative L1 change of its output from step to step is summed;
    the residual of the other blocks is reused while the sum is below `threshold`, from progress `start` on and not at
    the last step. `stack[m:]` makes the probe m blocks deep.

    The official code for Flux adds |change of the probe - change of its input| instead where told to, and clips the
    alignment at 1.5; here the probe's own change is summed and the limit is the predictor's (2).
    """

    name: ClassVar[str] = "dicache"
    citation: ClassVar[Citation] = Citation(
        "DiCache: Let Diffusion Model Determine Its Own Cache",
        "Bu et al.",
        2025,
        "https://arxiv.org/abs/2508.17356",
        "the residual of all blocks, aligned with a shallow probe",
    )
    sites: str = Field(
        default="stack[1:]",
        description="site query: what is reused; `stack[m:]` makes the probe m blocks deep (m in the paper)",
    )
    off: ClassVar[Mapping[str, Any]] = {"threshold": 0.0}
    threshold: Threshold = Field(
        default=0.1,
        description=(
            "reused while the probe's accumulated relative L1 change is below this, no unit (delta in the paper)"
        ),
    )
    start: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.2, description="everything is computed before this point of the run (progress, 0 to 1)"
    )
    stand_in: AnyPredictor = Field(
        default_factory=Aligned,
        description="predictor that stands in for a skipped value; by default aligned with the probe",
    )

    @property
    def signal(self) -> Signal:
        return Signal.PROBE

    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        if memo.seen is None or signal is None or step.progress < self.start or step.index == step.count - 1:
            return False
        memo.total += relative_l1(signal, memo.seen)
        return memo.total < self.threshold

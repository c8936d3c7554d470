"""What dynamic policies share: whose signal decides for whom, the memory of one decision maker, relative change.

A dynamic policy is made of three parts that can be exchanged: its rule (the class), the reused value (its `sites`) and
what stands in for it (`stand_in`). TeaCache's rule with a Taylor forecast is `TeaCache(stand_in=Taylor(order=1))`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Hold, Policy, Predictor
from fastercache.policies.registry import AnyPredictor
from fastercache.policies.vocabulary import Branch, Run, Scope, Signal, Site, Step


def relative_l1(new: Tensor, old: Tensor) -> float:
    """mean|new - old| / mean|old|: the denominator is the older value. Infinite for values of different shape.

    One number crosses over from the device, so a decision costs one synchronisation.
    """
    if new.shape != old.shape:
        return math.inf
    change = (new.float() - old.float()).abs().mean()
    ratio = float(change / old.float().abs().mean())
    if math.isnan(ratio):  # 0 / 0, or NaN in the values, which must not count as no change
        return 0.0 if float(change) == 0.0 else math.inf
    return ratio


@dataclass(slots=True)
class Memo:
    """What one decision maker (a site, and a branch or call) remembers.

    Attributes:
        total: what was accumulated since the last computed step.
        skipped: how many steps were reused since.
        computed: whether anything was computed yet.
        seen: the signal of the step before.
        anchor: the signal at the last computed step.
        now: the signal of this step.
        extra: what else a rule keeps.
    """

    total: float = 0.0
    skipped: int = 0
    computed: bool = False
    seen: Tensor | None = None
    anchor: Tensor | None = None
    now: Tensor | None = None
    extra: Any = None


class Dynamic(Policy):
    """Base of policies that decide while the model runs.

    Subclasses implement `judge`, and `learn` where computed values matter. A step whose reuse was vetoed, or had
    nothing to build on, is computed and counts as computed. `scope` says who decides for whom: each `branch` for
    itself, each `call` of the denoiser as a whole (both halves of a batched call together, as the published codes do),
    or the `cond` branch for all. A call with fewer branches than the one it is compared with is computed, so beside
    CFG-Cache let each branch decide.
    """

    unsearched: ClassVar[frozenset[str]] = frozenset({"scope"})
    sites: str = Field(default="stack", description="site query: what is reused; by default the residual of all blocks")
    scope: Scope = Field(
        default=Scope.CALL,
        description=(
            "who decides for whom: each `branch` for itself, each `call` as a whole, or the `cond` branch for all"
        ),
    )
    stand_in: AnyPredictor = Field(default_factory=Hold, description="predictor that stands in for a skipped value")

    @property
    def query(self) -> str:
        return self.sites

    @property
    def static(self) -> bool:
        return False

    @property
    def decides(self) -> Scope:
        return self.scope

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in

    def init(self, run: Run) -> dict[tuple[str, Branch], Memo]:
        return {}

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        memo: Memo = state.setdefault((site.name, branch), Memo())
        if memo.now is not None:
            memo.seen = memo.now
        memo.now = signal.clone() if signal is not None and self.signal is Signal.INPUT else signal
        if not self.judge(memo, step, memo.now):
            return False
        memo.skipped += 1
        return True

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        memo: Memo = state.setdefault((site.name, branch), Memo())
        self.learn(memo, step, value)
        memo.total, memo.skipped, memo.computed, memo.anchor = 0.0, 0, True, memo.now

    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        """Whether this step may be reused; asked at every step, so that rules can accumulate."""
        raise NotImplementedError(f"{type(self).__name__} must implement judge(memo, step, signal)")

    def learn(self, memo: Memo, step: Step, value: Tensor | None) -> None:
        """Called with each computed value, before the memo's counts are set back."""


Threshold = Annotated[float, Field(ge=0.0, le=1.0)]
"""Of a relative change, or a sum of some: published settings lie between 0.02 and 0.6."""

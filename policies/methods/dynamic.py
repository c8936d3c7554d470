"""What dynamic policies share: whose signal decides for whom, the memory of one decision maker, relative change.

A dynamic policy is made of three parts that can be exchanged: its rule (the class), the reused value (its `sites`) and
what stands in for it (`stand_in`). TeaCache's rule with a Taylor forecast is `TeaCache(stand_in=Taylor(order=1))`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Hold, Predictor, SitePolicy
from fastercache.policies.registry import AnyPredictor
from fastercache.policies.rules import WatchingRule
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Branch, Run, Scope, Site, Step


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


@dataclass
class Memo:
    """What one decision maker (a site, and a branch or call) remembers.

    Attributes:
        total: what was accumulated since the last computed step.
        skipped: how many steps were reused since.
        seen: the signal of the step before.
        anchor: the signal at the last computed step.
        now: the signal of this step.
    """

    total: float = 0.0
    skipped: int = 0
    seen: Tensor | None = None
    anchor: Tensor | None = None
    now: Tensor | None = None


class Scoped(SitePolicy):
    """Base of policies that decide while the model runs: what they watch and reuse, who decides for whom, and what
    stands in for a skipped value."""

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
    def decides(self) -> Scope:
        return self.scope

    def predictor(self, site: Site, run: Run) -> Predictor:
        return self.stand_in


class Dynamic(Scoped, WatchingRule[Memo]):
    """Base of policies that decide while the model runs.

    Subclasses implement `judge`, and `learn` where computed values matter. A step whose reuse was vetoed, or had
    nothing to build on, is computed and counts as computed. `scope` says who decides for whom: each `branch` for
    itself, each `call` of the denoiser as a whole (both halves of a batched call together, as the published codes do),
    or the `cond` branch for all. A call with fewer branches than the one it is compared with is computed, so beside
    CFG-Cache let each branch decide.
    """

    def begin(self, site: Site, branch: Branch, run: Run) -> Memo:
        return Memo()

    def reuse(self, state: Memo, step: Step, seen: Tensor | None) -> bool:
        if state.now is not None:
            state.seen = state.now
        state.now = seen.clone() if seen is not None and self.signal == Signal.INPUT else seen
        if not self.judge(state, step, state.now):
            return False
        state.skipped += 1
        return True

    def update(self, state: Memo, step: Step, value: Tensor) -> Memo:
        self.learn(state, step, value)
        state.total, state.skipped, state.anchor = 0.0, 0, state.now
        return state

    @abstractmethod
    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        """Whether this step may be reused; asked at every step, so that rules can accumulate."""

    def learn(self, memo: Memo, step: Step, value: Tensor) -> None:
        """Called with each computed value, before the memo's counts are set back."""


Threshold = Annotated[float, Field(ge=0.0, le=1.0)]
"""Of a relative change, or a sum of some: published settings lie between 0.02 and 0.6."""

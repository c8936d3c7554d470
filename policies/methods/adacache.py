"""AdaCache [arXiv 2411.02397] and BWCache [arXiv 2509.13789]: computed block values tell how long to reuse."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation
from fastercache.policies.errors import UnknownPolicy, suggest
from fastercache.policies.methods.dynamic import Scoped, Threshold, relative_l1
from fastercache.policies.registry import register
from fastercache.policies.rules import WatchingRule
from fastercache.policies.vocabulary import Branch, Run, Site, Step


@dataclass
class Watch:
    """What one decision maker knows of all its sites together.

    Attributes:
        changes: how much each site changed, at the newest computed step.
        step: that step's index; -1 before the first.
        until: the next step to be computed; those before it are reused.
        trigger: the step at which a rule that triggers once did.
    """

    changes: list[float] = field(default_factory=list)
    step: int = -1
    until: int = 0
    trigger: int | None = None


@dataclass(slots=True)
class Block:
    """One block: what its decision maker knows, its last computed value, and the index of the step of that."""

    watch: Watch
    step: int = -1
    value: Tensor | None = None


class BlockWatching(Scoped, WatchingRule[Block]):
    """Base of rules that look at how much the blocks changed from one computed step to the next. `scope`: who decides
    for whom, as in `Dynamic`."""

    sites: str = Field(default="block", description="site query: the blocks that are watched and reused")

    @property
    def signal(self) -> None:
        return None

    @property
    def remembers(self) -> int:
        return 1

    def begin(self, site: Site, branch: Branch, run: Run) -> Block:
        return Block(Watch())

    def begin_beside(self, first: Block, site: Site, branch: Branch, run: Run) -> Block:
        return Block(first.watch)

    def reuse(self, state: Block, step: Step, seen: Tensor | None) -> bool:
        watch = state.watch
        if watch.changes and step.index > watch.step:
            watch.until = self.due(watch, sum(watch.changes) / len(watch.changes), step.count)
            watch.changes = []
        return step.index < watch.until

    def update(self, state: Block, step: Step, value: Tensor) -> Block:
        watch = state.watch
        if step.index > watch.step:
            watch.step, watch.changes = step.index, []
        if state.value is not None and step.index > state.step:
            watch.changes.append(self.change(value, state.value, step.index - state.step))
        return Block(watch, step.index, value)

    def change(self, new: Tensor, old: Tensor, gap: int) -> float:
        """How much one block changed over `gap` steps."""
        return relative_l1(new, old)

    @abstractmethod
    def due(self, watch: Watch, mean: float, count: int) -> int:
        """Index of the next step to compute in a run of `count`, the blocks having changed by `mean` on average."""


Codebook = tuple[tuple[float, int], ...]
FAST: Codebook = ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3))
CODEBOOKS: dict[str, Codebook] = {
    "open-sora-100": FAST,
    "open-sora-30-fast": ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1)),
    "open-sora-30-slow": ((0.08, 3), (0.16, 2), (0.24, 1), (0.32, 1), (0.40, 1), (1.0, 1)),
}
"""The published codebooks, by model and number of steps."""


@register
class AdaCache(BlockWatching):
    """c = relL1(residual, cached residual) / gap, averaged over the blocks, relative to the cached one; the `codebook`
    maps c to the distance of the next computed step: the first entry whose bound is above c / `scale`, else the last.
    The first two and the last `cool_down` steps are computed.

    Rule, codebooks and the last two steps are those of a copy of the official code (github.com/ChloeMVan/AdaCache, for
    Open-Sora). It watches one layer's temporal attention, the 14th of 28; here all blocks are averaged. Its motion
    regularisation, a factor on c of (m / 0.385)^8 plus its rate of change, m being how much the residual differs from
    frame to frame, is not part of this. `scale` adapts a codebook to another model.
    """

    name: ClassVar[str] = "adacache"
    citation: ClassVar[Citation] = Citation(
        "Adaptive Caching for Faster Video Generation with Diffusion Transformers",
        "Kahatapitiya et al.",
        2024,
        "https://arxiv.org/abs/2411.02397",
        "every block's residual, for as long as a codebook gives for its rate of change",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"scope", "codebook", "cool_down"})
    codebook: Codebook = Field(
        default=FAST,
        min_length=1,
        description="pairs (bound on the change per step, distance of the next computed step in steps), bounds rising",
    )
    scale: Annotated[float, Field(ge=0.1, le=10.0)] = Field(
        default=1.0, description="factor on the codebook's bounds, no unit; above 1 reuses more"
    )
    cool_down: Annotated[int, Field(ge=0, le=20)] = Field(
        default=2, description="how many steps at the end are computed"
    )

    def change(self, new: Tensor, old: Tensor, gap: int) -> float:
        return relative_l1(new, old) / gap

    def due(self, watch: Watch, mean: float, count: int) -> int:
        gap = next((gap for bound, gap in self.codebook if mean < bound * self.scale), self.codebook[-1][1])
        return min(watch.step + gap, count - self.cool_down)

    @classmethod
    def published(cls, name: str, **fields: Any) -> AdaCache:
        """With a published codebook. Raises UnknownPolicy, naming those there are."""
        if name not in CODEBOOKS:
            raise UnknownPolicy(f"AdaCache has no published codebook '{name}'{suggest(name, CODEBOOKS)}")
        return cls(codebook=CODEBOOKS[name], **fields)


@register
class BWCache(BlockWatching):
    """Once the blocks changed by less than `threshold` from one step to the next, averaged over the blocks, all of them
    are reused for a share `rest` of the run's steps (at least one), computed once, reused again, and so on; of the
    steps that were left at that moment, a share `tail` at the end is computed.

    Rule and defaults are the paper's, as a published summary gives them (2509.13789, ICLR 2026); the code was not at
    hand. A re-implementation of the official code differs: it watches the modulated input of each block's attention
    where the paper compares what blocks put out, and its tail is half of the steps done before the trigger. Here a
    block's value is what it adds.
    """

    name: ClassVar[str] = "bwcache"
    citation: ClassVar[Citation] = Citation(
        "BWCache: Accelerating Video Diffusion Transformers through Block-Wise Caching",
        "Cui et al.",
        2025,
        "https://arxiv.org/abs/2509.13789",
        "every block, periodically from the step on at which all changed little",
    )
    off: ClassVar[Mapping[str, Any]] = {"threshold": 0.0}
    threshold: Threshold = Field(
        default=0.15,
        description=(
            "reuse begins once the blocks changed by less than this from one step to the next, as a relative L1 change"
        ),
    )
    rest: Annotated[float, Field(ge=0.01, le=0.5)] = Field(
        default=0.1, description="how long the blocks are reused at a time, as a share of the run's steps"
    )
    tail: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.5, description="share of the steps left when reuse begins that are computed at the end, 0 to 1"
    )

    def due(self, watch: Watch, mean: float, count: int) -> int:
        if watch.trigger is None and mean < self.threshold:
            watch.trigger = watch.step
        if watch.trigger is None:
            return watch.step + 1
        left = count - 1 - watch.trigger
        return min(watch.step + 1 + max(round(self.rest * count), 1), count - math.ceil(self.tail * left))

"""AdaCache [arXiv 2411.02397] and BWCache [arXiv 2509.13789]: computed block values tell how long to reuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from policies.base import Citation
from policies.dynamic import Dynamic, Threshold, relative_l1
from policies.registry import register
from policies.vocabulary import Branch, Run, Site, Step


@dataclass
class _Watch:
    """One decision maker over all its sites: their last values, their changes at the newest computed step."""

    values: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)
    step: int = -1
    until: int = 0  # reuse while the index is below this


class BlockWatching(Dynamic):
    """Base of rules that look at how much the blocks changed from one computed step to the next."""

    sites: str = "block"

    def init(self, run: Run) -> dict[Branch, _Watch]:  # type: ignore[override]  # one memory for all sites
        return {}

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        watch: _Watch = state.setdefault(branch, _Watch())
        if watch.changes and step.index > watch.step:
            mean = sum(watch.changes) / len(watch.changes)
            watch.until = watch.step + 1 + self.rest(mean)
            watch.changes = []
        return step.index < watch.until

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        watch: _Watch = state.setdefault(branch, _Watch())
        if step.index > watch.step:
            watch.step, watch.changes = step.index, []
        if value is None:
            return
        before = watch.values.get(site.name)
        if before is not None and step.index > before[0]:
            watch.changes.append(self.change(value, before[1], step.index - before[0]))
        watch.values[site.name] = (step.index, value)

    def change(self, new: Tensor, old: Tensor, gap: int) -> float:
        """How much one block changed over `gap` steps."""
        return relative_l1(new, old)

    def rest(self, mean: float) -> int:
        """How many steps to reuse after a step at which the blocks changed by `mean` on average."""
        raise NotImplementedError(f"{type(self).__name__} must implement rest(mean)")


FAST = ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3))


@register
class AdaCache(BlockWatching):
    """c = relL1(residual, cached residual) / gap, averaged over the blocks, relative to the cached one; the `codebook`
    maps c to the distance of the next computed step: the first entry whose bound is above c / `scale`, else 1.

    The default codebook is recalled from the official code for Open-Sora at 100 steps, not confirmed; `scale` adapts it
    to another model. The method's motion regularisation is not part of this.
    """

    name: ClassVar[str] = "adacache"
    citation: ClassVar[Citation] = Citation(
        "Adaptive Caching for Faster Video Generation with Diffusion Transformers",
        "Kahatapitiya et al.",
        2024,
        "https://arxiv.org/abs/2411.02397",
        "every block's residual, for as long as a codebook gives for its rate of change",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"scope", "codebook"})
    codebook: tuple[tuple[float, int], ...] = Field(default=FAST, min_length=1)
    scale: Annotated[float, Field(ge=0.1, le=10.0)] = 1.0

    def change(self, new: Tensor, old: Tensor, gap: int) -> float:
        return relative_l1(new, old) / gap

    def rest(self, mean: float) -> int:
        return next((gap for bound, gap in self.codebook if mean < bound * self.scale), 1) - 1


@register
class BWCache(BlockWatching):
    """If the blocks changed by less than `threshold` from one step to the next, averaged over the blocks, all of them
    are reused for the next `rest_steps` steps; then at least two steps are computed, so that the change is known again.

    What a block's value is differs: the paper compares block outputs, here it is what the block adds. Known only second
    hand, without the paper's code.
    """

    name: ClassVar[str] = "bwcache"
    citation: ClassVar[Citation] = Citation(
        "BWCache: Accelerating Video Diffusion Transformers through Block-Wise Caching",
        "Cui et al.",
        2025,
        "https://arxiv.org/abs/2509.13789",
        "every block, for a fixed number of steps once all changed little",
    )
    threshold: Threshold = 0.1
    rest_steps: Annotated[int, Field(ge=1, le=12)] = 3

    def change(self, new: Tensor, old: Tensor, gap: int) -> float:
        return relative_l1(new, old) if gap == 1 else float("inf")

    def rest(self, mean: float) -> int:
        return self.rest_steps if mean < self.threshold else 0

"""First-block cache (ParaAttention) and its generalisation, the dual-block cache (cache-dit)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation
from fastercache.policies.methods.dynamic import Dynamic, Memo, Threshold, relative_l1
from fastercache.policies.registry import register
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Step


@register
class FirstBlockCache(Dynamic):
    """The first block is always computed. While its residual differs from that at the last computed step by less than
    `threshold`, mean|r - r_computed| / mean|r_computed|, the residual of the remaining blocks is reused.
    """

    name: ClassVar[str] = "first_block_cache"
    citation: ClassVar[Citation] = Citation(
        "ParaAttention: context parallel attention with a first block cache",
        "Cheng",
        2024,
        "https://github.com/chengzeyi/ParaAttention",
        "the residual of the blocks after the first, while the first block's residual is near its last computed one",
    )
    sites: str = Field(
        default="stack[1:]",
        description="site query: what is reused; by default the residual of all blocks after the first",
    )
    off: ClassVar[Mapping[str, Any]] = {"threshold": 0.0}
    threshold: Threshold = Field(
        default=0.08,
        description="reused while the first block's residual changed by less than this, as a relative L1 change",
    )

    @property
    def signal(self) -> Signal:
        return Signal.FIRST_BLOCK_RESIDUAL

    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        if memo.anchor is None or signal is None:
            return False
        return relative_l1(signal, memo.anchor) < self.threshold


@register
class DualBlockCache(Dynamic):
    """As FirstBlockCache over the first `front` blocks, with the last `back` blocks always computed, `warm_up` steps
    at the start computed, and at most `max_consecutive` reuses in a row. FnBn in cache-dit's names.
    """

    name: ClassVar[str] = "dual_block_cache"
    citation: ClassVar[Citation] = Citation(
        "cache-dit: a unified, flexible and training-free cache acceleration framework for diffusion transformers",
        "DefTruth, vipshop.com et al.",
        2025,
        "https://github.com/vipshop/cache-dit",
        "the residual of the middle blocks, while the first blocks' residual is near its last computed one",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"scope", "sites"})
    sites: str = Field(
        default="",
        description="site query: what is reused; empty: the residual of the blocks between `front` and `back`",
    )
    off: ClassVar[Mapping[str, Any]] = {"threshold": 0.0}
    threshold: Threshold = Field(
        default=0.08,
        description="reused while the front blocks' residual changed by less than this, as a relative L1 change",
    )
    front: Annotated[int, Field(ge=1, le=8)] = Field(
        default=1,
        description="how many blocks at the front are always computed and watched (Fn in cache-dit)",
    )
    back: Annotated[int, Field(ge=0, le=8)] = Field(
        default=0, description="how many blocks at the back are always computed (Bn in cache-dit)"
    )
    warm_up: Annotated[int, Field(ge=0, le=20)] = Field(
        default=4, description="how many steps at the start are computed (W in cache-dit)"
    )
    max_consecutive: Annotated[int, Field(ge=1, le=20)] = Field(
        default=4, description="how many steps may be reused in a row (MC in cache-dit)"
    )

    @property
    def query(self) -> str:
        return self.sites or f"stack[{self.front}:{-self.back or ''}]"

    @property
    def signal(self) -> Signal:
        return Signal.FIRST_BLOCK_RESIDUAL

    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        if memo.anchor is None or signal is None or step.index < self.warm_up or memo.skipped >= self.max_consecutive:
            return False
        return relative_l1(signal, memo.anchor) < self.threshold

"""DeepCache [arXiv 2312.00858]: what lies deep in the network, 1 in N, in U-Nets and in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from fastercache.policies.base import Citation
from fastercache.policies.methods.static_interval import SiteInterval
from fastercache.policies.registry import register
from fastercache.policies.vocabulary import Kind, Site, select


@register
class DeepCache(SiteInterval):
    """The deep features are computed each `interval`-th step (1:N) and held in between; the `depth` outermost blocks at
    either end are computed at every step, and so still see its input.

    In a U-Net these are the outer resolution levels, down and up: what the first reused up block put out is held, and
    nothing between it and the down blocks runs. The published code cuts inside a level, at any of its layers
    (`cache_branch_id`); here whole levels are kept. In a transformer, for which the method was not published, the
    residual of the blocks between the outer ones is held. `sites` says otherwise what is deep: `block[2:-1]`.
    """

    name: ClassVar[str] = "deepcache"
    citation: ClassVar[Citation] = Citation(
        "DeepCache: Accelerating Diffusion Models for Free",
        "Ma et al.",
        2023,
        "https://arxiv.org/abs/2312.00858",
        "the deep levels of a U-Net, or the inner blocks of a transformer, held",
    )
    unsearched: ClassVar[frozenset[str]] = SiteInterval.unsearched | {"sites"}
    sites: str = Field(
        default="",
        description="site query: what counts as deep; empty: the blocks between the `depth` outer ones at either end",
    )
    interval: Annotated[int, Field(ge=1, le=12)] = Field(
        default=3, description="the deep part is computed every this many steps (N in the paper)"
    )
    depth: Annotated[int, Field(ge=1, le=8)] = Field(
        default=1,
        description="how many blocks (U-Net: levels) at either end are always computed; the paper's branch",
    )

    @property
    def query(self) -> str:
        return self.sites or f"stack[{self.depth}:-{self.depth}]"

    def where(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        # A U-Net has no stack: its blocks change resolution and hand each other skips, so there is no one residual.
        levels = not self.sites and not any(site.kind is Kind.STACK for site in sites)
        return select(f"block[{self.depth}:-{self.depth}]" if levels else self.query, sites)

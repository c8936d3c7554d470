"""DeepCache [arXiv 2312.00858] for transformers: the blocks between the first and the last, 1 in N."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from policies.base import Citation
from policies.registry import register
from policies.static_interval import SiteInterval


@register
class DeepCache(SiteInterval):
    """The residual of the deep blocks is computed each `interval`-th step (1:N) and held in between.

    Published for U-Nets, whose deep features are the inner levels; in a transformer the blocks between the first and
    the last take their place. `sites` may be any run of blocks, `stack[2:-2]`, or blocks by name.
    """

    name: ClassVar[str] = "deepcache"
    citation: ClassVar[Citation] = Citation(
        "DeepCache: Accelerating Diffusion Models for Free",
        "Ma et al.",
        2023,
        "https://arxiv.org/abs/2312.00858",
        "the residual of the deep blocks, held",
    )
    sites: str = "stack[1:-1]"
    interval: Annotated[int, Field(ge=1, le=12)] = 3

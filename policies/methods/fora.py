"""FORA [arXiv 2407.01425]: attention and feed-forward outputs at a fixed interval."""

from __future__ import annotations

from typing import ClassVar

from fastercache.policies.base import Citation
from fastercache.policies.methods.static_interval import SiteInterval
from fastercache.policies.registry import register


@register
class FORA(SiteInterval):
    """Every attention and feed-forward output is computed each `interval`-th step and held in between."""

    name: ClassVar[str] = "fora"
    citation: ClassVar[Citation] = Citation(
        "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration",
        "Selvaraju et al.",
        2024,
        "https://arxiv.org/abs/2407.01425",
        "every attention and feed-forward output, held at a fixed interval",
    )
    sites: str = "all"

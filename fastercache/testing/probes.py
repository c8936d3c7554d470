"""Policies that together reach every kind of site a model has; what the families table is made with."""

from __future__ import annotations

from typing import Any

from fastercache.attachment import find_sites
from fastercache.policies.base import Policy
from fastercache.policies.compose import Compose
from fastercache.policies.methods.dynamic_reuse import DynamicReuse
from fastercache.policies.methods.faster_cache import FasterCache
from fastercache.policies.methods.static_interval import StaticInterval
from fastercache.policies.vocabulary import Kind


def fine(pipe: Any) -> Policy:
    """Attention extrapolated, feed-forwards held and the unconditional branch predicted, from the first step on.

    Pipelines with perturbed-attention guidance cannot leave a branch out of a call, so there no branch is predicted.
    """
    held = StaticInterval(sites="ff", interval=3)
    if hasattr(type(pipe), "do_perturbed_attention_guidance"):
        return Compose([DynamicReuse(start=0.0), held])
    return Compose([FasterCache(start=0.0, cfg_start=0.0, cfg_interval=3), held])


def coarse(pipe: Any) -> Policy:
    """Blocks, a stack where the model has one, and the whole denoiser, at intervals that leave each some reuses."""
    parts: list[Policy] = [
        StaticInterval(sites="denoiser", interval=4, offset=2, start=0.6),
        StaticInterval(sites="block", interval=2),
    ]
    if any(site.kind is Kind.STACK for site in find_sites(pipe)):
        parts.append(StaticInterval(sites="stack[1:]", interval=3, offset=0))
    return Compose(parts)

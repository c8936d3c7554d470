"""Policies that together reach every kind of site a model has; what the families table is made with."""

from __future__ import annotations

from typing import Any

from fastercache.attachment import attach, denoisers_of, find_sites
from fastercache.model.families import family_of
from fastercache.policies.base import Policy
from fastercache.policies.compose import Compose
from fastercache.policies.errors import AttachError
from fastercache.policies.methods.dynamic_reuse import DynamicReuse
from fastercache.policies.methods.faster_cache import FasterCache
from fastercache.policies.methods.static_interval import StaticInterval
from fastercache.policies.vocabulary import Kind, Role
from fastercache.zoo.specimen import Specimen


def fine(specimen: Specimen) -> Policy:
    """Attention extrapolated, feed-forwards held and the unconditional branch predicted, from the first step on.

    Where no branch can be left out of a call (perturbed attention, rows along another axis), or CFG-Cache refuses the
    denoiser's output, none is predicted.
    """
    pipe = specimen.pipe
    guided = FasterCache(start=0.0, cfg_start=0.0, cfg_interval=3)
    whole = hasattr(type(pipe), "do_perturbed_attention_guidance") or _inseparable(pipe) or _refused(guided, specimen)
    first = DynamicReuse(start=0.0) if whole else guided
    if not any(site.role is Role.FF for site in find_sites(pipe)):
        return first
    return Compose([first, StaticInterval(sites="ff", interval=3)])


def _refused(policy: Policy, specimen: Specimen) -> bool:
    """Whether this model has something that the policy cannot work with, as packed tokens of unknown height."""
    with attach(specimen.pipe, policy):
        try:
            specimen.generate(steps=2)
        except AttachError:
            return True
    return False


def coarse(specimen: Specimen) -> Policy:
    """Blocks, a stack where the model has one, and the whole denoiser where its output is one tensor, at intervals that
    leave each some reuses."""
    pipe = specimen.pipe
    parts: list[Policy] = [StaticInterval(sites="block", interval=2)]
    if not _inseparable(pipe):
        parts.append(StaticInterval(sites="denoiser", interval=4, offset=2, start=0.6))
    if any(site.kind is Kind.STACK for site in find_sites(pipe)):
        parts.append(StaticInterval(sites="stack[1:]", interval=3, offset=0))
    return Compose(parts)


def _inseparable(pipe: Any) -> bool:
    family = family_of(denoisers_of(pipe)[0][1])
    return family is not None and family.inseparable

"""`attach`: the one way in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastercache.applied import Applied, Source
from fastercache.model.families import COMPONENTS, Guidance, family_of
from fastercache.model.finder import find_denoiser_sites
from fastercache.model.hooks import hooks_on, is_hooked
from fastercache.picking import Pick
from fastercache.policies.errors import AttachError
from fastercache.policies.vocabulary import Branch, Site
from fastercache.session import Session


def denoisers_of(target: Any) -> list[tuple[str, nn.Module]]:
    """The denoisers of a pipeline, with the prefix of each one's site names; or the module itself.

    Raises:
        AttachError: if the target is neither a pipeline with a denoiser nor a module.
    """
    if isinstance(target, nn.Module):
        return [("", target)]
    found = [(name, getattr(target, name)) for name in COMPONENTS if isinstance(getattr(target, name, None), nn.Module)]
    if not found:
        raise AttachError(
            f"{type(target).__name__} is no pipeline with a denoiser: expected one of the components "
            f"{', '.join(COMPONENTS)}, or a torch module"
        )
    return [(f"{name}/" if len(found) > 1 else "", module) for name, module in found]


def find_sites(target: Any) -> tuple[Site, ...]:
    """Every site of a pipeline or denoiser, without attaching."""
    sites: list[Site] = []
    for prefix, module in denoisers_of(target):
        family = family_of(module)
        branches = family is None or len(family.order) > 1 or family.true_cfg
        sites.extend(find_denoiser_sites(module, prefix, branches=branches))
    return tuple(sites)


def detach(target: Any) -> int:
    """End every session on a pipeline's denoisers, or on a module, whoever holds it. Returns how many there were.

    For a session whose variable is lost, as after a notebook's cell ran twice.

    Raises:
        AttachError: if the target is neither a pipeline with a denoiser nor a module.
    """
    ended = 0
    for _, module in denoisers_of(target):
        for hook in [hook for part in module.modules() for hook in hooks_on(part)]:
            if hook.owner is not None and hook.owner.attached:
                hook.owner.detach()
                ended += 1
    return ended


def attach(
    target: Any,
    policy: Source,
    *,
    speedup: float | None = None,
    budget: str | None = None,
    quality: str | None = None,
    guidance: Guidance | None = None,
    branches: Sequence[Branch] | None = None,
    cache_dtype: torch.dtype | None = None,
    cache_device: str | torch.device | None = None,
    max_cache_bytes: int | None = None,
    keep_traces: int = 8,
    allow: frozenset[str] | set[str] = frozenset(),
) -> Session:
    """Attach a policy to a diffusers pipeline or a bare denoiser.

    >>> with attach(pipe, FasterCache()) as session:                                      # doctest: +SKIP
    ...     video = pipe("a red seven moving left").frames
    >>> print(session.summary())                                                          # doctest: +SKIP

    Args:
        target: a pipeline, or its denoiser when the sampling loop is your own (then call `session.start(timesteps)`).
        policy: a policy, a tuned config or a dial, or the path of one of these.
        speedup, budget, quality: one of them picks a plan of a dial: the slowest that is at least so fast, the fastest
            whose measured quality keeps a budget (`psnr>=45`), or one by a word (`high`, `medium`, `low`), see
            `Dial.pick`.
        guidance: how the loop calls the denoiser: `batched` (both halves in one call), `separate` or `none`. Known for
            the pipelines of the families table; needed for other models and other loops.
        branches: the guidance branches in the order of a batched call's rows or of a step's calls, where the loop has
            others than the family's two: `("uncond", "cond", "perturbed")`. One of them must be `cond`.
        cache_dtype: store cached values in this dtype instead of their own.
        cache_device: store cached values on this device instead of their own.
        max_cache_bytes: refuse a run that would cache more than this, before it starts.
        keep_traces: how many of the newest runs' traces the session keeps, at least one.
        allow: for a tuned config, the differences to accept: `model`, `scheduler`, `steps`, `guidance`.

    Raises:
        AttachError: the target has no denoiser, or has a session attached already; or keep_traces is below 1.
        NoSiteMatched: the policy's site query matches nothing.
        BranchUnknown: the guidance style is not known and was not given.
        ConfigMismatch: the tuned config was made for something else.
        ConfigUnreadable, InvalidBudget, BudgetNotMet: a file cannot be read, or no plan of a dial can be picked so.
        CacheTooLarge: when a run starts, if it would cache more than `max_cache_bytes`.
    """
    applied = Applied.of(target, policy, pick=Pick(speedup, budget, quality), allow=allow)
    if keep_traces < 1:
        raise AttachError(f"keep_traces must be at least 1, found {keep_traces}")
    denoisers = denoisers_of(target)
    for _, module in denoisers:
        if hasattr(vars(module).get("forward"), "plan"):
            raise AttachError(
                f"{type(module).__name__} has an exported plan attached already: call what its attach returned first"
            )
        if any(is_hooked(m) for m in module.modules()):
            raise AttachError(
                f"{type(module).__name__} has a session attached already: detach that first (where it is lost, with "
                "fastercache.detach(...)), or swap its policy with session.use(policy)"
            )
    return Session(
        denoisers,
        None if isinstance(target, nn.Module) else target,
        applied,
        guidance=guidance,
        branches=branches,
        cache_dtype=cache_dtype,
        cache_device=cache_device,
        max_cache_bytes=max_cache_bytes,
        keep_traces=keep_traces,
    )

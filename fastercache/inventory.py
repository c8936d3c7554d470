"""What of a denoiser can be reused, what it costs, and what belongs to no site: read off one denoiser call."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastercache.attachment import denoisers_of
from fastercache.model.families import family_of
from fastercache.model.finder import find_blocks, find_denoiser_sites
from fastercache.model.flops import flop_counter
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.vocabulary import Kind, Site


class _Seen(Exception):
    """Stops a run once a denoiser call has been counted."""


@dataclass(frozen=True)
class Part:
    """Modules at one place, of one block or of each block of a list.

    Attributes:
        pattern: their path, block numbers written as `*`.
        kind: their class.
        count: how many there are.
        flops: what they cost together in one denoiser call.
        parameters: how many they have together.
    """

    pattern: str
    kind: str
    count: int
    flops: int
    parameters: int


@dataclass(frozen=True)
class Inventory:
    """One denoiser.

    Attributes:
        prefix: of its site names.
        denoiser: its class.
        known: whether the families table lists it; its sites are found by structure otherwise.
        sites: every site.
        flops: of one denoiser call; None where none could be made.
        site_flops: the same for each site, by name; a branch is its share of a batched call, or a call of its own. That
            of an unknown class is not known.
        rest: parts that belong to no attention, feed-forward or block site, the costliest first: always computed,
            unless an outer site is reused.
    """

    prefix: str
    denoiser: str
    known: bool
    sites: tuple[Site, ...]
    flops: int | None
    site_flops: dict[str, int]
    rest: tuple[Part, ...]


def take_inventory(target: Any, run: Callable[[], Any] | None = None) -> list[Inventory]:
    """The inventory of each denoiser of a pipeline, or of a bare denoiser.

    Args:
        target: a pipeline or a denoiser.
        run: calls the target once; it is stopped at its first denoiser call, which is counted. Without it nothing is
            run and parts are told by their parameters alone.

    Raises:
        FasterCacheError: if `run` ends without calling a denoiser.
    """
    denoisers = denoisers_of(target)
    counts = {} if run is None else _count(denoisers, run)
    return [_inventory(prefix, module, counts.get(prefix)) for prefix, module in denoisers]


def _count(denoisers: list[tuple[str, nn.Module]], run: Callable[[], Any]) -> dict[str, dict[str, int]]:
    """FLOPs by module path of the first denoiser call; a second denoiser of the same class gets the same call."""
    counts: dict[str, dict[str, int]] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for handle in handles:
            handle.remove()
        for prefix, other in denoisers:
            if type(other) is type(module):
                with torch.no_grad(), flop_counter() as counter:
                    other(*args, **kwargs)
                name = type(other).__name__
                found = {path: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
                counts[prefix] = {p.removeprefix(name).lstrip("."): n for p, n in found.items() if p != "Global"}
        raise _Seen

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for _, module in denoisers]
    try:
        run()
    except _Seen:
        return counts
    finally:
        for handle in handles:
            handle.remove()
    raise FasterCacheError("the run called no denoiser, so nothing could be counted: let it take at least one step")


def _inventory(prefix: str, module: nn.Module, counts: dict[str, int] | None) -> Inventory:
    family = family_of(module)
    branches = family is None or len(family.order) > 1 or family.true_cfg
    sites = find_denoiser_sites(module, prefix, branches=branches)
    total = None if counts is None else counts.get("", 0)
    flops: dict[str, int] = {}
    if counts is not None:
        for site in sites:
            if site.kind in (Kind.MODULE, Kind.BLOCK):
                flops[site.name] = counts.get(site.name.removeprefix(prefix), 0)
            elif site.kind is Kind.STACK:
                flops[site.name] = sum(counts.get(block.path, 0) for block in find_blocks(module))
            elif site.kind is Kind.DENOISER:
                flops[site.name] = counts.get("", 0)
            elif family is not None:
                flops[site.name] = counts.get("", 0) // (len(family.order) if family.guidance == "batched" else 1)
    taken = {site.name.removeprefix(prefix) for site in sites if site.kind is Kind.MODULE}
    rest = _group(_leftovers(module, "", taken), counts or {})
    return Inventory(prefix, type(module).__name__, family is not None, sites, total, flops, rest)


def _leftovers(module: nn.Module, path: str, taken: set[str]) -> list[tuple[str, nn.Module]]:
    """The largest modules that neither are a site, nor hold one, nor lie in one."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if here in taken:
            continue
        if any(site.startswith(f"{here}.") for site in taken):
            found += _leftovers(child, here, taken)
        else:
            found.append((here, child))
    return found


def _group(parts: list[tuple[str, nn.Module]], counts: dict[str, int]) -> tuple[Part, ...]:
    """The parts that cost anything, those of a block list's members together."""
    groups: dict[tuple[str, str], list[tuple[str, nn.Module]]] = {}
    for path, module in parts:
        key = (re.sub(r"\.\d+(?=\.|$)", ".*", path), type(module).__name__)
        groups.setdefault(key, []).append((path, module))
    found = [
        Part(
            pattern,
            kind,
            len(members),
            sum(counts.get(path, 0) for path, _ in members),
            sum(p.numel() for _, module in members for p in module.parameters()),
        )
        for (pattern, kind), members in groups.items()
    ]
    kept = [part for part in found if part.flops or part.parameters]
    return tuple(sorted(kept, key=lambda part: (-part.flops, -part.parameters)))

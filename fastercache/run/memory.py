"""Cached bytes before the run: a static plan's stores and releases played through without any values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fastercache.policies.base import Assigned
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.rules import WatchingRule
from fastercache.policies.schedule import Code, Table
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import COND, OUTER, Branch, Kind, Site, Step
from fastercache.run.plan import RunPlan
from fastercache.run.store import History

Shape = tuple[tuple[int, ...], torch.dtype]


class CacheTooLarge(FasterCacheError):
    """A policy would hold, or held, more bytes than `max_cache_bytes`.

    Symptom: The run is refused before its first step, with the bytes it would need and the largest sites; a policy
        that decides at run time may be stopped on the way.
    Cause: Attention reuse keeps one or two outputs of every layer and branch.
    Fix: Narrow the sites, set `cache_dtype` or `cache_device`, or raise the limit. Plans of whole steps hold a few
        outputs only.
    """


@dataclass(frozen=True)
class MemoryPlan:
    """Cached bytes of a run.

    Attributes:
        per_step: bytes held at the end of each step; an upper bound unless `exact`.
        by_site: the most bytes each site holds at the end of any step.
        exact: whether these are the bytes a run will hold, or a bound: of a dynamic policy, and of a module that
            returns one tensor twice, as a UNet's block does. All calls of the run are taken to have the first one's
            shapes.
    """

    per_step: list[int]
    by_site: dict[str, int]
    exact: bool

    @property
    def peak(self) -> int:
        return max(self.per_step, default=0)

    def check(self, limit: int | None) -> None:
        """Raises CacheTooLarge if the peak is above `limit` bytes."""
        if limit is None or self.peak <= limit:
            return
        largest = sorted(self.by_site.items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"{name} {_mib(size)}" for name, size in largest)
        raise CacheTooLarge(
            f"this policy caches up to {_mib(self.peak)}, more than max_cache_bytes={limit} ({_mib(limit)}); "
            f"most of it at {named}: narrow its sites, set cache_dtype or cache_device, or raise the limit"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


@dataclass(frozen=True)
class ValueShapes:
    """One branch's rows of what a predictor is given: a site's value, and the denoiser's input.

    `repeated`: whether a site's value holds one tensor in two places, which may then be kept once.
    """

    values: Callable[[Site], list[Shape]]
    input: Shape
    repeated: Callable[[Site], bool] = lambda site: False

    def seen(self, site: Site, signal: Signal | None) -> Shape | None:
        """Of a signal, None for none: hidden states have the shape of the site's first value."""
        if signal is None:
            return None
        if signal.function is not None:
            found = signal.value(lambda source: _empty(self._seen(site, source), 1))
            return tuple(found.shape), found.dtype
        return self._seen(site, signal)

    def _seen(self, site: Site, signal: Signal) -> Shape:
        return self.input if signal == Signal.INPUT else self.values(site)[0]


def plan_static(
    table: Table,
    shapes: ValueShapes,
    calls: Sequence[tuple[Branch, ...]],
    dtype: torch.dtype | None,
    cond_last: bool = False,
) -> MemoryPlan:
    """Play a compiled table through real histories of tensors without storage content (the `meta` device).

    `calls`: the branches of each denoiser call of a step. `cond_last`: whether the conditional one comes after another,
    which is then predicted from the conditional output of the step before.
    """
    count, order = table.run.count, table.run.branches
    per_step = [0] * count
    by_site: dict[str, int] = {}
    reads = table.reads()
    for s, (site, predictor) in enumerate(zip(table.sites, table.predictors, strict=True)):
        by_site[site.name] = 0
        if not table.reuses(s):
            continue
        history = History(predictor, dtype, seen_by_first=site.kind in OUTER)
        one, seen = shapes.values(site), shapes.seen(site, predictor.needs)
        last = dict(zip(order, reads[s], strict=True))
        codes = dict(zip(order, table.codes[s].tolist(), strict=True))
        # A branch's difference is always stored alone; other values of one call share an entry.
        groups = calls if site.kind is not Kind.BRANCH else [(b,) for b in order]
        for i in range(count):
            for group in groups:
                kept = tuple(b for b in group if codes[b][i] == Code.COMPUTED and i in last[b])
                if kept:
                    values = [_empty(shape, len(kept)) for shape in one]
                    given = None if seen is None else _empty(seen, len(kept))
                    history.add(table.run.steps[i], kept, values, own=True, seen=given)
            history.release(partial(_unread, last, i))
            held = history.nbytes
            if cond_last and site.kind is Kind.BRANCH and any(codes[b][i + 1 : i + 2] == [Code.REUSED] for b in order):
                held += _conditional(shapes, site)
            per_step[i] += held
            by_site[site.name] = max(by_site[site.name], held)
    shared = any(shapes.repeated(site) for s, site in enumerate(table.sites) if table.reuses(s))
    return MemoryPlan(per_step, by_site, exact=not shared)


def bound_dynamic(
    assigned: Mapping[Site, Assigned],
    branches: tuple[Branch, ...],
    shapes: ValueShapes,
    dtype: torch.dtype | None,
    count: int,
    cond_last: bool = False,
) -> MemoryPlan:
    """What a dynamic policy can hold at most: at every site and branch its predictor's whole past, and as many watched
    or computed values as its rule says that it remembers."""
    by_site = {}
    for site, one in assigned.items():
        predictor = one.predictor
        history = History(predictor, dtype, seen_by_first=site.kind in OUTER)
        seen = shapes.seen(site, predictor.needs)
        values = [_empty(shape, 1) for shape in shapes.values(site)]
        history.add(Step(0, count, 0.0), (COND,), values, own=True, seen=None if seen is None else _empty(seen, 1))
        others = len(branches) - 1 if site.kind is Kind.BRANCH else len(branches)
        by_site[site.name] = history.nbytes * predictor.depth * others
        if cond_last and site.kind is Kind.BRANCH:
            by_site[site.name] += _conditional(shapes, site)
        if isinstance(one.rule, WatchingRule):
            given = shapes.seen(site, one.rule.signal)
            largest = max(_empty(shape, 1).nbytes for shape in (*shapes.values(site), *([given] if given else [])))
            by_site[site.name] += largest * one.rule.remembers * len(branches)
    return MemoryPlan([sum(by_site.values())] * count, by_site, exact=False)


class MemoryForecast:
    """The memory plan of the run about to begin; that of the newest plan is kept, since runs of one shape share it."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        """`dtype`: what values are kept in; None for their own."""
        self._dtype = dtype
        self._made: tuple[RunPlan, Any, MemoryPlan] | None = None  # what the newest was made for, and it

    def of(
        self,
        plan: RunPlan,
        sites: Collection[Site],
        shapes: ValueShapes,
        calls: Sequence[tuple[Branch, ...]],
        cond_last: bool,
    ) -> MemoryPlan:
        """Bytes held at some of a plan's sites: those whose shapes are known. The last two as in `plan_static`."""
        if plan.table is None:
            mine = {site: one for site, one in plan.assigned.items() if site in sites}
            return bound_dynamic(mine, plan.run.branches, shapes, self._dtype, plan.run.count, cond_last)
        own = [i for i, site in enumerate(plan.assigned) if site in sites]
        governed = [plan.table.sites[i] for i in own]
        # A site that is never reused holds nothing: its shapes are not asked for, since some are unknown (of the
        # branches' difference on packed tokens).
        used = [site for site, i in zip(governed, own, strict=True) if plan.table.reuses(i)]
        made_for = {site.name: (shapes.values(site), shapes.input) for site in used}, tuple(calls), cond_last
        if self._made is None or self._made[0] is not plan or self._made[1] != made_for:
            predictors = tuple(plan.table.predictors[i] for i in own)
            table = Table(plan.run, tuple(governed), plan.table.codes[own], predictors)
            self._made = plan, made_for, plan_static(table, shapes, calls, self._dtype, cond_last)
        return self._made[2]


def _conditional(shapes: ValueShapes, site: Site) -> int:
    """Bytes of one conditional output, by those of a difference to it."""
    return sum(_empty(shape, 1).nbytes for shape in shapes.values(site))


def _unread(last: Mapping[Branch, Mapping[int, int]], now: int, step: int, branch: Branch) -> bool:
    """Whether no step after `now` reads what was stored at `step`."""
    return last[branch][step] <= now


def _empty(shape: Shape, branches: int) -> torch.Tensor:
    size, dtype = shape
    return torch.empty((size[0] * branches, *size[1:]), dtype=dtype, device="meta")

"""What a policy would do and cost, known before any video is made.

A static policy compiles to a table, and a skipped cell of the table saves FLOPs that one counted run has told. So the
tuner's objective is known exactly for free; only quality has to be measured. By the clock it is foreseen in the same
way, from what steps took on one machine (`tuner.seconds`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastercache.model.families import Guidance
from fastercache.policies.base import Policy
from fastercache.policies.registry import dump
from fastercache.policies.schedule import Code, Table, compile_policy
from fastercache.policies.vocabulary import OUTER, Kind, Run, Site
from fastercache.session import Session
from fastercache.tuner.seconds import Seconds, kind_of

BINS = 4
"""Stretches of the run over which staleness is averaged."""


@dataclass(frozen=True)
class Forecast:
    """A schedule as the surrogate sees it.

    Attributes:
        ratio: computed FLOPs over those of the uncached run.
        features: per kind and role of the run's sites the mean log2(1 + age) of the values in use, in `BINS` stretches
            of the run, then the ratio; shape (groups * BINS + 1,). Sites that the policy does not claim have age 0.
        behaviour: digest of the decisions, and of the reused sites with their predictors; policies with the same one
            give the same video.
        seconds: of a call, where steps were timed.
        clocked: those over the seconds of an uncached call, in a search by the clock.
    """

    ratio: float
    features: NDArray[np.float64]
    behaviour: str
    seconds: float | None = None
    clocked: float | None = None

    @property
    def cost(self) -> float:
        """What a search minimises, as a share of the uncached run's."""
        return self.ratio if self.clocked is None else self.clocked


@dataclass(frozen=True)
class CostModel:
    """FLOPs of any static policy on one kind of run.

    Attributes:
        run: the run's steps, branches and sites.
        step_flops: FLOPs of each step with nothing reused, all branches together.
        shares: share of a denoiser call's FLOPs inside each module and block site.
        active: where several denoisers share the steps of a run (Wan 2.2's experts), the steps that each one runs, by
            the prefix of its sites' names; one that is not named runs them all.
        guidance: how the branches are computed.
        latent: shape of the denoiser's main input without its batch axis.
        clock: what steps take, where they were timed.
        by_clock: whether a search minimises seconds, and not FLOPs.
    """

    run: Run
    step_flops: tuple[int, ...]
    shares: Mapping[str, float]
    active: Mapping[str, frozenset[int]] = field(default_factory=dict)
    guidance: Guidance = "none"
    latent: tuple[int, ...] = ()
    clock: Seconds | None = None
    by_clock: bool = False

    @classmethod
    def measured(cls, session: Session, generate: Callable[[], object]) -> CostModel:
        """From a run that `generate` makes under a session whose policy reuses nothing."""
        active: dict[str, set[int]] = {_prefix(s): set() for s in session.sites if s.kind is Kind.DENOISER}
        names = "|".join(s.name for s in session.sites if s.kind is Kind.DENOISER)
        watch = session.watch(names, lambda seen: active[_prefix(seen.site)].add(seen.step.index))
        try:
            generate()
        finally:
            watch.close()
        trace = session.last
        steps = {prefix: frozenset(found) for prefix, found in active.items()}
        return cls(trace.run, tuple(trace.flops_full), session.flop_shares(), steps, session.guidance, trace.latent)

    def share(self, site: Site) -> float:
        """Share of a denoiser call that reusing `site` saves."""
        if site.name not in self._known_shares:
            self._known_shares[site.name] = self._share(site)
        return self._known_shares[site.name]

    @cached_property
    def _known_shares(self) -> dict[str, float]:
        return {}

    def _share(self, site: Site) -> float:
        if site.kind in (Kind.DENOISER, Kind.BRANCH):
            return 1.0
        if site.kind is Kind.STACK:
            blocks = [s for s in self.run.sites if s.kind is Kind.BLOCK and s.inside(site)]
            return sum(self.shares.get(s.name, 0.0) for s in blocks)
        return self.shares.get(site.name, 0.0)

    def forecast(self, policy: Policy) -> Forecast:
        """What a static policy will do and cost. Raises InvalidPolicy for a dynamic one."""
        table = self.reached(compile_policy(policy, self.run))
        ratio = self.ratio(table)
        reuses = (table.codes == Code.REUSED).any(axis=(1, 2)).tolist()
        each = zip(table.sites, table.predictors, reuses, strict=True)
        used = [[site.name, dump(predictor)] if reused else None for site, predictor, reused in each]
        behaviour = hashlib.sha256(table.codes.tobytes() + json.dumps(used, sort_keys=True).encode()).hexdigest()
        seconds = self.seconds(table)
        return Forecast(ratio, np.array([*self._ages(table), ratio]), behaviour, seconds, self.clocked(seconds))

    def reached(self, table: Table) -> Table:
        """The table with what a denoiser does only at the steps that it runs: before the first value computed there is
        nothing to reuse."""
        everything = frozenset(range(self.run.count))
        codes = table.codes.copy()
        for row, site in zip(codes, table.sites, strict=True):
            steps = self.active.get(_prefix(site), everything)
            if steps == everything:
                continue
            row[:, [i for i in everything if i not in steps]] = Code.UNREACHED
            for branch in row:
                computed = np.flatnonzero(branch == Code.COMPUTED)
                first = computed[0] if len(computed) else self.run.count
                branch[:first][branch[:first] == Code.REUSED] = Code.COMPUTED
        return replace(table, codes=codes)

    def ratio(self, table: Table) -> float:
        """Computed FLOPs of a table over those of the uncached run."""
        per_branch = np.array(self.step_flops, dtype=float) / len(self.run.branches)  # (steps,)
        reused = table.codes == Code.REUSED  # (sites, branches, steps)
        for s, site in enumerate(table.sites):
            if site.kind is Kind.STACK:
                # A stack runs for all rows or for none: one branch's reuse alone saves nothing.
                reused[s] &= np.all(table.codes[s] != Code.COMPUTED, axis=0)
        shares = np.array([self.share(site) for site in table.sites])
        saved = float(shares @ (reused * per_branch).sum(axis=(1, 2)))
        return 1.0 - saved / float(sum(self.step_flops))

    def seconds(self, table: Table) -> float | None:
        """Seconds of a call that does as a table says, or did; None where steps were not timed.

        What a reused site saves is its share of what was saved when all sites of its kind were reused; of a kind that
        was not timed, its share of the FLOPs. Shares of several sites add up. No step takes less than a skipped one.
        """
        clock = self.clock
        if clock is None:
            return None
        branches = len(self.run.branches)
        reused = table.codes == Code.REUSED  # (sites, branches, steps)
        outer = np.array([site.kind in OUTER for site in table.sites], dtype=bool)
        dropped = reused[outer].any(axis=0).sum(axis=0)  # (steps,): branches for which the denoiser is not called
        further = max(branches - 1, 1)
        timed = clock.kinds.get(Kind.BRANCH, clock.computed - self._whole * further / branches)
        saved = dropped * (clock.computed - timed) / further
        for site, cells, codes in zip(table.sites, reused, table.codes, strict=True):
            if site.kind not in OUTER:
                # A stack runs for all rows or for none.
                skips = cells & np.all(codes != Code.COMPUTED, axis=0) if site.kind is Kind.STACK else cells
                saved = saved + skips.sum(axis=0) * self._saving(site) / branches
        weights = np.array(self.step_flops, dtype=float) / np.mean(self.step_flops)
        spent = np.where(dropped == branches, 0.0, np.maximum(self._whole - saved, 0.0)) * weights
        return clock.rest + clock.steps * clock.skipped + float(spent.sum())

    def clocked(self, seconds: float | None) -> float | None:
        """Seconds over those of an uncached call, in a search by the clock; None in any other."""
        if not self.by_clock or self.clock is None or seconds is None:
            return None
        return seconds / (self.clock.rest + self.clock.steps * self.clock.skipped + self.clock.steps * self._whole)

    @property
    def _whole(self) -> float:
        """Seconds that skipping a whole step saves."""
        assert self.clock is not None
        return self.clock.computed - self.clock.skipped

    def _saving(self, site: Site) -> float:
        """Seconds that a step saves at which a site is reused in all branches."""
        if site.name not in self._known_savings:
            assert self.clock is not None
            kind = kind_of(site)
            alike = [s for s in self.run.sites if kind_of(s) == kind and s.denoiser == site.denoiser]
            of_kind = sum(map(self.share, alike))
            share = self.share(site)
            if kind in self.clock.kinds and of_kind:
                share *= (self.clock.computed - self.clock.kinds[kind]) / of_kind
            else:
                share *= self._whole
            self._known_savings[site.name] = share
        return self._known_savings[site.name]

    @cached_property
    def _known_savings(self) -> dict[str, float]:
        return {}

    @cached_property
    def _groups(self) -> tuple[str, ...]:
        """The kinds and roles of the run's sites."""
        return tuple(dict.fromkeys(f"{site.kind}:{site.role}" for site in self.run.sites))

    def _ages(self, table: Table) -> list[float]:
        ages = staleness(table)
        edges = np.linspace(0, self.run.count, BINS + 1).round().astype(int)
        groups: dict[str, list[int]] = {name: [] for name in self._groups}
        for s, site in enumerate(table.sites):
            groups[f"{site.kind}:{site.role}"].append(s)
        columns: list[float] = []
        for name in sorted(groups):
            own = ages[groups[name]] if groups[name] else np.zeros((1, *ages.shape[1:]))
            log = np.log2(1.0 + own.mean(axis=(0, 1)))  # (steps,)
            columns += [float(log[a:b].mean()) if b > a else 0.0 for a, b in pairwise(edges)]
        return columns


def _prefix(site: Site) -> str:
    """What the names of a second denoiser's sites begin with; empty for the first's."""
    first, slash, _ = site.name.partition("/")
    return first + slash if slash else ""


def staleness(table: Table) -> NDArray[np.float64]:
    """Age in steps of the value in use at each cell, (sites, branches, steps); 0 where computed or not reached."""
    age = np.zeros(table.codes.shape)
    for i in range(1, table.codes.shape[2]):
        # A value also ages while an outer site is reused and this one is not reached.
        age[:, :, i] = np.where(table.codes[:, :, i] == Code.COMPUTED, 0.0, age[:, :, i - 1] + 1.0)
    return np.where(table.codes == Code.REUSED, age, 0.0)

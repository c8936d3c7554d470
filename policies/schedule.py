"""The explicit schedule: a site-group x step x branch table. Static policies compile to it, dynamic runs freeze to it.

`Table` is the dense form the runtime executes; `Schedule` is the policy (and file) form, one row per site group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fastercache.policies.base import Assigned, Config, Hold, Policy, Predictor
from fastercache.policies.errors import InvalidPolicy, ScheduleMismatch, SiteConflict
from fastercache.policies.registry import AnyPredictor, dump, register
from fastercache.policies.rules import StaticRule, begin_all
from fastercache.policies.vocabulary import COND, NESTING, Branch, Kind, Run, Site, SiteIndex, Step


class Code(IntEnum):
    """What happened, or is planned, at one site, step and branch."""

    COMPUTED = 0
    REUSED = 1
    UNREACHED = 2  # an outer site was reused, so this one was never called


LETTERS = {Code.COMPUTED: "C", Code.REUSED: "R", Code.UNREACHED: "-"}


@dataclass(frozen=True)
class Table:
    """Decisions of one run.

    Attributes:
        run: the run decided about.
        sites: the claimed sites, outermost kind first, then in execution order.
        codes: int8, shape (sites, branches, steps), values of `Code`.
        predictors: per site, what stands in for it.
    """

    run: Run
    sites: tuple[Site, ...]
    codes: NDArray[np.int8]
    predictors: tuple[Predictor, ...]

    def share(self, code: Code = Code.REUSED) -> float:
        """Share of (site, branch, step) cells with this code; 0 for an empty table."""
        return float((self.codes == code).mean()) if self.codes.size else 0.0

    def reads(self) -> list[list[dict[int, int]]]:
        """Per site and branch: for each computed step whose value a later reuse reads, the last step that reads it."""
        return [
            [last_reads(codes, predictor.depth) for codes in site]
            for site, predictor in zip(self.codes.tolist(), self.predictors, strict=True)
        ]

    def reuses(self, site: int) -> bool:
        """Whether any value of the site with this number is ever reused."""
        return bool((self.codes[site] == Code.REUSED).any())

    def kept(self) -> NDArray[np.bool_]:
        """Which computed values a later reuse reads, (sites, branches, steps): only those need storing."""
        kept = np.zeros(self.codes.shape, dtype=bool)
        for s, site in enumerate(self.reads()):
            for b, reads in enumerate(site):
                kept[s, b, list(reads)] = True
        return kept


def last_reads(codes: Sequence[int], depth: int) -> dict[int, int]:
    """For one site and branch: computed step -> the last step whose reuse reads it, `depth` values being read."""
    reads: dict[int, int] = {}
    computed: list[int] = []
    for i, code in enumerate(codes):
        if code == Code.COMPUTED:
            computed.append(i)
        elif code == Code.REUSED:
            reads.update(dict.fromkeys(computed[-depth:], i))
    return reads


def assignment(policy: Policy, run: Run) -> dict[Site, Assigned]:
    """What a policy assigns in a run, outermost sites first. Raises SiteConflict for stacks that cross each other."""
    assigned = policy.assign(run)
    stacks = [site for site in assigned if site.kind is Kind.STACK]
    for one, other in combinations(stacks, 2):
        apart = one.span[1] <= other.span[0] or other.span[1] <= one.span[0] or one.denoiser != other.denoiser
        if not (apart or one.inside(other) or other.inside(one)):
            raise SiteConflict(
                f"{one.name} and {other.name} share blocks, and neither lies inside the other: "
                "give each block to one of them"
            )
    return {site: assigned[site] for site in sorted(assigned, key=_nesting)}


def _nesting(site: Site) -> tuple[int, int]:
    """What sorts sites so that each stands behind those that it lies inside of."""
    return NESTING.index(site.kind), site.span[0] - site.span[1] if site.kind is Kind.STACK else 0


def applies(site: Site, branch: Branch) -> bool:
    """A branch site exists for every branch but the conditional one; all other sites exist for every branch."""
    return site.kind is not Kind.BRANCH or branch != COND


def compile_policy(policy: Policy, run: Run) -> Table:
    """Run a static policy's decisions without a model. Raises InvalidPolicy for a dynamic one.

    A reuse that has no computed value to build on becomes a computation, as it would at run time.
    """
    assigned = assignment(policy, run)
    rules = [one.rule for one in assigned.values() if isinstance(one.rule, StaticRule)]
    if len(rules) < len(assigned):
        raise InvalidPolicy(f"{policy.name} decides while the model runs: freeze a run's trace to get its schedule")
    return compile_rules(assigned, rules, run)


def compile_rules(assigned: Mapping[Site, Assigned], rules: Sequence[StaticRule[Any]], run: Run) -> Table:
    """As `compile_policy`, given what the policy assigns and its rules in the same order."""
    every = tuple(assigned)
    firsts: dict[tuple[int, str], dict[Branch, Any]] = {}
    begun = [list(begin_all(rule, s, run, firsts).values()) for rule, s in zip(rules, every, strict=True)]
    inside = containers(every)
    alike = _alike(every, rules, begun, inside)
    chosen = list(dict.fromkeys(alike))  # one site of each kind is decided about; the others do as it does
    place = {i: s for s, i in enumerate(chosen)}
    sites, rules, states = [every[i] for i in chosen], [rules[i] for i in chosen], [begun[i] for i in chosen]
    # Searches compile thousands of tables, so the loop works on bytes; enum and array lookups would dominate it.
    computed, reused, unreached = int(Code.COMPUTED), int(Code.REUSED), int(Code.UNREACHED)
    grid = [[bytearray(run.count) for _ in run.branches] for _ in sites]
    outer = [[grid[place[alike[o]]] for o in inside[i]] for i in chosen]
    exists = [[applies(site, branch) for branch in run.branches] for site in sites]
    denoisers = {site.denoiser: row for site, row in zip(sites, grid, strict=True) if site.kind is Kind.DENOISER}
    whole = [denoisers.get(site.denoiser) if site.kind is Kind.BRANCH else None for site in sites]
    seen = [[False] * len(run.branches) for _ in sites]
    for step in run.steps:
        i = step.index
        for b in range(len(run.branches)):
            for s, site in enumerate(sites):
                if (
                    not exists[s][b]
                    or not site.runs_at(step)
                    or (outer[s] and any(row[b][i] == reused for row in outer[s]))
                ):
                    grid[s][b][i] = unreached
                elif rules[s].reuse(states[s][b], step) and seen[s][b]:
                    grid[s][b][i] = reused
                    predicted = whole[s]  # the branch is, so the denoiser does not run for it
                    if predicted is not None:
                        predicted[b][i] = unreached
        for b in range(len(run.branches)):
            for s in range(len(sites)):
                if grid[s][b][i] == computed:
                    seen[s][b] = True
                    states[s][b] = rules[s].update(states[s][b], step)
    codes = np.array([[list(row) for row in rows] for rows in grid], dtype=np.int8)
    codes = codes.reshape(len(sites), len(run.branches), run.count)
    codes = codes[[place[i] for i in alike]].reshape(len(every), len(run.branches), run.count)
    return Table(run, every, codes, tuple(one.predictor for one in assigned.values()))


def _alike(
    sites: Sequence[Site],
    rules: Sequence[StaticRule[Any]],
    begun: Sequence[Sequence[Any]],
    inside: Sequence[Sequence[int]],
) -> list[int]:
    """For each site the first one that fares as it does at every step: under the same rule, with equal states at the
    start, and inside of sites that fare alike. A state that can change in place belongs to one site alone.

    `begun`: each site's states by branch. `inside`: the places of the sites that it lies inside of, which come first.
    """
    first: dict[Any, int] = {}
    found: list[int] = []
    for s, (site, rule, states) in enumerate(zip(sites, rules, begun, strict=True)):
        if not all(map(_constant, states)):
            found.append(s)
            continue
        outer = tuple(found[o] for o in inside[s])  # containers come first
        shared = (id(rule), tuple((type(state), state) for state in states), outer, site.denoiser, site.kind)
        found.append(first.setdefault(shared, s))
    return found


def _constant(state: Any) -> bool:
    """Whether a value cannot change in place and can be compared."""
    if isinstance(state, (tuple, frozenset)):
        return type(state) in (tuple, frozenset) and all(map(_constant, state))
    return state is None or isinstance(state, (bool, int, float, str))


def containers(sites: Sequence[Site]) -> list[list[int]]:
    """For each site the positions of those it lies inside of."""
    wide: dict[str, list[int]] = {}  # by denoiser, those of more than one block
    blocks: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for i, site in enumerate(sites):
        if site.kind is Kind.BLOCK:
            blocks.setdefault((site.denoiser, site.span), []).append(i)
        elif site.kind is not Kind.MODULE:
            wide.setdefault(site.denoiser, []).append(i)
    return [
        [i for i in (*wide.get(s.denoiser, ()), *blocks.get((s.denoiser, s.span), ())) if s.inside(sites[i])]
        for s in sites
    ]


class Row(Config):
    """One site group of a schedule: for one branch (or `*` for all), a letter per step, C compute or R reuse.

    `-` marks steps at which the sites are not reached because an outer site is reused.
    """

    name: ClassVar[str] = "row"
    sites: str = Field(description="site query: the sites this row decides about")
    branch: str = Field(default="*", description="the branch it is for (cond, uncond, ...), or * for all")
    steps: Annotated[str, Field(min_length=1, pattern=r"^[CR-]+$")] = Field(
        description="one letter a step: C compute, R reuse, - not reached because an outer site is reused"
    )
    predictor: AnyPredictor = Field(default_factory=Hold, description="predictor that stands in at the steps marked R")


@dataclass(frozen=True)
class Letters(StaticRule[str]):
    """A schedule's letters at one site, by branch or under `*` for all; a branch without any is computed."""

    by_branch: Mapping[Branch, str]

    def begin(self, site: Site, branch: Branch, run: Run) -> str:
        """The branch's letters. Raises ScheduleMismatch if they are for another number of steps or other branches."""
        for name, steps in self.by_branch.items():
            if len(steps) != run.count:
                raise ScheduleMismatch(
                    f"this schedule is for {len(steps)} steps, the run has {run.count}: "
                    "run it with that number of steps, or use the policy it was made from"
                )
            if name not in ("*", *run.branches):
                raise ScheduleMismatch(
                    f"this schedule has a row for the branch '{name}', the run has {', '.join(run.branches)}"
                )
        return self.by_branch.get(branch, self.by_branch.get("*", ""))

    def reuse(self, state: str, step: Step) -> bool:
        return state != "" and state[step.index] == LETTERS[Code.REUSED]


@register
class Schedule(Policy):
    """The explicit table as a policy. Its length is that of the runs it may be applied to."""

    name: ClassVar[str] = "schedule"
    rows: tuple[Row, ...] = Field(
        description="one row for each group of sites (and branch); all have as many letters as the run has steps"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        lengths = sorted({len(row.steps) for row in self.rows})
        if len(lengths) > 1:
            raise ValueError(f"all rows must have the same number of steps, found {lengths}")
        return self

    @property
    def static(self) -> bool:
        return True

    def assign(self, run: Run) -> Mapping[Site, Assigned]:
        if not self.rows:
            return {}
        index = SiteIndex(run.sites)
        letters: dict[Site, dict[Branch, str]] = {}
        predictors: dict[Site, Predictor] = {}
        reusing: dict[Site, Predictor] = {}  # those of rows that reuse: what stands in elsewhere is never asked
        for row in self.rows:
            for site in index.select(row.sites):
                mine = letters.setdefault(site, {})
                if row.branch in mine or (mine and "*" in (row.branch, *mine)):
                    branch = row.branch if row.branch != "*" else next(iter(mine))
                    raise InvalidPolicy(f"two rows of the schedule decide about {site.name} in branch {branch}")
                mine[row.branch] = row.steps
                predictors.setdefault(site, row.predictor)
                if LETTERS[Code.REUSED] in row.steps and reusing.setdefault(site, row.predictor) != row.predictor:
                    raise InvalidPolicy(
                        f"two rows of the schedule give {site.name} other predictors: a site has one for all branches"
                    )
        order = index.select("|".join(dict.fromkeys(row.sites for row in self.rows)))
        predictors |= reusing
        return {site: Assigned(Letters(letters[site]), predictors[site]) for site in order}

    @classmethod
    def of(cls, table: Table) -> Schedule:
        """The schedule that repeats a table's decisions, sites with equal rows grouped."""
        groups: dict[tuple[Branch, str, str], tuple[list[str], Predictor]] = {}
        for s, (site, predictor) in enumerate(zip(table.sites, table.predictors, strict=True)):
            letters = ["".join(LETTERS[Code(c)] for c in table.codes[s, b]) for b in range(len(table.run.branches))]
            rows = list(zip(table.run.branches, letters, strict=True))
            if len(set(letters)) == 1:
                rows = [("*", letters[0])]
            for branch, steps in rows:
                key = (branch, steps, str(dump(predictor)))
                groups.setdefault(key, ([], predictor))[0].append(site.name)
        return cls(
            rows=tuple(
                Row(sites="|".join(names), branch=branch, steps=steps, predictor=predictor)
                for (branch, steps, _), (names, predictor) in groups.items()
            )
        )

"""The explicit schedule: a site-group x step x branch table. Static policies compile to it, dynamic runs freeze to it.

`Table` is the dense form the runtime executes; `Schedule` is the policy (and file) form, one row per site group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from fastercache.policies.base import Config, Hold, Policy, Predictor
from fastercache.policies.errors import InvalidPolicy, ScheduleMismatch
from fastercache.policies.registry import AnyPredictor, dump, register
from fastercache.policies.vocabulary import COND, Branch, Kind, Run, Site, SiteIndex, Step, select


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


def claimed(policy: Policy, run: Run) -> tuple[Site, ...]:
    """The sites `policy` claims in `run`, outermost kind first; `branch` sites only where there are branches."""
    order = {kind: i for i, kind in enumerate((Kind.DENOISER, Kind.BRANCH, Kind.STACK, Kind.BLOCK, Kind.MODULE))}
    sites = policy.claims(run.sites)
    return tuple(sorted(sites, key=lambda s: order[s.kind]))


def applies(site: Site, branch: Branch) -> bool:
    """A branch site exists for every branch but the conditional one; all other sites exist for every branch."""
    return site.kind is not Kind.BRANCH or branch != COND


def compile_policy(policy: Policy, run: Run) -> Table:
    """Run a static policy's decisions without a model. Raises InvalidPolicy for a dynamic one.

    A reuse that has no computed value to build on becomes a computation, as it would at run time.
    """
    if not policy.static:
        raise InvalidPolicy(f"{policy.name} decides while the model runs: freeze a run's trace to get its schedule")
    sites = claimed(policy, run)
    state = policy.init(run)
    # Searches compile thousands of tables, so the loop works on bytes; enum and array lookups would dominate it.
    computed, reused, unreached = int(Code.COMPUTED), int(Code.REUSED), int(Code.UNREACHED)
    grid = [[bytearray(run.count) for _ in run.branches] for _ in sites]
    outer = [[grid[o] for o in places] for places in containers(sites)]
    exists = [[applies(site, branch) for branch in run.branches] for site in sites]
    denoisers = {site.denoiser: row for site, row in zip(sites, grid, strict=True) if site.kind is Kind.DENOISER}
    whole = [denoisers.get(site.denoiser) if site.kind is Kind.BRANCH else None for site in sites]
    seen = [[False] * len(run.branches) for _ in sites]
    for step in run.steps:
        i = step.index
        for b, branch in enumerate(run.branches):
            for s, site in enumerate(sites):
                if (
                    not exists[s][b]
                    or not site.runs_at(step)
                    or (outer[s] and any(row[b][i] == reused for row in outer[s]))
                ):
                    grid[s][b][i] = unreached
                elif policy.reuse(state, site, step, branch, None) and seen[s][b]:
                    grid[s][b][i] = reused
                    predicted = whole[s]  # the branch is, so the denoiser does not run for it
                    if predicted is not None:
                        predicted[b][i] = unreached
        for b, branch in enumerate(run.branches):
            for s, site in enumerate(sites):
                if grid[s][b][i] == computed:
                    seen[s][b] = True
                    policy.observe(state, site, step, branch, None)
    codes = np.array([[list(row) for row in rows] for rows in grid], dtype=np.int8)
    codes = codes.reshape(len(sites), len(run.branches), run.count)
    return Table(run, sites, codes, tuple(policy.predictor(site, run) for site in sites))


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
    def query(self) -> str:
        return "|".join(dict.fromkeys(row.sites for row in self.rows))

    def claims(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        return select(self.query, sites) if self.rows else ()

    def init(self, run: Run) -> dict[tuple[str, Branch], Row]:
        if self.rows and len(self.rows[0].steps) != run.count:
            raise ScheduleMismatch(
                f"this schedule is for {len(self.rows[0].steps)} steps, the run has {run.count}: "
                "run it with that number of steps, or use the policy it was made from"
            )
        table: dict[tuple[str, Branch], Row] = {}
        index = SiteIndex(run.sites)
        for row in self.rows:
            if row.branch not in ("*", *run.branches):
                raise ScheduleMismatch(
                    f"this schedule has a row for the branch '{row.branch}', the run has {', '.join(run.branches)}"
                )
            for site in index.select(row.sites):
                for branch in run.branches if row.branch == "*" else (row.branch,):
                    if (site.name, branch) in table:
                        raise InvalidPolicy(f"two rows of the schedule decide about {site.name} in branch {branch}")
                    table[site.name, branch] = row
        return table

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        row: Row | None = state.get((site.name, branch))
        return row is not None and row.steps[step.index] == LETTERS[Code.REUSED]

    def predictor(self, site: Site, run: Run) -> Predictor:
        for row in self.rows:
            if any(found.name == site.name for found in select(row.sites, run.sites)):
                return row.predictor
        return Hold()

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

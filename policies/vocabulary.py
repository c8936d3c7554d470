"""The plain values everything else speaks in: sites and site queries, steps, branches, runs.

None of these hold tensors or models, so a policy can be reasoned about, compiled and tested without either.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fastercache.policies.errors import NoSiteMatched, suggest

Branch = str
"""Name of a guidance branch: `"cond"`, `"uncond"`, or a further one such as `"perturbed"`."""

COND: Branch = "cond"
UNCOND: Branch = "uncond"


class Kind(StrEnum):
    """What is skipped when a site is reused, and therefore what value is cached for it."""

    MODULE = "module"  # an attention's or feed-forward's output
    BLOCK = "block"  # the residual one block adds
    STACK = "stack"  # the residual a run of consecutive blocks adds
    DENOISER = "denoiser"  # the denoiser's whole output
    BRANCH = "branch"  # a non-conditional branch's output, cached as its difference to the conditional one


class Role(StrEnum):
    """What a module site does inside its block."""

    SPATIAL = "spatial"
    TEMPORAL = "temporal"
    JOINT = "joint"
    CROSS = "cross"
    FF = "ff"


SELF_ATTENTION = frozenset({Role.SPATIAL, Role.TEMPORAL, Role.JOINT})
NESTING = (Kind.DENOISER, Kind.BRANCH, Kind.STACK, Kind.BLOCK, Kind.MODULE)
"""Outermost kind first: a reused outer site means that the inner ones are never reached."""


class Signal(StrEnum):
    """The cheap value a dynamic policy watches before it decides."""

    INPUT = "input"  # the denoiser's input
    MODULATED_INPUT = "modulated_input"  # the first block's input after its norm and timestep modulation
    FIRST_BLOCK_RESIDUAL = "first_block_residual"  # what the blocks before the site's span added
    PROBE = "probe"  # output of the first blocks, run for the decision alone


class Scope(StrEnum):
    """Whose signal decides about reuse, and for which branches."""

    BRANCH = "branch"  # each branch for itself
    CALL = "call"  # each denoiser call as a whole: the signal holds the rows of all its branches
    COND = "cond"  # the conditional branch for all branches of its step


@dataclass(frozen=True, slots=True)
class Site:
    """A value whose computation can be skipped.

    Attributes:
        name: dotted module path; `stack[a:b]`, `denoiser` or `branch` for the kinds that are no single module.
        kind: what is skipped.
        role: for module sites, what the module does.
        depth: position of the containing block in execution order; -1 for denoiser and branch sites.
        span: for stack sites, the half-open range of block depths; `(depth, depth + 1)` for blocks and modules.
    """

    name: str
    kind: Kind
    role: Role | None = None
    depth: int = -1
    span: tuple[int, int] = (0, 0)

    def inside(self, outer: Site) -> bool:
        """Whether reusing `outer` means that this site is never reached."""
        if outer is self or NESTING.index(outer.kind) >= NESTING.index(self.kind):
            return False
        if outer.kind in (Kind.DENOISER, Kind.BRANCH):
            return True
        return outer.span[0] <= self.span[0] and self.span[1] <= outer.span[1]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Step:
    """Step `index` of a run of `count` denoising steps; `timestep` and `sigma` as the scheduler gives them."""

    index: int
    count: int
    timestep: float
    sigma: float | None = None

    @property
    def progress(self) -> float:
        """Progress u in [0, 1]: 0 at the first step, 1 at the last."""
        return self.index / (self.count - 1) if self.count > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One pipeline call as a policy sees it before the first step.

    Attributes:
        steps: every step of the run, in order.
        branches: the guidance branches the run computes, the conditional one first.
        sites: the sites found in the model, before any query.
    """

    steps: tuple[Step, ...]
    branches: tuple[Branch, ...]
    sites: tuple[Site, ...] = field(default=())

    @classmethod
    def of(cls, count: int, branches: Sequence[Branch] = (COND, UNCOND), sites: Iterable[Site] = ()) -> Run:
        """A run of `count` steps with timesteps falling evenly from 999 to 0, for tests and simulation."""
        last = max(count - 1, 1)
        steps = tuple(Step(i, count, 999.0 * (1 - i / last)) for i in range(count))
        return cls(steps, tuple(branches), tuple(sites))

    @property
    def count(self) -> int:
        return len(self.steps)


_TERM = re.compile(r"^(?P<head>[^\[\]]+?)(\[(?P<lo>-?\d*):(?P<hi>-?\d*)\])?$")


def select(query: str, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites a query names, in execution order.

    A query is one or more terms joined by `|`. A term is a role (`spatial`), a kind (`block`), `attention`
    (every self-attention), `all` (every module) or a glob over site names (`transformer_blocks.*.attn1`), optionally
    followed by a slice of block depths: `spatial[4:10]`, `stack[1:-1]` (a run of blocks without the first and last).

    >>> sites = [Site("blocks.0.attn", Kind.MODULE, Role.SPATIAL, 0, (0, 1)), Site("denoiser", Kind.DENOISER)]
    >>> [str(s) for s in select("spatial", sites)]
    ['blocks.0.attn']

    Raises:
        NoSiteMatched: if a term selects nothing; the message names the nearest names that exist.
    """
    chosen: dict[str, Site] = {}
    for term in query.split("|"):
        for site in _term(term.strip(), sites):
            chosen[site.name] = site
    order = {site.name: i for i, site in enumerate(sites)}
    return tuple(sorted(chosen.values(), key=lambda s: order.get(s.name, order.get("stack", -1))))


def matches(query: str, sites: Sequence[Site]) -> tuple[Site, ...]:
    """As `select`, but terms that match nothing are passed over, and the result may be empty."""
    found: list[str] = []
    for term in query.split("|"):
        try:
            select(term, sites)
        except NoSiteMatched:
            continue
        found.append(term)
    return select("|".join(found), sites) if found else ()


def _term(term: str, sites: Sequence[Site]) -> list[Site]:
    # A name given in full is taken as it stands, so that "stack[1:8]" survives a round trip through a schedule.
    exact = [s for s in sites if s.name == term]
    if exact:
        return exact
    match = _TERM.match(term)
    if match is None:
        raise NoSiteMatched(f"site query '{term}' is not of the form name, role, kind or glob, with an optional [a:b]")
    head, sliced = match["head"], match["lo"] is not None
    lo = int(match["lo"]) if match["lo"] else None
    hi = int(match["hi"]) if match["hi"] else None
    blocks = max((s.span[1] for s in sites if s.kind is not Kind.STACK), default=0)
    start, stop, _ = slice(lo, hi).indices(blocks)
    if head == Kind.STACK and sliced:
        if stop <= start or not any(s.kind is Kind.STACK for s in sites):
            raise NoSiteMatched(f"site query '{term}' spans no block: the model has {blocks} blocks in execution order")
        return [Site(f"stack[{start}:{stop}]", Kind.STACK, None, start, (start, stop))]
    found = [s for s in sites if _named(head, s)]
    if sliced:
        found = [s for s in found if start <= s.depth < stop]
    if not found and head == Kind.BRANCH and sites:
        raise NoSiteMatched(
            "there is no second guidance branch here (guidance is off, or distilled into the model), so nothing of it "
            "can be reused: leave out CFG-Cache, or switch guidance on"
        )
    if not found:
        known = {s.name for s in sites} | {str(s.kind) for s in sites} | {str(s.role) for s in sites if s.role}
        hint = suggest(head, known)
        if "known:" in hint:
            hint = f"; roles and kinds here: {', '.join(sorted(k for k in known if '.' not in k))}"
        raise NoSiteMatched(f"site query '{term}' matches none of the {len(sites)} sites{hint}")
    return found


def _named(head: str, site: Site) -> bool:
    if head in Role._value2member_map_:
        return site.role == head
    if head in Kind._value2member_map_:
        return site.kind == head
    if head == "attention":
        return site.role in SELF_ATTENTION
    if head == "all":
        return site.kind is Kind.MODULE
    return fnmatch.fnmatchcase(site.name, head)

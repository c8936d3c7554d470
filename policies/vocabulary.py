"""The plain values everything else speaks in: sites and site queries, steps, branches, runs.

None of these hold tensors or models, so a policy can be reasoned about, compiled and tested without either.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from fastercache.policies.errors import NoGuidance, NoSiteMatched, suggest
from fastercache.policies.wording import counted

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
OUTER = frozenset({Kind.DENOISER, Kind.BRANCH})
"""Kinds whose value is what the denoiser returns; those of the others lie inside it."""


class Scope(StrEnum):
    """Whose signal decides about reuse, and for which branches."""

    BRANCH = "branch"  # each branch for itself
    CALL = "call"  # each denoiser call as a whole: the signal holds the rows of all its branches
    COND = "cond"  # the conditional branch for all branches of its step


@dataclass(frozen=True, slots=True)
class Site:
    """A value whose computation can be skipped.

    Attributes:
        name: dotted module path; `stack[a:b]`, `denoiser` or `branch` for the kinds that are no single module. In a
            pipeline of several denoisers every name begins with its denoiser's: `transformer_2/stack`.
        kind: what is skipped.
        role: for module sites, what the module does.
        depth: position of the containing block in execution order; -1 for denoiser and branch sites.
        span: for stack sites, the half-open range of block depths; `(depth, depth + 1)` for blocks and modules.
        denoiser: which of several denoisers it is a part of, by its name in the pipeline; empty where there is one.
    """

    name: str
    kind: Kind
    role: Role | None = None
    depth: int = -1
    span: tuple[int, int] = (0, 0)
    denoiser: str = ""

    @property
    def path(self) -> str:
        """Its name inside its denoiser."""
        return self.name[len(self.denoiser) + 1 :] if self.denoiser else self.name

    def inside(self, outer: Site) -> bool:
        """Whether reusing `outer` means that this site is never reached."""
        within = outer.span[0] <= self.span[0] and self.span[1] <= outer.span[1]
        if self.kind is Kind.STACK and outer.kind is Kind.STACK:
            return self.denoiser == outer.denoiser and within and self.span != outer.span
        if self.denoiser != outer.denoiser or NESTING.index(outer.kind) >= NESTING.index(self.kind):
            return False
        return outer.kind in OUTER or within

    def runs_at(self, step: Step) -> bool:
        """Whether its denoiser is the one that the pipeline calls at this step, as far as that is known."""
        return not step.denoiser or self.denoiser == step.denoiser

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Step:
    """Step `index` of a run of `count` denoising steps; `timestep` and `sigma` as the scheduler gives them.

    `denoiser` names the one that runs at this step where a pipeline has several (Wan 2.2 has one for high noise and one
    for low); empty where there is one, or where that is not known before the run.
    """

    index: int
    count: int
    timestep: float
    sigma: float | None = None
    denoiser: str = ""

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
        """How many steps the run has."""
        return len(self.steps)


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a site query: `denoiser/head[start:stop]`, of which only the head must be given."""

    text: str
    denoiser: str | None
    head: str
    blocks: slice | None


_TERM = re.compile(
    r"^(?:(?P<denoiser>[^\[\]/|]+)/)?(?P<head>[^\[\]/]+?)(?P<sliced>\[(?P<lo>-?\d{1,6})?:(?P<hi>-?\d{1,6})?\])?$"
)


@lru_cache(maxsize=4096)
def parse(query: str) -> tuple[Term, ...]:
    """The terms of a site query. Raises NoSiteMatched for one that is not of the form described at `select`."""
    terms = []
    for text in map(str.strip, query.split("|")):
        match = _TERM.match(text)
        if match is None:
            raise NoSiteMatched(
                f"site query '{text:.80}' is not of the form name, role, kind or glob, with an optional [a:b] of whole "
                "numbers"
            )
        lo, hi = (int(match[side]) if match[side] else None for side in ("lo", "hi"))
        terms.append(Term(text, match["denoiser"], match["head"], slice(lo, hi) if match["sliced"] else None))
    return tuple(terms)


class SiteIndex:
    """Sites arranged for many queries: each costs as much as it finds, a glob as many sites as there are."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self.sites = tuple(sites)
        self._order = {site.name: i for i, site in enumerate(self.sites)}
        self._by_path: dict[str, list[Site]] = {}
        self._groups: dict[str, list[Site]] = {}
        self._blocks: dict[str, int] = {}  # how many each denoiser has
        for site in self.sites:
            self._by_path.setdefault(site.path, []).append(site)
            groups = [str(site.kind)]
            if site.role is not None:
                groups.append(str(site.role))
            if site.role in SELF_ATTENTION:
                groups.append("attention")
            if site.kind is Kind.MODULE:
                groups.append("all")
            for group in groups:
                self._groups.setdefault(group, []).append(site)
            if site.kind is not Kind.STACK:
                self._blocks[site.denoiser] = max(self._blocks.get(site.denoiser, 0), site.span[1])

    def select(self, query: str) -> tuple[Site, ...]:
        """As the function `select`."""
        try:
            return self._sorted(site for term in parse(query) for site in self._term(term))
        except NoSiteMatched as error:
            if self.sites and Kind.BRANCH not in self._groups and all(t.head == Kind.BRANCH for t in parse(query)):
                raise NoGuidance(str(error)) from None
            raise

    def matches(self, query: str) -> tuple[Site, ...]:
        """As the function `matches`."""
        found: list[Site] = []
        for term in parse(query):
            try:
                found.extend(self._term(term))
            except NoSiteMatched:
                continue
        return self._sorted(found)

    def _sorted(self, found: Iterable[Site]) -> tuple[Site, ...]:
        return tuple(sorted({site.name: site for site in found}.values(), key=self._place))

    def _place(self, site: Site) -> int:
        """A part of a stack stands where the stack does."""
        whole = f"{site.denoiser}/{Kind.STACK}" if site.denoiser else str(Kind.STACK)
        return self._order.get(site.name, self._order.get(whole, -1))

    def _term(self, term: Term) -> list[Site]:
        # A name given in full is taken as it stands, so that "stack[1:8]" survives a round trip through a schedule.
        path = term.text if term.denoiser is None else term.text[len(term.denoiser) + 1 :]
        exact = self._of(self._by_path.get(path, ()), term)
        if exact:
            return exact
        if term.head == Kind.STACK and term.blocks is not None:
            return self._stacks(term, term.blocks)
        named = self._groups.get(term.head)
        if named is None and term.head not in _WORDS:
            named = [
                site for path, sites in self._by_path.items() if fnmatch.fnmatchcase(path, term.head) for site in sites
            ]
        found = self._of(named or (), term)
        if term.blocks is not None:
            ranges = {name: range(count)[term.blocks] for name, count in self._blocks.items()}
            inner = [site for site in found if site.kind is not Kind.STACK]  # of which only parts lie in a slice
            found = [site for site in inner if site.depth in ranges.get(site.denoiser, ())]
        if not found:
            raise self._nothing(term)
        return found

    def _of(self, sites: Iterable[Site], term: Term) -> list[Site]:
        """Those of the denoiser that a term names, if it names one."""
        if term.denoiser is None:
            return list(sites)
        return [site for site in sites if fnmatch.fnmatchcase(site.denoiser, term.denoiser)]

    def _stacks(self, term: Term, blocks: slice) -> list[Site]:
        found = {}
        for whole in self._of(self._groups.get(Kind.STACK, ()), term):
            span = range(self._blocks.get(whole.denoiser, 0))[blocks]
            if len(span):
                prefix = f"{whole.denoiser}/" if whole.denoiser else ""
                name = f"{prefix}{Kind.STACK}[{span.start}:{span.stop}]"
                found[name] = Site(name, Kind.STACK, None, span.start, (span.start, span.stop), whole.denoiser)
        if not found:
            raise NoSiteMatched(
                f"site query '{term.text}' spans no block: the model has {self._counted()} in execution order"
            )
        return list(found.values())

    def _counted(self) -> str:
        counts = self._blocks or {"": 0}
        return " and ".join(counted(count, "block") + (f" in {name}" if name else "") for name, count in counts.items())

    def _nothing(self, term: Term) -> NoSiteMatched:
        denoisers = sorted({site.denoiser for site in self.sites} - {""})
        if term.denoiser is not None and not fnmatch.filter(denoisers, term.denoiser):
            there = f"they are {', '.join(denoisers)}" if denoisers else "there is only one here, without a name"
            return NoSiteMatched(f"site query '{term.text}' names no denoiser of this pipeline: {there}")
        if term.head == Kind.BRANCH and self.sites:
            return NoSiteMatched(
                "there is no second guidance branch here (guidance is off, or distilled into the model), so nothing of "
                "it can be reused: leave out CFG-Cache, or switch guidance on"
            )
        if term.blocks is not None and term.head in self._groups:
            return NoSiteMatched(
                f"site query '{term.text}' matches none of the {len(self.sites)} sites: [a:b] counts blocks, not "
                f"matches, and the model has {self._counted()}"
            )
        known = {s.path for s in self.sites} | self._groups.keys()
        hint = suggest(term.head, known)
        if "known:" in hint:
            hint = f"; roles and kinds here: {', '.join(sorted(k for k in known if '.' not in k))}"
        return NoSiteMatched(f"site query '{term.text}' matches none of the {len(self.sites)} sites{hint}")


_WORDS = frozenset({*map(str, Kind), *map(str, Role), "attention", "all"})


def select(query: str, sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites a query names, in execution order.

    A query is one or more terms joined by `|`. A term is a role (`spatial`), a kind (`block`), `attention`
    (every self-attention), `all` (every module) or a glob over module paths (`transformer_blocks.*.attn1`), optionally
    followed by a slice `[a:b]`. A slice counts the denoiser's blocks in execution order, whatever is selected of them:
    `stack[1:-1]` is the run of all blocks but the first and last, and `temporal[0:4]` is the temporal attention of the
    first four blocks, which is two attentions where every other block is a temporal one.

    In a pipeline of several denoisers a term selects in each of them, a slice counting the blocks of each by itself;
    `transformer_2/stack[1:]` selects in one. A site's name is the query that selects it alone.

    >>> sites = [Site("blocks.0.attn", Kind.MODULE, Role.SPATIAL, 0, (0, 1)), Site("denoiser", Kind.DENOISER)]
    >>> [str(s) for s in select("spatial", sites)]
    ['blocks.0.attn']

    Raises:
        NoSiteMatched: if a term selects nothing; the message names the nearest names that exist.
    """
    return _index_of(sites).select(query)


def matches(query: str, sites: Iterable[Site]) -> tuple[Site, ...]:
    """As `select`, but terms that match nothing are passed over, and the result may be empty."""
    return _index_of(sites).matches(query)


_newest: tuple[tuple[Site, ...], SiteIndex] | None = None
"""The last tuple of sites that was asked about, and its index: a search asks about one run's sites over and over."""


def _index_of(sites: Iterable[Site]) -> SiteIndex:
    global _newest
    newest = _newest
    if newest is not None and newest[0] is sites:
        return newest[1]
    index = SiteIndex(sites)
    if isinstance(sites, tuple):
        _newest = sites, index
    return index

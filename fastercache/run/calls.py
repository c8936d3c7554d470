"""One denoiser call, the run it belongs to and what a static plan says about it, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fastercache.policies.errors import BranchUnknown
from fastercache.policies.schedule import Code, Table
from fastercache.policies.vocabulary import Branch, Run, Step
from fastercache.run.rows import Rows
from fastercache.run.signals import Sighted
from fastercache.run.trace import Observation

Watcher = Callable[[Observation], None]


@dataclass(slots=True)
class Call:
    """One denoiser call: its step, the branches it computes in row order, and what was skipped inside it."""

    step: Step
    branches: tuple[Branch, ...]
    batch: int  # leading size of the denoiser's input rows that are computed
    input: Tensor | None = None
    sighted: Sighted = field(default_factory=Sighted)  # what the first block's hook saw
    skipped: list[tuple[str, float]] = field(default_factory=list)  # module path, share of its rows that was skipped
    over: tuple[Branch, ...] = ()  # branches whose rows are computed though an outer run of blocks stands in for them
    parts: int = 0  # branches of the denoiser's call, where this one is of some of its branches only
    inside: dict[str, Call] = field(default_factory=dict)  # module path -> this call as it is inside of that

    def part(self, path: str, branches: tuple[Branch, ...]) -> Call:
        """This call as it is inside a module that computes the rows of some branches, each time the same."""
        if path not in self.inside:
            self.inside[path] = self._part(branches)
        return self.inside[path]

    def _part(self, branches: tuple[Branch, ...]) -> Call:
        rows, of = Rows(self.branches), len(self.branches)

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else rows.of(value, branches)

        seen = self.sighted
        sighted = Sighted(cut(seen.entry), cut(seen.residual), cut(seen.modulated))
        batch = self.batch * len(branches) // of
        over = tuple(b for b in branches if b in self.over)
        return Call(self.step, branches, batch, cut(self.input), sighted, self.skipped, over, self.parts or of)

    def reached(self, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
        """Those of some branches for which no outer run of blocks stands in."""
        return tuple(b for b in branches if b not in self.over) if self.over else branches

    def skip(self, path: str, reused: tuple[Branch, ...]) -> None:
        """Note that a module did not run for these branches."""
        self.skipped.append((path, len(reused) / (self.parts or len(self.branches))))


@dataclass
class RunState:
    """What a unit needs of the current run."""

    run: Run
    coupled: bool = False  # some module looks at all rows of a call at once
    unsure: str = ""  # why it is not known which branch is which, and what to do
    call: Call | None = None

    @property
    def now(self) -> Call:
        assert self.call is not None  # units are only reached from inside a denoiser call
        return self.call

    def cut(self) -> None:
        """Ask to compute some branches' rows only. Raises BranchUnknown where rows cannot be told apart."""
        if self.coupled:
            raise BranchUnknown(
                "this model tells the branches of a call by their place (as perturbed-attention guidance does) or has "
                "their rows along another axis, so none can be left out: "
                "use a policy that reuses every branch at the same steps (no CFG-Cache, no per-branch schedule)"
            )
        if self.unsure:
            raise BranchUnknown(self.unsure)


@dataclass(frozen=True)
class SitePlan:
    """What a static policy does at one site, as plain lists by branch and step, made once for all runs of a shape.

    `last_read` maps a computed step to the last step that reads its value; `busy` is false where the site computes and
    nothing is kept, so that its modules run without any handler.
    """

    computed: list[list[bool]]
    reused: list[list[bool]]
    last_read: list[dict[int, int]]
    busy: list[list[bool]]

    @cached_property
    def quiet(self) -> bool:
        """Whether no step is busy."""
        return not any(map(any, self.busy))

    @classmethod
    def all_of(cls, table: Table) -> list[SitePlan]:
        """One plan per site of a compiled table."""
        computed, reused = ((table.codes == code).tolist() for code in (Code.COMPUTED, Code.REUSED))
        return [
            cls(c, r, k, [[hit or i in kept for i, hit in enumerate(row)] for row, kept in zip(r, k, strict=True)])
            for c, r, k in zip(computed, reused, table.reads(), strict=True)
        ]

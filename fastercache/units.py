"""The runtime of one site: decides, computes or stands in, keeps what later steps read, tells its watchers.

A unit handles calls of the modules its site is made of. The branches of a call are given by `Call.branches`, in row
order; a unit may compute some of them and predict others within one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastercache.families import Layout
from fastercache.hooks import Handler, Inner
from fastercache.layout import (
    BlockIO,
    canonical,
    flatten_output,
    from_canonical,
    joined,
    leading_tensor,
    rebuild_output,
    strip,
    take_rows,
)
from fastercache.signals import Jury, Sighted, Source, signal_value
from fastercache.store import History, rows_of
from fastercache.trace import Observation
from policies.base import Policy
from policies.schedule import Code, Table
from policies.vocabulary import Branch, Run, Site, Step

Watcher = Callable[[Observation], None]
Streams = list[Tensor | None]


@dataclass(slots=True)
class Call:
    """One denoiser call: its step, the branches it computes in row order, and what was skipped inside it."""

    step: Step
    branches: tuple[Branch, ...]
    batch: int  # leading size of the denoiser's input rows that are computed
    input: Tensor | None = None
    sighted: Sighted = field(default_factory=Sighted)  # what the first block's hook saw
    skipped: list[tuple[str, float]] = field(default_factory=list)  # module path, share of its rows that was skipped


@dataclass
class RunState:
    """What a unit needs of the current run."""

    run: Run
    call: Call | None = None

    @property
    def now(self) -> Call:
        assert self.call is not None  # units are only reached from inside a denoiser call
        return self.call


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

    @classmethod
    def all_of(cls, table: Table) -> list[SitePlan]:
        """One plan per site of a compiled table."""
        computed, reused = ((table.codes == code).tolist() for code in (Code.COMPUTED, Code.REUSED))
        return [
            cls(c, r, k, [[hit or i in kept for i, hit in enumerate(row)] for row, kept in zip(r, k, strict=True)])
            for c, r, k in zip(computed, reused, table.reads(), strict=True)
        ]


class Unit:
    """Decisions and history of one site. Subclasses say what the site's value is and how a call yields it."""

    def __init__(self, site: Site, prefix_path: str) -> None:
        self.site = site
        self.path = prefix_path
        self.policy: Policy | None = None
        self.jury: Jury | None = None  # of a dynamic policy
        self.watchers: list[Watcher] = []
        self.history: History | None = None
        self.plan: SitePlan | None = None  # of a static policy
        self.rows: list[bytearray] = []
        self.state: RunState | None = None
        self._index: dict[Branch, int] = {}
        self.template: Any = None
        self.clones = False  # a block changed the returned tensor in place: keep copies
        self._aligned: Tensor | None = None  # what an aligned predictor watches in the present call

    # -- a run -------------------------------------------------------------------------------------------------------
    def begin(self, state: RunState) -> None:
        """Forget the last run."""
        self.state = state
        run = state.run
        self.rows = [bytearray([Code.UNREACHED]) * run.count for _ in run.branches]
        self._index = {branch: i for i, branch in enumerate(run.branches)}
        self._aligned = None
        if self.history is not None:
            self.history.clear()

    def forget(self) -> None:
        """Drop every value and the policy's state."""
        self.jury, self._aligned = None, None
        if self.history is not None:
            self.history.clear()

    def idle(self, call: Call) -> bool:
        """Whether a static plan computes here, keeps nothing and nobody watches: the module needs no handler."""
        if self.watchers:
            return False
        if self.plan is None:
            return self.policy is None
        i, busy = call.step.index, self.plan.busy
        return not any(busy[self._index[b]][i] for b in call.branches)

    def position(self, branch: Branch) -> int:
        """The branch's place in the run's order."""
        return self._index[branch]

    def reuses(self, branch: Branch, step: Step) -> bool:
        """What was noted for a branch at a step of this run."""
        return self.rows[self._index[branch]][step.index] == Code.REUSED

    def mark(self, step: Step, branches: Sequence[Branch]) -> None:
        """Note that these branches were computed and nothing of them is kept."""
        for branch in branches:
            self.rows[self._index[branch]][step.index] = Code.COMPUTED

    def release(self, index: int) -> None:
        """Drop what only step `index` needed, and values that no later step reads (a static plan knows those)."""
        self._aligned = None
        if self.plan is not None and self.history is not None and self.history.entries:
            last = self.plan.last_read
            self.history.release(lambda step, branch: last[self._index[branch]].get(step, -1) <= index)

    # -- one call ----------------------------------------------------------------------------------------------------
    def decide(self, call: Call, source: Source) -> tuple[Branch, ...]:
        """The branches of this call that are reused."""
        if self.policy is None or self.history is None:
            return ()
        watched = self.history.predictor.signal
        self._aligned = None if watched is None else source(watched)
        if self.plan is not None:
            i = call.step.index
            wanted = tuple(b for b in call.branches if self.plan.reused[self._index[b]][i])
        else:
            assert self.jury is not None
            wanted = self.jury.ask(call.step, call.branches, source)
        return tuple(b for b in wanted if self.history.has(b))

    def keep(self, call: Call, branches: tuple[Branch, ...], streams: Streams, base: Tensor | None = None) -> None:
        """Note computed branches, whose rows `streams` holds in this order, and store what a later step reads.

        `base`: what a relative predictor's values are relative to, in the same rows.
        """
        i = call.step.index
        for branch in branches:
            self.rows[self._index[branch]][i] = Code.COMPUTED
        if self.history is None or self.policy is None:
            return
        if self.jury is not None:
            self.jury.teach(call.step, branches, next((s for s in streams if s is not None), None))
        wanted = branches
        if self.plan is not None:
            wanted = tuple(b for b in branches if i in self.plan.last_read[self._index[b]])
        if not wanted:
            return
        if base is not None:
            streams = [None if s is None else s - base for s in streams]
        aligned = self._rows(call, wanted)
        if wanted == branches:
            self.history.add(call.step, wanted, streams, own=base is not None or not self.clones, signal=aligned)
            return
        parts = [branches.index(b) for b in wanted]
        chosen = [None if s is None else take_rows(s, s.shape[0], parts, len(branches)) for s in streams]
        self.history.add(call.step, wanted, chosen, own=False, signal=aligned)

    def _rows(self, call: Call, branches: tuple[Branch, ...]) -> Tensor | None:
        """Some branches' rows of what the predictor watches."""
        if self._aligned is None or branches == call.branches:
            return self._aligned
        parts = [call.branches.index(b) for b in branches]
        rows: Tensor = take_rows(self._aligned, self._aligned.shape[0], parts, len(call.branches))
        return rows

    def predict(self, call: Call, branches: tuple[Branch, ...]) -> Streams:
        assert self.history is not None
        for branch in branches:
            self.rows[self._index[branch]][call.step.index] = Code.REUSED
        streams = self.history.predict(call.step, branches, self._rows(call, branches))
        return [s.clone() if s is not None and self.clones else s for s in streams]

    def source(self, call: Call, entry: Tensor | None = None) -> Source:
        """Where this site's signals come from; `entry` is the input of a run of blocks."""
        return lambda wanted: signal_value(wanted, self.site, call.input, call.sighted, entry)

    def tell(self, call: Call, value: Tensor | None) -> None:
        """Report a site's value, rows ordered as the call's branches, to the watchers."""
        if value is None or not self.watchers:
            return
        assert self.state is not None
        for position, branch in enumerate(call.branches):
            code = Code(self.rows[self._index[branch]][call.step.index])
            part = rows_of(value, position, len(call.branches))
            observation = Observation(self.site, call.step, branch, part, code, self.state.run)
            for watcher in self.watchers:
                watcher(observation)


def join(
    call: Call, reused: tuple[Branch, ...], predicted: Streams, computed: tuple[Branch, ...], fresh: Streams
) -> Streams:
    """Rows of predicted and computed branches, put together in the order of the call."""
    if not reused:
        return fresh
    if not computed:
        return predicted
    result: Streams = []
    for p, f in zip(predicted, fresh, strict=True):
        if p is None or f is None:
            result.append(None)
            continue
        parts = [
            rows_of(p, reused.index(b), len(reused)) if b in reused else rows_of(f, computed.index(b), len(computed))
            for b in call.branches
        ]
        result.append(torch.cat(parts))
    return result


class ModuleUnit(Unit):
    """A module's output: the kinds `module` and `block`; for blocks the value is the residual they add."""

    def __init__(self, site: Site, path: str, io: BlockIO | None, text_first: bool = False) -> None:
        super().__init__(site, path)
        self.io = io  # None for a plain module, whose value is its output
        self.text_first = text_first
        self.streams: list[int] = []

    def handle(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.state is not None
        call = self.state.now
        reused = self.decide(call, self.source(call))
        computed = tuple(b for b in call.branches if b not in reused) if reused else call.branches
        inputs = self.io.inputs(args, kwargs) if self.io else []
        predicted: Streams = self.predict(call, reused) if reused else []
        fresh: Streams = []
        output: Any = None
        if computed:
            if reused:
                lead = (leading_tensor(args, kwargs).shape[0], call.batch)
                parts = [call.branches.index(b) for b in computed]
                args, kwargs = (take_rows(x, lead, parts, len(call.branches)) for x in (args, kwargs))
            output = inner(*args, **kwargs)
            inside = self.io.inputs(args, kwargs) if self.io else []
            fresh = self._values(flatten_output(output), inside, joined_later=bool(reused))
            self.template = strip(output)
            self.keep(call, computed, fresh)
        if reused:
            call.skipped.append((self.path, len(reused) / len(call.branches)))
            values = join(call, reused, predicted, computed, fresh)
            output = rebuild_output(self.template, self._outputs(values, inputs))
        elif self.watchers:
            values = fresh
        if self.watchers:
            self.tell(call, next((v for v in values if v is not None), None) if not self.io else self._main(values))
        return output

    def _main(self, values: Streams) -> Tensor | None:
        """The residual of the hidden-states stream."""
        return values[self.streams.index(0)] if 0 in self.streams else None

    def _values(self, outputs: Streams, inputs: Streams, joined_later: bool) -> Streams:
        if self.io is None:
            return outputs
        if not self.streams:
            self.streams = self.io.match(outputs, inputs, self.text_first)
        if not joined_later and self.idle_value():
            return [None] * len(outputs)
        bases = [inputs[i] if i >= 0 else None for i in self.streams]
        return [None if o is None or base is None else o - base for o, base in zip(outputs, bases, strict=True)]

    def idle_value(self) -> bool:
        """Whether nobody reads this call's residual, so that it need not be computed."""
        if self.watchers or self.state is None or self.plan is None:
            return False
        call = self.state.now
        return not any(call.step.index in self.plan.last_read[self._index[b]] for b in call.branches)

    def _outputs(self, values: Streams, inputs: Streams) -> Streams:
        if self.io is None:
            return values
        result: Streams = []
        for value, i in zip(values, self.streams, strict=True):
            base = inputs[i] if i >= 0 else None
            result.append(None if value is None or base is None else base + value)
        return result


class StackUnit(Unit):
    """The residual a run of blocks adds. The first block decides, the last one adds the residual, all between pass on.

    Where the run starts and ends in different layouts (Latte's spatial and temporal blocks), the residual is taken
    between the canonical forms, so what the denoiser does to the hidden states in between (position embeddings) is
    part of it.
    """

    def __init__(
        self, site: Site, paths: list[str], ios: list[BlockIO], layouts: list[Layout], text_first: bool = False
    ) -> None:
        super().__init__(site, paths[0])
        self.paths, self.ios, self.layouts, self.text_first = paths, ios, layouts, text_first
        self.templates: list[Any] = [None] * len(paths)
        self.streams: list[list[int]] = [[] for _ in paths]
        self._entry: Streams = []
        self._reused: tuple[Branch, ...] = ()

    def handler(self, position: int) -> Handler:
        """The handler of the block at `position` within the span."""

        def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._handle(position, inner, args, kwargs)

        return handle

    def _handle(self, position: int, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.state is not None
        call = self.state.now
        io, last = self.ios[position], position == len(self.paths) - 1
        inputs = io.inputs(args, kwargs)
        if position == 0:
            self._entry = [
                None if x is None else canonical(x, self.layouts[0] if s == 0 else "rows", call.batch)
                for s, x in enumerate(inputs)
            ]
            self._reused = self.decide(call, self.source(call, self._entry[0]))
            if self.layouts[-1] == "joined" and self.layouts[0] != "joined":
                self._entry = joined(self._entry)
        whole = self._reused == call.branches  # some of the branches: all rows are computed, then replaced at the end
        if not whole:
            output = inner(*args, **kwargs)
            outputs = flatten_output(output)
            if not self.streams[position]:
                self.streams[position] = io.match(outputs, inputs, self.text_first)
            self.templates[position] = strip(output)
            return self._finish(call, output, outputs) if last else output
        call.skipped.append((self.paths[position], 1.0))
        if not last:
            return rebuild_output(self.templates[position], [inputs[i] for i in self.streams[position]])
        residuals = self.predict(call, call.branches)
        self.tell(call, residuals[0])
        return self._exit(call, residuals)

    def _finish(self, call: Call, output: Any, outputs: Streams) -> Any:
        position = len(self.paths) - 1
        residuals: Streams = [None] * len(self._entry)
        for out, s in zip(outputs, self.streams[position], strict=True):
            entry = self._entry[s] if s >= 0 else None
            if out is not None and entry is not None:
                residuals[s] = canonical(out, self.layouts[position] if s == 0 else "rows", call.batch) - entry
        computed = tuple(b for b in call.branches if b not in self._reused)
        if not self._reused:
            self.keep(call, computed, residuals)
            self.tell(call, residuals[0])
            self._entry = []
            return output
        parts = [call.branches.index(b) for b in computed]
        fresh: Streams = [None if r is None else take_rows(r, r.shape[0], parts, len(call.branches)) for r in residuals]
        predicted = self.predict(call, self._reused)
        self.keep(call, computed, fresh)
        whole = join(call, self._reused, predicted, computed, fresh)
        self.tell(call, whole[0])
        return self._exit(call, whole)

    def _exit(self, call: Call, residuals: Streams) -> Any:
        """The last block's output: the run's input plus its residual, in that block's layout and container."""
        position = len(self.paths) - 1
        outputs: Streams = []
        for s in self.streams[position]:
            entry, residual = (self._entry[s], residuals[s]) if s >= 0 else (None, None)
            if entry is None or residual is None:
                outputs.append(None)
            else:
                outputs.append(
                    from_canonical(entry + residual, self.layouts[position] if s == 0 else "rows", call.batch)
                )
        self._entry = []
        return rebuild_output(self.templates[position], outputs)


def chain(handlers: list[Handler]) -> Handler | None:
    """Several sites of one module as one handler, the outermost first."""
    if not handlers:
        return None
    if len(handlers) == 1:
        return handlers[0]
    outer, rest = handlers[0], chain(handlers[1:])

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert rest is not None
        return outer(lambda *a, **k: rest(inner, a, k), args, kwargs)

    return handle

"""The unit of one module: its output, or for a block the residual it adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastercache.model.hooks import Inner
from fastercache.model.layout import (
    BlockIO,
    flatten_output,
    leading_tensor,
    rebuild_output,
    strip,
    take_rows,
    tokens_of,
)
from fastercache.policies.errors import AttachError
from fastercache.policies.vocabulary import Branch, Site
from fastercache.run.calls import Call, RunState
from fastercache.run.rows import Rows, Streams
from fastercache.run.units import Duty, Unit


@dataclass(slots=True)
class _Turns:
    """Where one denoiser call is among its several calls of a module."""

    call: Call
    reused: tuple[Branch, ...]
    left: Streams  # predicted values of the turns to come
    seen: Tensor | None  # what the predictor needs of the call
    index: int = 0
    fresh: Streams = field(default_factory=list)
    values: Streams = field(default_factory=list)


class ModuleUnit(Unit):
    """A module's output: the kinds `module` and `block`; for blocks the value is the residual they add."""

    def __init__(
        self, site: Site, path: str, duty: Duty, state: RunState, io: BlockIO | None, text_first: bool
    ) -> None:
        super().__init__(site, path, duty, state)
        self.io = io  # None for a plain module, whose value is its output
        self.text_first = text_first
        self.streams: list[int] = []
        self.turns = 1
        """How often one denoiser call calls the module, as CogView4 does its feed-forward: image, then text."""
        self.traced_inside = ""
        """The site of a module inside this block that is traced: it cannot be told that it gets fewer rows."""
        self._turns: _Turns | None = None  # of the present denoiser call
        self._templates: dict[int, Any] = {}  # by turn

    def handle(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.state.now
        if self.turns > 1:
            return self._handle_turn(call, inner, args, kwargs)
        source = self.source(call)
        reused, seen = self.decide(call, source), self.seen(source)
        computed = tuple(b for b in call.branches if b not in reused) if reused else call.branches
        inputs = self.io.inputs(args, kwargs) if self.io else []
        predicted: Streams = self.predict(call, reused, seen) if reused else []
        fresh: Streams = []
        output: Any = None
        if computed:
            if reused:
                args, kwargs = self._cut(call, computed, args, kwargs)
            output = self._compute(call, computed, inner, args, kwargs)
            inside = self.io.inputs(args, kwargs) if self.io else []
            fresh = self._values(flatten_output(output), inside, joined_later=bool(reused))
            self.template = strip(output)
            self.keep(call, computed, fresh, seen)
        if reused:
            call.skip(self.path, reused)
            values = Rows(call.branches).join_streams({reused: predicted, computed: fresh})
            output = rebuild_output(self.template, self._outputs(values, inputs))
        elif self.watchers:
            values = fresh
        if self.watchers:
            self.tell(call, next((v for v in values if v is not None), None) if not self.io else self._main(values))
        return output

    def _handle_turn(self, call: Call, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One of several calls of the module: decided at the first, the values of all of them kept at the last."""
        now = self._turns
        if now is None or now.call is not call:
            source = self.source(call)
            reused, seen = self.decide(call, source), self.seen(source)
            now = self._turns = _Turns(call, reused, self.predict(call, reused, seen) if reused else [], seen)
            if reused:
                call.skip(self.path, reused)
        turn, now.index = now.index, now.index + 1
        computed = tuple(b for b in call.branches if b not in now.reused)
        inputs = self.io.inputs(args, kwargs) if self.io else []
        fresh: Streams = []
        output: Any = None
        if computed:
            if now.reused:
                args, kwargs = self._cut(call, computed, args, kwargs)
            output = self._compute(call, computed, inner, args, kwargs)
            inside = self.io.inputs(args, kwargs) if self.io else []
            fresh = self._values(flatten_output(output), inside, joined_later=True)
            self._templates[turn] = strip(output)
        width = len(flatten_output(self._templates[turn]))
        values = Rows(call.branches).join_streams({now.reused: now.left[:width], computed: fresh})
        now.left = now.left[width:]
        now.fresh += fresh
        now.values += values
        if now.index == self.turns:
            self._turns = None
            if computed:
                self.keep(call, computed, now.fresh, now.seen)
            self.tell(call, next((v for v in now.values if v is not None), None))
        return rebuild_output(self._templates[turn], self._outputs(values, inputs)) if now.reused else output

    def _compute(
        self, call: Call, computed: tuple[Branch, ...], inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the module; what lies inside is told of the branches alone whose rows it gets."""
        if computed == call.branches:
            return inner(*args, **kwargs)
        if self.traced_inside:
            raise AttachError(
                f"{self.site} is reused for some branches, and {self.traced_inside} inside it is cached compiled: "
                "reuse all branches of the block at the same steps, claim one of the two, or use it without compiling"
            )
        self.state.call = call.part(self.path, computed)
        try:
            return inner(*args, **kwargs)
        finally:
            self.state.call = call

    def _cut(
        self, call: Call, computed: tuple[Branch, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments' rows of the branches that are computed."""
        self.state.cut()
        main = leading_tensor(args, kwargs)
        lead, tokens = (main.shape[0], call.batch), tokens_of(main)
        parts, of = [call.branches.index(b) for b in computed], len(call.branches)
        return take_rows(args, lead, parts, of, tokens), take_rows(kwargs, lead, parts, of, tokens)

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
        if self.watchers or self.plan is None:
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

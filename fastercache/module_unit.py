"""The unit of one module: its output, or for a block the residual it adds."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastercache.calls import Streams
from fastercache.hooks import Inner
from fastercache.layout import BlockIO, flatten_output, leading_tensor, rebuild_output, strip, take_rows
from fastercache.units import Unit, join
from policies.vocabulary import Site


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
                self.state.cut()
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

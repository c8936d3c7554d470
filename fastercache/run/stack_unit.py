"""The unit of a run of blocks: the residual they add together."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from fastercache.model.families import Layout
from fastercache.model.hooks import Handler, Inner
from fastercache.model.layout import (
    BlockIO,
    canonical,
    flatten_output,
    from_canonical,
    joined,
    rebuild_output,
    strip,
)
from fastercache.policies.vocabulary import Branch, Site
from fastercache.run.calls import Call, RunState
from fastercache.run.rows import Rows, Streams
from fastercache.run.units import Duty, Unit

JOINED: tuple[Layout, ...] = ("joined", "joined_last")


class StackUnit(Unit):
    """The residual a run of blocks adds. The first block decides, the last one adds the residual, all between pass on.

    Where the run starts and ends in different layouts (Latte's spatial and temporal blocks), the residual is taken
    between the canonical forms, so what the denoiser does to the hidden states in between (position embeddings) is
    part of it.
    """

    def __init__(
        self,
        site: Site,
        paths: list[str],
        duty: Duty,
        state: RunState,
        ios: list[BlockIO],
        layouts: list[Layout],
        text_first: bool,
    ) -> None:
        super().__init__(site, paths[0], duty, state)
        self.paths, self.ios, self.layouts, self.text_first = paths, ios, layouts, text_first
        self.templates: list[Any] = [None] * len(paths)
        self.streams: list[list[int]] = [[] for _ in paths]
        self._entry: Streams = []
        self._reused: tuple[Branch, ...] = ()
        self._seen: Tensor | None = None

    def handler(self, position: int) -> Handler:
        """The handler of the block at `position` within the span."""
        return functools.partial(self._handle, position)

    def _handle(self, position: int, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.state.now
        if position == 0:
            self._enter(call, self.ios[0].inputs(args, kwargs))
        last = position == len(self.paths) - 1
        if self._reused != call.branches:  # some of the branches: all rows are computed, then replaced at the end
            output = inner(*args, **kwargs)
            known = bool(self.streams[position])
            if known and not last and isinstance(output, Tensor) and isinstance(self.templates[position], Tensor):
                return output  # nothing new is told by a block amid the others
            outputs = flatten_output(output)
            if not known:
                inputs = self.ios[position].inputs(args, kwargs)
                self.streams[position] = self.ios[position].match(outputs, inputs, self.text_first)
            self.templates[position] = strip(output)
            return self._finish(call, output, outputs) if last else output
        call.skipped.append((self.paths[position], 1.0))
        if not last:
            inputs = self.ios[position].inputs(args, kwargs)
            return rebuild_output(self.templates[position], [inputs[i] for i in self.streams[position]])
        residuals = self.predict(call, call.branches, self._seen)
        self.tell(call, residuals[0])
        return self._exit(call, residuals)

    def _enter(self, call: Call, inputs: Streams) -> None:
        """The call has come to the first block: keep what went in, and decide."""
        self._entry = [
            None if x is None else canonical(x, self.layouts[0] if s == 0 else "rows", call.batch)
            for s, x in enumerate(inputs)
        ]
        source = self.source(call, self._entry[0])
        self._reused, self._seen = self.decide(call, source), self.seen(source)
        if self._reused and self._reused != call.branches:
            call.over += self._reused  # until the last block is through
        if self.layouts[-1] in JOINED and self.layouts[0] not in JOINED:
            self._entry = joined(self._entry, self.layouts[-1])

    def _finish(self, call: Call, output: Any, outputs: Streams) -> Any:
        position = len(self.paths) - 1
        residuals: Streams = [None] * len(self._entry)
        for out, s in zip(outputs, self.streams[position], strict=True):
            entry = self._entry[s] if s >= 0 else None
            if out is not None and entry is not None:
                residuals[s] = canonical(out, self.layouts[position] if s == 0 else "rows", call.batch) - entry
        computed = tuple(b for b in call.branches if b not in self._reused)
        if not self._reused:
            self.keep(call, computed, residuals, self._seen)
            self.tell(call, residuals[0])
            self._entry, self._seen = [], None
            return output
        call.over = tuple(b for b in call.over if b not in self._reused)
        rows = Rows(call.branches)
        fresh = rows.of_streams(residuals, computed)
        predicted = self.predict(call, self._reused, self._seen)
        self.keep(call, computed, fresh, self._seen)
        whole = rows.join_streams({self._reused: predicted, computed: fresh})
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
        self._entry, self._seen = [], None
        return rebuild_output(self.templates[position], outputs)

"""What dynamic rules and aligned predictors watch, and who is asked about it.

The first block's hook sees every call that reaches the blocks, so what rules watch there is captured once a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from fastercache.model.families import Layout
from fastercache.model.flops import Signature, flop_counter, signature
from fastercache.model.hooks import Inner, SiteForward
from fastercache.model.layout import BlockIO, canonical, flatten_output, leading_tensor
from fastercache.policies.errors import AttachError
from fastercache.policies.rules import StaticRule, WatchingRule
from fastercache.policies.signals import Signal, declared
from fastercache.policies.vocabulary import COND, OUTER, Branch, Scope, Site, Step
from fastercache.run.parallel import Ranks
from fastercache.run.rows import Rows

Source = Callable[[Signal], Tensor]
"""Gives the value of a signal that the runtime sees itself."""
S = TypeVar("S")


@dataclass(slots=True)
class Sighted:
    """What the first block's hook saw in one denoiser call, all rows; hidden states in canonical layout.

    `flops` is what was computed for the watching alone.
    """

    entry: Tensor | None = None  # the first block's input
    residual: Tensor | None = None  # what the first block added
    modulated: Tensor | None = None  # its input after norm and modulation
    flops: int = 0


class _Reached(Exception):
    """Ends a partial run of a block with what its attention was given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def _stop(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise _Reached(leading_tensor(args, kwargs))


class Watchtower:
    """The first block's hook and that of the first module inside it."""

    def __init__(self, block: SiteForward, first_module: SiteForward | None, layout: Layout, text_first: bool) -> None:
        self.block, self.first_module, self.layout, self.text_first = block, first_module, layout, text_first
        self.io = BlockIO.of(block.module)
        self.wanted: frozenset[Signal] = frozenset()
        self._streams: list[int] = []  # of the block's outputs; read off its first call
        self._flops: dict[Signature, int] = {}

    def watch(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int, sighted: Sighted) -> Any:
        """Run the first block and note what is wanted of it."""
        if Signal.MODULATED_INPUT in self.wanted:
            sighted.modulated = self._modulated(args, kwargs, sighted)
        inputs = self.io.inputs(args, kwargs)
        entry = inputs[0]
        assert entry is not None  # a block is always called with hidden states
        sighted.entry = canonical(entry, self.layout, batch)
        output = inner(*args, **kwargs)
        if Signal.FIRST_BLOCK_RESIDUAL in self.wanted:
            outputs = flatten_output(output)
            if not self._streams:
                self._streams = self.io.match(outputs, inputs, self.text_first)
            main = outputs[self._streams.index(0)]
            assert main is not None
            sighted.residual = canonical(main, self.layout, batch) - sighted.entry
        return output

    def _modulated(self, args: tuple[Any, ...], kwargs: dict[str, Any], sighted: Sighted) -> Tensor:
        """Run the block up to its first attention. What that costs is counted once for each shape."""
        if self.first_module is None:
            raise AttachError("the first block has no attention, so its modulated input is not known")
        handler, hits = self.first_module.handler, self.first_module.hits
        key = signature(args, kwargs)
        self.first_module.handler = _stop
        # A compiled block cannot be left half-way, so it runs eagerly here.
        run = self.block.module.forward if self.first_module.traced else self.block.inner
        self.first_module.show_traced(False)
        try:
            if key in self._flops:
                run(*args, **kwargs)
            else:
                counter = flop_counter()
                try:
                    with counter:
                        run(*args, **kwargs)
                finally:
                    self._flops[key] = counter.get_total_flops()
        except _Reached as reached:
            return reached.value
        finally:
            self.first_module.show_traced(True)
            self.first_module.handler, self.first_module.hits = handler, hits
            sighted.flops += self._flops.get(key, 0)
        raise AttachError("the first block ran without calling its attention, so its modulated input is not known")


def signal_value(wanted: Signal, site: Site, source: Tensor | None, sighted: Sighted, entry: Tensor | None) -> Tensor:
    """The value at a site of a signal that the runtime sees.

    `source` is the denoiser's input, `entry` the input of a run of blocks.

    Raises:
        AttachError: where the signal does not exist, naming it and the site.
    """
    found: Tensor | None = None
    if wanted == Signal.INPUT:
        found = source
    elif wanted == Signal.MODULATED_INPUT:
        found = sighted.modulated
    elif site.span[0] > 0 and wanted == Signal.PROBE:
        found = entry
    elif site.span[0] > 0 and wanted == Signal.FIRST_BLOCK_RESIDUAL:
        found = sighted.residual
        if site.span[0] > 1 and entry is not None and sighted.entry is not None:
            found = entry - sighted.entry
    if found is None:
        raise AttachError(
            f"the signal '{wanted}' is not known at {site.name}: at the denoiser and branch sites only 'input' is, "
            "and the first block's residual and the probe only at sites after that block, such as stack[1:]"
        )
    return found


def leader(branches: tuple[Branch, ...]) -> Branch:
    """The branch in whose name a call as a whole is decided about."""
    return COND if COND in branches else branches[0]


class Jury(Generic[S]):
    """Asks one site's rule while the model runs, tells it what was computed there, and holds its states by branch."""

    def __init__(
        self, rule: StaticRule[S] | WatchingRule[S], site: Site, states: dict[Branch, S], ranks: Ranks | None = None
    ) -> None:
        self.rule, self.site, self.states = rule, site, states
        self.ranks = ranks  # the processes that must decide alike
        self.signal, self.scope = None, Scope.BRANCH
        if isinstance(rule, WatchingRule):
            self.signal = declared(rule.signal, f"the signal of {type(rule).__name__}")
            self.scope = rule.decides
        self._inside = ranks is not None and site.kind not in OUTER
        self._led: tuple[int, bool] = (-1, False)  # the step that the conditional branch decided, and how

    def ask(self, step: Step, branches: tuple[Branch, ...], source: Source) -> tuple[Branch, ...]:
        """The branches that the rule would reuse."""
        signal = None if self.signal is None else self.signal.value(lambda wanted: self._seen(wanted, source))
        if self.scope is Scope.CALL:
            return branches if self._verdict(step, leader(branches), signal) else ()
        if self.scope is Scope.COND:
            if COND in branches:
                part = _part(signal, COND, branches)
                self._led = (step.index, self._verdict(step, COND, part))
            if self._led[0] == step.index:
                return branches if self._led[1] else ()
        return tuple(b for b in branches if self._verdict(step, b, _part(signal, b, branches)))

    def _verdict(self, step: Step, branch: Branch, seen: Tensor | None) -> bool:
        state = self.states[branch]
        if isinstance(self.rule, WatchingRule):
            verdict = self.rule.reuse(state, step, seen)
        else:
            verdict = self.rule.reuse(state, step)
        return verdict if self.ranks is None else self.ranks.agreed(verdict)

    def _seen(self, wanted: Signal, source: Source) -> Tensor:
        """A signal that the runtime sees, whole."""
        value = source(wanted)
        if self.ranks is None or not self._inside or wanted == Signal.INPUT:
            return value
        return self.ranks.whole(value)

    def _whole(self, part: Tensor | None) -> Tensor | None:
        """All tokens of a value inside the denoiser, of which this process holds a part."""
        return part if part is None or self.ranks is None else self.ranks.whole(part)

    def teach(self, step: Step, branches: tuple[Branch, ...], value: Tensor | None) -> None:
        """Pass on a computed value, whose rows are ordered as `branches`."""
        if self._inside:
            value = self._whole(value)
        if self.scope is Scope.CALL:
            self._computed(step, leader(branches), value)
            return
        for branch in branches:
            if self.scope is Scope.BRANCH or branch == COND or self._led[0] != step.index:
                self._computed(step, branch, _part(value, branch, branches))

    def _computed(self, step: Step, branch: Branch, value: Tensor | None) -> None:
        state = self.states[branch]
        if not isinstance(self.rule, WatchingRule):
            self.states[branch] = self.rule.update(state, step)
        elif value is not None:
            self.states[branch] = self.rule.update(state, step, value)


def _part(value: Tensor | None, branch: Branch, branches: tuple[Branch, ...]) -> Tensor | None:
    return None if value is None else Rows(branches).of(value, (branch,))

"""One hooked denoiser: its hooks and units, and how one call of it is planned, run and put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastercache.branches import BranchFinder
from fastercache.clock import Clock
from fastercache.compiled import collect, enough_graphs, place_hooks, prepare
from fastercache.families import Guidance, family_of
from fastercache.finder import find_blocks, find_denoiser_sites, is_unet, module_at
from fastercache.flops import FlopBook
from fastercache.grids import grid_of
from fastercache.hooks import Handler, Inner, SiteForward
from fastercache.layout import (
    BlockIO,
    flatten_output,
    leading_tensor,
    rebuild_output,
    strip,
    take_rows,
    timestep_of,
)
from fastercache.memory import Shape, ValueShapes
from fastercache.signals import Watchtower
from fastercache.store import rows_of, storages
from fastercache.trace import Trace
from fastercache.units import Call, ModuleUnit, RunState, StackUnit, Streams, Unit, chain
from policies.errors import AttachError
from policies.schedule import applies
from policies.vocabulary import COND, Branch, Kind, Signal, Site

OnRun = Callable[["Denoiser", tuple[Any, ...], dict[str, Any]], None]


class Denoiser:
    """A denoiser whose calls run through a session's policy."""

    def __init__(
        self,
        module: nn.Module,
        prefix: str,
        pipe: Any | None,
        guidance: Guidance | None,
        branches: Sequence[Branch] | None,
        clock: Clock,
        book: FlopBook,
        on_run: OnRun,
    ) -> None:
        self.module, self.prefix = module, prefix
        self.clock, self.book, self.on_run = clock, book, on_run
        self.family = family_of(type(module).__name__)
        self.branches = BranchFinder(module, pipe, self.family, guidance, branches)
        self.sites = find_denoiser_sites(module, prefix, branches=len(self.branches.order) > 1)
        self.blocks = find_blocks(module)
        self.hooks: dict[str, SiteForward] = {}
        self.root = SiteForward(module)
        self.units: dict[str, Unit] = {}
        self.state: RunState | None = None
        self.trace: Trace | None = None
        self._tower: Watchtower | None = None  # while something watches the first block
        self._governed: list[tuple[SiteForward, list[tuple[Unit, Handler]]]] = []
        self._outputs: dict[Branch, Streams] = {}  # this step's outputs by branch
        self._computed: set[Branch] = set()  # those of them that were computed
        self._before: Streams | None = None  # the conditional output of the step before
        self._template: Any = None
        self._step = -1

    # -- hooks -------------------------------------------------------------------------------------------------------
    def install(self) -> None:
        """Hook every block and module site, and the denoiser itself."""
        for site in self.sites:
            if site.kind in (Kind.MODULE, Kind.BLOCK):
                path = site.name.removeprefix(self.prefix)
                hook = SiteForward(module_at(self.module, path))
                self.hooks[path] = hook
                hook.install()
        self.root.handler = self._call
        self.root.install()

    def verify(self) -> None:
        """Put back hooks that others' re-hooking dropped (accelerate re-hooks after each call under model offload)."""
        for hook in (*self.hooks.values(), self.root):
            if not hook.installed:
                hook.reinstall()

    def remove(self) -> None:
        for hook in (*self.hooks.values(), self.root):
            hook.remove()
        self.branches.remove()

    # -- units -------------------------------------------------------------------------------------------------------
    def unit(self, site: Site) -> Unit:
        """The unit of a site, made on first use."""
        if site.name not in self.units:
            self.units[site.name] = self._make(site)
        return self.units[site.name]

    def _make(self, site: Site) -> Unit:
        path = site.name.removeprefix(self.prefix)
        text_first = bool(self.family and self.family.text_first)
        if site.kind is Kind.MODULE:
            return ModuleUnit(site, path, None)
        if site.kind is Kind.BLOCK:
            io = None if is_unet(self.module) else BlockIO.of(module_at(self.module, path))
            return ModuleUnit(site, path, io, text_first)
        if site.kind is Kind.STACK:
            blocks = self.blocks[slice(*site.span)]
            layouts = [self.family.layouts.get(b.family_list, "rows") if self.family else "rows" for b in blocks]
            ios = [BlockIO.of(b.module) for b in blocks]
            return StackUnit(site, [b.path for b in blocks], ios, layouts, text_first)
        return Unit(site, path)

    def govern(self) -> None:
        """Lay out which units' handlers each hook runs, outermost first, and forget units nobody needs."""
        self.units = {name: u for name, u in self.units.items() if u.policy is not None or u.watchers}
        handlers: dict[str, list[tuple[Unit, Handler]]] = {}
        stacks = [u for u in self.units.values() if isinstance(u, StackUnit)]
        for stack in sorted(stacks, key=lambda u: u.site.span[0] - u.site.span[1]):
            for position, path in enumerate(stack.paths):
                handlers.setdefault(path, []).append((stack, stack.handler(position)))
        for unit in self.units.values():
            if isinstance(unit, ModuleUnit):
                handlers.setdefault(unit.path, []).append((unit, unit.handle))
        place_hooks(self.module, self.blocks, self.hooks, inner_sites=bool(handlers))
        self._governed = [(self.hooks[path], pairs) for path, pairs in handlers.items()]
        for hook in self.hooks.values():
            hook.handler = None
        self._tower = self._raise_tower()

    def _raise_tower(self) -> Watchtower | None:
        """What watches the first block, if a rule or a predictor needs it."""
        wanted: set[Signal | None] = set()
        for unit in self.units.values():
            wanted.add(unit.jury.owner.signal if unit.jury is not None else None)
            wanted.add(unit.history.predictor.signal if unit.history is not None else None)
        watched = frozenset(s for s in wanted if s is not None and s is not Signal.INPUT)
        if not watched or not self.blocks:
            return None
        first = self.blocks[0]
        inside = next((p for p in self.hooks if p.startswith(f"{first.path}.")), None)
        layout = self.family.layouts.get(first.family_list, "rows") if self.family else "rows"
        text_first = bool(self.family and self.family.text_first)
        tower = Watchtower(self.hooks[first.path], self.hooks[inside] if inside else None, layout, text_first)
        tower.wanted = watched
        return tower

    def _watch_first(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._tower is not None and self.state is not None
        call = self.state.now
        return self._tower.watch(inner, args, kwargs, call.batch, call.sighted)

    def begin(self, state: RunState, trace: Trace) -> None:
        """Forget the last run."""
        self.state, self.trace = state, trace
        self._outputs, self._computed, self._before, self._step = {}, set(), None, -1
        for unit in self.units.values():
            unit.begin(state)

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ValueShapes:
        """Count a full call with these arguments, note which modules' values need copying, and give value shapes."""
        cost = self.book.cost(self.prefix, self.hooks, self.root.inner, args, kwargs)
        assert self.state is not None
        parts = len(self.state.run.branches) if self.branches.guidance == "batched" else 1
        for unit in self.units.values():
            unit.clones = unit.path in cost.changed

        def shapes(site: Site) -> list[Shape]:
            unit = self.unit(site)
            path = unit.paths[-1] if isinstance(unit, StackUnit) else unit.path
            outer = site.kind in (Kind.DENOISER, Kind.BRANCH)
            rows = [((s[0] // parts, *s[1:]), dtype) for s, dtype in cost.outputs["" if outer else path]]
            if site.kind is not Kind.BRANCH:
                return rows
            empty = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in rows]
            grids = [grid_of(self.family, kwargs, t).to(t) for t in empty]
            return [(tuple(t.shape), t.dtype) for t in grids]

        return shapes

    def release(self, index: int) -> None:
        """Step `index` has ended: drop what no later step reads."""
        self._before = self._outputs.get(COND) if self.branches.cond_last else None
        self._outputs, self._computed = {}, set()
        for unit in self.units.values():
            unit.release(index)

    def held(self) -> dict[int, int]:
        """What is held between steps, storage -> bytes: histories, a dynamic policy's state, and the conditional output
        where the next step needs it."""
        found = storages(self._before)
        for unit in self.units.values():
            if unit.history is not None and unit.history.entries:
                found.update(unit.history.storages())
        states = {id(u.jury.state): u.jury.state for u in self.units.values() if u.jury is not None}
        return found | storages(list(states.values()))

    def clear(self) -> None:
        """Drop every cached value."""
        self._outputs, self._computed, self._before = {}, set(), None
        for unit in self.units.values():
            unit.forget()

    # -- one call ----------------------------------------------------------------------------------------------------
    def _call(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = leading_tensor(args, kwargs)
        if self.clock.pending or self.state is None or self.clock.replaced(self.branches.pipe):
            self.on_run(self, args, kwargs)
        state = self.state
        assert state is not None  # on_run begins a run or raises
        branches = self.branches.of(self.clock.index, x.shape[0], lambda: timestep_of(args, kwargs))
        step = self.clock.now(branches)
        if step.index != self._step:
            self._outputs, self._computed, self._step = {}, set(), step.index
        call = Call(step, branches, x.shape[0], x)
        predicted = self._decide(call)
        computed = tuple(b for b in branches if b not in predicted)
        part_args, part_kwargs, output = args, kwargs, None
        if computed and computed != branches:
            parts = [branches.index(b) for b in computed]
            part_args, part_kwargs = (take_rows(v, x.shape[0], parts, len(branches)) for v in (args, kwargs))
        if computed:
            rows = leading_tensor(part_args, part_kwargs)
            inside = Call(step, computed, rows.shape[0], rows)
            output = self._run(inside, inner, part_args, part_kwargs)
            self._account(inner, args, kwargs, part_args, part_kwargs, inside)
        else:
            self._account(inner, args, kwargs, args, kwargs, None)
        outer = self._outer_units()
        # With one call per branch a difference needs the outputs of every call of the step.
        whole_step = Call(step, state.run.branches, call.batch)
        if outer and not predicted and all(u.idle(whole_step) for u in outer):
            for unit in outer:
                unit.mark(step, [b for b in branches if applies(unit.site, b)])
        elif outer:
            output = self._assemble(call, predicted, computed, output, kwargs)
        self.clock.called(state.run.branches)
        return output

    def _outer_units(self) -> list[Unit]:
        return [u for u in self.units.values() if u.site.kind in (Kind.DENOISER, Kind.BRANCH)]

    def _outer(self, kind: Kind) -> Unit | None:
        return next((u for u in self.units.values() if u.site.kind is kind), None)

    def _decide(self, call: Call) -> dict[Branch, Unit]:
        """The branches of this call that are predicted, and the unit that predicts them."""
        predicted: dict[Branch, Unit] = {}
        whole, guidance = self._outer(Kind.DENOISER), self._outer(Kind.BRANCH)
        if whole is not None:
            predicted.update(dict.fromkeys(whole.decide(call, whole.source(call)), whole))
        if guidance is not None:
            rest = tuple(b for b in call.branches if b not in predicted and b != COND)
            # Where the unconditional call comes first, the step before stands in for this step's conditional output.
            known = COND in call.branches or COND in self._outputs or self._before is not None
            if rest and known:
                rows = [call.branches.index(b) for b in rest]
                part = None if call.input is None else take_rows(call.input, call.batch, rows, len(call.branches))
                asked = Call(call.step, rest, call.batch, part)
                predicted.update(dict.fromkeys(guidance.decide(asked, guidance.source(asked)), guidance))
        return predicted

    def _run(self, call: Call, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the denoiser for some branches, with the handlers their plan needs."""
        assert self.state is not None
        self.state.call = call
        passing: list[tuple[SiteForward, Unit]] = []
        traced: list[tuple[SiteForward, ModuleUnit]] = []
        for hook, pairs in self._governed:
            if hook.traced:
                for unit, _ in pairs:
                    assert isinstance(unit, ModuleUnit)  # only modules lie inside a block
                    prepare(hook, unit, call)
                    traced.append((hook, unit))
                continue
            hook.hits = 0
            busy = []
            for unit, handler in pairs:
                if unit.idle(call):
                    passing.append((hook, unit))
                else:
                    busy.append(handler)
            hook.handler = chain(busy)
        if self._tower is not None:
            first = self._tower.block
            busy = [first.handler] if first.handler is not None and first.handler is not self._watch_first else []
            first.handler = chain([self._watch_first, *busy])
        try:
            with enough_graphs() if traced else nullcontext():
                output = inner(*args, **kwargs)
        finally:
            self.state.call = None
        for hook, unit in passing:
            if hook.hits:
                unit.mark(call.step, call.branches)
        for hook, unit in traced:
            collect(hook, unit, call)
        return output

    def _account(
        self,
        inner: Inner,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        part_args: tuple[Any, ...],
        part_kwargs: dict[str, Any],
        inside: Call | None,
    ) -> None:
        """Add this call's FLOPs to the trace: what was computed, and what all of it would have been."""
        assert self.trace is not None
        full = self.book.cost(self.prefix, self.hooks, inner, args, kwargs)
        index = self.clock.index
        self.trace.flops_full[index] += full.total
        if inside is not None:
            sliced = part_kwargs is not kwargs
            cost = self.book.cost(self.prefix, self.hooks, inner, part_args, part_kwargs) if sliced else full
            self.trace.flops[index] += cost.computed(inside.skipped) + inside.sighted.flops

    def _assemble(
        self,
        call: Call,
        predicted: dict[Branch, Unit],
        computed: tuple[Branch, ...],
        output: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        """Put computed and predicted branches together, and keep what later steps read."""
        whole, guidance = self._outer(Kind.DENOISER), self._outer(Kind.BRANCH)
        fresh: Streams = [] if output is None else flatten_output(output)
        if output is not None:
            self._template = strip(output)
            for position, branch in enumerate(computed):
                self._outputs[branch] = [None if t is None else rows_of(t, position, len(computed)) for t in fresh]
            self._computed.update(computed)
            if whole is not None:
                inside = Call(call.step, computed, call.batch)
                whole.keep(inside, computed, fresh, self._base(whole, call, computed, fresh))
        held = tuple(b for b in call.branches if predicted.get(b) is whole and whole is not None)
        if held and whole is not None:
            values = whole.predict(call, held)
            base = self._base(whole, call, held, values)
            if base is not None:
                values = [None if v is None else v + base for v in values]
            for position, branch in enumerate(held):
                self._outputs[branch] = [None if t is None else rows_of(t, position, len(held)) for t in values]
        guided = tuple(b for b in call.branches if b in predicted and b not in held)
        if guidance is not None:
            if guided:
                self._guide(guidance, call, guided, kwargs)
            self._keep_deltas(guidance, call, kwargs)
        if not predicted:
            result = output
        else:
            streams = [self._outputs[b] for b in call.branches]
            result = rebuild_output(self._template, [_stack([s[i] for s in streams]) for i in range(len(streams[0]))])
        if whole is not None and whole.watchers:
            for branch in call.branches:
                whole.tell(Call(call.step, (branch,), call.batch), self._outputs[branch][0])
        return result

    def _base(self, unit: Unit, call: Call, branches: tuple[Branch, ...], values: Streams) -> Tensor | None:
        """What a relative predictor's values are relative to: these branches' rows of the denoiser's input.

        Raises:
            AttachError: if input and output differ in shape.
        """
        if unit.history is None or not unit.history.predictor.relative or call.input is None:
            return None
        parts = [call.branches.index(b) for b in branches]
        base: Tensor = take_rows(call.input, call.input.shape[0], parts, len(call.branches))
        found = next((v for v in values if v is not None), base)
        if found.shape != base.shape:
            raise AttachError(
                f"the denoiser's output {tuple(found.shape)} and its input {tuple(base.shape)} differ in shape, so the "
                "one less the other does not exist: give the policy relative=False"
            )
        return base

    def _guide(self, unit: Unit, call: Call, guided: tuple[Branch, ...], kwargs: dict[str, Any]) -> None:
        """Predict branches as the conditional output plus their predicted difference to it."""
        base = self._outputs.get(COND, self._before)
        assert base is not None  # _decide saw one
        deltas = unit.predict(call, guided)
        for position, branch in enumerate(guided):
            streams: Streams = []
            for cond, delta in zip(base, deltas, strict=True):
                if cond is None or delta is None:
                    streams.append(cond)
                    continue
                grid = grid_of(self.family, kwargs, cond)
                streams.append(cond + grid.back(rows_of(delta, position, len(guided))))
            self._outputs[branch] = streams

    def _keep_deltas(self, unit: Unit, call: Call, kwargs: dict[str, Any]) -> None:
        """Store or report the difference of each branch to the conditional one, once both are there."""
        if COND not in self._outputs:
            return
        arrived = self._outputs if COND in call.branches else call.branches
        for branch in [b for b in arrived if b != COND]:
            fresh = branch in self._computed and COND in self._computed
            inside = Call(call.step, (branch,), call.batch)
            if not unit.watchers and (not fresh or unit.idle(inside)):
                if fresh:
                    unit.mark(call.step, (branch,))
                continue
            delta: Streams = []
            for value, cond in zip(self._outputs[branch], self._outputs[COND], strict=True):
                if value is None or cond is None:
                    delta.append(None)
                else:
                    delta.append(grid_of(self.family, kwargs, cond).to(value - cond))
            if fresh:
                unit.keep(inside, (branch,), delta)
            unit.tell(inside, delta[0])


def _stack(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [p for p in parts if p is not None]
    if not tensors:
        return None
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

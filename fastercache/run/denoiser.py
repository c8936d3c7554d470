"""One hooked denoiser: its hooks and units, and how one call of it is planned and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from fastercache.model.branches import BranchFinder
from fastercache.model.families import Guidance, family_of
from fastercache.model.finder import Block, find_blocks, find_denoiser_sites, is_unet, module_at, order_is_assumed
from fastercache.model.flops import FlopBook
from fastercache.model.grids import grid_of
from fastercache.model.hooks import Handler, Inner, SiteForward, chain
from fastercache.model.layout import (
    BlockIO,
    flatten_output,
    leading_tensor,
    timestep_of,
)
from fastercache.model.order import watch_chain
from fastercache.model.rows import branch_rows
from fastercache.model.skeleton import has_hooks
from fastercache.policies.errors import BranchUnknown
from fastercache.policies.schedule import containers
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Branch, Kind, Site
from fastercache.run.assembly import Assembly
from fastercache.run.caller import Caller
from fastercache.run.calls import Call, RunState
from fastercache.run.clock import Clock
from fastercache.run.compiled import collect, enough_graphs, place_hooks, prepare
from fastercache.run.finite import FiniteWatch
from fastercache.run.memory import Shape, ValueShapes
from fastercache.run.module_unit import ModuleUnit
from fastercache.run.signals import Watchtower
from fastercache.run.stack_unit import StackUnit
from fastercache.run.store import storages
from fastercache.run.units import Duty, Unit
from fastercache.run.writer import TraceWriter

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
        caller: Caller,
        book: FlopBook,
        on_run: OnRun,
        on_error: Callable[[], None],
        on_sites: Callable[[], None],
    ) -> None:
        self.module, self.prefix = module, prefix
        self.clock, self.caller, self.book = clock, caller, book
        self.on_run, self.on_error, self.on_sites = on_run, on_error, on_sites
        self.family = family_of(module)
        self.branches = BranchFinder(module, pipe, self.family, guidance, branches)
        self.sites = find_denoiser_sites(module, prefix, branches=len(self.branches.order) > 1)
        self.blocks = find_blocks(module)
        self._order_assumed = order_is_assumed(module, self.blocks)
        self.hooks: dict[str, SiteForward] = {}
        self.root = SiteForward(module, outermost=True)
        self.units: dict[str, Unit] = {}
        self.assembly = Assembly(self.family)
        self.finite = FiniteWatch()
        self.state: RunState | None = None
        self.writer: TraceWriter | None = None  # of the present run's trace
        self._tower: Watchtower | None = None  # while something watches the first block
        self._governed: list[tuple[SiteForward, list[tuple[Unit, Handler]]]] = []
        self._quiet: list[tuple[SiteForward, list[Unit]]] = []  # hooks that never do anything in this run
        self._outer: dict[str, list[Unit]] = {}  # a unit's site -> the stacks and blocks that it lies inside

    # -- hooks -------------------------------------------------------------------------------------------------------
    def install(self, session: Any) -> None:
        """Hook every block and module site, and the denoiser itself, whose hook knows the session."""
        self.root.owner = session
        self._hook_sites()
        self.root.handler = self._call
        self.root.install()

    def _hook_sites(self) -> None:
        for site in self.sites:
            if site.kind in (Kind.MODULE, Kind.BLOCK):
                path = site.name.removeprefix(self.prefix)
                hook = SiteForward(module_at(self.module, path))
                self.hooks[path] = hook
                hook.install()

    def verify(self) -> None:
        """Put back hooks that others' re-hooking dropped (accelerate re-hooks after each call under model offload), and
        count anew where layers have changed."""
        for hook in (*self.hooks.values(), self.root):
            if not hook.installed:
                hook.reinstall()
        self.book.renew(self.prefix, self.module)

    def remove(self) -> None:
        for hook in (*self.hooks.values(), self.root):
            hook.remove()
        self.branches.remove()

    def _arrange(self, chain: list[Block]) -> None:
        """Take the sites that a call has shown instead of those that structure alone suggested."""
        chained = len(chain) > 1
        blocks = chain if chained else self.blocks
        if blocks == self.blocks and chained:
            return
        self.blocks = blocks
        for hook in self.hooks.values():
            hook.remove()
        self.hooks, self.units = {}, {}
        branches = len(self.branches.order) > 1
        self.sites = find_denoiser_sites(self.module, self.prefix, branches=branches, blocks=blocks, chained=chained)
        self._hook_sites()
        self.on_sites()

    # -- a run -------------------------------------------------------------------------------------------------------
    def begin(self, state: RunState, duties: Mapping[Site, Duty]) -> None:
        """Forget the last run, and make a unit for each of this denoiser's sites at which there is something to do."""
        self.state = state
        state.coupled |= self.family is not None and self.family.inseparable
        self.units = {site.name: self._make(site, duty, state) for site, duty in duties.items()}
        self.assembly.begin(self.units.values())
        self._place_handlers()

    def _make(self, site: Site, duty: Duty, state: RunState) -> Unit:
        path = site.path
        text_first = bool(self.family and self.family.text_first)
        if site.kind is Kind.MODULE:
            return ModuleUnit(site, path, duty, state, None, text_first)
        if site.kind is Kind.BLOCK:
            io = None if is_unet(self.module) else BlockIO.of(module_at(self.module, path))
            return ModuleUnit(site, path, duty, state, io, text_first)
        if site.kind is Kind.STACK:
            blocks = self.blocks[slice(*site.span)]
            layouts = [self.family.layouts.get(b.family_list, "rows") if self.family else "rows" for b in blocks]
            ios = [BlockIO.of(b.module) for b in blocks]
            return StackUnit(site, [b.path for b in blocks], duty, state, ios, layouts, text_first)
        return Unit(site, path, duty, state)

    def _place_handlers(self) -> None:
        """Lay out which units' handlers each hook runs, outermost first."""
        handlers: dict[str, list[tuple[Unit, Handler]]] = {}
        stacks = [u for u in self.units.values() if isinstance(u, StackUnit)]
        for stack in sorted(stacks, key=lambda u: u.site.span[0] - u.site.span[1]):
            for position, path in enumerate(stack.paths):
                handlers.setdefault(path, []).append((stack, stack.handler(position)))
        for unit in self.units.values():
            if isinstance(unit, ModuleUnit):
                handlers.setdefault(unit.path, []).append((unit, unit.handle))
        place_hooks(self.module, self.blocks, self.hooks, governed=handlers)
        for hook in self.hooks.values():
            hook.handler, hook.hits = None, 0
        units = list(self.units.values())
        within = zip(units, containers([unit.site for unit in units]), strict=True)
        self._outer = {unit.site.name: [units[i] for i in inside if _stands_in(units[i])] for unit, inside in within}
        self._governed, self._quiet = [], []
        for path, pairs in handlers.items():
            hook = self.hooks[path]
            if not hook.traced and all(unit.quiet for unit, _ in pairs):
                self._quiet.append((hook, [unit for unit, _ in pairs]))
            else:
                self._governed.append((hook, pairs))
        self._tower = self._raise_tower()

    def _raise_tower(self) -> Watchtower | None:
        """What watches the first block, if a rule or a predictor needs it."""
        wanted: set[Signal] = set()
        for unit in self.units.values():
            for signal in (
                unit.jury.signal if unit.jury is not None else None,
                unit.history.predictor.needs if unit.history is not None else None,
            ):
                wanted |= signal.seen if signal is not None else frozenset()
        watched = frozenset(wanted - {Signal.INPUT})
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

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ValueShapes:
        """Count a full call with these arguments, note which modules' values need copying, and give value shapes: of
        this denoiser's sites, and of the same sites of another of its class."""
        cost = self.book.cost(self.prefix, self.module, self.hooks, self.root.inner, args, kwargs)
        assert self.state is not None
        parts = len(self.branches.groups[0])
        hooked = has_hooks(self.module)  # users' hooks, which were not counted with, may change any value in place
        for unit in self.units.values():
            unit.clones = hooked or unit.path in cost.changed
            if isinstance(unit, ModuleUnit):
                unit.turns = cost.turns.get(unit.path, 1)

        def place(site: Site) -> str:
            if site.kind in (Kind.DENOISER, Kind.BRANCH):
                return ""
            return self.blocks[slice(*site.span)][-1].path if site.kind is Kind.STACK else site.path

        def values(site: Site) -> list[Shape]:
            rows = [((s[0] // parts, *s[1:]), dtype) for s, dtype in cost.outputs.get(place(site), ())]
            if site.kind is not Kind.BRANCH:
                return rows
            empty = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in rows]
            grids = [grid_of(self.family, kwargs, t, i).to(t) for i, t in enumerate(empty)]
            return [(tuple(t.shape), t.dtype) for t in grids]

        x = leading_tensor(args, kwargs)
        source = (x.shape[0] // parts, *x.shape[1:]), x.dtype
        return ValueShapes(values, source, lambda site: place(site) in cost.repeated)

    def release(self, index: int) -> None:
        """Step `index` has ended: drop what no later step reads."""
        self.assembly.release(index, self.branches.cond_last)
        for unit in self.units.values():
            unit.release(index)

    def held(self) -> dict[int, int]:
        """What is held between steps, storage -> bytes: histories, a dynamic policy's state, and the conditional output
        where the next step needs it."""
        found = self.assembly.held()
        for unit in self.units.values():
            if unit.history is not None and unit.history.entries:
                found.update(unit.history.storages())
        for unit in self.units.values():
            if unit.jury is not None:
                found.update(storages(unit.jury.states))
        return found

    def clear(self) -> None:
        """Drop every cached value."""
        self.assembly.clear()
        self.finite.clear()
        for unit in self.units.values():
            unit.forget()

    # -- one call ----------------------------------------------------------------------------------------------------
    def _call(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.caller.check_thread()
        x = leading_tensor(args, kwargs)
        if self._order_assumed:
            self._order_assumed = False
            self._arrange(watch_chain(self.blocks, inner, args, kwargs))
        if self.clock.pending or self.state is None or self.clock.replaced(self.branches.pipe):
            self.on_run(self, args, kwargs)
        state = self.state
        assert state is not None  # on_run begins a run or raises
        branches = self.branches.of(self.clock.index, x.shape[0], lambda: timestep_of(args, kwargs))
        step = self.clock.now(branches)
        self.assembly.enter(step.index)
        call = Call(step, branches, x.shape[0], x)
        predicted = self.assembly.decide(call)
        computed = tuple(b for b in branches if b not in predicted)
        if state.unsure and self.assembly.guidance in predicted.values():
            raise BranchUnknown(state.unsure)
        part_args, part_kwargs, output = args, kwargs, None
        reused = list(dict.fromkeys(unit.site.name for unit in predicted.values()))
        if computed and computed != branches:
            state.cut()
            parts = [branches.index(b) for b in computed]
            part_args, part_kwargs = branch_rows(inner, args, kwargs, parts, len(branches))
        if computed:
            rows = leading_tensor(part_args, part_kwargs)
            inside = Call(step, computed, rows.shape[0], rows)
            output = self._run(inside, inner, part_args, part_kwargs)
            self._account(inner, args, kwargs, part_args, part_kwargs, inside)
            reused += [path for path, _ in inside.skipped]
        else:
            self._account(inner, args, kwargs, args, kwargs, None)
        output = self.assembly.finish(call, state.run.branches, predicted, computed, output, kwargs)
        self.finite.see(step, branches, reused, flatten_output(output))
        self.clock.called(state.run.branches)
        return output

    def _run(self, call: Call, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the denoiser for some branches, with the handlers their plan needs."""
        assert self.state is not None
        state = self.state
        state.call = call
        passing: list[tuple[SiteForward, Unit]] = []
        traced: list[tuple[SiteForward, ModuleUnit]] = []
        for hook, pairs in self._governed:
            if hook.traced:
                for unit, _ in pairs:
                    assert isinstance(unit, ModuleUnit)  # only modules lie inside a block
                    prepare(hook, unit, call)
                    traced.append((hook, unit))
                    for outer in self._outer[unit.site.name]:
                        if isinstance(outer, ModuleUnit):
                            outer.traced_inside = unit.site.name
                continue
            hook.hits = 0
            busy: list[Handler] = []
            for unit, handler in pairs:
                if unit.idle(call):
                    passing.append((hook, unit))
                else:
                    busy.append(handler)
            hook.handler = chain(busy)
        if self._tower is not None:
            first = self._tower.block
            governed = any(hook is first for hook, _ in self._governed)  # else its handler is that of the call before
            first.handler = chain([self._watch_first, *([first.handler] if governed and first.handler else [])])
        try:
            with enough_graphs() if traced else nullcontext():
                output = inner(*args, **kwargs)
        except BaseException:
            self.on_error()  # the run is over
            raise
        finally:
            state.call = None
        for hook, unit in passing:
            if hook.hits:
                unit.mark(call.step, self._reached(unit, call))
        for hook, units in self._quiet:
            if hook.hits:
                hook.hits = 0
                for unit in units:
                    unit.mark(call.step, self._reached(unit, call))
        for hook, unit in traced:
            reached = self._reached(unit, call)
            call.over = tuple(b for b in call.branches if b not in reached)
            collect(hook, unit, call)
        return output

    def _reached(self, unit: Unit, call: Call) -> tuple[Branch, ...]:
        """The branches for which no outer site stood in: a stack that is reused answers in its blocks' place, so that
        they are called, and a block whose rows are computed for one branch does not know of it inside."""
        outer = self._outer[unit.site.name]
        if not outer:
            return call.branches
        return tuple(b for b in call.branches if not any(one.reuses(b, call.step) for one in outer))

    def _account(
        self,
        inner: Inner,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        part_args: tuple[Any, ...],
        part_kwargs: dict[str, Any],
        inside: Call | None,
    ) -> None:
        """Note this call's FLOPs: what was computed, and what all of it would have been."""
        assert self.writer is not None
        full = self.book.cost(self.prefix, self.module, self.hooks, inner, args, kwargs)
        computed = 0
        if inside is not None:
            sliced = part_kwargs is not kwargs
            cost = (
                self.book.cost(self.prefix, self.module, self.hooks, inner, part_args, part_kwargs) if sliced else full
            )
            computed = cost.computed(inside.skipped) + inside.sighted.flops
        self.writer.called(self.clock.index, computed, full.total)


def _stands_in(unit: Unit) -> bool:
    """Whether it may stand in for what lies inside it while the denoiser runs."""
    return unit.site.kind in (Kind.STACK, Kind.BLOCK) and unit.history is not None and not unit.quiet

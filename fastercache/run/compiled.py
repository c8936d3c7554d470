"""Sites inside `torch.compile`d blocks: everything a handler would do, done before and after the denoiser's call.

A compiled block traces the hooks of the modules inside it. They hold no decision, only a mode (see `hooks`), so a
static policy adds no graph break and one graph per mode. What this costs: all stand-ins of a call are made before it,
so their memory is held at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastercache.model.finder import Block
from fastercache.model.hooks import MERGE, PASS, REUSE, STORE, SiteForward
from fastercache.model.layout import flatten_output, rebuild_output, strip
from fastercache.policies.errors import AttachError, NoSiteMatched
from fastercache.run.calls import Call
from fastercache.run.module_unit import ModuleUnit
from fastercache.run.rows import Rows


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called on it."""
    return module._compiled_call_impl is not None


def is_wrapped(denoiser: nn.Module) -> bool:
    """Whether it is what `torch.compile(module)` returned: a wrapper, whose inside is not seen."""
    return hasattr(denoiser, "_orig_mod")


def _as_a_whole(denoiser: nn.Module) -> str:
    inside = type(getattr(denoiser, "_orig_mod", denoiser)).__name__
    return (
        f"{inside} is compiled as a whole, so sites inside it cannot be skipped: compile its repeated blocks instead "
        "(compile_repeated_blocks()), or use only the sites 'denoiser' and 'branch'"
    )


@contextmanager
def sites_wanted_of(denoisers: Iterable[nn.Module]) -> Iterator[None]:
    """Where a policy's sites are looked for: those that a wrapper hides are told from those that do not exist.

    Raises:
        AttachError: if no site matches and a denoiser is compiled as a whole.
    """
    try:
        yield
    except NoSiteMatched:
        for denoiser in denoisers:
            if is_wrapped(denoiser):
                raise AttachError(_as_a_whole(denoiser)) from None
        raise


def place_hooks(
    denoiser: nn.Module, blocks: list[Block], hooks: dict[str, SiteForward], governed: Collection[str]
) -> None:
    """Put block hooks around compiled blocks, and make the hooks inside them traced.

    Args:
        governed: paths of the modules at which the policy decides or somebody watches.

    Raises:
        AttachError: if the whole denoiser is compiled and the policy has sites inside it, or if a compiled block with
            sites is wrapped by another library too.
    """
    if is_compiled(denoiser) and governed:
        raise AttachError(_as_a_whole(denoiser))
    for block in blocks:
        compiled = is_compiled(block.module)
        inside = {path: hook for path, hook in hooks.items() if path.startswith(f"{block.path}.")}
        around = {block.path: hooks[block.path]} if block.path in hooks else {}
        wrapped = [path for path, hook in (around | inside).items() if not hook.traceable and path in governed]
        if compiled and wrapped:
            raise AttachError(
                f"{wrapped[0]} is compiled and also wrapped for offloading or parallelism, so it cannot be skipped: "
                "leave one of the two away, or choose sites on other modules"
            )
        if compiled:
            for hook in around.values():
                hook.surround_compiled()
        for hook in inside.values():
            hook.trace(compiled and hook.traceable)


def enough_graphs() -> Any:
    """Room for a graph per mode, block type and batch size: with torch's default of 8 the rest would run eagerly."""
    return torch._dynamo.config.patch(recompile_limit=max(64, torch._dynamo.config.recompile_limit))


def prepare(hook: SiteForward, unit: ModuleUnit, call: Call) -> None:
    """Set a traced hook's mode for one call, and make what it will return.

    Raises:
        AttachError: for a policy that decides while the model runs.
    """
    if unit.history is not None and unit.plan is None:
        raise AttachError(
            f"{unit.policy} decides inside the compiled block at {unit.site}: use it without compiling, freeze a "
            "run with trace.schedule() and use that, or claim whole blocks"
        )
    if unit.turns > 1:
        raise AttachError(
            f"the compiled block calls {unit.site} {unit.turns} times a step, so one value cannot stand in for it: "
            "leave this site out, claim whole blocks, or use it without compiling"
        )
    reused = unit.decide(call, unit.source(call))
    if not reused:
        hook.set_traced(PASS if unit.idle(call) or not _planned(unit, call) else STORE)
        return
    predicted = unit.predict(call, reused, unit.seen(unit.source(call)))
    if reused == call.branches:
        hook.set_traced(REUSE, rebuild_output(unit.template, predicted))
        call.skipped.append((unit.path, 1.0))
        return
    # Some branches only: all rows are computed, so nothing is saved, but every branch has its own value.
    main = predicted[0]
    if len(predicted) != 1 or main is None:
        raise AttachError(f"{unit.site} returns several tensors and cannot be reused for some branches when compiled")
    computed = tuple(b for b in call.branches if b not in reused)
    size, flat = main.shape[0] // len(reused), [1] * (main.ndim - 1)
    fresh = main.new_zeros((size * len(computed), *main.shape[1:]))
    mask = {
        some: torch.full((size * len(some), *flat), some == reused, device=main.device) for some in (reused, computed)
    }
    rows = Rows(call.branches)
    hook.set_traced(MERGE, rows.join({reused: main, computed: fresh}), rows.join(mask))


def _planned(unit: ModuleUnit, call: Call) -> bool:
    """Whether the site is reached at all: not where an outer site is reused."""
    return unit.plan is None or any(unit.plan.computed[unit.position(b)][call.step.index] for b in call.branches)


def collect(hook: SiteForward, unit: ModuleUnit, call: Call) -> None:
    """Keep and report what a traced hook left behind, and let go of it."""
    mode, value, fresh = hook.take_traced()
    output = fresh if mode == MERGE else value
    if mode == PASS:
        if _planned(unit, call):
            unit.mark(call.step, call.branches)
        return
    if output is None:
        return  # an outer site stood in for it
    streams = flatten_output(output)
    if mode == STORE:
        unit.template = strip(output)
        unit.keep(call, call.branches, streams, unit.seen(unit.source(call)))
    elif mode == MERGE:
        computed = tuple(b for b in call.branches if not unit.reuses(b, call.step))
        rows, reused = Rows(call.branches), tuple(b for b in call.branches if b not in computed)
        fresh_streams = rows.of_streams(streams, computed)
        unit.keep(call, computed, fresh_streams, unit.seen(unit.source(call)))
        streams = rows.join_streams({reused: [rows.of(value, reused)], computed: fresh_streams})
    unit.tell(call, next((s for s in streams if s is not None), None))

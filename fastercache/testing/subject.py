"""The thing a policy is checked on: a pipeline and how to call it, and what can be read off it from outside."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastercache.attachment import denoisers_of
from fastercache.model.branches import BranchFinder
from fastercache.model.finder import find_blocks
from fastercache.model.flops import FlopTotal
from fastercache.model.hooks import MethodTap, SiteForward
from fastercache.run.caller import Caller
from fastercache.run.clock import Clock
from fastercache.session import Session
from fastercache.testing.loop import Arguments
from fastercache.zoo.specimen import Specimen

_FOREIGN = (
    nn.Module,
    type,
    ModuleType,
    FunctionType,
    MethodType,
    BuiltinFunctionType,
    Caller,
    Clock,
    SiteForward,
    BranchFinder,
)


class Planted(Exception):
    """The error that law 2 raises in the middle of a run."""


def specimen_of(pipe: Any, call: Mapping[str, Any] | None, steps: int | None) -> Specimen:
    """A pipeline with the keyword arguments of its call, as a specimen."""
    fixed = dict(call or {})
    count = int(fixed.pop("num_inference_steps", 6))

    def inputs(prompts: int) -> dict[str, Any]:
        if prompts > 1 and isinstance(fixed.get("prompt"), str):
            return {**fixed, "prompt": [fixed["prompt"]] * prompts}
        return fixed

    return Specimen(type(pipe).__name__, pipe, inputs, steps=steps or count)


def state_of(specimen: Specimen) -> dict[str, Any]:
    """Every instance attribute and hook of the pipeline, its scheduler and its denoisers' modules, by name."""
    owners: dict[str, Any] = {"pipe": specimen.pipe, "scheduler": getattr(specimen.pipe, "scheduler", None)}
    for prefix, denoiser in denoisers_of(specimen.pipe):
        owners.update({f"{prefix}:{name}": module for name, module in denoiser.named_modules()})
    found: dict[str, Any] = {}
    for name, owner in owners.items():
        for key, value in vars(owner).items() if owner is not None else ():
            if callable(value) and not isinstance(value, nn.Module):
                found[f"{name}.{key}"] = value
            elif isinstance(value, dict) and key.endswith("_hooks"):
                found[f"{name}.{key}"] = tuple(value.values())
            else:
                found.setdefault(f"{name}.{key}", None)
    return found


@contextmanager
def failing(specimen: Specimen, after: int) -> Iterator[None]:
    """Raise Planted inside the denoiser's last block (or the denoiser), at its call number `after`."""
    denoisers = [module for _, module in denoisers_of(specimen.pipe)]
    calls = 0

    def hook(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Planted

    handles = []
    for denoiser in denoisers:
        blocks = find_blocks(denoiser)
        handles.append((blocks[-1].module if blocks else denoiser).register_forward_pre_hook(hook))
    # diffusers' PAG pipelines leave their attention processors in place when they raise: that is no matter of ours.
    perturbed = hasattr(type(specimen.pipe), "do_perturbed_attention_guidance")
    processors: list[tuple[Any, Any]] = [(d, d.attn_processors) for d in denoisers if perturbed]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for owner, before in processors:
            owner.set_attn_processor(before)


@contextmanager
def capturing(specimen: Specimen) -> Iterator[list[tuple[nn.Module, Arguments]]]:
    """Collects the arguments of every denoiser call."""
    calls: list[tuple[nn.Module, Arguments]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((module, (args, dict(kwargs))))

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for _, module in denoisers_of(specimen.pipe)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counting(specimen: Specimen) -> Iterator[list[int]]:
    """Counts the FLOPs inside the denoiser's calls, and nothing else's; the list holds one number per call."""
    counts: list[int] = []
    open_counters: list[FlopTotal] = []

    def before(module: nn.Module, args: Any) -> None:
        open_counters.append(FlopTotal())
        open_counters[-1].__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        counter = open_counters.pop()
        counter.__exit__(None, None, None)
        counts.append(counter.total)

    handles = []
    for _, module in denoisers_of(specimen.pipe):
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def held_bytes(root: Any) -> int:
    """Bytes of the distinct storages behind every tensor that can be reached from `root` by any reference.

    Modules, pipelines, classes and functions are not entered: what they hold is not the session's.
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()
    pending = [root]
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, _FOREIGN):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            continue
        pending.extend(gc.get_referents(thing))
    return sum(storages.values())


@contextmanager
def weighing(specimen: Specimen, session: Session) -> Iterator[list[int]]:
    """Bytes that the session's denoisers hold at the end of each step, found by walking references."""
    weights: list[int] = []
    index = 0

    def stepped(result: Any) -> None:
        nonlocal index
        before, index = index, session.inspect().step
        if index != before:  # some pipelines call the scheduler twice a step
            weights.append(held_bytes(session.inspect().holders))

    tap = MethodTap(specimen.pipe.scheduler, "step", stepped)
    try:
        yield weights
    finally:
        tap.remove()


def same(a: Tensor, b: Tensor) -> bool:
    """Bit-for-bit equality."""
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))

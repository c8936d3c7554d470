"""Two ways of deployment that every family is checked under: compiled blocks, and weights moved while the model runs.

Each check compares with the same policy on the plain pipeline. Offloading is done by accelerate's and diffusers' own
hooks with the CPU as the device to compute on, so that it runs on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import accelerate
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from fastercache.attachment import attach, denoisers_of
from fastercache.model.finder import find_blocks
from fastercache.policies.base import Policy
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.methods.static_interval import StaticInterval
from fastercache.testing.subject import same
from fastercache.zoo.specimen import Specimen

STEPS = 4
POLICY = StaticInterval(sites="all", interval=2)
"""Every module site, every second step: static, so nothing is decided inside a compiled block."""

ATTENTION = StaticInterval(sites="attention", interval=2)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """What a check found: `passed` is None where the family does not offer the mode; `detail` then says why."""

    passed: bool | None
    detail: str = ""


def check_compile(build: Callable[[], Specimen], policy: Policy = POLICY) -> Outcome:
    """Compiled blocks give the plain pipeline's output and decisions without a graph break (`fullgraph=True`).

    Where the model's own blocks have graph breaks, those are allowed and told; sites that the runtime refuses inside
    compiled blocks are left out and told. `torch.compile`'s eager backend is used: it captures the same graphs and
    keeps every bit.
    """
    expected = _run(build(), policy, lambda pipe: None)
    torch._dynamo.reset()
    try:
        outcome = _compare({"compiled": lambda: _run(build(), policy, compile_blocks)}, expected)
        if outcome.detail.startswith("compiled: AttachError"):
            attention = check_compile(build, ATTENTION) if policy is not ATTENTION else outcome
            return Outcome(attention.passed, attention.detail or f"attention alone; {outcome.detail}")
        own = None if outcome.passed else _fails_alone(build, compile_blocks)
        if own is None:
            return outcome
        torch._dynamo.reset()
        outcome = _compare({"compiled": lambda: _run(build(), policy, partial(compile_blocks, whole=False))}, expected)
        return Outcome(outcome.passed, outcome.detail or f"the model's own blocks break the graph: {own}")
    finally:
        torch._dynamo.reset()


def check_offload(build: Callable[[], Specimen], policy: Policy = POLICY) -> Outcome:
    """Offloading by model, by submodule and by groups of blocks, enabled before or after attaching, changes nothing."""
    expected = _run(build(), policy, lambda pipe: None)
    runs: dict[str, Callable[[], list[Tensor]]] = {}
    left_out = []
    for mode, enable in OFFLOADING.items():
        own = _fails_alone(build, enable)
        if own is not None:
            left_out.append(f"{mode} offloading fails without a session too: {own}")
            continue
        for late in (False, True):
            name = f"{mode} offloading enabled {'after' if late else 'before'} attaching"
            runs[name] = partial(_fresh, build, policy, enable, late)
    if not runs:
        return Outcome(None, "; ".join(left_out))
    outcome = _compare(runs, expected)
    return Outcome(outcome.passed, outcome.detail or "; ".join(left_out))


def _fails_alone(build: Callable[[], Specimen], prepare: Callable[[Any], None]) -> str | None:
    """Why the pipeline fails in this mode without any session; None where it does not."""
    specimen = build()
    try:
        prepare(specimen.pipe)
        specimen.generate(steps=STEPS)
    except Exception as error:
        return _line(error)
    return None


def _fresh(build: Callable[[], Specimen], policy: Policy, prepare: Callable[[Any], None], late: bool) -> list[Tensor]:
    return _run(build(), policy, prepare, late=late)


def _line(error: Exception) -> str:
    """An error in one line: of Dynamo's long ones the first."""
    text = str(error) if isinstance(error, FasterCacheError) else str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {' '.join(text.split())}"


def _run(specimen: Specimen, policy: Policy, prepare: Callable[[Any], None], *, late: bool = False) -> list[Tensor]:
    """Outputs of two runs, and the decisions of the last; `prepare` is called before attaching, or after it."""
    if not late:
        prepare(specimen.pipe)
    with attach(specimen.pipe, policy) as session:
        if late:
            prepare(specimen.pipe)
        outputs = [specimen.generate(steps=STEPS) for _ in range(2)]
        return [*outputs, torch.from_numpy(session.last.codes.copy())]


def _compare(runs: dict[str, Callable[[], list[Tensor]]], expected: list[Tensor]) -> Outcome:
    for name, run in runs.items():
        try:
            found = run()
        except Exception as error:
            return Outcome(False, f"{name}: {_line(error)}")
        if not all(map(same, found, expected)):
            return Outcome(False, f"{name}: output or decisions differ from the plain pipeline's")
    return Outcome(True)


def compile_blocks(pipe: Any, whole: bool = True) -> None:
    """Compile every block; `whole` makes a graph break an error."""
    for _, denoiser in denoisers_of(pipe):
        for block in find_blocks(denoiser):
            block.module.compile(backend="eager", fullgraph=whole)


def _components(pipe: Any) -> list[torch.nn.Module]:
    """Every model of a pipeline, or the denoisers of a loop that is no diffusers pipeline."""
    found = [part for part in getattr(pipe, "components", {}).values() if isinstance(part, torch.nn.Module)]
    return found or [denoiser for _, denoiser in denoisers_of(pipe)]


def offload_models(pipe: Any) -> None:
    """As `enable_model_cpu_offload` does: each model moves as a whole."""
    if hasattr(pipe, "enable_model_cpu_offload"):
        pipe.enable_model_cpu_offload(device="cpu")
        return
    for model in _components(pipe):
        accelerate.cpu_offload_with_hook(model, CPU)


def offload_submodules(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload` does: each submodule's weights come when it is called and go after."""
    for model in _components(pipe):
        accelerate.cpu_offload(model, CPU, offload_buffers=len(model._parameters) > 0)


def offload_groups(pipe: Any) -> None:
    """As `enable_group_offload` does: blocks move one by one. Raises ValueError for models diffusers excludes."""
    for _, denoiser in denoisers_of(pipe):
        if not getattr(denoiser, "_supports_group_offloading", True):
            raise ValueError(f"diffusers excludes {type(denoiser).__name__}")
        apply_group_offloading(denoiser, CPU, offload_type="block_level", num_blocks_per_group=1)


OFFLOADING: dict[str, Callable[[Any], None]] = {
    "model": offload_models,
    "sequential": offload_submodules,
    "group": offload_groups,
}

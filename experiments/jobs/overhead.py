"""What the toolkit itself costs: a policy that reuses nothing, a recording, and how much of a saving is realised.

Beside them stand what other packages' caches start from: diffusers' hook registry with hooks that do nothing, and
diffusers' first-block cache and cache-dit with a threshold that nothing stays under. FirstBlockCache, ours and
diffusers', is also run at the same threshold, where both reuse at the same steps.

Each variant runs side by side with the bare pipeline, step by step in turn (`abreast`), and the median ratio of their
seconds is what counts, since nothing else holds on a shared machine. The bare pipeline beside itself shows what is
noise. Every timed run follows an untimed one of the same variant, so that what is done once per session (counting
FLOPs, compiling the schedule) is not counted as a cost of each run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn

import fastercache as fc
from fastercache.analysis.record import record
from fastercache.experiments.bench.peers import Peer, Refused, reason, twin
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.abreast import abreast
from fastercache.experiments.pipelines import Subject

BARE = "bare pipeline"


@dataclass(frozen=True)
class Line:
    """One variant against the bare pipeline.

    Attributes:
        name: the variant.
        seconds: median of its runs.
        ratio: of its seconds to those of the bare pipeline beside it, the median over runs.
        low, high: quartiles of the same.
        speedup_flops: computed FLOPs saved, by the flop counter; 1 where nothing is reused, None where it is not known:
            another package decides while it runs.
        realised: wall-clock speedup over computed-FLOPs speedup; None with it.
        runs: how many timed runs.
    """

    name: str
    seconds: float
    ratio: float
    low: float
    high: float
    speedup_flops: float | None
    realised: float | None
    runs: int

    def payload(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def no_op_hooks(denoiser: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """diffusers' own hook registry with a hook that does nothing, at the same modules: what its caches start from."""
    from diffusers.hooks import HookRegistry, ModelHook

    modules = [denoiser.get_submodule(path) for path in paths]
    for module in modules:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(ModelHook(), "no_op")
    try:
        yield
    finally:
        for module in modules:
            HookRegistry.check_if_exists_or_initialize(module).remove_hook("no_op", recurse=False)


CACHE_DIT = Peer(
    "cache-dit", "DBCache", {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.0}
)
"""cache-dit in place at every block, comparing at every step and never reusing."""
THRESHOLD = 0.08
"""Of the first-block caches that do reuse: the bench's middle setting."""


def first_block(threshold: float) -> Peer:
    """diffusers' own first-block cache."""
    return Peer("diffusers", "FirstBlockCache", {"threshold": threshold})


DIFFUSERS_REUSING = f"diffusers' FirstBlockCache at {THRESHOLD}"


def variants(subject: Subject) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Name -> what to enter around a run; it may yield another pipeline to run instead."""
    pipe = subject.pipe
    every = "all|block|denoiser"
    sites = [s for s in fc.find_sites(pipe) if s.kind in (fc.Kind.MODULE, fc.Kind.BLOCK) and "/" not in s.name]
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    return {
        BARE: nullcontext,
        "NoCache at every site": lambda: fc.attach(pipe, fc.NoCache(sites=every)),
        "diffusers' no-op hooks": lambda: no_op_hooks(denoiser, [s.name for s in sites]),
        "cache-dit, no reuse": lambda: CACHE_DIT.applied(pipe, subject.call),
        "FirstBlockCache, no reuse": lambda: fc.attach(pipe, fc.FirstBlockCache(threshold=0.0)),
        "diffusers' FirstBlockCache, no reuse": lambda: first_block(0.0).applied(pipe, subject.call),
        "recording": lambda: record(pipe),
        "FasterCache": lambda: fc.attach(pipe, fc.FasterCache()),
        f"FirstBlockCache at {THRESHOLD}": lambda: fc.attach(pipe, fc.FirstBlockCache(threshold=THRESHOLD)),
        DIFFUSERS_REUSING: lambda: first_block(THRESHOLD).applied(pipe, subject.call),
        "denoiser every 2nd step": lambda: fc.attach(pipe, fc.StaticInterval(sites="denoiser")),
    }


def measure(subject: Subject, prompt: str, runs: int, tick: Callable[[], None] = lambda: None) -> list[Line]:
    """Time every variant `runs` times beside the bare pipeline, in rounds whose order rotates."""
    entered = {name: enter for name, enter in variants(subject).items() if _possible(subject, prompt, name, enter)}
    seconds: dict[str, list[list[float]]] = {name: [] for name in entered}
    beside: dict[str, list[list[float]]] = {name: [] for name in entered}
    bare = twin(subject.pipe)
    flops: dict[str, float | None] = {name: None if name == DIFFUSERS_REUSING else 1.0 for name in entered}
    names = list(entered)
    _run(subject, bare, prompt)
    for turn in range(runs):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            with entered[name]() as active:
                pipe = active if isinstance(active, type(subject.pipe)) else subject.pipe
                _run(subject, pipe, prompt)
                pair = [(partial(_run, subject, one, prompt), one.scheduler) for one in (pipe, bare)]
                if turn % 2:  # neither always follows the other
                    other, own = abreast(pair[::-1])
                else:
                    own, other = abreast(pair)
                seconds[name].append(own)
                beside[name].append(other)
                if isinstance(active, fc.Session):
                    flops[name] = active.last.speedup_flops
            tick()
    return [_line(name, seconds[name], beside[name], flops[name]) for name in names]


def report(subject: Subject, prompt: str | None, runs: int, *, show: bool) -> dict[str, Any]:
    """Measure, and return what `--json` prints; with `show` also print it for a person."""
    text = prompt or subject.captions("held_out")[0]
    with progress() as bar:
        task = bar.add_task("timing", total=runs * len(variants(subject)))
        lines = measure(subject, text, runs, lambda: bar.advance(task))
    if show:
        results.print(table(lines, f"{subject.name}: {runs} runs of each, in turn with the bare pipeline step by step"))
    return {"pipeline": subject.name, "prompt": text, "runs": runs, "rows": [line.payload() for line in lines]}


def _line(name: str, own: list[list[float]], bare: list[list[float]], flops: float | None) -> Line:
    ratios = sorted(sum(a) / sum(b) for a, b in zip(own, bare, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
    ratio = statistics.median(ratios)
    realised = None if flops is None else 1 / ratio / flops
    return Line(name, statistics.median(map(sum, own)), ratio, low, high, flops, realised, len(own))


def _possible(subject: Subject, prompt: str, name: str, enter: Callable[[], AbstractContextManager[Any]]) -> bool:
    """Whether a variant runs here; another package that refuses, or fails in a first run, is named with its reason."""
    try:
        with enter() as active:
            if isinstance(active, type(subject.pipe)):  # a twin of the pipeline, for another package
                try:
                    _run(subject, active, prompt)
                except Exception as error:  # whatever another package raises is its reason
                    raise Refused(reason(error)) from error
            return True
    except Refused as refused:
        say(f"left out: {name}: {refused}")
        return False


def _run(subject: Subject, pipe: Any, prompt: str) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.inference_mode():
        pipe(prompt=prompt, generator=generator, output_type="pt", **subject.call)


def table(lines: Sequence[Line], title: str) -> Table:
    """The lines for a person."""
    result = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("variant")  # the one that may wrap: a figure cut off says nothing
    for heading in ("seconds", "/ bare", "quartiles", "FLOPs ↑", "share ↑"):
        result.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        result.add_row(
            line.name,
            f"{line.seconds:.3f}",
            f"{line.ratio:.3f}",
            f"{line.low:.3f} - {line.high:.3f}",
            "" if line.speedup_flops is None else f"{line.speedup_flops:.2f}x",
            "" if line.realised is None else f"{line.realised:.2f}",
        )
    return result

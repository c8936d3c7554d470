"""Seconds and bytes of caches on a GPU, at the size that people run: `fastercache bench-size`.

The weights are random. What decides by values (thresholds) would decide at random, so only rules that are fixed
beforehand are run; what they do to the picture is measured elsewhere, on trained models. After a few steps to warm up,
each variant is timed step by step with events of the device's own clock, without waiting for it inside a run.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastercache as fc
from fastercache.analysis.record import record
from fastercache.analysis.sampling import Recording, TrajectoryRecorder
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.experiments.bench import size_tables
from fastercache.experiments.bench.lineup import PEERS
from fastercache.experiments.bench.peers import Peer, Refused
from fastercache.experiments.bench.size_tables import shown
from fastercache.experiments.bench.sizes import SIZES, Size
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.plan_time import made_up
from fastercache.policies.documents import write_json
from fastercache.policies.errors import FasterCacheError, InvalidPolicy, suggest
from fastercache.tuned import package_versions
from fastercache.tuner.planning.fitting import Sampler
from fastercache.tuner.planning.paths import plans
from fastercache.tuner.planning.rehearsal import Foresight
from fastercache.tuner.setting import hardware
from fastercache.zoo.specimen import Specimen

GIB = 2**30
UNCACHED, PLANNED, FASTER = "uncached", "planned", "FasterCache"
SPEEDUP = 5
WARM_UP = 3
"""Uncached steps before anything is timed."""
RECORDED = "recording for a plan"


@dataclass
class Timed:
    """One variant of a model.

    Attributes:
        name: the variant. steps: of the run. seconds: of all steps, without what is beside the denoising loop.
        speedup: uncached seconds over these, eager over eager and compiled over compiled. speedup_flops: computed FLOPs
            saved; None where another package decides and does not say. kinds: per kind of step, by its share of an
            uncached step's FLOPs, how many there were and their median seconds.
        peak_gib: most memory of the device in use at once. cached_gib: of it, what the cache says that it held.
        refused: why it did not run; the rest is then empty.
    """

    name: str
    steps: int = 0
    seconds: float | None = None
    speedup: float | None = None
    speedup_flops: float | None = None
    kinds: dict[str, tuple[int, float]] = field(default_factory=dict)
    peak_gib: float | None = None
    cached_gib: float | None = None
    refused: str | None = None

    @property
    def realised(self) -> float | None:
        """Share of the FLOPs speedup that arrives as time."""
        return None if self.speedup is None or self.speedup_flops is None else self.speedup / self.speedup_flops

    def payload(self) -> dict[str, Any]:
        return {**vars(self), "realised": self.realised}


class Clock:
    """Times of the sampler's steps, by the device's own events where it has them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between one mark and the next."""
        if self.device.type != "cuda":
            return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]


@contextmanager
def heard(pipe: Any, clock: Clock) -> Iterator[None]:
    """Marks the beginning of the first denoiser call and the end of every scheduler step."""
    step = pipe.scheduler.step

    def first(*_: Any) -> None:
        if not clock.marks:
            clock.mark()

    def marked(*args: Any, **kwargs: Any) -> Any:
        found = step(*args, **kwargs)
        clock.mark()
        return found

    handle = pipe.transformer.register_forward_pre_hook(first)
    pipe.scheduler.step = marked
    try:
        yield
    finally:
        del pipe.scheduler.step
        handle.remove()


class Bench:
    """One model on one device, and what was measured of it."""

    def __init__(self, size: Size, steps: int, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.steps, self.device, self.dtype = size, steps, device, dtype
        self._freed()  # what a model before left
        self.specimen: Specimen = size.build(device, dtype)
        self.found: list[Timed] = []

    @property
    def pipe(self) -> Any:
        return self.specimen.pipe

    def generate(self, steps: int, pipe: Any = None) -> None:
        with torch.inference_mode():
            (pipe or self.pipe)(**self.size.call(self.specimen, self.device, self.dtype, steps))

    def warm_up(self) -> None:
        """A few steps with everything computed; the session counts the FLOPs of a call, once for all that follow."""
        with fc.attach(self.pipe, fc.NoCache(sites="denoiser")):
            self.generate(min(WARM_UP, self.steps))

    def time(
        self, name: str, enter: Callable[[], AbstractContextManager[Any]], against: str = UNCACHED, warm: int = 0
    ) -> Timed:
        """Run a variant and keep what was measured.

        Args:
            against: what its speedup is over. warm: steps of a run before the one that is timed.
        """
        timed = Timed(name, self.steps)
        self.found.append(timed)
        try:
            with enter() as active:
                self._measure(timed, active, against, warm)
        except (Refused, FasterCacheError) as refused:
            timed.refused = str(refused)
        except Exception as error:  # another package's, or memory: the row says so and the rest goes on
            line = (str(error).strip().splitlines() or [""])[0]
            timed.refused = f"{type(error).__name__}: {line:.200}"
        self._freed()
        say(_told(timed))
        return timed

    def _measure(self, timed: Timed, active: Any, against: str, warm: int) -> None:
        session = active if isinstance(active, fc.Session) else None
        pipe = active if isinstance(active, type(self.pipe)) else self.pipe
        if warm:
            self.generate(warm, pipe)
            if session is not None:
                session.traces.clear()
        clock = Clock(self.device)
        self._peak(reset=True)
        with heard(pipe, clock):
            self.generate(self.steps, pipe)
        each = clock.seconds()
        timed.seconds, timed.peak_gib = sum(each), self._peak()
        base = next((one.seconds for one in self.found if one.name == against), None)
        timed.speedup = None if base is None else base / timed.seconds
        if timed.name == against:
            timed.speedup_flops = 1.0
        if session is None:
            timed.kinds = {"not told": (len(each), statistics.median(each))}
            return
        trace = session.last
        timed.speedup_flops = trace.speedup_flops
        timed.cached_gib = trace.cached_bytes / GIB
        groups: dict[str, list[float]] = {}
        for seconds, own, full in zip(each, trace.flops, trace.flops_full, strict=True):
            groups.setdefault(f"{own / full:.0%}" if own else "skipped", []).append(seconds)
        timed.kinds = {kind: (len(values), statistics.median(values)) for kind, values in groups.items()}

    def _peak(self, reset: bool = False) -> float | None:
        if self.device.type != "cuda":
            return None
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.max_memory_allocated()) / GIB

    def _freed(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def planned(bench: Bench) -> tuple[fc.Planned, dict[str, float]]:
    """A plan for a fifth of the steps from one recorded run, and the seconds that recording and planning took."""
    found: list[Recording] = []
    began = time.perf_counter()
    with TrajectoryRecorder(bench.pipe, 64 * GIB, done=found.append):
        bench.generate(bench.steps)
    recorded = time.perf_counter() - began
    began = time.perf_counter()
    profile = TrajectoryProfile.of(found, bench.pipe)
    foresight = Foresight.recorded(profile.trajectory, Sampler(profile.response, profile.relations))
    paths = plans(foresight.damage, best=1)
    planning = time.perf_counter() - began
    count = max(bench.steps // SPEEDUP, 1)
    return made_up(bench.steps, paths[count][0].computed), {"recording": recorded, "planning": planning}


def compiled_blocks(pipe: Any) -> None:
    """Compile every block on its own, as diffusers' `compile_repeated_blocks` does for the classes that list them."""
    denoiser = pipe.transformer
    for site in fc.find_sites(pipe):
        if site.kind is fc.Kind.BLOCK:
            denoiser.get_submodule(site.name).compile()


def peers() -> dict[str, Peer]:
    """diffusers' FasterCache and PAB with their documented settings."""
    wanted = {"FasterCache", "PyramidAttentionBroadcast"}
    return {
        f"{method.label} (diffusers)": Peer("diffusers", method.method, method.settings[0])
        for method in PEERS
        if method.package == "diffusers" and method.method in wanted
    }


def same_steps(plan: fc.Planned) -> Peer:
    """cache-dit computing the plan's steps: its mask and its Taylor calibrator."""
    mask = [int(step in plan.computed) for step in range(plan.steps)]
    fields = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "num_inference_steps": plan.steps,
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
    }
    return Peer("cache-dit", "DBCache", fields, order=1)


def measure(
    size: Size,
    *,
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    compiled: bool,
    brief: bool = False,
    done: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Everything about one model.

    Args:
        compiled: also with every block compiled. brief: only uncached, FasterCache and planned.
        done: gets what is known after each variant.
    """
    bench = Bench(size, steps, device, dtype)
    costs: dict[str, float] = {}

    def state() -> dict[str, Any]:
        parameters = sum(p.numel() for p in bench.pipe.transformer.parameters())
        return {
            "model": size.label,
            "device": hardware(device.type),
            "dtype": str(dtype).removeprefix("torch."),
            "versions": _versions(),
            "parameters": parameters,
            "steps": steps,
            "published_steps": size.steps,
            "paper": size.paper,
            "seconds": costs,
            "rows": [one.payload() for one in bench.found],
        }

    def run(
        name: str, enter: Callable[[], AbstractContextManager[Any]], against: str = UNCACHED, warm: int = 0
    ) -> None:
        bench.time(name, enter, against, warm)
        done(state())

    bench.warm_up()
    run(UNCACHED, nullcontext)
    if not brief:
        run("NoCache at every site", lambda: fc.attach(bench.pipe, fc.NoCache(sites="all|block|denoiser")))
    run(FASTER, lambda: fc.attach(bench.pipe, size.faster_cache()))
    plan, took = planned(bench)
    costs |= took
    run(PLANNED, lambda: fc.attach(bench.pipe, plan))
    if not brief:
        call = size.call(bench.specimen, device, dtype, steps)
        for name, peer in {**peers(), "cache-dit, the plan's steps": same_steps(plan)}.items():
            run(name, lambda peer=peer: peer.applied(bench.pipe, call))  # type: ignore[misc]
        run("recording every site", lambda: record(bench.pipe))
    if compiled:
        compiled_blocks(bench.pipe)
        plain = "uncached, compiled"
        bench.warm_up()
        run(plain, nullcontext, plain, warm=WARM_UP)
        run(f"{PLANNED}, compiled", lambda: fc.attach(bench.pipe, plan), plain)
        run(f"{FASTER}, compiled", lambda: fc.attach(bench.pipe, size.faster_cache()), plain, warm=steps)
    return state()


def bench_size(
    names: Sequence[str], *, out: Path, steps: int | None, compiled: bool, brief: bool, show: bool
) -> dict[str, Any]:
    """Measure models at their size on this machine's GPU and write OUT/NAME.json for each.

    Raises:
        InvalidPolicy: for a model that is not known, and where there is no CUDA device.
    """
    for name in names:
        if name not in SIZES:
            raise InvalidPolicy(f"no model of bench-size is called '{name}'{suggest(name, SIZES)}")
    if not torch.cuda.is_available():
        raise InvalidPolicy(
            "bench-size needs a CUDA device and found none: seconds at real size mean nothing elsewhere"
        )
    found: dict[str, Any] = {}
    with progress() as bar:
        task = bar.add_task("models", total=len(names))
        for name in names:
            bar.update(task, description=name)
            size, place = SIZES[name], out / f"{name}.json"
            found[name] = measure(
                size,
                device=torch.device("cuda"),
                dtype=torch.bfloat16,
                steps=steps or size.steps,
                compiled=compiled,
                brief=brief,
                done=partial(_written, place),
            )
            bar.advance(task)
            if show:
                results.print(size_tables.table(found[name]))
    return {"models": found, "files": {name: str(out / f"{name}.json") for name in found}}


def _written(place: Path, state: dict[str, Any]) -> None:
    write_json(place, state, "figures")


def _told(timed: Timed) -> str:
    if timed.refused is not None:
        return f"{timed.name}: {timed.refused}"
    return f"{timed.name}: {timed.seconds:.2f} s, {shown(timed.speedup, '{:.2f}x')}"


def _versions() -> dict[str, str]:
    built = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with the build, as `+cu130`
    return built | package_versions(("diffusers", "cache-dit"))

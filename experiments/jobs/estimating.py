"""What `plan` and `tune` would cost, from a model's configuration: `--estimate`. Nothing is generated.

The pipeline is called on a stand-in without weights (`experiments.weightless`), and what those calls do is counted:
denoiser calls, their FLOPs, the bytes of what is recorded and cached. The rest is arithmetic with the numbers of videos
that the commands make. Minutes follow only from a speed that is known.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn

import fastercache as fc
from fastercache.analysis.sampling import Recording, TrajectoryRecorder
from fastercache.attachment import denoisers_of
from fastercache.bounds import Limit
from fastercache.experiments import reference
from fastercache.experiments.bench.contest import heats
from fastercache.experiments.bench.rows import size
from fastercache.experiments.console import results, say
from fastercache.experiments.jobs.planning import check_steps, limit_of, questions_of
from fastercache.experiments.jobs.study_job import Job
from fastercache.experiments.pipelines import Subject, with_steps
from fastercache.experiments.weightless import Tokens
from fastercache.policies.errors import FasterCacheError, InvalidPolicy, PipelineUnreadable
from fastercache.policies.plugins import ANY
from fastercache.policies.registry import known_policies, policy_class
from fastercache.policies.vocabulary import Run
from fastercache.policies.wording import counted, first_line, lasting
from fastercache.prompts import prompts_of
from fastercache.tuner import Budget
from fastercache.tuner.clock import Objective, needs_table
from fastercache.tuner.library import CALIBRATED_ON
from fastercache.tuner.planning.planner import EFFORTS, computed_for
from fastercache.tuner.planning.room import fullest, history_within, made_use_of
from fastercache.tuner.seconds import RUNS, enough, kinds_reused, timed_runs
from fastercache.tuner.setting import Setting

CALLS = 3
"""Denoiser calls that are timed of a reference model, after one that is not."""


@dataclass(frozen=True)
class Part:
    """A part of a command: how many videos it makes, and denoiser calls. `at_most`: it may be fewer."""

    name: str
    videos: int
    calls: int
    at_most: bool = False


@dataclass(frozen=True)
class Facts:
    """What one uncached call of a pipeline does.

    Attributes:
        run: its steps, branches and sites. calls: of the denoiser. flops: of all of them.
        recorded: bytes that a recorded run keeps. cached: the most bytes that a plan caches.
        parameters: of all parts. weights: their bytes, by part of the pipeline.
        seconds: of one denoiser call, where that was measured here.
    """

    run: Run
    calls: int
    flops: int
    recorded: int
    cached: int
    parameters: int
    weights: Mapping[str, int]
    seconds: float | None = None

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return self.run.count

    @property
    def flops_of_a_call(self) -> float:
        """FLOPs of one denoiser call, the mean over a run's."""
        return self.flops / self.calls

    def of_steps(self, steps: int) -> int:
        """Denoiser calls of so many steps."""
        return math.ceil(steps * self.calls / self.steps)


def facts(subject: Subject, prompt: str, cache: Limit | None = None) -> Facts:
    """Count one uncached call of a pipeline without weights. `cache`: limit of what plans hold.

    Raises:
        PipelineUnreadable: if a part of it wants to know values, which are not there.
        BudgetNotMet: if the limit leaves no room for any plan.
    """
    setting = Setting(subject.pipe, {**subject.call, "output_type": "latent"})
    case = setting.cases([prompt])[0]
    call = {**setting.arguments(case), "output_type": "latent"}
    found: list[Recording] = []
    inputs: list[tuple[Any, Any]] = []
    try:
        with fc.attach(subject.pipe, fc.NoCache(sites="denoiser")) as session:
            first = denoisers_of(subject.pipe)[0][1]
            handle = first.register_forward_pre_hook(lambda _, *given: inputs.append(given), with_kwargs=True)
            subject.pipe(**call)
            handle.remove()
            trace = session.last
        history = history_within(setting, case, cache)
        with fc.attach(subject.pipe, fc.NoCache(sites="denoiser")) as session:
            cached = made_use_of(session, lambda source: fullest(trace.run.count, history, source), call).peak
        with TrajectoryRecorder(subject.pipe, done=found.append):
            subject.pipe(**call)
    except FasterCacheError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise PipelineUnreadable(
            f"a call of {subject.name} cannot be followed without weights: {reason}; it can be estimated by no "
            "other means"
        ) from error
    values = [] if not found else [*found[0].values.latents, *found[0].values.outputs]
    modules = {n: m for n, m in subject.pipe.components.items() if isinstance(m, nn.Module)}
    sizes = {n: [(p.numel(), p.element_size()) for p in m.parameters()] for n, m in modules.items()}
    return Facts(
        run=trace.run,
        calls=trace.calls,
        flops=sum(trace.flops_full),
        recorded=sum(value.numel() * value.element_size() for value in values),
        cached=cached,
        parameters=sum(count for part in sizes.values() for count, _ in part),
        weights={name: sum(count * each for count, each in part) for name, part in sizes.items()},
        seconds=_measured(subject.name, inputs[0]) if subject.reference else None,
    )


def _measured(name: str, inputs: tuple[Any, Any]) -> float:
    """Seconds of one denoiser call of a reference model, whose weights are at hand."""
    args, kwargs = inputs
    first = next(one for one in (*args, *kwargs.values()) if torch.is_tensor(one) and one.is_floating_point())
    denoiser = denoisers_of(reference.load(name))[0][1].to(first.dtype)  # of `--dtype`
    spent = []
    with torch.no_grad():
        for _ in range(1 + CALLS):
            began = time.perf_counter()
            denoiser(*args, **kwargs)
            spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:])


# -- the two commands --------------------------------------------------------------------------------------------------
def plan(
    subject: Subject,
    prompts: Sequence[str],
    held_out: int,
    *,
    budgets: Sequence[str] = (),
    speedups: Sequence[float] = (),
    effort: int = 1,
    objective: Objective = Objective.FLOPS,
    tflops: float | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """What `plan` would cost with these options. `held_out`: how many prompts.

    Raises:
        InvalidPolicy: if neither or both of budgets and speedups are given. PipelineUnreadable: see `facts`.
    """
    wanted = questions_of(budgets, speedups)
    limits = [one for one in wanted if isinstance(one, Budget)]
    subject = with_steps(subject)
    known = facts(subject, prompts[0], limit_of(limits))
    timed = needs_table(objective, *limits)
    check_steps(known.steps, wanted, timed)
    computed = [
        None if isinstance(one, Budget) or objective is Objective.TIME else computed_for(known.steps, one)
        for one in wanted
    ]
    parts = plan_parts(known, len(prompts), held_out, effort=effort, computed=computed, timed=timed)
    return told(subject, known, parts, tflops, show=show)


def tune(subject: Subject, job: Job, *, trials: int, tflops: float | None = None, show: bool = True) -> dict[str, Any]:
    """What `tune` would cost. Raises PipelineUnreadable, see `facts`."""
    subject = with_steps(subject)
    known = facts(subject, prompts_of(job.prompts[:1])[0])
    if job.timed:
        enough(known.steps)
    names = list(known_policies()) if list(job.policies) == [ANY] else list(job.policies)
    classes = [policy_class(name) for name in names]
    parts = tune_parts(
        known,
        len(job.prompts),
        len(job.held_out),
        trials=trials,
        calibrated=any(cls.unmeasured(job.fields) for cls in classes if cls is not fc.Planned),
        planned=fc.Planned.name in job.policies,
        kinds=kinds_reused(_usual(classes), known.run) if job.timed else None,
    )
    return told(subject, known, parts, tflops, show=show)


def _usual(classes: Sequence[type[fc.Policy]]) -> list[fc.Policy]:
    """The policies as they are without further settings; without those that are nothing before they are set."""
    found = []
    for cls in classes:
        try:
            found.append(cls(**dict(cls.constants)))
        except FasterCacheError:
            continue
    return found


# -- the parts of the two commands -------------------------------------------------------------------------------------
def plan_parts(
    known: Facts, recorded: int, held_out: int, *, effort: int, computed: Sequence[int | None], timed: bool
) -> list[Part]:
    """The parts of `plan`.

    Args:
        recorded, held_out: prompts. effort: see `EFFORTS`.
        computed: of each plan that is asked for its computed steps; None where they are not known beforehand.
        timed: whether steps are timed.
    """
    whole, generations = known.calls, EFFORTS[effort].price(recorded, len(computed)) - recorded
    parts = [Part(f"recording {counted(recorded, 'prompt')}", recorded, recorded * whole)]
    parts.append(Part("searching and fitting", 0, math.ceil(generations * whole), at_most=True))
    if timed:
        each = known.of_steps(known.steps - known.steps // 2)
        parts.append(Part("timing steps", 1 + RUNS, (1 + RUNS) * each))
    steps = [known.steps - 1 if count is None else count for count in computed]
    unknown = None in computed
    once = sum(map(known.of_steps, steps))
    parts.append(Part("each plan once more", len(steps), once, unknown))
    if held_out:
        uncached = len(heats([""] * (2 * len(steps)), 0))
        parts += _held_out(known, held_out, uncached)
        parts.append(Part(f"held-out, {counted(len(steps), 'plan')}", held_out * len(steps), held_out * once, unknown))
        parts.append(Part("held-out, as many steps uncached", held_out * len(steps), held_out * once, unknown))
    return parts


def tune_parts(
    known: Facts,
    searched: int,
    held_out: int,
    *,
    trials: int,
    calibrated: bool,
    planned: bool,
    kinds: Sequence[str] | None,
) -> list[Part]:
    """The parts of `tune`.

    Args:
        searched, held_out: prompts. calibrated: whether constants are measured. planned: whether plans are made first.
        kinds: of sites whose steps are timed; None where nothing is.
    """
    whole = known.calls
    parts = [Part(f"uncached, {counted(searched, 'search prompt')}", searched, searched * whole)]
    parts.append(Part("counting FLOPs", 1, whole))
    if calibrated:
        number = min(searched, CALIBRATED_ON)
        parts.append(Part("measuring constants", number, number * whole))
    if planned:
        parts.append(Part(f"recording {counted(searched, 'prompt')}", searched, searched * whole))
        generations = EFFORTS[1].price(searched) - searched
        parts.append(Part("searching and fitting plans", 0, math.ceil(generations * whole), at_most=True))
    if kinds is not None:
        runs = sum(timed_runs(known.steps, kinds))
        parts.append(Part("timing steps", runs, runs * whole, at_most=True))
    videos = trials * searched
    parts.append(Part(f"{counted(trials, 'trial')} of {counted(searched, 'prompt')}", videos, videos * whole, True))
    if held_out:
        parts += _held_out(known, held_out, 1)
        parts.append(Part("held-out, tuned", held_out, held_out * whole, at_most=True))
        parts.append(Part("held-out, fewer steps", 2 * held_out, 2 * held_out * whole, at_most=True))
    return parts


def _held_out(known: Facts, held_out: int, heats_each: int) -> list[Part]:
    """The uncached runs beside what is measured, and one before them that is not counted."""
    videos = 1 + heats_each * held_out
    return [Part("held-out, uncached", videos, videos * known.calls)]


# -- saying ------------------------------------------------------------------------------------------------------------
def told(subject: Subject, known: Facts, parts: Sequence[Part], tflops: float | None, *, show: bool) -> dict[str, Any]:
    """Say what was counted, and return it for `--json`.

    Raises:
        InvalidPolicy: for a speed that is none.
    """
    if tflops is not None and not 1e-6 <= tflops <= 1e9:
        raise InvalidPolicy(
            f"--tflops is the speed in 10^12 floating point operations a second, from 1e-06 to 1e+09, found {tflops:g}"
        )
    each = known.seconds if tflops is None else known.flops_of_a_call / (tflops * 1e12)
    calls, videos = sum(part.calls for part in parts), sum(part.videos for part in parts)
    seconds = None if each is None else calls * each
    if show:
        results.print(_table(subject.name, known, parts, each))
        for line in _lines(subject, known, tflops):
            say(line, results)
    return {
        "pipeline": subject.name,
        "estimated": True,
        "videos": videos,
        "denoiser_calls": calls,
        "flops": calls * known.flops_of_a_call,
        "seconds": seconds,
        "parts": [asdict(part) for part in parts],
        "call": {
            "steps": known.steps,
            "branches": list(known.run.branches),
            "denoiser_calls": known.calls,
            "flops": known.flops,
            "recorded_bytes": known.recorded,
            "cached_bytes": known.cached,
            "parameters": known.parameters,
            "weights_bytes": dict(known.weights),
            "seconds_of_a_denoiser_call": each,
        },
    }


def _table(name: str, known: Facts, parts: Sequence[Part], each: float | None) -> Table:
    title = f"{name}, estimated from its configuration: nothing was generated"
    result = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("part")
    for heading in ("videos", "denoiser calls", "FLOPs", "time"):
        result.add_column(heading, justify="right", no_wrap=True)
    at_most = any(part.at_most for part in parts)
    total = Part("in all", sum(p.videos for p in parts), sum(p.calls for p in parts), at_most)
    for part in (*parts, total):
        flops = part.calls * known.flops_of_a_call
        spent = "-" if each is None else lasting(part.calls * each)
        label = f"{part.name}, at most" if part.at_most else part.name
        result.add_row(label, str(part.videos), f"{part.calls:,}", f"{flops:.2e}", spent)
    return result


def _lines(subject: Subject, known: Facts, tflops: float | None) -> list[str]:
    shapes = f"{counted(known.steps, 'step')}, {counted(len(known.run.branches), 'branch')}"
    lines = [
        f"an uncached video: {shapes}, {counted(known.calls, 'denoiser call')} of {known.flops_of_a_call:.4g} FLOPs",
        f"recorded: {size(known.recorded)} for each prompt; cached by a plan: at most {size(known.cached)}",
    ]
    heavy = ", ".join(f"{name} {size(count)}" for name, count in known.weights.items())
    lines.append(f"weights: {size(sum(known.weights.values()))} ({heavy})")
    lines.append("memory of a call's own values, beside weights and cache: not known")
    if tflops is not None:
        lines.append(f"time: of the denoiser at {tflops:g} * 10^12 FLOPs a second, text encoding and decoding left out")
    elif known.seconds is not None:
        lines.append(f"time: of the denoiser, {known.seconds:.2g} s a call here, text encoding and decoding left out")
    else:
        lines.append("time: not known, as no speed is: give --tflops N, in 10^12 FLOPs a second")
    tokens = [value for value in getattr(subject.pipe, "components", {}).values() if isinstance(value, Tokens)]
    if tokens:
        lines.append("texts are taken to be as long as the pipeline allows: the files of the tokenizer are not there")
    return lines

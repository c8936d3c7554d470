"""What `plan` does: record, plan, fit, verify, and write the front and the tuned config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

import fastercache as fc
from fastercache.analysis.plots.front import FrontInfo, draw_front, draw_steps, steps_info
from fastercache.analysis.plots.style import save_png
from fastercache.analysis.trajectory import Floats
from fastercache.experiments.bench.contest import UNCACHED, Contest
from fastercache.experiments.bench.entries import FewerSteps
from fastercache.experiments.bench.rows import Row, table
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.searching import tell
from fastercache.experiments.pipelines import Subject, with_steps
from fastercache.policies.documents import check_writable
from fastercache.policies.errors import InvalidPolicy
from fastercache.policies.wording import counted
from fastercache.tuned import Results, TunedConfig, prompt_hash
from fastercache.tuner import Budget
from fastercache.tuner.planning.front import Front, Point, means
from fastercache.tuner.planning.material import Told
from fastercache.tuner.planning.opening import opened
from fastercache.tuner.planning.planner import EFFORTS, Planner
from fastercache.tuner.setting import Setting, hardware, run

PLANNED = "planned"
HELD_OUT_SEED = 100_000
"""Held-out prompt i is generated with the seed + this + i, as the benchmark does: its noise is unseen too."""


def plan(
    subject: Subject,
    prompts: Sequence[str],
    *,
    budget: str | None = None,
    speedup: float | None = None,
    held_out: Sequence[str] = (),
    effort: int = 1,
    margin: float | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
    folder: Path,
    out: Path,
    storage: str | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Plan within a budget or for a speedup, and export the plan.

    Args:
        prompts: search prompts, recorded uncached. held_out: what the outcome is measured on; may be empty.
        effort: see `EFFORTS`. margin: dB over the budget on the search prompts; by default from their spread.
        folder: keeps recordings, references, judged plans and pictures. out: the tuned config.

    Raises:
        InvalidPolicy: if neither or both of budget and speedup are given.
        BudgetNotMet: if no plan does what is asked.
    """
    if (budget is None) == (speedup is None):
        raise InvalidPolicy("say what the plan is for: --budget 'psnr>=45' or --speedup 5, one of the two")
    wanted = None if budget is None else Budget.parse(budget)
    if wanted is not None:
        tell(wanted)
    check_writable(out, "tuned config")
    subject = with_steps(subject)
    asked = wanted.metrics if wanted is not None else ()
    price = EFFORTS[effort].generations
    steps = int(subject.call["num_inference_steps"])
    say(
        f"the price: at most {price:g} uncached generations' worth of denoiser calls ({price * steps:g} steps), "
        f"{counted(len(prompts), 'recorded prompt')} included"
        + (f"; measuring on {counted(len(held_out), 'held-out prompt')} comes on top" if held_out else "")
    )

    def priced(seconds: float) -> None:
        say(f"an uncached generation takes {seconds:.1f} s here: at most some {lasting(price * seconds)} in all")

    with watched(EFFORTS[effort].generations) as told:
        planner = open_planner(
            subject,
            prompts,
            effort=effort,
            metrics=(*asked, *metrics),
            seed=seed,
            folder=folder,
            storage=storage,
            told=told,
            priced=priced,
        )
        if wanted is not None:
            point = planner.for_budget(wanted, margin)
        else:
            assert speedup is not None
            point = planner.for_speedup(speedup)
    front, alone = planner.front(), planner.damage.alone()
    return _shipped(subject, planner, front, point, alone, held_out, wanted, folder, out, seed, metrics, show)


def lasting(seconds: float) -> str:
    """`40 s`, `3 min`."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def open_planner(
    subject: Subject,
    prompts: Sequence[str],
    *,
    effort: int = 1,
    metrics: Sequence[str] = (),
    seed: int = 0,
    folder: Path,
    storage: str | None = None,
    told: Told = lambda doing, spent: None,
    priced: Callable[[float], None] = lambda seconds: None,
) -> Planner:
    """The planner of an opened pipeline, see `tuner.planning.opening`."""
    setting = Setting(subject.pipe, subject.call, seed)
    return opened(setting, prompts, folder, effort=effort, metrics=metrics, storage=storage, told=told, priced=priced)


@contextmanager
def watched(generations: float) -> Iterator[Told]:
    """A progress bar over generations' worth of denoiser calls, with what is being done."""
    with progress() as bar:
        task = bar.add_task("planning", total=generations)

        def told(doing: str, spent: float) -> None:
            bar.update(task, description=doing, completed=round(spent, 1))

        yield told


def _shipped(
    subject: Subject,
    planner: Planner,
    front: Front,
    point: Point,
    alone: Floats,
    held_out: Sequence[str],
    budget: Budget | None,
    folder: Path,
    out: Path,
    seed: int,
    metrics: Sequence[str],
    show: bool,
) -> dict[str, Any]:
    """Measure the plan on the held-out prompts, write all files, and say what was found."""
    policy = point.policy(front.steps)
    _, trace, seconds = run(planner.setting, policy, planner.material.cases[0])
    own = Row(
        name="planned, search",
        speedup_flops=trace.speedup_flops,
        speedup_wall=None,
        quality=means(point.quality),
        judge=None,
        cache_bytes=trace.cached_bytes,
        prompts=front.prompts,
        policy=fc.dump(policy),
    )
    rows, measured = [own], None
    if held_out:
        contest = _contest(subject, policy, held_out, folder / f"held-out-{len(point.computed)}", seed, budget, metrics)
        with progress() as bar:
            task = bar.add_task("held-out prompts", total=len(contest.entries) * len(contest.cases))
            contest.run(lambda: bar.advance(task))
        measured = contest.measured(PLANNED)
        fewer = [row for row in contest.rows() if row.name not in (PLANNED, UNCACHED)]
        rows = [replace(contest.row(PLANNED), name="planned, held-out"), *fewer, own]
    info = planner.material.profile.info
    config = TunedConfig.describe(
        subject.pipe,
        policy,
        steps=front.steps,
        guidance_scale=info.guidance_scale if len(trace.run.branches) > 1 else None,
        guidance="none" if len(trace.run.branches) == 1 else "batched" if info.calls == 1 else "separate",
        latent=trace.latent,
        budget=None if budget is None else str(budget),
        measured=Results(
            search=fc.tuned.Measured(
                prompts=front.prompts,
                quality=means(point.quality),
                speedup_flops=trace.speedup_flops,
                seconds=seconds,
                cached_bytes=trace.cached_bytes,
                hardware=hardware(str(planner.setting.identity["device"])),
            ),
            held_out=measured,
        ),
        seen=tuple(
            sorted({prompt_hash(text) for text in (*(case.prompt for case in planner.material.cases), *held_out)})
        ),
    )
    files = {"tuned": str(config.save(out)), "front": str(front.save(folder / "front.json")), "study": str(folder)}
    others = tuple((row.name, row.speedup_flops, row.quality["psnr"]) for row in rows[:-1])
    pictures = {
        "front": draw_front(_front_info(front, point, others)),
        "steps": draw_steps(steps_info(point.computed, alone, front.prompts)),
    }
    for name, figure in pictures.items():
        files[f"{name}_picture"] = str(save_png(figure, folder / f"{name}.png"))
    if show:
        _say(subject, front, point, rows, budget, files, out)
    return {
        "pipeline": subject.name,
        **rows[0].payload(),
        "name": PLANNED,
        "measured_on": "held-out prompts" if held_out else "search prompts",
        "search": own.payload(),
        "fewer_steps": [row.payload() for row in rows[1:-1]] if held_out else None,
        "budget": None if budget is None else str(budget),
        "generations": front.generations,
        "predicted_psnr": point.predicted_psnr,
        "prediction_error": front.prediction_error,
        "computed_steps": list(point.computed),
        "front": front.rows(),
        "files": files,
    }


def _front_info(front: Front, point: Point, others: tuple[tuple[str, float, float], ...]) -> FrontInfo:
    predicted = [(front.speedup(p), p.predicted_psnr) for p in front.points if p.predicted_psnr is not None]
    measured = [(front.speedup(p), p.psnr) for p in front.points if p.psnr is not None]
    return FrontInfo(
        predicted=tuple(predicted),
        measured=tuple(measured),
        chosen=None if point.psnr is None else (front.speedup(point), point.psnr),
        prompts=front.prompts,
        error=front.prediction_error,
        others=others,
        note="" if not others else "others: held-out prompts",
    )


def _contest(
    subject: Subject,
    policy: fc.Planned,
    held_out: Sequence[str],
    folder: Path,
    seed: int,
    budget: Budget | None,
    metrics: Sequence[str],
) -> Contest:
    """The plan beside as many steps without a cache as cost the same, on the held-out prompts."""
    steps, count = policy.steps, len(policy.computed)
    rivals = {f"{count} of {steps} steps": FewerSteps(count)}
    asked = (*(budget.metrics if budget is not None else ()), *metrics)
    return Contest(
        subject, {PLANNED: policy, **rivals}, list(held_out), folder, seed=seed + HELD_OUT_SEED, keep=0, metrics=asked
    )


def _say(
    subject: Subject,
    front: Front,
    point: Point,
    rows: Sequence[Row],
    budget: Budget | None,
    files: dict[str, str],
    out: Path,
) -> None:
    prompts = counted(front.prompts, "search prompt")
    if len(rows) > 1:
        prompts = f"{rows[0].prompts} held-out and {prompts}"
    goal = f" within {budget}" if budget is not None else ""
    results.print(table(list(rows), f"{subject.name}, planned{goal}: {prompts}"))
    results.print(_front_table(front))
    every = ", ".join(map(str, point.computed))
    say(f"computed steps: {every}", results)
    error = (
        ""
        if front.prediction_error is None
        else f", predictions miss measured plans by {front.prediction_error:.1f} dB"
    )
    say(f"{front.generations:.1f} generations' worth of denoiser calls in all{error}")
    say(f"{out}: apply it with fastercache generate {subject.name} --config {out}", results)
    say(f"pictures: {files['front_picture']}, {files['steps_picture']}", results)


def _front_table(front: Front) -> Table:
    """The front in a few lines: every verified plan, and predictions at round speedups."""
    found = Table(title="what other speedups would give")
    for name in ("computed steps", "FLOPs speedup", "predicted PSNR", "measured PSNR"):
        found.add_column(name, justify="right")
    round_ones = {len(front.at(s).computed) for s in (1.5, 2, 3, 4, 5, 6, 8, 10) if s <= front.speedup(front.points[0])}
    for point in reversed(front.points):
        if not point.verified and len(point.computed) not in round_ones:
            continue
        predicted = "" if point.predicted_psnr is None else f"{point.predicted_psnr:.1f}"
        psnr = "" if point.psnr is None else f"{point.psnr:.1f}"
        found.add_row(f"{len(point.computed)} of {front.steps}", f"{front.speedup(point):.2f}x", predicted, psnr)
    return found

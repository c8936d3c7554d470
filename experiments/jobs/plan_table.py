"""The planner's table: planned schedules at several speedups beside fewer steps and published methods, held out.

`python -m fastercache.experiments.jobs.plan_table latte-digits --out DIR` plans at each speedup from one recording and
then runs all plans in one contest on held-out prompts. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fastercache.experiments.bench.contest import Contest
from fastercache.experiments.bench.entries import FewerSteps
from fastercache.experiments.console import progress, quiet, words
from fastercache.experiments.jobs.demo import METHODS, named
from fastercache.experiments.jobs.plan_outcome import HELD_OUT_SEED
from fastercache.experiments.jobs.planning import open_planner, watched
from fastercache.experiments.pipelines import open_pipeline, shipped_captions, with_steps
from fastercache.policies.documents import write_json
from fastercache.tuner.planning.planner import EFFORTS

SPEEDUPS = (2.5, 10 / 3, 4.16, 5.0, 6.25, 10.0)
INTERVALS = {"latte-digits": 5, "wan-digits": 6}
"""At which the best published method of each model is set beside the plans."""


def measure(
    pipe: str, folder: Path, *, effort: int, count: int, speedups: Sequence[float], seed: int
) -> dict[str, Any]:
    """Plan at each speedup with the whole effort, and measure everything on `count` held-out prompts.

    Returns:
        One row an entry: name, FLOPs and time speedup, mean PSNR with the half width of its 95 % interval, generations.
    """
    subject = with_steps(open_pipeline(pipe))
    steps = int(subject.call["num_inference_steps"])
    search = shipped_captions(pipe, "train")[: EFFORTS[effort].recorded]
    entries: dict[str, Any] = {}
    spent: dict[str, float] = {}
    predicted: dict[str, float | None] = {}
    for speedup in speedups:
        with watched(EFFORTS[effort].generations) as told:
            planner = open_planner(subject, search, effort=effort, seed=seed, folder=folder, told=told)
            point = planner.for_speedup(speedup)
        name = f"planned, {len(point.computed)} of {steps} steps"
        entries[name], spent[name] = point.policy(steps), planner.spent
        predicted[name] = point.psnr
        entries[f"{len(point.computed)} of {steps} steps, no cache"] = FewerSteps(len(point.computed))
        words.print(f"{name}: {point.psnr:.2f} dB on {len(search)} search prompts, {planner.spent:.1f} generations")
    if pipe in INTERVALS:
        best = METHODS[pipe](INTERVALS[pipe])
        entries[named(best)] = best
    contest = Contest(
        subject,
        entries,
        shipped_captions(pipe, "held_out")[:count],
        folder / "contest",
        seed=seed + HELD_OUT_SEED,
        keep=0,
    )
    with progress() as bar:
        task = bar.add_task("held-out prompts", total=len(contest.entries) * len(contest.cases))
        contest.run(lambda: bar.advance(task))
    rows = []
    for name in entries:
        row = contest.row(name)
        values = [float(run["quality"]["psnr"]) for run in contest.figures(name)]
        half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        rows.append(
            {
                "name": name,
                "speedup_flops": row.speedup_flops,
                "speedup_wall": row.speedup_wall,
                "psnr": statistics.fmean(values),
                "interval": half,
                "search_psnr": predicted.get(name),
                "generations": spent.get(name),
            }
        )
    return {"pipeline": pipe, "effort": effort, "held_out": count, "search": len(search), "rows": rows}


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("plan-table"),
    effort: Annotated[int, typer.Option("--effort", min=0, max=2)] = 1,
    count: Annotated[int, typer.Option("--count", min=1)] = 12,
    speedups: Annotated[list[float] | None, typer.Option("--speedup")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Measure the planner's table on a reference model and write it to DIR/planned.json."""
    quiet()
    found = measure(pipe, out, effort=effort, count=count, speedups=speedups or SPEEDUPS, seed=seed)
    path = write_json(out / "planned.json", found, "table")
    for row in found["rows"]:
        print(
            f"{row['name']:32} {row['speedup_flops']:6.2f}x {row['speedup_wall'] or 0:6.2f}x "
            f"{row['psnr']:6.2f} +- {row['interval']:.2f} dB  {row['generations'] or 0:5.1f} generations"
        )
    print(path)


if __name__ == "__main__":
    typer.run(main)

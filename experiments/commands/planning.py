"""The command `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.commands.options import (
    Call,
    Device,
    Dtype,
    Estimate,
    Guidance,
    Json,
    Metrics,
    Pipe,
    PromptFile,
    Seed,
    Steps,
    Storage,
    Tflops,
    Workers,
    estimated,
    finish,
    opened,
)


def plan(
    pipe: Pipe,
    budgets: Annotated[
        list[str] | None,
        typer.Option("--budget", help="What to keep: `psnr>=45`, `ssim>=0.95,cache<=2GiB`, `psnr>=40,time<=8s`."),
    ] = None,
    speedups: Annotated[
        list[float] | None,
        typer.Option("--speedup", min=1.0, metavar="X", help="Instead of a budget: at least so much faster."),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            metavar="flops|time",
            help="What `--speedup` is of: computed FLOPs, or seconds of a call on this machine.",
        ),
    ] = "flops",
    effort: Annotated[
        int,
        typer.Option(
            "--effort",
            min=0,
            max=2,
            help="0: 2 recorded prompts, one fit; 1: 8, the best of several plans; 2: 8, many more plans.",
        ),
    ] = 1,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin",
            metavar="DB",
            help="Exceed the budget by so much on the search prompts. [from their spread: kept 9 times in 10]",
        ),
    ] = None,
    metrics: Metrics = None,
    prompt_file: PromptFile = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, metavar="N", help="Record the first N prompts. [2, 8 or 8 by effort]"),
    ] = None,
    held_out_file: Annotated[
        Path | None, typer.Option("--held-out", metavar="FILE", help="Prompts to measure the outcome on.")
    ] = None,
    held_out_count: Annotated[
        int, typer.Option("--held-out-count", min=0, metavar="N", help="Use the first N of them; 0 leaves that out.")
    ] = 12,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="DIR", help="Where everything is kept. [planning/PIPE]")
    ] = None,
    storage: Storage = None,
    workers: Workers = 1,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The tuned config, or dial.")] = Path("tuned.json"),
    estimate: Estimate = False,
    tflops: Tflops = None,
    steps: Steps = None,
    guidance: Guidance = None,
    call: Call = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Plan the cheapest schedule from one recording. The same command again resumes.

    A few uncached runs are recorded. From their inner products follows, without another run, which steps to compute and
    what to put in place of the others, for every amount of compute. The best plans are then run and fitted on the
    search prompts, and the outcome is measured on held-out prompts beside fewer steps without a cache.

    `--speedup` or `--budget` may be repeated: the file of `--out` is then a dial. It holds all the plans, and whoever
    applies it picks one.

    Examples:

    `fastercache plan latte-digits --budget 'psnr>=45'`

    `fastercache plan wan-digits --speedup 5 --effort 0 --out fast.json`

    `fastercache plan latte-digits --speedup 4 --objective time`, or `--budget 'psnr>=45,time<=1.5s'`

    `fastercache plan ./config-only --speedup 5 --estimate --tflops 40`: what it would cost, before any weight is there

    `fastercache plan ./my-i2v --prompts calls.jsonl --speedup 3`: lines like `{"prompt": "a cat", "image": "a.png"}`

    `fastercache plan latte-digits --speedup 3 --speedup 5 --speedup 8 --out dial.json`
    """
    from fastercache.experiments.arguments import metric_names
    from fastercache.experiments.jobs import planning
    from fastercache.experiments.jobs import workers as workers_of
    from fastercache.experiments.pipelines import given_prompts
    from fastercache.tuner.clock import objective_called
    from fastercache.tuner.planning.planner import EFFORTS

    named, goal = metric_names(metrics or ()), objective_called(objective)
    recorded = count or EFFORTS[effort].recorded
    only_priced = estimated(estimate, tflops, workers=workers, storage=storage)
    made_up = max(recorded, held_out_count) if only_priced else 0
    prompts, others = given_prompts(pipe, prompt_file, held_out_file, made_up)
    subject = opened(pipe, device, dtype, call, steps, guidance, weights=not only_priced)
    if only_priced:
        from fastercache.experiments.jobs import estimating

        found = estimating.plan(
            subject,
            prompts[:recorded],
            len(others[:held_out_count]),
            budgets=budgets or (),
            speedups=speedups or (),
            effort=effort,
            objective=goal,
            tflops=tflops,
            show=not as_json,
        )
        return finish(found, as_json)
    folder = study or Path("planning") / Path(pipe).name
    finish(
        planning.plan(
            subject,
            prompts[:recorded],
            budgets=budgets or (),
            speedups=speedups or (),
            held_out=others[:held_out_count],
            effort=effort,
            margin=margin,
            metrics=named,
            objective=goal,
            seed=seed,
            folder=folder,
            out=out,
            storage=storage,
            team=workers_of.recorders(
                subject, prompts[:recorded], folder, workers, device=device, dtype=dtype, seed=seed
            ),
            show=not as_json,
        ),
        as_json,
    )

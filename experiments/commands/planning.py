"""The command `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.commands.options import (
    Call,
    Device,
    Dtype,
    Guidance,
    Json,
    Metrics,
    Pipe,
    PromptFile,
    Seed,
    Steps,
    Storage,
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
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The tuned config, or dial.")] = Path("tuned.json"),
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

    `fastercache plan ./my-i2v --prompts calls.jsonl --speedup 3`: lines like `{"prompt": "a cat", "image": "a.png"}`

    `fastercache plan latte-digits --speedup 3 --speedup 5 --speedup 8 --out dial.json`
    """
    from fastercache.experiments.arguments import metric_names, read_prompts
    from fastercache.experiments.jobs import planning
    from fastercache.experiments.pipelines import shipped_captions
    from fastercache.tuner.planning.planner import EFFORTS

    named = metric_names(metrics or ())
    prompts = read_prompts(prompt_file) if prompt_file else shipped_captions(pipe, "train")
    others = read_prompts(held_out_file) if held_out_file else []
    if not (prompt_file or held_out_file):
        others = shipped_captions(pipe, "held_out")
    subject = opened(pipe, device, dtype, call, steps, guidance)
    finish(
        planning.plan(
            subject,
            prompts[: count or EFFORTS[effort].recorded],
            budgets=budgets or (),
            speedups=speedups or (),
            held_out=others[:held_out_count],
            effort=effort,
            margin=margin,
            metrics=named,
            objective=planning.objective_called(objective),
            seed=seed,
            folder=study or Path("planning") / Path(pipe).name,
            out=out,
            storage=storage,
            show=not as_json,
        ),
        as_json,
    )

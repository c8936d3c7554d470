"""Compare methods. Arguments and help only; the work is imported when a command runs."""

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
    finish,
    opened,
)


def bench(
    pipe: Pipe,
    policies: Annotated[
        str, typer.Option("--policies", metavar="NAMES", help="`all`, or registered names joined by commas.")
    ] = "all",
    prompt_file: PromptFile = None,
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Measure on N prompts.")] = 12,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where runs, table and figures go. [bench/PIPE]")
    ] = None,
    peers: Annotated[
        bool | None,
        typer.Option("--peers/--no-peers", help="Run diffusers' and cache-dit's own caches too. [with `all`]"),
    ] = None,
    plot_only: Annotated[
        bool, typer.Option("--plot-only", help="Print and draw what was measured before; run nothing.")
    ] = False,
    metrics: Metrics = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Put the table into this Markdown page as well.")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    call: Call = None,
    seed: Seed = 100_000,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Run every published method at three settings against fewer steps and other packages' caches, on held-out prompts.

    One table and one figure, with 95 % intervals over prompts and a verdict: does the setting beat fewer steps?
    Interrupted, the same command goes on; other methods or more prompts leave what was run in place.

    Examples:

    `fastercache bench latte-digits --out bench/latte-digits`

    `fastercache bench latte-digits --policies teacache,magcache --peers --count 4`

    `fastercache bench ./my-latte --prompts prompts.txt --steps 30`
    """
    from fastercache.experiments.arguments import metric_names, named, read_prompts
    from fastercache.experiments.bench import lineup, standings
    from fastercache.experiments.bench import runner as work

    methods = lineup.chosen([named(name.strip()) for name in policies.split(",") if name.strip()])
    measured = metric_names(metrics or ())
    folder = out or Path("bench") / Path(pipe).name
    if plot_only:
        results = standings.Results.load(folder)
    else:
        subject = opened(pipe, device, dtype, call, steps, guidance)
        given = read_prompts(prompt_file) if prompt_file else None
        with_peers = policies.strip() == "all" if peers is None else peers
        results = work.bench(subject, work.plan_for(subject, methods, given, count, seed, with_peers, measured), folder)
    files = results.write(folder)
    if page is not None:
        standings.put_into(page, results)
        files["page"] = str(page)
    if not as_json:
        standings.show(results, files)
    finish({**results.model_dump(mode="json"), "files": files}, as_json)


def bench_size(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Which models; all by default.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the figures go.")] = Path("bench-size"),
    steps: Annotated[
        int | None, typer.Option("--steps", min=2, metavar="N", help="Steps of each run. [as published]")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled/--eager", help="Also with every block compiled. [eager]")
    ] = False,
    brief: Annotated[bool, typer.Option("--brief", help="Only uncached, FasterCache and a planned schedule.")] = False,
    print_only: Annotated[
        bool, typer.Option("--print-only", help="Show what DIR holds from earlier runs; measure nothing.")
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Put the tables of DIR into this Markdown page as well."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure seconds and memory at the size of published video models, with random weights, on a CUDA device.

    Examples:

    `fastercache bench-size --out bench-size`

    `fastercache bench-size cogvideox-2b --steps 25 --compiled`

    `fastercache bench-size --print-only --out docs/bench/size`
    """
    from fastercache.experiments.bench import size_tables
    from fastercache.experiments.bench.sizes import SIZES
    from fastercache.experiments.console import results
    from fastercache.experiments.jobs import real_size as work
    from fastercache.experiments.pages import put_into

    if print_only:
        found = size_tables.read(out)
        answer: dict[str, object] = {"models": found}
        if not as_json:
            for one in found:
                results.print(size_tables.table(one))
    else:
        names = models or list(SIZES)
        answer = work.bench_size(names, out=out, steps=steps, compiled=compiled, brief=brief, show=not as_json)
    if page is not None:
        put_into(page, size_tables.START, size_tables.END, size_tables.markdown(size_tables.read(out)))
    finish(answer, as_json)

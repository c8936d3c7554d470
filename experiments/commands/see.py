"""The commands `report`, `compare` and `attribute`. Arguments and help only; the work is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.commands.options import (
    Allow,
    Call,
    Device,
    Dtype,
    Json,
    PickBudget,
    PickQuality,
    PickSpeedup,
    Pipe,
    PromptFile,
    Seed,
    finish,
    opened,
)


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH", help="Folders of `plan`, `analyze`, `bench` or `demo`; a tuned config.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page. [the model's name]")] = None,
    as_json: Json = False,
) -> None:
    """Write one page that shows what repeats, which steps matter and what a schedule costs; edit schedules in it.

    The file needs no network and no installation: open it in a browser. An edited schedule downloads as a file that
    `fc.attach` and `fastercache generate --config` take.

    Example: `fastercache report planning/latte-digits tuned.json --out report.html`
    """
    from fastercache.experiments.jobs import reporting

    finish(reporting.report(paths, out, title=title, show=not as_json), as_json)


def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="A folder that `analyze` wrote.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another one.", show_default=False)],
    measure: Annotated[str, typer.Option("--measure", metavar="NAME", help="cosine, rel_l1 or rel_l2.")] = "rel_l1",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture.")] = Path("compared.png"),
    as_json: Json = False,
) -> None:
    """Set two recordings beside each other: other weights, a LoRA on and off, schedulers, resolutions.

    Compared are the mean maps of each role of sites and guidance branch that both have. The numbers of steps must be
    the same.

    Example: `fastercache analyze latte-digits --out base`, then the same with `--guidance 1.5 --out weak`, then
    `fastercache compare base weak`
    """
    from fastercache.experiments.jobs import comparing

    finish(comparing.compared(first, second, measure, out, show=not as_json), as_json)


def attribute(
    pipe: Pipe,
    config: Annotated[
        Path,
        typer.Option("--config", metavar="FILE", help="The planned schedule: a config that `plan` made, or a dial."),
    ],
    speedup: PickSpeedup = None,
    budget: PickBudget = None,
    quality: PickQuality = None,
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Measure on the first N prompts.")] = 2,
    truth: Annotated[
        bool, typer.Option("--truth/--no-truth", help="Measure by cached runs, or predict from the recording alone.")
    ] = True,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="DIR", help="The folder of `plan`, for its recordings. [planning/PIPE]"),
    ] = None,
    prompt_file: PromptFile = None,
    allow: Allow = None,
    call: Call = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Name the stretches of skipped steps that make the error of a planned schedule.

    Each stretch's share in the error is predicted from the recording of `plan` and measured by cached runs; so is what
    computing it would gain. Prompts, seed and call are those that `plan` was given.

    Example: `fastercache attribute latte-digits --config fast.json --count 1`
    """
    from fastercache.experiments.arguments import read_prompts
    from fastercache.experiments.jobs import attributing
    from fastercache.experiments.pipelines import shipped_captions
    from fastercache.picking import Pick

    tuned, plan = attributing.read_plan(config, pipe, Pick(speedup, budget, quality))
    prompts = read_prompts(prompt_file) if prompt_file else shipped_captions(pipe, "train")
    subject = opened(pipe, device, dtype, call)
    finish(
        attributing.attribute(
            subject,
            tuned,
            plan,
            prompts,
            count=count,
            with_truth=truth,
            seed=seed,
            allow=allow or (),
            folder=study or Path("planning") / Path(pipe).name,
            show=not as_json,
        ),
        as_json,
    )

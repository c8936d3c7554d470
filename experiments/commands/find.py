"""Find a schedule: record, search, export. Arguments and help only; the work is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fastercache.experiments.commands.options import (
    POLICY,
    Call,
    Count,
    Device,
    Dtype,
    Estimate,
    Guidance,
    Json,
    Metrics,
    Pipe,
    PromptFile,
    Prompts,
    Seed,
    Steps,
    Storage,
    Tflops,
    Workers,
    estimated,
    finish,
    opened,
)


def analyze(
    pipe: Pipe,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    count: Count = None,
    query: Annotated[
        str | None,
        typer.Option("--sites", metavar="QUERY", help="What to record. [attention, denoiser output, guidance]"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where profile and figures go.")] = Path("analysis"),
    inject: Annotated[
        int,
        typer.Option(
            "--inject",
            min=0,
            metavar="N",
            help="Measure what an error does to the video: at N steps, for each role of sites, the value of the step "
            "before is put in its place.",
        ),
    ] = 0,
    noise: Annotated[
        bool, typer.Option("--noise/--held", help="Inject noise of 1 % instead of the value of the step before.")
    ] = False,
    steps: Steps = None,
    guidance: Guidance = None,
    call: Call = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Record a pipeline and draw where its features repeat: heatmaps and curves, as PNG and in TensorBoard.

    Example: `fastercache analyze latte-digits --count 4 --out analysis`, then `tensorboard --logdir analysis`
    """
    from fastercache.experiments.jobs import generation, recording

    subject = opened(pipe, device, dtype, call, steps, guidance)
    texts = generation.prompts_for(subject, prompts or (), prompt_file, "train", count)
    if noise and not inject:
        raise typer.BadParameter("it says what `--inject N` puts in: give that too", param_hint="--noise")
    error: Literal["noise", "hold"] = "noise" if noise else "hold"
    finish(
        recording.analyze(subject, texts, query, out, inject=inject, error=error, seed=seed, show=not as_json), as_json
    )


def tune(
    pipe: Pipe,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            help="Quality to keep: `psnr>=30`, `ssim>=0.95,time<=8s`, `p90:psnr>=28,cache<=2GiB`; in quotes.",
        ),
    ] = "psnr>=30",
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            metavar="flops|time",
            help="What is minimised: computed FLOPs, or seconds of a call on the machine that begins the study.",
        ),
    ] = "flops",
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            rich_help_panel=POLICY,
            help="What is searched: a policy, a file of yours, `any` for all there are; may be repeated. [fastercache]",
        ),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            rich_help_panel=POLICY,
            help="A field that is not searched; with several policies `POLICY.FIELD=VALUE`.",
        ),
    ] = None,
    metrics: Metrics = None,
    prompt_file: PromptFile = None,
    held_out_file: Annotated[
        Path | None, typer.Option("--held-out", metavar="FILE", help="Prompts to measure the outcome on.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Use the first N of each file.")] = 8,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many policies to try in all.")] = 40,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", min=1.0, metavar="SECONDS", help="End the whole command in about this time."),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            "--study", metavar="DIR", help="Where the study is kept. [tuning/PIPE-POLICY, for other calls ...-2]"
        ),
    ] = None,
    storage: Storage = None,
    workers: Workers = 1,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The tuned config.")] = Path("tuned.json"),
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
    """Search the cheapest schedule within a quality budget, and export it. The same command again resumes.

    Quality is measured against the uncached output. The search sees only the search prompts; the outcome is measured on
    held-out ones, beside fewer steps without a cache at the same FLOPs. The reference models bring both. Constants that
    a policy needs measured (TeaCache's polynomial, MagCache's ratios, ...) are measured on the first search prompts.

    Examples:

    `fastercache tune latte-digits --budget 'psnr>=30' --time-limit 600`

    `fastercache tune latte-digits --policy any --objective time`, or `--budget 'psnr>=30,time<=1.5s'`

    `fastercache tune latte-digits --policy any --trials 80`, or `--policy foca --policy teacache`

    `fastercache tune ./config-only --estimate --tflops 40`: what it would cost, before any weight is there

    `fastercache tune ./my-latte --prompts search.txt --held-out others.txt --budget 'ssim>=0.95' --set interval=2`
    """
    from fastercache.experiments.jobs import searching, study_job

    only_priced = estimated(estimate, tflops, workers=workers, storage=storage, time_limit=time_limit)
    job = study_job.job_of(
        pipe,
        prompt_file=prompt_file,
        held_out_file=held_out_file,
        count=count,
        budget=budget,
        metrics=metrics or (),
        policies=policies or (),
        fields=fields or (),
        call=call or (),
        steps=steps,
        guidance=guidance,
        device=device,
        dtype=dtype,
        seed=seed,
        objective=objective,
        made_up=count if only_priced else 0,
    )
    if only_priced:
        from fastercache.experiments.jobs import estimating

        subject = opened(pipe, device, dtype, call, steps, guidance, weights=False)
        return finish(estimating.tune(subject, job, trials=trials, tflops=tflops, show=not as_json), as_json)
    base = Path("tuning") / f"{Path(pipe).name}-{'+'.join(job.policies)}"
    folder = study or (base if storage is not None else study_job.folder_for(job, base))
    finish(
        searching.search(
            job,
            folder,
            out,
            trials=trials,
            seconds=time_limit,
            storage=storage,
            workers=workers,
            references=None if study is not None else base.parent / f"{Path(pipe).name}-references",
            show=not as_json,
        ),
        as_json,
    )

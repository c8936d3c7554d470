"""What comes after a search: certify what was found, and hand it to other software. Arguments and help only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.commands.options import (
    POLICY,
    Call,
    Device,
    Dtype,
    Guidance,
    Json,
    Metrics,
    PickBudget,
    PickQuality,
    PickSpeedup,
    Pipe,
    PromptFile,
    Seed,
    Steps,
    Storage,
    finish,
    opened_for,
)


def certify(
    pipe: Pipe,
    configs: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Tuned configs; of several the fastest that passes. Or a dial.", show_default=False
        ),
    ],
    prompt_file: PromptFile = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="What each prompt must keep. [the budget in the file]")
    ] = None,
    level: Annotated[
        float, typer.Option("--level", min=0.5, max=0.999, help="How sure the certificate is to be, 0.95 for 95 %.")
    ] = 0.95,
    rate: Annotated[
        float, typer.Option("--rate", min=0.001, max=0.5, help="The share of prompts that may miss the budget.")
    ] = 0.05,
    count: Annotated[
        int | None, typer.Option("--count", min=1, metavar="N", help="Prompts to try. [the fewest that can do: 59]")
    ] = None,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="DIR", help="Where every run is kept. [certifying/PIPE, numbered]")
    ] = None,
    metrics: Metrics = None,
    steps: Steps = None,
    guidance: Guidance = None,
    call: Call = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Certify that all but a few prompts keep the budget, from prompts that nothing was searched or measured on.

    The certificate is written into the file and said by whatever applies it; of a dial, each plan that passes gets one.
    Fix the number of prompts beforehand:
    adding prompts after a look at the outcome would break the promise. The same command again resumes.

    Example: `fastercache certify latte-digits tuned.json --budget 'psnr>=40'`
    """
    from fastercache.experiments.arguments import metric_names, read_prompts
    from fastercache.experiments.jobs import certifying

    metric_names(metrics or ())  # makes known those of a file
    request = certifying.request_of(configs, budget, level, rate, count, seed)
    if prompt_file:
        given = read_prompts(prompt_file)
    else:
        given = certifying.untried(request, certifying.unseen(pipe, certifying.seen_by(request)))
    prompts = certifying.chosen(request, given)
    first = next(iter(request.configs.values()))
    subject = opened_for(first, pipe, device, dtype, call, steps, guidance)
    folder = study or certifying.folder_for(request, prompts, Path("certifying") / Path(pipe).name)
    finish(certifying.certify(subject, request, prompts, folder, show=not as_json), as_json)


def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE|STUDY", help="A tuned config, a dial, or a study's folder.", show_default=False),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="Write a tuned config for other software: python, diffusers, cache-dit, sglang or hub.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where it goes. [tuned.json; with --to, the target's own name]"),
    ] = None,
    speedup: PickSpeedup = None,
    budget: PickBudget = None,
    quality: PickQuality = None,
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="N", help="Of a study, this trial. [the best within the budget]")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="FILE", rich_help_panel=POLICY, help="The file of a policy of yours."),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="FILE", help="The file of a metric of yours.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Write a tuned config for other software, or take one out of a study or a dial.

    `python` is one file that needs torch only and gives the same latents. `cache-dit`, `sglang` and `diffusers` get
    settings of their own, and what they do otherwise is said. `hub` is a folder for `hf upload`.

    Examples:

    `fastercache export tuned.json --to python --out cached.py`

    `fastercache export tuning/latte-digits-fastercache --out tuned.json`

    `fastercache export dial.json --speedup 5 --out tuned.json`, or with `--to python`
    """
    from fastercache.experiments.arguments import metric_names
    from fastercache.experiments.jobs import shipping
    from fastercache.picking import Pick

    if policy is not None:
        from fastercache.policies.files import policy_from_file

        policy_from_file(policy)  # makes it known
    metric_names(metrics or ())  # the same
    finish(
        shipping.export(
            source,
            to,
            out,
            pick=Pick(speedup, budget, quality),
            trial=trial,
            storage=storage,
            show=not as_json,
        ),
        as_json,
    )

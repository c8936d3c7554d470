"""What comes after a search: certify what was found, and hand it to other software. Arguments and help only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.commands.options import POLICY, Json, Storage, finish


def export(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|STUDY", help="A tuned config, or a study's folder.", show_default=False)
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
    """Write a tuned config for other software, or the tuned config of a study without searching on.

    `python` is one file that needs torch only and gives the same latents. `cache-dit`, `sglang` and `diffusers` get
    settings of their own, and what they do otherwise is said. `hub` is a folder for `hf upload`.

    Examples:

    `fastercache export tuned.json --to python --out cached.py`

    `fastercache export tuning/latte-digits-fastercache --out tuned.json`
    """
    from fastercache.experiments.arguments import metric_names
    from fastercache.experiments.jobs import shipping

    if policy is not None:
        from fastercache.policies.files import policy_from_file

        policy_from_file(policy)  # makes it known
    metric_names(metrics or ())  # the same
    finish(
        shipping.export(source, to, out, trial=trial, storage=storage, show=not as_json),
        as_json,
    )

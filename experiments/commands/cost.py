"""What things cost. Arguments and help only; the work is imported when a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from fastercache.experiments.commands.options import Call, Device, Dtype, Json, Pipe, Steps, finish, opened


def overhead(
    pipe: Pipe,
    runs: Annotated[int, typer.Option("--runs", min=3, help="Timed runs of each variant.")] = 20,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What to generate. [a caption of the model]")] = None,
    steps: Steps = None,
    call: Call = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Time what the toolkit itself costs, interleaved with the bare pipeline, and how much of a saving is realised.

    Example: `fastercache overhead latte-digits --runs 20`
    """
    from fastercache.experiments.jobs import overhead as cost

    subject = opened(pipe, device, dtype, call, steps)
    finish(cost.report(subject, prompt, runs, show=not as_json), as_json)

"""The options that several commands share, as types of their parameters, and what the commands do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastercache.experiments import console

Pipe = Annotated[str, typer.Argument(metavar="PIPE", help="Short name, folder or hub id.", show_default=False)]
Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to generate.")]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="Prompts, one a line; or FILE.jsonl."),
]
Count = Annotated[int | None, typer.Option("--count", min=1, help="Use the first N prompts.", metavar="N")]
Seed = Annotated[int, typer.Option("--seed", help="Prompt i is generated with seed SEED + i.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

POLICY = "Policy"
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        rich_help_panel=POLICY,
        help="See `fastercache policies`; or a file of yours, FILE.py or FILE.py:Class. [fastercache]",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", rich_help_panel=POLICY, help="Set a field; may be repeated."),
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="MODEL", rich_help_panel=POLICY, help="FasterCache as published for a model."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", rich_help_panel=POLICY, help="A tuned config to apply, or a dial."),
]
PickSpeedup = Annotated[
    float | None,
    typer.Option(
        "--speedup", min=1.0, metavar="X", rich_help_panel=POLICY, help="From a dial: the best plan at least so fast."
    ),
]
PickBudget = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="TEXT", rich_help_panel=POLICY, help="From a dial: the fastest plan measured to keep it."
    ),
]
PickQuality = Annotated[
    str | None,
    typer.Option(
        "--quality",
        metavar="WORD",
        rich_help_panel=POLICY,
        help="From a dial: high (psnr>=45), medium (38) or low (30).",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="PART",
        rich_help_panel=POLICY,
        help="Use a tuned config although this differs: model, scheduler, steps, guidance.",
    ),
]

Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Measure this too: psnr, ssim, tpsnr, lpips, or a metric of yours, FILE.py:NAME; may be repeated.",
    ),
]

Workers = Annotated[
    int, typer.Option("--workers", min=1, metavar="N", help="Work with N processes, one for each GPU in turn.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Keep the study in a database for many machines: postgresql://USER@HOST/DATABASE. [a file in --study]",
    ),
]

CALL = "Pipeline"
Steps = Annotated[int | None, typer.Option("--steps", min=1, rich_help_panel=CALL, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance", rich_help_panel=CALL, help="Guidance scale.")]
Call = Annotated[
    list[str] | None,
    typer.Option("--call", metavar="KEY=VALUE", rich_help_panel=CALL, help="Any other argument of the pipeline."),
]
Device = Annotated[str, typer.Option("--device", rich_help_panel=CALL, help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", rich_help_panel=CALL, help="auto, float32, bfloat16, float16.")]


Estimate = Annotated[
    bool,
    typer.Option("--estimate", help="Only say what it would cost, from the configuration: no weights are read."),
]
Tflops = Annotated[
    float | None,
    typer.Option("--tflops", metavar="N", help="With --estimate: the machine's speed, in 10^12 FLOPs a second."),
]


def opened(
    pipe: str,
    device: str,
    dtype: str,
    call: list[str] | None,
    steps: int | None = None,
    guidance: float | None = None,
    weights: bool = True,
) -> Any:
    """The pipeline that a command was given, as a `Subject`; without weights from its configuration alone."""
    from fastercache.experiments.pipelines import open_pipeline

    if steps == 1:
        console.say("note: a run of 1 step has no step before it to reuse anything from: give --steps 2 or more")
    return open_pipeline(
        pipe,
        device=device,
        dtype=dtype,
        weights=weights,
        call=call or (),
        num_inference_steps=steps,
        guidance_scale=guidance,
    )


def opened_for(
    config: Any,
    pipe: str,
    device: str,
    dtype: str,
    call: list[str] | None,
    steps: int | None = None,
    guidance: float | None = None,
    allow: list[str] | None = None,
) -> Any:
    """The pipeline for what is to be applied: where that is a tuned config, with the steps and the guidance scale that
    it was made for, unless others were typed or may differ."""
    from fastercache.experiments.arguments import assignments
    from fastercache.experiments.pipelines import as_made
    from fastercache.tuned import TunedConfig

    subject = opened(pipe, device, dtype, call, steps, guidance)
    if not isinstance(config, TunedConfig):
        return subject
    typed = {"num_inference_steps": steps, "guidance_scale": guidance, **assignments(call or ())}
    given = {name for name, value in typed.items() if value is not None}
    free = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    return as_made(subject, config, given | {free[part] for part in allow or () if part in free})


def estimated(estimate: bool, tflops: float | None, **beside: Any) -> bool:
    """Whether only an estimate is asked for; options given `beside` it that it does not heed are named.

    Raises:
        InvalidPolicy: for a speed without an estimate.
    """
    from fastercache.policies.errors import InvalidPolicy

    if tflops is not None and not estimate:
        raise InvalidPolicy("--tflops is the speed for an estimate: give --estimate too, or leave it out")
    idle = [f"--{name.replace('_', '-')}" for name, value in beside.items() if value not in (None, 1)]
    if estimate and idle:
        console.say(
            f"note: the estimate is of one process from beginning to end; {', '.join(idle)} changes nothing in it"
        )
    return estimate


def finish(payload: dict[str, Any], as_json: bool) -> None:
    """Print what `--json` asks for."""
    if as_json:
        console.emit(payload)

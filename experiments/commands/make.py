"""Make videos and show what a cache does to them. Arguments and help only; the work is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.commands.options import (
    POLICY,
    Allow,
    Call,
    Config,
    Count,
    Device,
    Dtype,
    Fields,
    Guidance,
    Json,
    PickBudget,
    PickQuality,
    PickSpeedup,
    Pipe,
    PolicyName,
    Preset,
    PromptFile,
    Prompts,
    Seed,
    Steps,
    finish,
    opened,
    opened_for,
)


def generate(
    pipe: Pipe,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    count: Count = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where GIFs (or PNGs) go.")] = Path("generated"),
    compare: Annotated[
        bool, typer.Option("--compare", help="Generate uncached too; show both, and the difference, side by side.")
    ] = False,
    uncached: Annotated[bool, typer.Option("--uncached", help="Use no cache at all.", rich_help_panel=POLICY)] = False,
    policy: PolicyName = None,
    preset: Preset = None,
    fields: Fields = None,
    config: Config = None,
    speedup: PickSpeedup = None,
    budget: PickBudget = None,
    quality: PickQuality = None,
    allow: Allow = None,
    steps: Steps = None,
    guidance: Guidance = None,
    call: Call = None,
    seed: Seed = 0,
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="Frames a second of the GIFs.")] = 6.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Generate videos or images under a cache policy; with `--compare`, say what it saves and what it costs.

    Examples:

    `fastercache generate latte-digits "a red seven moving left" --compare`

    `fastercache generate latte-digits --policy static_interval --set interval=3 --set sites=temporal --compare`

    `fastercache generate ./my-latte --prompts prompts.txt --config tuned.json --out videos`

    `fastercache generate latte-digits --config dial.json --speedup 5 --compare`
    """
    from fastercache.experiments.jobs import generation
    from fastercache.picking import Pick

    entry = generation.chosen(policy, preset, fields or (), config, uncached, Pick(speedup, budget, quality))
    subject = opened_for(entry, pipe, device, dtype, call, steps, guidance, allow)
    texts = generation.prompts_for(subject, prompts or (), prompt_file, "held_out", count)
    payload = generation.generate(
        subject,
        texts,
        entry,
        out=out,
        seed=seed,
        compare=compare,
        fps=fps,
        show=not as_json,
        allow=frozenset(allow or ()),
    )
    finish(payload, as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("demo-out"),
    pipe: Annotated[str, typer.Argument(metavar="[PIPE]", help="A reference model.")] = "latte-digits",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run the whole story: record, look, plan, export, apply from the file, and compare on held-out prompts.

    At most ten minutes on two cores; the outcome does not depend on their speed. Interrupted, the same command goes on
    where it stopped. Example: `fastercache demo --out demo-out`
    """
    from fastercache.experiments.jobs import demo as story

    finish(story.demo(opened(pipe, device, "auto", None), out, story.Plan(), show=not as_json), as_json)

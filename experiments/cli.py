"""The command line: `fastercache sites | generate | analyze | tune | export | demo | policies | overhead`.

Only argument parsing lives here, and nothing heavy is imported before a command runs. Errors that a user can cause
are one line on standard error and exit code 2; an interruption says how to go on and exits with 130.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from experiments import console

app = typer.Typer(
    name="fastercache",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "See where a diffusion model repeats itself, search the cache schedule that exploits it, ship it as a file.\n\n"
        "PIPE is a short name (`latte-digits`, trained, ships with the project), a folder written by "
        "`save_pretrained`, or a hub id such as `maxin-cn/Latte-1`.\n\n"
        "Every command takes `--json`: one JSON object on standard output, everything else on standard error."
    ),
    epilog=(
        "Try: `fastercache generate latte-digits 'a red seven moving left' --compare`\n\n"
        "then: `fastercache tune latte-digits --budget 'psnr>=30' --out tuned.json`\n\n"
        "then: `fastercache generate latte-digits --config tuned.json --compare`"
    ),
)

F = TypeVar("F", bound=Callable[..., None])
RESUME = "interrupted; what was finished is kept: run the same command again and it goes on from there"


def guarded(command: F) -> F:
    """Wrap a command: user errors become one line and exit code 2, an interruption a hint and exit code 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        console.quiet()
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            resumable = command.__name__ in ("tune", "demo")
            console.words.print(RESUME if resumable else "interrupted", soft_wrap=True)
            raise typer.Exit(130) from None
        except Exception as error:
            from policies.errors import FasterCacheError

            if not isinstance(error, FasterCacheError):
                raise
            console.fail(str(error))
            raise typer.Exit(2) from None

    return wrapper  # type: ignore[return-value]


Pipe = Annotated[str, typer.Argument(metavar="PIPE", help="Short name, folder or hub id.", show_default=False)]
Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to generate.")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line.")]
Count = Annotated[int | None, typer.Option("--count", min=1, help="Use the first N prompts.", metavar="N")]
Seed = Annotated[int, typer.Option("--seed", help="Prompt i is generated with seed SEED + i.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

POLICY = "Policy"
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", metavar="NAME", rich_help_panel=POLICY, help="See `fastercache policies`. [fastercache]"),
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
    Path | None, typer.Option("--config", metavar="FILE", rich_help_panel=POLICY, help="A tuned config to apply.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="PART",
        rich_help_panel=POLICY,
        help="Use a tuned config although this differs: model, pipeline, scheduler, steps, guidance_scale, guidance.",
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


def _open(
    pipe: str, device: str, dtype: str, call: list[str] | None, steps: int | None = None, guidance: float | None = None
) -> Any:
    from experiments.pipelines import open_pipeline

    return open_pipeline(
        pipe, device=device, dtype=dtype, call=call or (), num_inference_steps=steps, guidance_scale=guidance
    )


def _finish(payload: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.emit(payload)


@app.command()
@guarded
def policies(
    name: Annotated[str | None, typer.Argument(help="Show this policy's fields.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the cache policies, or one policy's fields with their bounds.

    Example: `fastercache policies fastercache`
    """
    from experiments import catalog

    _finish(catalog.policies(name, show=not as_json), as_json)


@app.command()
@guarded
def sites(
    pipe: Pipe,
    query: Annotated[
        str | None, typer.Option("--sites", metavar="QUERY", help="Show what a query such as `spatial[2:6]` selects.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Show what can be reused in a pipeline: its sites by kind, role and depth.

    Example: `fastercache sites latte-digits --sites 'temporal|cross'`
    """
    from experiments import catalog

    _finish(catalog.sites(_open(pipe, device, dtype, None), query, show=not as_json), as_json)


@app.command()
@guarded
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
    """
    from experiments import generation

    entry = generation.chosen(policy, preset, fields or (), config, uncached)
    subject = _open(pipe, device, dtype, call, steps, guidance)
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
    _finish(payload, as_json)


@app.command()
@guarded
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
    from experiments import generation, recording

    subject = _open(pipe, device, dtype, call, steps, guidance)
    texts = generation.prompts_for(subject, prompts or (), prompt_file, "train", count)
    _finish(recording.analyze(subject, texts, query, out, seed=seed, show=not as_json), as_json)


@app.command()
@guarded
def tune(
    pipe: Pipe,
    budget: Annotated[
        str,
        typer.Option(
            "--budget", help="Quality to keep: `psnr>=30`, `ssim>=0.95`, `q0.1(psnr)>=28`; several joined by commas."
        ),
    ] = "psnr>=30",
    policy: PolicyName = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", rich_help_panel=POLICY, help="A field that is not searched."),
    ] = None,
    prompt_file: PromptFile = None,
    held_out_file: Annotated[
        Path | None, typer.Option("--held-out", metavar="FILE", help="Prompts to measure the outcome on.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Use the first N of each file.")] = 8,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many policies to try in all.")] = 40,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", min=1.0, metavar="SECONDS", help="Stop searching after this time.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="DIR", help="Where the study is kept. [tuning/PIPE-POLICY]")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The tuned config.")] = Path("tuned.json"),
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
    held-out ones. The reference models bring both.

    Examples:

    `fastercache tune latte-digits --budget 'psnr>=30' --time-limit 120`

    `fastercache tune ./my-latte --prompts search.txt --held-out others.txt --budget 'ssim>=0.95' --set interval=2`
    """
    from experiments import searching

    folder = study or Path("tuning") / f"{Path(pipe).name}-{policy or 'fastercache'}"
    job = searching.job_of(
        pipe,
        prompt_file=prompt_file,
        held_out_file=held_out_file,
        count=count,
        budget=budget,
        policy=policy,
        fields=fields or (),
        call=call or (),
        steps=steps,
        guidance=guidance,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    _finish(searching.search(job, folder, out, trials=trials, seconds=time_limit, show=not as_json), as_json)


@app.command()
@guarded
def export(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The folder of a study.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The tuned config.")] = Path("tuned.json"),
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="N", help="Export this trial. [the best within the budget]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the tuned config of a study that `tune` made, finished or interrupted, without searching on.

    Example: `fastercache export tuning/latte-digits-fastercache --out tuned.json`
    """
    from experiments import searching

    _finish(searching.export_study(study, out, trial=trial, show=not as_json), as_json)


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("demo-out"),
    pipe: Annotated[str, typer.Argument(metavar="[PIPE]", help="A reference model.")] = "latte-digits",
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.1, help="Time to search, instead of three.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run the whole story: record, tune, export, apply from the file, and compare on held-out prompts.

    At most ten minutes on two cores. Interrupted, the same command goes on where it stopped. Example:
    `fastercache demo --out demo-out`
    """
    from experiments import demo as story

    plan = story.Plan() if minutes is None else story.Plan(tune_seconds=60 * minutes, seconds=500 + 60 * minutes)
    _finish(story.demo(_open(pipe, device, "auto", None), out, plan, show=not as_json), as_json)


@app.command()
@guarded
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
    from experiments import overhead as cost

    subject = _open(pipe, device, dtype, call, steps)
    _finish(cost.report(subject, prompt, runs, show=not as_json), as_json)


def main() -> None:
    """Entry point of the `fastercache` command."""
    app()


if __name__ == "__main__":
    main()

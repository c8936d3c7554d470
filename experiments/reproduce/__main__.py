"""`python -m fastercache.experiments.reproduce MODEL`: the paper's findings on a reference model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.console import quiet, say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    pipe: Annotated[str, typer.Argument(metavar="MODEL", help="latte-digits or wan-digits.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where all is kept. [findings/MODEL]")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=2, metavar="N", help="Measure on N held-out prompts.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=6, help="Denoising steps; the paper's ablations have 30.")] = 30,
    seed: Annotated[int, typer.Option("--seed", help="Prompt i is generated with seed SEED + i.")] = 100_000,
    print_only: Annotated[
        bool, typer.Option("--print-only", help="Print and draw DIR/findings.json; run nothing.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Put the tables into this Markdown page as well.")
    ] = None,
) -> None:
    """Run what the findings compare, judge them, and write DIR/findings.json and DIR/findings.png.

    It says first how long it will take. Interrupted, it goes on where it stopped; more prompts leave what was run.
    """
    quiet()
    from fastercache.analysis.plots.style import save_png
    from fastercache.experiments.pipelines import open_pipeline
    from fastercache.experiments.reproduce import page as pages
    from fastercache.experiments.reproduce.picture import draw
    from fastercache.experiments.reproduce.results import Findings
    from fastercache.experiments.reproduce.runner import findings
    from fastercache.policies.errors import FasterCacheError

    folder = out if out is not None else Path("findings") / pipe
    try:
        if not print_only:
            findings(open_pipeline(pipe, num_inference_steps=steps), count, folder, seed=seed).write(folder)
        results = Findings.load(folder / "findings.json")  # as it is kept, so that page and file say the same
        save_png(draw(results), folder / "findings.png", dpi=100)
        if page is not None:
            pages.put_into(page, results)
    except FasterCacheError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from None
    for title, word in pages.in_short(results.findings):
        print(f"{word:14} {title}")
    print(folder / "findings.json")


if __name__ == "__main__":
    app()

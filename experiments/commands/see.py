"""The command `report`. Arguments and help only; the work is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastercache.experiments.commands.options import Json, finish


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

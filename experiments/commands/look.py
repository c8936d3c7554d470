"""What there is: policies and sites. Arguments and help only; the work is imported when a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from fastercache.experiments.commands.options import Call, Device, Dtype, Json, Pipe, finish, opened


def policies(
    name: Annotated[str | None, typer.Argument(help="Show this policy's fields.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the cache policies, or one policy's fields: what each means, its default and what it may hold.

    Example: `fastercache policies fastercache`
    """
    from fastercache.experiments.jobs import catalog

    finish(catalog.policies(name, show=not as_json), as_json)


def sites(
    pipe: Pipe,
    query: Annotated[
        str | None,
        typer.Option("--query", "--sites", metavar="QUERY", help="Show what a query such as `spatial[2:6]` selects."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    call: Call = None,
    as_json: Json = False,
) -> None:
    """Show what can be reused in a pipeline, what it costs in one denoiser call, and what was not recognised.

    `docs/sites.md` describes queries. Example: `fastercache sites latte-digits --query 'temporal|cross'`
    """
    from fastercache.experiments.jobs import catalog

    finish(catalog.sites(opened(pipe, device, dtype, call), query, show=not as_json), as_json)

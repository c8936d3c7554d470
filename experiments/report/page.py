"""The page: one HTML file with its styles, scripts, data and pictures in it."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from string import Template
from typing import Any

from matplotlib.figure import Figure

from fastercache.policies.errors import FasterCacheError

SCRIPTS = tuple(
    f"{name}.js"
    for name in (
        "numbers",
        "damage",
        "rehearsal",
        "schedule",
        "draw",
        "editor",
        "views",
        "heatmap",
        "bands",
        "videos",
        "main",
    )
)
"""In the order in which the page runs them, as one script."""
MOST = 5_000_000
"""Bytes of the largest page."""
DPI = 80
"""Of the pictures for readers without scripts."""


class ReportTooLarge(FasterCacheError):
    """A page would be larger than `MOST` bytes.

    Symptom: `fastercache report` writes nothing and says how large the page would be.
    Cause: Everything that is given goes into one HTML file, and long runs with many sites add up.
    Fix: Give fewer folders, or record fewer sites.
    """


def page(
    title: str,
    lead: str,
    data: Mapping[str, Any],
    made: str,
    pictures: Iterable[tuple[str, Figure]],
    league: str = "",
) -> str:
    """The whole file.

    Args:
        title, lead: plain text. data: the JSON island, see `main.js`. made: HTML of the last section. league: of the
            section on predictors, if there is one.
        pictures: (words, figure) for readers without scripts.

    Raises:
        ReportTooLarge: if the page would be larger than 5 MB.
    """
    shown = "\n".join(picture(words, figure) for words, figure in pictures)
    text = Template(source("page.html")).substitute(
        title=html.escape(title),
        lead=html.escape(lead),
        style=source("page.css"),
        script="\n".join(source(name) for name in SCRIPTS),
        data=island(data),
        made=made,
        league=league,
        pictures=shown,
    )
    if (size := len(text.encode())) > MOST:
        raise ReportTooLarge(f"the page would have {size:,} bytes, at most {MOST:,} are written: give fewer folders")
    return text


def source(name: str) -> str:
    """A part of the page as it stands in the package."""
    return resources.files("fastercache.experiments.report").joinpath("page", name).read_text("utf-8")


def island(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def picture(words: str, figure: Figure) -> str:
    """A figure as an image inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png", facecolor="white")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<figure><img alt="{html.escape(words)}" src="data:image/png;base64,{data}"></figure>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of two columns; the values are HTML."""
    body = "".join(f"<tr><th scope='row'>{html.escape(name)}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="scroll"><table>{body}</table></div>'

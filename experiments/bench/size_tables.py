"""What `bench-size` measured, as tables: for a person, and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fastercache.policies.documents import read_json
from fastercache.policies.errors import ConfigUnreadable

START, END = "<!-- bench-size -->", "<!-- end bench-size -->"
"""Around the tables in a page."""


def table(found: dict[str, Any]) -> Table:
    """One model's rows for a person."""
    title = f"{found['model']}, {found['steps']} steps, {found['dtype']}, {found['device']}, random weights"
    result = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("variant")
    for heading in ("seconds", "speedup", "FLOPs", "share", "peak GiB", "cached GiB"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in found["rows"]:
        if row["refused"] is not None:
            result.add_row(row["name"], "refused")
            continue
        result.add_row(row["name"], *_cells(row, "{:.2f}"))
    return result


def read(folder: Path) -> list[dict[str, Any]]:
    """What earlier runs measured, by file name. Raises ConfigUnreadable if there is nothing, or it cannot be read."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ConfigUnreadable(f"{folder} holds no figures of bench-size: measure first, on a machine with a GPU")
    found = [read_json(path, "figures") for path in paths]
    for path, one in zip(paths, found, strict=True):
        if not isinstance(one, dict) or "rows" not in one or "model" not in one:
            raise ConfigUnreadable(f"{path} holds no figures of bench-size: move it away, or measure again")
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The tables of several models for a page."""
    return "\n".join(_section(one) for one in found)


def _section(one: dict[str, Any]) -> str:
    paper = "" if one["paper"] is None else f" The paper's speedup of FasterCache, on one A100: {one['paper']:.2f}x."
    costs = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in one["seconds"].items())
    lines = [
        f"**{one['model']}** ({one['parameters'] / 1e9:.1f} billion parameters), {one['steps']} of the published "
        f"{one['published_steps']} steps, {one['dtype']}, {one['device']}, torch {one['versions']['torch']}.{paper}",
        f"One recorded run and a plan from it: {costs}.",
        "",
        "| variant | seconds | time | FLOPs | share | peak GiB | cached GiB | steps, by their share of the FLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in one["rows"]:
        if row["refused"] is not None:
            lines.append(f"| {row['name']} | refused: {row['refused']} | | | | | | |")
            continue
        kinds = "" if "not told" in row["kinds"] else "; ".join(_kind(*item) for item in row["kinds"].items())
        lines.append(f"| {row['name']} | {' | '.join([*_cells(row, '{:.3f}'), kinds])} |")
    return "\n".join([*lines, ""])


def _kind(kind: str, found: tuple[int, float]) -> str:
    count, seconds = found
    return f"{count} {kind}: {seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{count} {kind}: {seconds * 1e3:.1f} ms"


def _cells(row: dict[str, Any], share: str) -> list[str]:
    """Seconds, speedups, their share, peak and cached memory of a variant; `share`: how that is written."""
    forms = {
        "seconds": "{:.2f}",
        "speedup": "{:.2f}x",
        "speedup_flops": "{:.2f}x",
        "realised": share,
        "peak_gib": "{:.1f}",
        "cached_gib": "{:.2f}",
    }
    return [shown(row[name], form) for name, form in forms.items()]


def shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)

"""One line of a results table: what a policy saves and what it costs in quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from fastercache.analysis.metrics import metric_called


@dataclass(frozen=True)
class Row:
    """Figures of one policy over a set of prompts.

    Attributes:
        name: what the row is called in a table.
        speedup_flops: computed FLOPs of the uncached run over those of this one, by the flop counter.
        speedup_wall: median seconds of the uncached run over the median of this one, measured interleaved;
            None where no uncached run was timed.
        quality: by metric's name, the mean against the uncached videos of the same prompts and seeds; may be empty.
        judge: share of videos in which the judges read digit, colour and direction as the caption asks;
            None for pipelines that have no judge.
        cache_bytes: peak bytes of cached values; None where another package keeps them and does not tell.
        prompts: how many prompts the figures are means over.
        policy: the policy as JSON values.
    """

    name: str
    speedup_flops: float
    speedup_wall: float | None
    quality: dict[str, float]
    judge: float | None
    cache_bytes: int | None
    prompts: int
    policy: dict[str, Any]

    def payload(self) -> dict[str, Any]:
        """The row as JSON values, by the key names of `--json`; each metric under its name, PSNR and SSIM always."""
        values = asdict(self)
        quality: dict[str, Any] = dict.fromkeys(("psnr", "ssim")) | values.pop("quality")
        return quality | values


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows for a person: speedups in computed FLOPs and wall time, quality, peak cached bytes.

    Arrows say which way is better.
    """
    result = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("policy", no_wrap=True)
    names = list(dict.fromkeys(["psnr", "ssim", *(name for row in rows for name in row.quality)]))
    for heading in ("FLOPs ↑", "time ↑", *map(column, names), "judge ↑", "cached ↓"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(
            row.name,
            f"{row.speedup_flops:.2f}x",
            _shown(row.speedup_wall, "{:.2f}x"),
            *(_shown(row.quality.get(name), "{:.2f}" if metric_called(name).decibel else "{:.4f}") for name in names),
            _shown(row.judge, "{:.1%}"),
            "-" if row.cache_bytes is None else size(row.cache_bytes),
        )
    return result


def column(name: str) -> str:
    """A metric's heading: `PSNR ↑`."""
    metric = metric_called(name)
    return f"{metric.label.removesuffix(' (dB)')} {'↑' if metric.higher_is_better else '↓'}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def size(count: float) -> str:
    """Bytes for a person: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"

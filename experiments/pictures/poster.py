"""The one picture of a demo: where steps are alike, the schedule that was found, and what came out.

`schedule_rows` prepares plain values, `poster` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fastercache.policies import Code, Table

COLOURS = ("#1b3a57", "#f2a541", "#e8e8e8")
MEANING = ("computed", "reused", "not reached")


@dataclass(frozen=True)
class ScheduleRows:
    """A schedule for the eye: sites that behave alike share a row.

    Attributes:
        labels: `role or kind, branch` of each row.
        codes: values of `Code`, shape (rows, steps).
    """

    labels: tuple[str, ...]
    codes: NDArray[np.int8]


def schedule_rows(table: Table) -> ScheduleRows:
    """Rows by role (or kind) and branch; a group whose sites differ is split by what they do."""
    rows: dict[tuple[str, bytes], NDArray[np.int8]] = {}
    for s, site in enumerate(table.sites):
        for b, branch in enumerate(table.run.branches):
            codes = table.codes[s, b]
            if (codes == Code.UNREACHED).all():
                continue  # the conditional branch has no branch site
            rows.setdefault((f"{site.role or site.kind}, {branch}", codes.tobytes()), codes)
    if not rows:
        return ScheduleRows((), np.zeros((0, table.run.count), dtype=np.int8))
    return ScheduleRows(tuple(label for label, _ in rows), np.stack(list(rows.values())))


def poster(
    matrix: NDArray[np.float32],
    matrix_title: str,
    schedule: ScheduleRows,
    schedule_title: str,
    strips: Sequence[tuple[str, NDArray[np.uint8]]],
) -> Figure:
    """A figure of a step x step matrix (T, T), a schedule, and labelled strips of frames (H, W, 3)."""
    figure = Figure(figsize=(10, 4.2 + 0.95 * len(strips)), layout="constrained", dpi=100)
    parts: Any = figure.subfigures(2, 1, height_ratios=(4.0, 0.95 * len(strips)))
    upper, lower = parts
    left, right = upper.subplots(1, 2, width_ratios=(1.0, 1.35))
    drawn = left.imshow(matrix, cmap="magma_r", vmin=0, vmax=float(np.nanquantile(matrix, 0.95)), origin="lower")
    left.set(title=matrix_title, xlabel="step whose value stands in", ylabel="step it stands in for")
    upper.colorbar(drawn, ax=left, shrink=0.85)
    norm = BoundaryNorm((-0.5, 0.5, 1.5, 2.5), 3)
    right.imshow(schedule.codes, cmap=ListedColormap(COLOURS), norm=norm, aspect="auto", interpolation="nearest")
    right.set_yticks(range(len(schedule.labels)), schedule.labels, fontsize=8)
    right.set(title=schedule_title, xlabel="step")
    handles = [Patch(color=colour, label=meaning) for colour, meaning in zip(COLOURS, MEANING, strict=True)]
    right.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8, frameon=False)
    grid = lower.subplots(len(strips), 2, squeeze=False, width_ratios=(1.0, 5.0))
    for (beside, axis), (label, picture) in zip(grid, strips, strict=True):
        axis.imshow(picture)
        axis.set_axis_off()
        axis.set_anchor("W")
        beside.text(1.0, 0.5, label, ha="right", va="center", fontsize=9)
        beside.set_axis_off()
    return figure

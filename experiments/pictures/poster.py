"""The one picture of a demo: where steps are alike, the schedule that was found, and what reuse changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fastercache.analysis.plots.shades import difference, draw_map, formula, shades
from fastercache.analysis.plots.style import new_figure, step_axis, styled
from fastercache.analysis.plots.timeline import COLOURS, LABELS, TimelineInfo, draw_cost, draw_decisions
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Branch


class Map(NamedTuple):
    """A step x step matrix, (T, T): `matrix[i, j]` is step j standing in for step i, in a measure of `analysis`."""

    title: str
    matrix: NDArray[np.float32]
    measure: str


def alike(info: TimelineInfo) -> list[tuple[int, tuple[Branch, ...]]]:
    """The branches that decide the same, as (the first one's position, all their names)."""
    groups: dict[bytes, list[int]] = {}
    for b, codes in enumerate(info.codes):
        groups.setdefault(codes.tobytes(), []).append(b)
    return [(members[0], tuple(info.branches[b] for b in members)) for members in groups.values()]


def poster(
    map_: Map, timeline: TimelineInfo, title: str, strips: Sequence[tuple[str, NDArray[np.uint8]]], gain: int
) -> Figure:
    """A map, a schedule, and labelled strips of frames (H, W, 3): the uncached ones first, then differences to them.

    Args:
        title: of the schedule. gain: by which all differences in the strips are multiplied.
    """
    panels = alike(timeline)
    with styled():
        figure = new_figure(10.0, 4.6 + 0.95 * len(strips))
        parts: Any = figure.subfigures(2, 1, height_ratios=(4.2, 0.4 + 0.95 * len(strips)))
        upper, lower = parts
        left, right = upper.subfigures(1, 2, width_ratios=(1.0, 1.3))
        axes = left.subplots()
        shown = difference(map_.measure, map_.matrix)
        scale = shades(map_.measure, shown)
        bar = left.colorbar(draw_map(axes, shown, scale), ax=axes, extend=scale.extend, shrink=0.85)
        bar.set_label(formula(map_.measure, "ⱼ", "ᵢ"))
        bar.outline.set_visible(False)
        axes.set_title(map_.title)
        top, *rest = right.subplots(1 + len(panels), 1, sharex=True, height_ratios=[0.6] + [1.0] * len(panels))
        draw_cost(top, timeline)
        top.set_title(title)
        for below, (branch, names) in zip(rest, panels, strict=True):
            draw_decisions(below, timeline, branch)
            below.set_title(f"guidance branch{'es' if len(names) > 1 else ''}: {' and '.join(names)}", fontsize=9)
        step_axis(rest[-1] if rest else top, len(timeline.cost))
        present = [code for code in Code if (timeline.codes == code).any()]
        handles = [Patch(facecolor=COLOURS[code], label=LABELS[code]) for code in present]
        right.legend(handles=handles, loc="outside lower center", ncols=len(present))
        grid = lower.subplots(len(strips), 2, squeeze=False, width_ratios=(1.0, 4.2))
        for number, ((beside, axis), (label, picture)) in enumerate(zip(grid, strips, strict=True)):
            axis.imshow(picture, interpolation="nearest")
            axis.set_anchor("W")
            beside.text(1.0, 0.5, label, ha="right", va="center", fontsize=9)
            for one in (axis, beside):
                one.set_axis_off()
            if number == 1:
                words = f"what each changed: |difference to uncached| × {gain}, one factor for all rows"
                axis.set_title(words, fontsize=9, fontweight="normal", pad=3)
    return figure

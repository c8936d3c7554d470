"""Names beside points and lines: each where it covers no other name and as little else as possible."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Place = tuple[float, float]
DIRECTIONS = tuple(
    (math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (30, -30, 150, -150, 0, 180, 90, -90, 60, -60)
)
DISTANCES = (6.0, 13.0, 22.0, 33.0, 46.0, 60.0, 80.0)
"""In points, from the point that is named to the nearest edge of its name."""
LEADER = 16.0
"""A name farther away than this is joined to its point by a thin line."""
NAME, OUTSIDE, POINT, LINE, FARTHER, ANOTHER = 1000.0, 1000.0, 80.0, 5.0, 0.6, 5.0
"""What it costs to cover a name, to leave the panel, to cover a point and a piece of a line, a point of distance, and
to stand at the next of several anchors."""


class Label(NamedTuple):
    """A name. `anchors`: the points in data coordinates that it may stand beside, the preferred one first."""

    text: str
    anchors: tuple[Place, ...]
    colour: str = "#333333"
    bold: bool = False


def name_beside(axes: Axes, labels: Sequence[Label], points: Sequence[Place], lines: Sequence[Sequence[Place]]) -> None:
    """Write the names, one after another, each at its cheapest place.

    The figure's layout must be settled before (`Figure.draw_without_rendering`), because places are those on paper.

    Args:
        points: what no name should cover. lines: what names should stay away from, each through its points; both in
            data coordinates.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    marks = _on_paper(axes, points)
    along = np.concatenate([_sampled(_on_paper(axes, line), 4 * scale) for line in lines] or [np.zeros((0, 2))])
    taken: list[Bbox] = []
    for label in labels:
        text = axes.annotate(
            label.text, label.anchors[0], xytext=(0, 0), textcoords="offset points", ha="left", va="bottom",
            fontsize=8.5, color=label.colour, fontweight="bold" if label.bold else "normal", zorder=6,
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        size = text.get_window_extent()
        best, chosen = math.inf, None
        for rank, anchor in enumerate(label.anchors):
            at = _on_paper(axes, [anchor])[0]
            for distance in DISTANCES:
                for dx, dy in DIRECTIONS:
                    x = at[0] + distance * scale * dx - (size.width if dx < -0.1 else size.width / 2 if dx < 0.1 else 0)
                    y = (
                        at[1]
                        + distance * scale * dy
                        - (0 if dy > 0.1 else size.height if dy < -0.1 else size.height / 2)
                    )
                    box = Bbox.from_bounds(x, y, size.width, size.height)
                    cost = FARTHER * distance + ANOTHER * rank + _covered(box, frame, taken, marks, along, scale)
                    if cost < best:
                        best, chosen = cost, (anchor, at, distance, box)
        assert chosen is not None
        anchor, at, distance, box = chosen
        taken.append(box)
        text.xy = anchor
        text.set_position(((box.x0 - at[0]) / scale, (box.y0 - at[1]) / scale))
        if distance > LEADER:
            near = (np.clip(at[0], box.x0, box.x1), np.clip(at[1], box.y0, box.y1))
            ends = axes.transData.inverted().transform([at, near])
            axes.plot(*ends.T, color=label.colour, lw=0.7, zorder=5, scalex=False, scaley=False)


def _on_paper(axes: Axes, points: Sequence[Place]) -> NDArray[np.float64]:
    """Data coordinates, (N, 2), as pixels."""
    return np.asarray(axes.transData.transform(np.reshape(points, (-1, 2))), dtype=np.float64)


def _sampled(line: NDArray[np.float64], every: float) -> NDArray[np.float64]:
    """Points along a line through (N, 2), about `every` pixels apart."""
    pieces = [
        np.linspace(a, b, max(int(np.hypot(*(b - a)) / every), 1), endpoint=False) for a, b in itertools.pairwise(line)
    ]
    return np.concatenate(pieces) if pieces else line


def _covered(
    box: Bbox, frame: Bbox, taken: Sequence[Bbox], marks: NDArray[np.float64], along: NDArray[np.float64], scale: float
) -> float:
    """What a name in this box costs."""
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    cost = 0.0 if inside else OUTSIDE
    cost += NAME * sum(box.overlaps(other) for other in taken)
    for there, edge, price in ((marks, 4.5 * scale, POINT), (along, 1.0 * scale, LINE)):
        wide = box.padded(edge)
        hit = (there[:, 0] > wide.x0) & (there[:, 0] < wide.x1) & (there[:, 1] > wide.y0) & (there[:, 1] < wide.y1)
        cost += price * int(hit.sum())
    return cost

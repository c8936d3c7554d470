"""How all figures look: fonts, colours by role, and how they are written."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from fastercache.policies.documents import replacing

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.9,
}
COLOURS = {
    "spatial": "#2166AC",
    "temporal": "#E08214",
    "joint": "#3F007D",
    "cross": "#33A02C",
    "ff": "#8C2D04",
    "block": "#56A0D3",
    "stack": "#005A32",
    "denoiser": "#222222",
    "branch": "#CC79A7",
}
"""By role or kind of site. These and `LINES` stay apart for an eye without the pigment for green (tested)."""
LINES = ("#1B3A8C", "#E08214", "#009E73", "#56A0D3", "#8C2D04", "#222222")
"""For curves and marks of other meanings, in this order."""
BASELINE = "#545454"
"""What everything else has to beat: fewer steps."""


def colour_of(name: str, position: int = 0) -> str:
    """The colour of a role or kind; for other names the palette's at `position`."""
    return COLOURS.get(name, LINES[position % len(LINES)])


@contextmanager
def styled() -> Iterator[None]:
    """Artists made inside look as all of them do; the user's own settings are not touched."""
    with matplotlib.rc_context(RC):
        yield


class _Shown(Figure):
    """A figure that a notebook draws without pyplot."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, dpi=90, format="png", facecolor="white")
        return drawn.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that belongs to no window and no global state."""
    figure = _Shown(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def step_ticks(axis: Axis, steps: int) -> None:
    """A tick every 5 steps; every step of short runs, fewer in very long ones."""
    axis.set_major_locator(
        MultipleLocator(next(n for n in (1, 5, 10, 50, 100, steps) if steps <= 12 * n or n == steps))
    )


def step_axis(axes: Axes, steps: int, label: str = "denoising step") -> None:
    """The x axis of a figure over the steps of a run."""
    step_ticks(axes.xaxis, steps)
    axes.set_xlabel(label)


def heading(figure: Figure, title: str, note: str) -> None:
    """A bold title over the whole figure with a line of facts below it, wrapped to its width; makes room for both."""
    width, height = figure.get_size_inches()
    left, lines = 0.08 / width, textwrap.wrap(note, int(13.5 * width))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - (0.45 + 0.17 * len(lines)) / height))
    figure.text(left, 1 - 0.08 / height, title, fontsize=12.5, fontweight="bold", ha="left", va="top")
    figure.text(left, 1 - 0.34 / height, "\n".join(lines), fontsize=9, color="#555555", ha="left", va="top")


def prompts(runs: int) -> str:
    return f"mean over {runs} prompts" if runs > 1 else "1 prompt"


def save_png(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a figure as PNG, making its folder; returns the path. Raises ConfigUnreadable if it cannot be written."""
    with replacing(path, "figure") as temporary:
        figure.savefig(temporary, dpi=dpi, format="png", facecolor="white")
    return Path(path)


def to_image(figure: Figure, dpi: int = 110) -> NDArray[np.uint8]:
    """The figure's pixels, (height, width, 3)."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

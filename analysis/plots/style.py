"""How all figures look: fonts, colours by role, and how they are written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
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
    "spatial": "#0072B2",
    "temporal": "#D55E00",
    "joint": "#7A4FA3",
    "cross": "#009E73",
    "ff": "#8C8C8C",
    "block": "#56A0D3",
    "stack": "#B8860B",
    "denoiser": "#222222",
    "branch": "#CC4778",
}
OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC4778", "#7A4FA3", "#B8860B", "#56A0D3", "#8C8C8C")


def colour_of(name: str, position: int = 0) -> str:
    """The colour of a role or kind; for other names the palette's at `position`."""
    return COLOURS.get(name, OTHERS[position % len(OTHERS)])


@contextmanager
def styled() -> Iterator[None]:
    """Artists made inside look as all of them do; the user's own settings are not touched."""
    with matplotlib.rc_context(RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that belongs to no window and no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def step_axis(axes: Axes, label: str = "denoising step") -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
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

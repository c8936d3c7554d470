"""Which stretches of a planned schedule make its error: predicted shares beside true ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fastercache.analysis.plots.style import LINES, heading, new_figure, styled
from fastercache.policies.wording import counted


class AttributionInfo(NamedTuple):
    """Shares of D stretches as plain values.

    Attributes:
        names: of each stretch, `10-16 after 9`. predicted: shares that add to 1, from the recording.
        true: the same measured on `prompts` prompts; None where nothing was run.
        prompts: how many were run. recorded: how many the prediction is from. note: a further fact, in words.
    """

    names: tuple[str, ...]
    predicted: tuple[float, ...]
    true: tuple[float, ...] | None
    prompts: int
    recorded: int
    note: str = ""


def draw_attribution(info: AttributionInfo) -> Figure:
    """Bars for each stretch, from the first of the run at the top to the last."""
    places = np.arange(len(info.names))
    bars = [("predicted from the recording", info.predicted, "#9A9A9A")]
    if info.true is not None:
        bars.append(("measured", info.true, LINES[0]))
    height = 0.8 / len(bars)
    with styled():
        figure = new_figure(7.6, 1.6 + 0.34 * len(info.names))
        axes = figure.subplots()
        for i, (label, values, colour) in enumerate(bars):
            shift = (i - (len(bars) - 1) / 2) * height
            axes.barh(places + shift, 100.0 * np.array(values), height, color=colour, label=label)
        axes.set_yticks(places, list(info.names))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_ylabel("skipped steps")
        axes.set_xlabel("share of what all stretches do wrong by themselves (%)")
        axes.legend(loc="best")
        measured = "" if info.true is None else f"measured on {counted(info.prompts, 'prompt')}"
        facts = (f"predicted from {counted(info.recorded, 'prompt')}", measured, info.note)
        heading(figure, "Which decisions make the error", " · ".join(fact for fact in facts if fact))
    return figure

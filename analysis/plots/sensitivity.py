"""What an error at each step does in the end, injected and computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fastercache.analysis.injection import Injected
from fastercache.analysis.plots.style import colour_of, heading, new_figure, step_axis, styled
from fastercache.policies.wording import counted


def draw_sensitivity(found: Injected, count: int) -> Figure:
    """Left: the video's error per relative error of a group. Right: what the sampler makes of an error of the output.

    Args:
        count: steps of the run.
    """
    with styled():
        figure = new_figure(10.4, 4.4)
        left, right = figure.subplots(1, 2)
        for place, name in enumerate(found.groups):
            style: Any = {"color": colour_of(name, place), "marker": "o", "markersize": 4.0}
            left.plot(found.steps, found.gain[place], label=name, **style)
            right.plot(found.steps, found.passed[place], label=f"injected: {name}", **style)
        if found.computed is not None:
            right.plot(
                found.steps, found.computed, color="#777777", linestyle="--", label="computed, the sampler alone"
            )
        left.set_ylabel("error of the video / relative error at the step")
        right.set_ylabel("error of the last latent / error of the output")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xlim(-1, count)
            step_axis(axes, count)
            axes.legend(loc="best")
        kind = f"noise of {np.median(found.relative):.1%}" if found.error == "noise" else "the value of the step before"
        heading(
            figure,
            "What an error at a step does in the end",
            f"{kind}, put into all sites of a group at one step · {counted(found.runs, 'injected run')} of 1 prompt",
        )
    return figure

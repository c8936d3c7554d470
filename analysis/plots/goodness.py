"""A calibrated polynomial: measured changes around its curve, and what it leaves, step by step."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastercache.analysis.goodness import Goodness
from fastercache.analysis.plots.style import LINES, heading, new_figure, styled


def draw_goodness(found: Goodness) -> Figure:
    """Left: the output's change over the input's. Right: measured less told at each step, one point for each prompt."""
    steps = np.arange(1, found.inputs.shape[1] + 1)
    with styled():
        figure = new_figure(10.4, 4.2)
        left, right = figure.subplots(1, 2)
        left.scatter(found.inputs.ravel(), found.outputs.ravel(), s=12, color=LINES[0], alpha=0.6, label="measured")
        at = np.linspace(found.inputs.min(), found.inputs.max(), 200)
        left.plot(at, np.polyval(found.coefficients, at), color="#333333", label="polynomial")
        left.set_xlabel("relative L1 change of the first block's input")
        left.set_ylabel("relative L1 change of the denoiser's output")
        left.legend(loc="best")
        residuals = found.outputs - found.told
        for run in residuals:
            right.scatter(steps, run, s=12, color=LINES[0], alpha=0.6)
        right.plot(steps, residuals.mean(axis=0), color="#333333", label="mean over prompts")
        right.axhline(0.0, color="#9A9A9A", linewidth=1.0)
        right.set_xlabel("step")
        right.set_ylabel("measured less told")
        right.legend(loc="best")
        heading(figure, "How well TeaCache's polynomial fits", found.words)
    return figure

"""Two profiles as maps: the first, the second, and where they differ."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from fastercache.analysis.comparing import Comparison
from fastercache.analysis.measures import MEASURES
from fastercache.analysis.plots.shades import Shades, difference, draw_map, formula, shades
from fastercache.analysis.plots.style import heading, new_figure, prompts, styled


def draw_profiles(comparison: Comparison, names: tuple[str, str] = ("first", "second")) -> Figure:
    """A row for each role and branch: both maps on one scale, and the second less the first.

    Purple: the steps of the second are less alike there. Orange: they are more alike.
    """
    shown = [tuple(difference(comparison.measure, m) for m in (pair.first, pair.second)) for pair in comparison.pairs]
    scale = shades(comparison.measure, np.concatenate([m.ravel() for pair in shown for m in pair]))
    changes = [second - first for first, second in shown]
    known = np.concatenate([change[np.isfinite(change)] for change in changes])
    most = max(float(np.percentile(np.abs(known), 99)), 1e-9)
    beyond = Shades(TwoSlopeNorm(0.0, -most, most), "both" if np.abs(known).max() > most else "neither")
    rows = len(shown)
    with styled():
        figure = new_figure(11.6, 1.1 + 3.1 * rows)
        grid = figure.subplots(rows, 3, squeeze=False)
        for axes, pair, maps, change in zip(grid, comparison.pairs, shown, changes, strict=True):
            for panel, values, name in zip(axes[:2], maps, names, strict=True):
                image = draw_map(panel, values, scale)
                panel.set_title(f"{pair.group}, {pair.branch}: {name}")
            changed = draw_map(axes[2], change, beyond, "PuOr")
            axes[2].set_title("second less first")
        for panels, drawn, extend, label in (
            (grid[:, :2], image, scale.extend, formula(comparison.measure, "ⱼ", "ᵢ")),
            (grid[:, 2:], changed, beyond.extend, "difference of the two"),
        ):
            bar = figure.colorbar(
                drawn, ax=panels.ravel().tolist(), extend=extend, shrink=0.85 / max(1, rows / 2), pad=0.02
            )
            bar.set_label(label)
            bar.outline.set_visible(False)
        note = f"first: {prompts(comparison.runs[0])} · second: {prompts(comparison.runs[1])} · light: alike"
        heading(figure, f"{MEASURES[comparison.measure].title} between denoising steps, two profiles", note)
    return figure

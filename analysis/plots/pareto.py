"""Speedup against quality, with the points that nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastercache.analysis.metrics import Metric, metric_called
from fastercache.analysis.plots.style import OTHERS, heading, new_figure, styled
from fastercache.policies.errors import MeasurementError

SPEEDUPS = {
    "flops": "speedup: FLOPs without reuse / computed FLOPs",
    "wall": "speedup: seconds uncached / seconds",
}


def axis_label(metric: str) -> str:
    """What a metric's axis is called: `PSNR to the uncached video (dB)`."""
    found = metric_called(metric)
    if found.reference_free:
        return found.label
    name, bracket, unit = found.label.partition(" (")
    return f"{name} to the uncached video{bracket}{unit}"


def is_exact(metric: Metric, value: float) -> bool:
    """Whether a value in dB is at its cap: the video equals the uncached one, and has no place on an axis."""
    return metric.decibel and not metric.reference_free and value >= metric.high


REFERENCE = "#8a8a8a"
OFFSETS = tuple((dx, dy) for dy in (4, -15, 16, -27, 28, -39, 40, 52, -51, 64) for dx in (7, -7))
"""Where a name may stand, in points from its own point: the nearest places first."""


class ParetoPoint(NamedTuple):
    """One measured setting.

    Attributes:
        name: written beside the point. speedup: over the uncached run. quality: mean over prompts.
        error: half the length of its error bar (say the standard error over prompts).
        group: points of one group share a colour and a line (settings of one method).
    """

    name: str
    speedup: float
    quality: float
    error: float = 0.0
    group: str = ""


class ParetoInfo(NamedTuple):
    """Points with the Pareto front among them.

    Attributes:
        points: in the order given. front: positions of those that no other beats in both, by speedup.
        exact: positions of those equal to the uncached video (PSNR at its cap); they get no place on the axis.
        metric: a registered metric's name. speedup: `flops` or `wall`. prompts: how many, and which set, in words.
        error: what the bars are. curve: points of a reference, by speedup, drawn as one line.
    """

    points: tuple[ParetoPoint, ...]
    front: tuple[int, ...]
    exact: tuple[int, ...]
    metric: str
    speedup: str
    prompts: str
    error: str
    curve: tuple[ParetoPoint, ...] = ()


def pareto_info(
    points: Sequence[ParetoPoint],
    metric: str = "psnr",
    speedup: str = "flops",
    prompts: str = "",
    error: str = "standard error over prompts",
    curve: Sequence[ParetoPoint] = (),
) -> ParetoInfo:
    """Find the front: a point is on it if no other is at least as fast and as good, and better in one of them.

    `curve`: a reference that is drawn as a line and is on no front, say fewer steps; its name is that of its points.

    Raises:
        MeasurementError: for no points, an unknown metric or speedup, or a point that is not finite.
    """
    judged_by = metric_called(metric)
    if speedup not in SPEEDUPS:
        raise MeasurementError(f"expected a speedup of {', '.join(SPEEDUPS)}, found {speedup}")
    if not points:
        raise MeasurementError("there are no points to plot: measure at least one policy")
    for point in (*points, *curve):
        if not (np.isfinite(point.speedup) and np.isfinite(point.quality)):
            raise MeasurementError(f"'{point.name}' has speedup {point.speedup} and {metric} {point.quality}")
    sign = 1.0 if judged_by.higher_is_better else -1.0

    def beaten(p: ParetoPoint) -> bool:
        return any(
            o.speedup >= p.speedup
            and sign * o.quality >= sign * p.quality
            and (o.speedup > p.speedup or o.quality != p.quality)
            for o in points
        )

    front = sorted((i for i, p in enumerate(points) if not beaten(p)), key=lambda i: points[i].speedup)
    exact = [i for i, p in enumerate(points) if is_exact(judged_by, p.quality)]
    reference = tuple(sorted(curve, key=lambda p: p.speedup))
    return ParetoInfo(tuple(points), tuple(front), tuple(exact), metric, speedup, prompts, error, reference)


def draw_pareto(info: ParetoInfo) -> Figure:
    """A scatter with error bars and the front as a line; further right and further up is better."""
    better = metric_called(info.metric).higher_is_better
    shown = [i for i in range(len(info.points)) if i not in info.exact]
    groups = list(dict.fromkeys(p.group or p.name for p in info.points))
    with styled():
        figure = new_figure(7.6, 5.2)
        axes = figure.subplots()
        line = [info.points[i] for i in info.front if i in shown]
        axes.plot(
            [p.speedup for p in line], [p.quality for p in line], color="#BBBBBB", lw=6, alpha=0.5, zorder=1,
            solid_capstyle="round", label="Pareto front" if len(line) > 1 else None,
        )  # fmt: skip
        if info.curve:
            axes.plot(
                [p.speedup for p in info.curve], [p.quality for p in info.curve], "o-", color=REFERENCE, lw=2.5, ms=4,
                markeredgecolor="white", markeredgewidth=0.8, zorder=2, label=info.curve[0].name,
            )  # fmt: skip
        for g, group in enumerate(groups):
            members = [info.points[i] for i in shown if (info.points[i].group or info.points[i].name) == group]
            colour = OTHERS[g % len(OTHERS)]
            x, y, e = ([getattr(p, f) for p in members] for f in ("speedup", "quality", "error"))
            named = group if any(p.group for p in members) else None
            axes.errorbar(
                x, y, yerr=e if any(e) else None, fmt="o", ms=6.5, color=colour, ecolor=colour, elinewidth=1.2,
                capsize=3, label=named, zorder=3, markeredgecolor="white", markeredgewidth=0.8,
            )  # fmt: skip
        axes.axvline(1.0, color="#999999", lw=1, ls=":")
        axes.margins(0.14, 0.14)
        if info.exact:
            names = ", ".join(info.points[i].name for i in info.exact)
            axes.text(0.02, 0.02, f"not shown, equal to the uncached video: {names}", transform=axes.transAxes,
                      fontsize=8.5, color="#555555")  # fmt: skip
        if not better:
            axes.invert_yaxis()
        axes.set_xlabel(f"{SPEEDUPS[info.speedup]} (×) →")
        axes.set_ylabel(f"{axis_label(info.metric)}{' →' if better else ' (lower is better) →'}")
        if len(line) > 1 or info.curve or any(p.group for p in info.points):
            axes.legend(loc="best")
        bars = f"bars: {info.error}" if any(p.error for p in info.points) else ""
        heading(figure, "Quality against speedup", " · ".join(part for part in (info.prompts, bars) if part))
        figure.draw_without_rendering()  # settles the layout, so that names are placed where the points will be
        _name(axes, [info.points[i] for i in shown], info.curve)
    return figure


def _name(axes: Axes, points: Sequence[ParetoPoint], curve: Sequence[ParetoPoint]) -> None:
    """A name beside each point, where it covers no other name and no other point."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    places = {p: axes.transData.transform((p.speedup, p.quality)) for p in (*points, *curve)}
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in places.values()]
    for p in sorted(points, key=lambda p: -p.quality):
        x, y = places[p]
        width, height = 5.0 * len(p.name) * scale, 11 * scale
        for dx, dy in OFFSETS:
            left = x + dx * scale - (width if dx < 0 else 0.0)
            box = (left, y + dy * scale, left + width, y + dy * scale + height)
            clear = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)
            if clear and frame.x0 <= box[0] and box[2] <= frame.x1:
                break
        taken.append(box)
        axes.annotate(
            p.name,
            (p.speedup, p.quality),
            xytext=(dx, dy),
            ha="right" if dx < 0 else "left",
            va="bottom",
            textcoords="offset points",
            fontsize=8.5,
            color="#333333",
        )

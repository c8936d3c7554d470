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
        error: what the bars are.
    """

    points: tuple[ParetoPoint, ...]
    front: tuple[int, ...]
    exact: tuple[int, ...]
    metric: str
    speedup: str
    prompts: str
    error: str


def pareto_info(
    points: Sequence[ParetoPoint],
    metric: str = "psnr",
    speedup: str = "flops",
    prompts: str = "",
    error: str = "standard error over prompts",
) -> ParetoInfo:
    """Find the front: a point is on it if no other is at least as fast and as good, and better in one of them.

    Raises:
        MeasurementError: for no points, an unknown metric or speedup, or a point that is not finite.
    """
    judged_by = metric_called(metric)
    if speedup not in SPEEDUPS:
        raise MeasurementError(f"expected a speedup of {', '.join(SPEEDUPS)}, found {speedup}")
    if not points:
        raise MeasurementError("there are no points to plot: measure at least one policy")
    for point in points:
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
    return ParetoInfo(tuple(points), tuple(front), tuple(exact), metric, speedup, prompts, error)


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
        for g, group in enumerate(groups):
            members = [info.points[i] for i in shown if (info.points[i].group or info.points[i].name) == group]
            colour = OTHERS[g % len(OTHERS)]
            x, y, e = ([getattr(p, f) for p in members] for f in ("speedup", "quality", "error"))
            named = group if any(p.group for p in members) else None
            axes.errorbar(
                x, y, yerr=e if any(e) else None, fmt="o", ms=6.5, color=colour, ecolor=colour, elinewidth=1.2,
                capsize=3, label=named, zorder=3, markeredgecolor="white", markeredgewidth=0.8,
            )  # fmt: skip
        _name(axes, [info.points[i] for i in shown])
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
        if len(line) > 1 or any(p.group for p in info.points):
            axes.legend(loc="best")
        bars = f"bars: {info.error}" if any(p.error for p in info.points) else ""
        heading(figure, "Quality against speedup", " · ".join(part for part in (info.prompts, bars) if part))
    return figure


def _name(axes: Axes, points: Sequence[ParetoPoint]) -> None:
    """Names beside the points: inwards at the right edge, one below the other where points lie together."""
    if not points:
        return
    across = [p.speedup for p in points]
    width = max(across) - min(across) or 1.0
    height = max(p.quality for p in points) - min(p.quality for p in points) or 1.0
    done: list[ParetoPoint] = []
    for p in sorted(points, key=lambda p: -p.quality):
        above = sum(
            abs(p.speedup - q.speedup) < 0.2 * width and abs(p.quality - q.quality) < 0.04 * height for q in done
        )
        inwards = p.speedup > min(across) + 0.7 * width
        axes.annotate(
            p.name,
            (p.speedup, p.quality),
            xytext=(-7 if inwards else 7, 5 - 11 * above),
            ha="right" if inwards else "left",
            textcoords="offset points",
            fontsize=8.5,
            color="#333333",
        )
        done.append(p)

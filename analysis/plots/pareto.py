"""Speedup against quality, with the points that nothing else beats."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastercache.analysis.metrics import Metric, metric_called
from fastercache.analysis.plots.labels import Label, name_beside
from fastercache.analysis.plots.style import BASELINE, LINES, heading, new_figure, styled
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


GREY = "#5b5f63"
"""Of words about the reference."""
MARKERS = ("o", "s", "^", "D", "v", "P")


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
        error: what the bars are. curve: points of a reference, by speedup, drawn as one line. reference: its name.
    """

    points: tuple[ParetoPoint, ...]
    front: tuple[int, ...]
    exact: tuple[int, ...]
    metric: str
    speedup: str
    prompts: str
    error: str
    curve: tuple[ParetoPoint, ...] = ()
    reference: str = ""


def pareto_info(
    points: Sequence[ParetoPoint],
    metric: str = "psnr",
    speedup: str = "flops",
    prompts: str = "",
    error: str = "standard error over prompts",
    curve: Sequence[ParetoPoint] = (),
    reference: str = "fewer steps, no cache",
) -> ParetoInfo:
    """Find the front: a point is on it if no other is at least as fast and as good, and better in one of them.

    Args:
        curve: a reference that is drawn as a line and is on no front, called `reference`: what has to be beaten.

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
    ordered = tuple(sorted(curve, key=lambda p: p.speedup))
    return ParetoInfo(tuple(points), tuple(front), tuple(exact), metric, speedup, prompts, error, ordered, reference)


def draw_pareto(info: ParetoInfo) -> Figure:
    """A scatter with error bars; further right and further up is better.

    With a reference curve, what lies under it is shaded: fewer steps do as well there. Without one the front is a line.
    """
    better = metric_called(info.metric).higher_is_better
    shown = [i for i in range(len(info.points)) if i not in info.exact]
    groups = list(dict.fromkeys(p.group or p.name for p in info.points))
    with styled():
        figure = new_figure(7.6, 5.2)
        axes = figure.subplots()
        for g, group in enumerate(groups):
            members = [info.points[i] for i in shown if (info.points[i].group or info.points[i].name) == group]
            x, y, e = ([getattr(p, f) for p in members] for f in ("speedup", "quality", "error"))
            axes.errorbar(
                x, y, yerr=e if any(e) else None, fmt=MARKERS[g % len(MARKERS)], ms=7.5, color=LINES[g % len(LINES)],
                elinewidth=1.2, capsize=3, label=group if any(p.group for p in members) else None, zorder=4,
                markeredgecolor="white", markeredgewidth=0.8,
            )  # fmt: skip
        axes.margins(0.14, 0.14)
        if info.curve:
            _draw_curve(axes, info.curve, better)
        elif len(line := [info.points[i] for i in info.front if i in shown]) > 1:
            axes.plot(
                [p.speedup for p in line], [p.quality for p in line], color="#BBBBBB", lw=6, alpha=0.5, zorder=1,
                solid_capstyle="round", label="Pareto front",
            )  # fmt: skip
        axes.axvline(1.0, color="#999999", lw=1, ls=":")
        if info.exact:
            names = ", ".join(info.points[i].name for i in info.exact)
            axes.text(0.02, 0.02, f"not shown, equal to the uncached video: {names}", transform=axes.transAxes,
                      fontsize=8.5, color="#555555")  # fmt: skip
        if not better:
            axes.invert_yaxis()
        axes.set_xlabel(f"{SPEEDUPS[info.speedup]} (×) →")
        axes.set_ylabel(f"{axis_label(info.metric)}{' →' if better else ' (lower is better) →'}")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="best")
        bars = f"bars: {info.error}" if any(p.error for p in (*info.points, *info.curve)) else ""
        shade = f"shaded: no better than {info.reference}" if info.curve else ""
        heading(figure, "Quality against speedup", " · ".join(part for part in (info.prompts, bars, shade) if part))
        figure.draw_without_rendering()  # settles the layout, so that names are placed where the points will be
        _name(axes, [info.points[i] for i in shown], info)
    return figure


def _draw_curve(axes: Axes, curve: Sequence[ParetoPoint], better: bool) -> None:
    """The reference with its bars, and the shade under it. What it adds to the axes has the points' margins."""
    x, y, e = ([getattr(p, field) for p in curve] for field in ("speedup", "quality", "error"))
    axes.errorbar(
        x, y, yerr=e if any(e) else None, fmt="o-", color=BASELINE, lw=3.2, ms=6, elinewidth=1.2, capsize=3,
        markeredgecolor="white", markeredgewidth=0.8, zorder=2,
    )  # fmt: skip
    low, high = axes.get_ylim()
    axes.fill_between(x, y, low if better else high, color=BASELINE, alpha=0.13, lw=0, zorder=0)
    axes.set_ylim(low, high)


def _name(axes: Axes, points: Sequence[ParetoPoint], info: ParetoInfo) -> None:
    """A name beside each point and the curve's beside its middle, where it covers no other name and no other point."""
    labels = [Label(p.name, ((p.speedup, p.quality),)) for p in sorted(points, key=lambda p: -p.quality)]
    curve = [(p.speedup, p.quality) for p in info.curve]
    labels += [Label(p.name, ((p.speedup, p.quality),), GREY) for p in info.curve if p.name != info.reference]
    if curve:
        middles = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in itertools.pairwise(curve)]
        labels.append(Label(info.reference, tuple(middles[len(middles) // 2 :] or curve), GREY, bold=True))
    ends = [(p.speedup, p.quality + sign * p.error) for p in points for sign in (-1.0, 1.0) if p.error]
    bars = list(zip(ends[::2], ends[1::2], strict=True))
    name_beside(axes, labels, [*((p.speedup, p.quality) for p in points), *curve], [curve, *bars] if curve else bars)

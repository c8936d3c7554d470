"""Many methods at several settings against fewer steps: quality over speedup, in small panels by family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fastercache.analysis.metrics import metric_called
from fastercache.analysis.plots.labels import Label, Place, name_beside
from fastercache.analysis.plots.pareto import GREY, MARKERS, axis_label, is_exact
from fastercache.analysis.plots.style import BASELINE, LINES, heading, new_figure, styled
from fastercache.policies.errors import MeasurementError

Value = tuple[float, float | None, float | None]
"""A value with the ends of its interval; the ends are None where it has none."""
Speedup = Literal["flops", "wall"]

OTHER = "#d3d6da"
AXES: dict[Speedup, str] = {"flops": "speedup in computed FLOPs", "wall": "speedup in wall time"}
TITLES: dict[Speedup, str] = {"flops": "by computed FLOPs", "wall": "by wall time"}
TICKS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0)
MOST = len(LINES)
"""Methods in one panel: more could not be told apart. A larger family goes on in a further panel."""
COLUMNS = 3


class ComparisonPoint(NamedTuple):
    """One setting.

    Attributes:
        method, family: settings of one method are joined by a line, methods of one family share a panel.
        package: whose code, where it is not ours; drawn hollow.
        flops, wall: speedups. quality: in the figure's metric.
    """

    method: str
    family: str
    package: str
    flops: Value
    wall: Value
    quality: Value


class Series(NamedTuple):
    """A method's settings in the order given, with its look."""

    method: str
    package: str
    colour: str
    marker: str
    points: tuple[ComparisonPoint, ...]

    @property
    def label(self) -> str:
        """As it is named beside its line."""
        return f"{self.method}, {self.package}" if self.package else self.method


class Panel(NamedTuple):
    """The methods that stand in one panel: of one family, at most `MOST`, with their peers of other packages."""

    title: str
    series: tuple[Series, ...]


class ComparisonInfo(NamedTuple):
    """What is drawn.

    Attributes:
        panels: in the order in which families first appear. baseline: the reference curve's points, by speedup.
        metric: a registered metric's name. reference: the baseline's name. note: the line below the title.
    """

    panels: tuple[Panel, ...]
    baseline: Series
    metric: str
    reference: str
    note: str


def comparison_info(
    points: Sequence[ComparisonPoint], reference: str, metric: str = "psnr", note: str = ""
) -> ComparisonInfo:
    """Group the settings by family and method.

    Settings equal to the uncached video (PSNR at its cap) have no place on the axis and are left out.

    Raises:
        MeasurementError: for an unknown metric, without points, or with one that is not finite.
    """
    judged_by = metric_called(metric)
    for point in points:
        if not np.isfinite([point.flops[0], point.wall[0], point.quality[0]]).all():
            raise MeasurementError(f"'{point.method}' has a figure that is not finite: {point}")
    shown = [p for p in points if not is_exact(judged_by, p.quality[0])]
    if not shown:
        raise MeasurementError("there are no points to plot: no setting both ran and changed the video")
    panels: list[Panel] = []
    for family in dict.fromkeys(p.family for p in shown if p.method != reference):
        methods = list(dict.fromkeys(p.method for p in shown if p.family == family and p.method != reference))
        parts = -(-len(methods) // MOST)
        for part, chosen in enumerate(np.array_split(np.array(methods, dtype=object), parts), 1):
            title = family if parts == 1 else f"{family}, {part} of {parts}"
            series = [
                line for place, method in enumerate(chosen) for line in _series(shown, family, str(method), place)
            ]
            panels.append(Panel(title, tuple(series)))
    base = sorted((p for p in shown if p.method == reference), key=lambda p: p.flops[0])
    return ComparisonInfo(tuple(panels), Series(reference, "", BASELINE, "", tuple(base)), metric, reference, note)


def _series(shown: Sequence[ComparisonPoint], family: str, method: str, place: int) -> list[Series]:
    """A method's line, and those of other packages' code for it, which look like it but hollow."""
    own = [p for p in shown if (p.family, p.method) == (family, method)]
    return [
        Series(method, package, LINES[place], MARKERS[place], tuple(p for p in own if p.package == package))
        for package in dict.fromkeys(p.package for p in own)
    ]


def draw_comparison(info: ComparisonInfo, speedup: Speedup = "flops") -> Figure:
    """A panel for each family, all on the same axes: its methods by name, the others in grey, and the reference.

    The better end of the quality axis is up, as in `draw_pareto`.
    """
    columns = min(COLUMNS, len(info.panels)) or 1
    rows = -(-len(info.panels) // columns) or 1
    with styled():
        figure = new_figure(1.0 + 3.75 * columns, 1.3 + 3.3 * rows)
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for number, axes in enumerate(grid.flat):
            if number >= max(len(info.panels), 1):
                axes.set_visible(False)
                continue
            _draw_panel(axes, info, number, speedup)
            below = number + columns < len(info.panels)
            axes.tick_params(labelbottom=not below, labelleft=number % columns == 0)
            if not below:
                axes.set_xlabel(f"{AXES[speedup]} (×, log scale) →")
            if number % columns == 0:
                axes.set_ylabel(_quality_label(info.metric))
        heading(figure, f"Caches against {info.reference}: quality {TITLES[speedup]}", info.note)
        figure.draw_without_rendering()  # settles the layout, so that labels are placed where the points will be
        for axes, panel in zip(grid.flat, info.panels, strict=False):
            _name(axes, info, panel, speedup)
    return figure


def _quality_label(metric: str) -> str:
    better = metric_called(metric).higher_is_better
    return f"{axis_label(metric)}{' →' if better else ' (lower is better) →'}"


def _draw_panel(axes: Axes, info: ComparisonInfo, number: int, speedup: Speedup) -> None:
    everything = [p for line in (*_all(info), info.baseline) for p in line.points]
    speeds = [getattr(p, speedup)[0] for p in everything]
    qualities = [p.quality[0] for p in everything]
    axes.set_xscale("log")
    axes.set_xlim(min(*speeds, 0.98) * 0.97, max(speeds) * 1.1)
    margin = 0.06 * max(max(qualities) - min(qualities), 1e-6)  # a long bar may leave the panel
    ends = (min(qualities) - margin, max(qualities) + margin)
    axes.set_ylim(*(ends if metric_called(info.metric).higher_is_better else ends[::-1]))
    axes.xaxis.set_major_locator(FixedLocator([t for t in TICKS if t <= max(speeds) * 1.1]))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8.5)
    for other in (line for n, panel in enumerate(info.panels) if n != number for line in panel.series):
        axes.plot(*zip(*_places(other, speedup), strict=True), color=OTHER, lw=0.9, zorder=1)
    _draw_baseline(axes, info.baseline, speedup)
    if info.panels:
        axes.set_title(info.panels[number].title)
        for line in info.panels[number].series:
            _draw_series(axes, line, speedup)
    axes.axvline(1.0, color="#999999", lw=0.8, ls=":")


def _all(info: ComparisonInfo) -> list[Series]:
    return [line for panel in info.panels for line in panel.series]


def _places(line: Series, speedup: Speedup) -> list[Place]:
    return [(getattr(p, speedup)[0], p.quality[0]) for p in line.points]


def _draw_baseline(axes: Axes, line: Series, speedup: Speedup) -> None:
    """The reference as a broad line, with its interval as a band where all its points have one."""
    points = sorted(line.points, key=lambda p: float(getattr(p, speedup)[0]))
    if not points:
        return
    across = [getattr(p, speedup)[0] for p in points]
    low, high = ([p.quality[end] for p in points] for end in (1, 2))
    if None not in low and None not in high:
        axes.fill_between(across, np.array(low, float), np.array(high, float), color=BASELINE, alpha=0.25, lw=0)
    axes.plot(across, [p.quality[0] for p in points], color=BASELINE, lw=3.2, zorder=2, solid_capstyle="round")


def _draw_series(axes: Axes, line: Series, speedup: Speedup) -> None:
    bars: dict[str, Any] = {}
    if all(p.quality[1] is not None for p in line.points):
        bars["yerr"] = _bars([p.quality for p in line.points])
    if speedup == "wall" and all(p.wall[1] is not None for p in line.points):
        bars["xerr"] = _bars([p.wall for p in line.points])
    hollow = bool(line.package)
    across, up = zip(*_places(line, speedup), strict=True)
    axes.errorbar(
        across, up, **bars, color=line.colour, ls=":" if hollow else "-", lw=1.5,
        marker=line.marker, ms=6.2, mfc="white" if hollow else line.colour, mec=line.colour if hollow else "white",
        mew=1.3 if hollow else 0.7, elinewidth=0.7, ecolor=to_rgba(line.colour, 0.45), zorder=4 if hollow else 3,
    )  # fmt: skip


def _bars(values: Sequence[Value]) -> list[list[float]]:
    """Lengths below and above, never negative."""
    below = [max(v - (v if low is None else low), 0.0) for v, low, _ in values]
    above = [max((v if high is None else high) - v, 0.0) for v, _, high in values]
    return [below, above]


def _name(axes: Axes, info: ComparisonInfo, panel: Panel, speedup: Speedup) -> None:
    """Each line's name beside one of its points, the fastest where there is room."""
    labels = [
        Label(line.label, tuple(sorted(_places(line, speedup), reverse=True)), line.colour, bold=True)
        for line in panel.series
    ]
    base = sorted(_places(info.baseline, speedup))
    if base:
        labels.insert(0, Label(info.reference, tuple(base[::-1]), GREY, bold=True))
    lines = [_places(line, speedup) for line in panel.series]
    name_beside(axes, labels, [place for line in lines for place in line], [*lines, base])

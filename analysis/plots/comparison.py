"""Many methods at several settings against fewer steps: quality over speedup, counted and timed, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fastercache.analysis.metrics import metric_called
from fastercache.analysis.plots.pareto import axis_label, is_exact
from fastercache.analysis.plots.style import OTHERS, heading, new_figure, styled
from fastercache.policies.errors import MeasurementError

Value = tuple[float, float | None, float | None]
"""A value with the ends of its interval; the ends are None where it has none."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
BASELINE = "#8a8a8a"
PANELS = (("flops", "speedup in computed FLOPs"), ("wall", "speedup in wall time"))
TICKS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0)


class ComparisonPoint(NamedTuple):
    """One setting.

    Attributes:
        method, family: settings of one method are joined by a line, methods of one family share a colour.
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
    """A method's settings in the order given, with its place in the legend."""

    method: str
    family: str
    package: str
    colour: str
    marker: str
    points: tuple[ComparisonPoint, ...]

    @property
    def label(self) -> str:
        """As the legend names it."""
        return f"{self.method} ({self.package})" if self.package else self.method


class ComparisonInfo(NamedTuple):
    """What is drawn.

    Attributes:
        series: by family, in the order in which families first appear. baseline: the reference curve's points.
        fronts: for each panel, the positions (series, point) that no other setting beats and that lie above the
            reference curve, taken as linear in log speedup between its points.
        metric: a registered metric's name. reference: the baseline's name. note: the line below the title.
    """

    series: tuple[Series, ...]
    baseline: Series
    fronts: dict[str, tuple[tuple[int, int], ...]]
    metric: str
    reference: str
    note: str


def comparison_info(
    points: Sequence[ComparisonPoint], reference: str, metric: str = "psnr", note: str = ""
) -> ComparisonInfo:
    """Group the settings by method and find each panel's front.

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
    families = list(dict.fromkeys(p.family for p in shown if p.method != reference))
    series = []
    for f, family in enumerate(families):
        names = dict.fromkeys((p.method, p.package) for p in shown if p.family == family and p.method != reference)
        labels = list(dict.fromkeys(method for method, _ in names))
        for method, package in names:
            own = [p for p in shown if (p.method, p.package, p.family) == (method, package, family)]
            marker = MARKERS[labels.index(method) % len(MARKERS)]
            series.append(Series(method, family, package, OTHERS[f % len(OTHERS)], marker, tuple(own)))
    base = sorted((p for p in shown if p.method == reference), key=lambda p: p.flops[0])
    baseline = Series(reference, reference, "", BASELINE, "", tuple(base))
    fronts = {panel: _front(series, base, panel) for panel, _ in PANELS}
    return ComparisonInfo(tuple(series), baseline, fronts, metric, reference, note)


def _front(series: Sequence[Series], base: Sequence[ComparisonPoint], panel: str) -> tuple[tuple[int, int], ...]:
    places = [(s, p) for s, line in enumerate(series) for p in range(len(line.points))]
    at = {place: series[place[0]].points[place[1]] for place in places}
    rivals = [(getattr(q, panel)[0], q.quality[0]) for q in [*at.values(), *base]]
    curve = sorted((getattr(q, panel)[0], q.quality[0]) for q in base)

    def beaten(point: ComparisonPoint) -> bool:
        x, y = getattr(point, panel)[0], point.quality[0]
        if curve and curve[0][0] <= x <= curve[-1][0]:
            speeds, qualities = zip(*curve, strict=True)
            if y < np.interp(np.log(x), np.log(speeds), qualities):
                return True
        return any(u >= x and v >= y and (u > x or v > y) for u, v in rivals)

    return tuple(sorted((i for i in places if not beaten(at[i])), key=lambda i: getattr(at[i], panel)[0]))


def draw_comparison(info: ComparisonInfo) -> Figure:
    """Two panels that share the quality axis, and a legend of every method beside them."""
    with styled():
        figure = new_figure(14.2, max(7.4, 1.0 + 0.165 * (2 + len(_legend_rows(info)))))
        left, right, side = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 0.46))
        for axes, (panel, label) in zip((left, right), PANELS, strict=True):
            _draw_panel(axes, info, panel)
            axes.set_xlabel(f"{label} (×, log scale) →")
        left.set_ylabel(f"{axis_label(info.metric)} →")
        right.tick_params(labelleft=False)
        _draw_legend(side, info)
        heading(figure, f"Caches against {info.reference}: quality over speedup", info.note)
        figure.draw_without_rendering()  # settles the layout, so that labels are placed where the points will be
        for axes, (panel, _) in zip((left, right), PANELS, strict=True):
            _label_front(axes, info, panel)
    return figure


def _range(values: Sequence[float], edge: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = edge * max(high - low, 1e-6)
    return low - margin, high + margin


def _draw_panel(axes: Axes, info: ComparisonInfo, panel: str) -> None:
    everything = [p for line in (*info.series, info.baseline) for p in line.points]
    speeds = [getattr(p, panel)[0] for p in everything]
    axes.set_xscale("log")
    axes.set_xlim(min(*speeds, 0.98) * 0.97, max(speeds) * 1.08)
    bottom, top = _range([p.quality[0] for p in everything], 0.06)  # a long bar may leave the panel
    axes.set_ylim(bottom, top)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    base = sorted((getattr(p, panel)[0], p.quality[0]) for p in info.baseline.points)
    if base:
        x, y = (list(column) for column in zip(*base, strict=True))
        axes.fill_between(x, bottom, y, color=BASELINE, alpha=0.13, lw=0, zorder=0)
        axes.plot(x, y, color=BASELINE, lw=5, alpha=0.8, zorder=2, solid_capstyle="round")
        axes.plot(x, y, "o", color=BASELINE, ms=4, mec="white", mew=0.8, zorder=2.1)
    for line in info.series:
        _draw_series(axes, line, panel)
    axes.axvline(1.0, color="#999999", lw=0.8, ls=":")


def _draw_series(axes: Axes, line: Series, panel: str) -> None:
    x = [getattr(p, panel)[0] for p in line.points]
    y = [p.quality[0] for p in line.points]
    bars: dict[str, Any] = {}
    if all(p.quality[1] is not None for p in line.points):
        bars["yerr"] = _bars([p.quality for p in line.points])
    if panel == "wall" and all(p.wall[1] is not None for p in line.points):
        bars["xerr"] = _bars([p.wall for p in line.points])
    axes.errorbar(
        x, y, **bars, color=line.colour, ls=":" if line.package else "-", lw=1.1, marker=line.marker, ms=6.2,
        mfc="white" if line.package else line.colour, mec=line.colour if line.package else "white",
        mew=1.3 if line.package else 0.6, elinewidth=0.6, ecolor=_faded(line.colour), zorder=4 if line.package else 3,
    )  # fmt: skip


def _bars(values: Sequence[Value]) -> list[list[float]]:
    """Lengths below and above, never negative."""
    below = [max(v - (v if low is None else low), 0.0) for v, low, _ in values]
    above = [max((v if high is None else high) - v, 0.0) for v, _, high in values]
    return [below, above]


def _faded(colour: str) -> tuple[float, float, float, float]:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b, 0.35


def _label_front(axes: Axes, info: ComparisonInfo, panel: str) -> None:
    """Name the methods of the front, each to the upper right of its fastest point there, clear of other labels."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    scale = figure.dpi / 72
    edge = axes.get_window_extent().x1
    taken: list[tuple[float, float, float, float]] = []
    named = {s: p for s, p in info.fronts[panel]}
    for s, p in named.items():
        line, point = info.series[s], info.series[s].points[p]
        at = (getattr(point, panel)[0], point.quality[0])
        where = axes.transData.transform(at)
        width = 5.4 * len(line.label) * scale
        for dy in range(8, 140, 12):
            dx = min(10.0, (edge - where[0] - width) / scale)
            x, y = where[0] + dx * scale, where[1] + dy * scale
            box = (x, y, x + width, y + 11 * scale)
            if all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken):
                break
        taken.append(box)
        text = axes.annotate(
            line.label, at, xytext=(dx, dy), textcoords="offset points", fontsize=8.5, color=line.colour,
            fontweight="bold", zorder=6, arrowprops={"arrowstyle": "-", "color": line.colour, "lw": 0.7, "shrinkB": 4},
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _legend_rows(info: ComparisonInfo) -> list[tuple[str, list[Series]]]:
    """(text, lines) in order; a family's name has no lines, a method's line has its peers' beside it."""
    rows: list[tuple[str, list[Series]]] = []
    family = ""
    for line in info.series:
        if line.family != family:
            family = line.family
            rows.append((family, []))
        own = next((r for r in rows if r[1] and (r[1][0].family, r[1][0].method) == (family, line.method)), None)
        if own is None:
            rows.append((line.label, [line]))
        else:
            rows[rows.index(own)] = (f"{own[0]} · {line.package}", [*own[1], line])
    return rows


def _draw_legend(axes: Axes, info: ComparisonInfo) -> None:
    axes.axis("off")
    handles: list[Any] = [Line2D([], [], color=BASELINE, lw=4.5, marker="o", ms=4, mec="white")]
    handles.append(Patch(color=BASELINE, alpha=0.13))
    rows = _legend_rows(info)
    for _, lines in rows:
        marks = [
            Line2D(
                [],
                [],
                color=line.colour,
                ls=":" if line.package else "-",
                lw=1.1,
                marker=line.marker,
                ms=6,
                mfc="white" if line.package else line.colour,
                mec=line.colour,
            )
            for line in lines
        ]
        handles.append(tuple(marks) if marks else Line2D([], [], lw=0))
    labels = [info.reference, f"does not beat {info.reference}", *(text for text, _ in rows)]
    legend = axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.0, fontsize=8.2,
        labelspacing=0.32, handlelength=3.4, handler_map={tuple: HandlerTuple(ndivide=None, pad=0.3)},
    )  # fmt: skip
    for text, (_, lines) in zip(legend.get_texts()[2:], rows, strict=True):
        if not lines:
            text.set_fontweight("bold")

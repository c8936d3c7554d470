"""The table and the figure of how costs grow."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fastercache.analysis.plots.labels import Label, name_beside
from fastercache.analysis.plots.style import BASELINE, LINES, heading, new_figure, styled
from fastercache.experiments import pages
from fastercache.experiments.jobs.growth import Curve, Growth

PANELS = (("steps", "s"), ("blocks", "s"), ("prompts", "s"), ("steps", "MB"))


def markdown(growth: Growth) -> str:
    """A row for each curve: the first and last cost, how it grows, and where it stops being practical."""
    rows: list[Sequence[str]] = [
        ("cost", "against", "at the least", "at the most", "grows with the power", "more than practical"),
        ("---", "---", "---:", "---:", "---:", "---"),
    ]
    for curve in growth.curves:
        (x0, y0), *_, (x1, y1) = (curve.points[0], *curve.points)
        beside = f" ({curve.beside})" if curve.beside else ""
        rows.append(
            (
                f"{curve.what}{beside}", curve.against, f"{shown(y0, curve.unit)} at {x0}",
                f"{shown(y1, curve.unit)} at {x1}", f"{curve.slope:.1f}", where(curve),
            )
        )  # fmt: skip
    return f"{growth.hardware}; processor time of one run.\n\n{pages.table(rows)}\n"


def shown(value: float, unit: str) -> str:
    """`12 ms`, `3.4 s`, `2.1 min`, `0.4 MB`."""
    if unit != "s":
        return f"{value:.1f} {unit}"
    if value < 1.0:
        return f"{1e3 * value:.2g} ms" if value < 0.0995 else f"{1e3 * value:.0f} ms"
    return f"{value:.1f} s" if value < 90.0 else f"{value / 60.0:.1f} min"


def where(curve: Curve) -> str:
    """Where a curve passes what is practical, in words."""
    if curve.practical is None:
        return "-"
    limit = f"{curve.practical:g} MB" if curve.unit == "MB" else shown(curve.practical, "s")
    if curve.ends is None:
        return f"never ({limit})"
    size, foreseen = curve.ends
    if foreseen and size > 1e6:
        return f"beyond a million ({limit})"
    rounded = float(f"{size:.2g}")
    return f"{limit} at about {rounded:,.0f} {curve.against}{', foreseen' if foreseen else ''}"


def draw(growth: Growth) -> Figure:
    """Costs over sizes, all axes logarithmic; grey: an uncached run of the same random model."""
    with styled():
        figure = new_figure(14.0, 9.6)
        heading(
            figure, "How costs grow", f"{growth.hardware} · processor time of one run · random models, small as can be"
        )
        grid = figure.subplots(2, 2).flat
        shown_ = [[c for c in growth.curves if (c.against, c.unit) == panel] for panel in PANELS]
        for axes, (against, unit), curves in zip(grid, PANELS, shown_, strict=True):
            _panel(axes, curves, against, "seconds" if unit == "s" else "MB of a report")
        figure.draw_without_rendering()  # settles the layout, so that names are placed where the lines will be
        for axes, curves in zip(figure.axes, shown_, strict=True):
            _name(axes, curves)
    return figure


def _colour(curves: Sequence[Curve], n: int) -> str:
    others = [k for k, one in enumerate(curves) if "comparison" not in one.what]
    return LINES[others.index(n) % len(LINES)] if n in others else BASELINE


def _panel(axes: Axes, curves: Sequence[Curve], against: str, unit: str) -> None:
    sizes = sorted({x for one in curves for x, _ in one.points})
    for n, one in enumerate(curves):
        dashed = "--" if "comparison" in one.what or n >= len(LINES) else "-"
        axes.plot(*zip(*one.points, strict=True), color=_colour(curves, n), marker="o", ms=4, ls=dashed)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_xlabel(f"{against} →")
    axes.set_ylabel(f"{unit} →")


def _name(axes: Axes, curves: Sequence[Curve]) -> None:
    labels = [
        Label(one.what, tuple((float(x), y) for x, y in one.points[::-1]), _colour(curves, n))
        for n, one in enumerate(curves)
    ]
    lines = [[(float(x), y) for x, y in one.points] for one in curves]
    name_beside(axes, labels, [place for line in lines for place in line], lines)

"""One picture of the swept peers: every setting tried in grey, each method's front, planned schedules, fewer steps."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fastercache.analysis.plots.comparison import OTHER, TICKS
from fastercache.analysis.plots.labels import Label, Place, name_beside
from fastercache.analysis.plots.pareto import MARKERS
from fastercache.analysis.plots.style import BASELINE, LINES, heading, new_figure, styled
from fastercache.experiments.bench.lineup import FEWER, PLANNED
from fastercache.experiments.bench.standings import Line
from fastercache.experiments.bench.swept import Swept, acting_lines
from fastercache.experiments.bench.verdict import Interval

OURS = "#B2182B"
AXES = (("speedup_flops", "speedup in computed FLOPs"), ("speedup_wall", "speedup in wall time"))


def draw(swept: Swept) -> Figure:
    """Quality over speedup, once by FLOPs and once by time."""
    with styled():
        figure = new_figure(14.0, 6.6)
        heading(
            figure,
            f"Other packages' caches at their best on {swept.table.pipeline}",
            f"{swept.table.title} · bars: 95 % intervals over prompts · rings: documented defaults · "
            f"grey: every setting tried, on {swept.search_prompts} other prompts",
        )
        grid = figure.subplots(1, 2, sharey=True)
        for axes, (which, name) in zip(grid, AXES, strict=True):
            _draw(axes, swept, which)
            axes.set_xlabel(f"{name} (×, log scale) →")
        grid[0].set_ylabel("PSNR (dB) →")
        figure.draw_without_rendering()  # settles the layout, so that names are placed where the points will be
        for axes, (which, _) in zip(grid, AXES, strict=True):
            _name(axes, swept, which)
    return figure


def methods(swept: Swept) -> dict[str, list[Line]]:
    """The peers' settings by method, each sorted by its speedup in FLOPs."""
    found: dict[str, list[Line]] = {}
    for line in acting_lines(swept):
        if line.family not in (FEWER, PLANNED):
            found.setdefault(line.method, []).append(line)
    return {method: sorted(own, key=lambda line: _place(line, "speedup_flops")[0]) for method, own in found.items()}


def _of(swept: Swept, family: str) -> list[Line]:
    return [line for line in acting_lines(swept) if line.family == family]


def _place(line: Line, which: str) -> Place:
    speedup: Interval = getattr(line, which)
    return speedup.value, line.quality["psnr"].value


def _look(place: int) -> tuple[str, str]:
    """Colour and marker of a method by its place; no two of up to 36 look the same."""
    return LINES[place % len(LINES)], MARKERS[(place + place // len(LINES)) % len(MARKERS)]


def _draw(axes: Axes, swept: Swept, which: str) -> None:
    if which == "speedup_flops":
        tried = [(p.speedup, p.psnr) for p in swept.points if p.speedup is not None and p.psnr is not None]
        axes.scatter([x for x, _ in tried], [y for _, y in tried], s=9, color=OTHER, zorder=1)
    _curve(axes, _of(swept, FEWER), which, BASELINE, "", 3.0)
    defaults = {(row.method, row.level) for row in swept.ratios if row.default}
    for n, (_, own) in enumerate(methods(swept).items()):
        colour, marker = _look(n)
        best = [line for line in own if (line.method, line.level) not in defaults]
        _curve(axes, best, which, colour, marker, 1.2)
        for line in own:
            if (line.method, line.level) in defaults:
                x, y = _place(line, which)
                axes.plot(x, y, "o", ms=11, mfc="none", mec=colour, mew=1.6, zorder=4)
                axes.plot(x, y, marker, ms=5, color=colour, zorder=4)
    _curve(axes, _of(swept, PLANNED), which, OURS, "D", 2.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.set_xlim(0.97, 11.5)


def _curve(axes: Axes, lines: Sequence[Line], which: str, colour: str, marker: str, width: float) -> None:
    """Points joined in the order of the speedup, with the intervals of their PSNR."""
    ordered = sorted(lines, key=lambda line: _place(line, which)[0])
    if not ordered:
        return
    axes.plot(
        *zip(*(_place(line, which) for line in ordered), strict=True),
        color=colour,
        marker=marker,
        lw=width,
        ms=5,
        zorder=3,
    )
    for line in ordered:
        _, low, high = line.quality["psnr"]
        if low is not None and high is not None:
            axes.plot([_place(line, which)[0]] * 2, [low, high], color=colour, lw=0.8, alpha=0.6, zorder=2)


def _name(axes: Axes, swept: Swept, which: str) -> None:
    named = [("planned", _of(swept, PLANNED), OURS), (FEWER, _of(swept, FEWER), BASELINE)]
    named += [(method, own, _look(n)[0]) for n, (method, own) in enumerate(methods(swept).items())]
    places = [[_place(line, which) for line in own] for _, own, _ in named]
    labels = [
        Label(name, tuple(own[len(own) // 2 :] + own[: len(own) // 2]), colour, bold=name in ("planned", FEWER))
        for (name, _, colour), own in zip(named, places, strict=True)
        if own
    ]
    name_beside(axes, labels, [place for own in places for place in own], [own for own in places if own])

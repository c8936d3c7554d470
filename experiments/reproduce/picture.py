"""One picture of the findings: each claim's difference with its interval, all variants beside fewer steps, and the
errors they make."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fastercache.analysis.plots.labels import Label, Place, name_beside
from fastercache.analysis.plots.style import BASELINE, LINES, heading, new_figure, styled
from fastercache.experiments.bench.contest import UNCACHED
from fastercache.experiments.reproduce.page import title
from fastercache.experiments.reproduce.results import Findings, Variant
from fastercache.experiments.reproduce.variants import GUIDANCE, OTHERS, REUSE
from fastercache.experiments.reproduce.verdicts import HOLDS, REVERSED, UNDECIDED

LOOKS = {HOLDS: (LINES[2], "^"), REVERSED: (LINES[4], "v"), UNDECIDED: ("#8a8a8a", "o")}
"""Colour and mark of a verdict."""
KINDS = {
    "dynamic reuse": (LINES[0], "o", frozenset(REUSE)),
    "CFG-Cache": (LINES[1], "s", frozenset(GUIDANCE)),
    "other methods": (LINES[3], "D", frozenset(OTHERS)),
}
PAIR = ("FasterCache", LINES[5], "P")
ERRORS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Ticks, in per cent."""


def draw(results: Findings) -> Figure:
    """The picture of one model."""
    with styled():
        figure = new_figure(14.0, 9.8)
        heading(
            figure,
            f"The paper's findings on {results.pipeline}",
            f"{title(results)} Bars: 95 % intervals over prompts.",
        )
        grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1.0))
        _claims(figure.add_subplot(grid[:, 0]), results)
        above, below = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        _speed(above, results)
        _errors(below, results)
        figure.draw_without_rendering()  # settles the layout, so that names are placed where the points will be
        _named(above, results, speed=True)
        _named(below, results, speed=False)
    return figure


def _claims(axes: Axes, results: Findings) -> None:
    """Differences in PSNR, finding by finding from the top."""
    row, ticks, names = 0.0, [], []
    for finding in results.findings:
        if "psnr" not in finding.words:
            continue
        wrapped = textwrap.wrap(finding.title, 62)
        row -= 0.9 * len(wrapped) + 0.25
        axes.text(
            0.0, row + 0.15, "\n".join(wrapped), transform=axes.get_yaxis_transform(), fontsize=8.5,
            fontweight="bold", va="bottom", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
        for claim in finding.claims:
            row -= 0.85
            ticks.append(row)
            names.append(f"{claim.worse} < {claim.better}")
            if (found := claim.by.get("psnr")) is None:
                continue
            mean, low, high = found.difference
            colour, mark = LOOKS[found.word]
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colour, lw=1.8)
            axes.plot(mean, row, mark, color=colour, ms=6)
        row -= 0.35
    axes.axvline(0.0, color="#555555", lw=1.0)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_ylim(row, 0.0)
    axes.grid(axis="y", visible=False)
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}" if x else "0"))
    axes.set_xlabel("PSNR of the right name over the left, dB (linear within ±1 dB, log beyond) →")
    handles = [Line2D([], [], color=c, marker=m, label=word) for word, (c, m) in LOOKS.items()]
    axes.legend(handles=handles, loc="lower right", ncols=3, bbox_to_anchor=(1.0, 1.0))


def _look(name: str) -> tuple[str, str]:
    return next(((colour, mark) for colour, mark, names in KINDS.values() if name in names), PAIR[1:])


def _shown(results: Findings) -> list[Variant]:
    return [one for one in results.variants if one.refused is None and one.name in results.why.local]


def _fewer(results: Findings) -> list[Variant]:
    return [one for one in results.variants if "num_inference_steps" in one.policy and one.name != UNCACHED]


def _place(one: Variant, results: Findings, speed: bool) -> Place:
    across = one.speedup_flops if speed else 100.0 * results.why.local[one.name]
    return float(across or 0.0), one.quality["psnr"].value


def _points(axes: Axes, results: Findings, speed: bool) -> None:
    for one in _shown(results):
        x, y = _place(one, results, speed)
        _, low, high = one.quality["psnr"]
        colour, mark = _look(one.name)
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=colour, lw=1.0, alpha=0.6)
        axes.plot(x, y, mark, color=colour, ms=6)
    axes.set_ylabel("PSNR (dB) →")


def _speed(axes: Axes, results: Findings) -> None:
    fewer = sorted(_fewer(results), key=lambda one: one.speedup_flops or 0.0)
    xs = [one.speedup_flops or 0.0 for one in fewer]
    values = [one.quality["psnr"] for one in fewer]
    axes.plot(xs, [v.value for v in values], color=BASELINE, lw=2.2, marker="|", ms=9, label="fewer steps")
    if all(v.low is not None for v in values):
        low, high = [v.low or 0.0 for v in values], [v.high or 0.0 for v in values]
        axes.fill_between(xs, low, high, color=BASELINE, alpha=0.15, lw=0)
    _points(axes, results, speed=True)
    axes.set_xlabel("speedup in computed FLOPs (×) →")
    axes.set_title("Beside fewer steps")
    handles = [Line2D([], [], color=BASELINE, lw=2.2, label="fewer steps")]
    handles += [Line2D([], [], color=c, marker=m, ls="", label=kind) for kind, (c, m, _) in KINDS.items()]
    handles.append(Line2D([], [], color=PAIR[1], marker=PAIR[2], ls="", label=PAIR[0]))
    axes.legend(handles=handles, fontsize=8)


def _errors(axes: Axes, results: Findings) -> None:
    _points(axes, results, speed=False)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ERRORS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("error of a step that reuses (relative L2, log scale) →")
    axes.set_title("Beside the error that a reused step makes")


def _named(axes: Axes, results: Findings, speed: bool) -> None:
    shown = sorted(_shown(results), key=lambda one: -one.quality["psnr"].value)
    pair_first = sorted(shown, key=lambda one: _look(one.name) != PAIR[1:])  # its names are the longest
    labels = [Label(one.name, (_place(one, results, speed),), _look(one.name)[0]) for one in pair_first]
    points = [label.anchors[0] for label in labels]
    line = [(one.speedup_flops or 0.0, one.quality["psnr"].value) for one in _fewer(results)] if speed else []
    name_beside(axes, labels, points, [line] if line else [])

"""What one run did at each site and step, and what each step cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fastercache.analysis.plots.style import heading, new_figure, step_axis, styled
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, Branch, Kind
from fastercache.run.trace import Trace

COLOURS = {Code.COMPUTED: "#1F4E79", Code.REUSED: "#F2A541", Code.UNREACHED: "#ECECEC"}
LABELS = {
    Code.COMPUTED: "computed",
    Code.REUSED: "reused",
    Code.UNREACHED: "not reached (an outer site was reused)",
}


class TimelineInfo(NamedTuple):
    """A trace as a picture needs it.

    Attributes:
        codes: (branches, sites, T) of `Code`; sites by role, in execution order.
        sites: their names; groups: (role or kind, how many rows), in the order of the rows.
        blocks: the position of each site's block; -1 for a site of the whole denoiser.
        branches: the guidance branches.
        cost: computed FLOPs of each step over those without reuse, (T,); NaN where nothing was counted.
        policy: the policy's name. speedup: FLOPs without reuse over FLOPs computed.
    """

    codes: NDArray[np.int8]
    sites: tuple[str, ...]
    groups: tuple[tuple[str, int], ...]
    blocks: tuple[int, ...]
    branches: tuple[Branch, ...]
    cost: NDArray[np.float64]
    policy: str
    speedup: float


def timeline_info(trace: Trace) -> TimelineInfo:
    """The decisions of a run, rows grouped by role or kind."""
    order: dict[str, list[int]] = {}
    for i, site in enumerate(trace.sites):
        order.setdefault(str(site.role or site.kind), []).append(i)
    rows = [i for group in order.values() for i in group]
    full = np.asarray(trace.flops_full, dtype=np.float64)
    computed = np.asarray(trace.flops, dtype=np.float64)
    return TimelineInfo(
        codes=trace.codes[rows].transpose(1, 0, 2) if rows else np.zeros((0, 0, trace.run.count), dtype=np.int8),
        sites=tuple(trace.sites[i].name for i in rows),
        groups=tuple((name, len(group)) for name, group in order.items()),
        blocks=tuple(trace.sites[i].depth for i in rows),
        branches=trace.run.branches,
        cost=np.divide(computed, full, out=np.full_like(full, np.nan), where=full > 0),
        policy=str(trace.policy.get("policy", "policy")),
        speedup=trace.speedup_flops,
    )


def draw_timeline(info: TimelineInfo) -> Figure:
    """One panel per branch, a row per site, a column per step; on top the share of FLOPs that each step computed."""
    branches, rows, steps = info.codes.shape
    height = 0.55 + min(0.17 * max(rows, 5), 4.5)
    with styled():
        figure = new_figure(max(6.5, min(2.4 + 0.15 * steps, 14.0)), 2.6 + height * max(branches, 1))
        panels = figure.subplots(1 + branches, 1, sharex=True, squeeze=False, height_ratios=[1.1] + [height] * branches)
        top, *rest = panels[:, 0]
        draw_cost(top, info)
        for b, axes in enumerate(rest):
            draw_decisions(axes, info, b)
        step_axis(rest[-1] if rest else top, steps)
        present = [code for code in Code if (info.codes == code).any()]
        figure.legend(
            handles=[Patch(facecolor=COLOURS[code], label=LABELS[code]) for code in present],
            loc="outside lower center",
            ncols=len(present),
        )
        share = float((info.codes == Code.REUSED).mean()) if info.codes.size else 0.0
        heading(
            figure,
            f"What {info.policy} computed and reused",
            f"{rows} sites · {share:.0%} of decisions reused · speedup in computed FLOPs {info.speedup:.2f}×",
        )
    return figure


def draw_cost(axes: Axes, info: TimelineInfo) -> None:
    """The share of its FLOPs that each step computed, as bars."""
    axes.bar(np.arange(len(info.cost)), info.cost, width=0.86, color=COLOURS[Code.COMPUTED])
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("computed\nFLOPs share")
    axes.grid(axis="x", visible=False)


def draw_decisions(axes: Axes, info: TimelineInfo, branch: int) -> None:
    """The rows of one branch. A site that is alone in its group gets a taller row, so that it is seen among many."""
    rows, steps = info.codes.shape[1:]
    tall = -(-rows // 16)
    heights = np.concatenate(
        [np.full(count, tall if count == 1 else 1) for _, count in info.groups] or [np.zeros(0, int)]
    )
    edges = np.concatenate(([0], np.cumsum(heights))) - 0.5
    axes.imshow(
        np.repeat(info.codes[branch], heights, axis=0),
        cmap=ListedColormap([COLOURS[code] for code in Code]),
        norm=BoundaryNorm(np.arange(-0.5, len(Code) + 0.5), len(Code)),
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_title(f"guidance branch: {info.branches[branch]}")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.vlines(np.arange(0.5, steps - 1), edges[0], edges[-1], color="white", lw=0.7)
    if rows <= 30:
        axes.hlines(edges[1:-1], -0.5, steps - 0.5, color="white", lw=0.7)
    places, names, start = [], [], 0
    for name, count in info.groups:
        places.append((edges[start] + edges[start + count]) / 2)
        blocks = [block for block in info.blocks[start : start + count] if block >= 0]
        numbers = (
            f"\nblocks {min(blocks)}-{max(blocks)}" if len(blocks) > 1 else f"\nblock {blocks[0]}" if blocks else ""
        )
        names.append(f"{name} ×{count}{numbers}" if count > 1 else f"{name}{numbers}")
        start += count
        if start < rows:
            axes.axhline(edges[start], color="white", linewidth=3)
        if name == Kind.BRANCH and info.branches[branch] == COND:
            note = "the conditional branch has no difference to itself"
            axes.text((steps - 1) / 2, places[-1], note, ha="center", va="center", fontsize=7.5, color="#888888")
    axes.set_yticks(places, names)

"""Where the model repeats itself: how little each site's value changes from one step to a later one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastercache.analysis.measures import MEASURES
from fastercache.analysis.plots.shades import difference, formula, logarithmic, shades
from fastercache.analysis.plots.style import colour_of, heading, new_figure, prompts, step_axis, styled
from fastercache.analysis.profile import Profile
from fastercache.policies.errors import RecordingError
from fastercache.policies.vocabulary import Branch
from fastercache.policies.wording import counted


class GroupCurve(NamedTuple):
    """The sites of one role or kind.

    Attributes:
        name: the role or kind. sites: their names, in execution order. branch: the guidance branch shown.
        blocks: the position of each site's block; -1 for a site of the whole denoiser.
        values: (sites, T), the mean over prompts; NaN before the first comparison.
        mean, low, high: over the sites, (T,): their mean, least and greatest.
    """

    name: str
    sites: tuple[str, ...]
    branch: Branch
    blocks: tuple[int, ...]
    values: NDArray[np.float32]
    mean: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]


class RedundancyInfo(NamedTuple):
    """A measure at one lag for every recorded site, by role; `runs` prompts, `model` the denoiser's class."""

    groups: tuple[GroupCurve, ...]
    measure: str
    lag: int
    runs: int
    model: str


def redundancy_info(
    profile: Profile, measure: str = "rel_l1", lag: int = 1, branch: Branch | None = None, query: str | None = None
) -> RedundancyInfo:
    """How well step i − lag stands in for step i, per site and step, exact; the denominator is the norm at step i.

    Args:
        query: the sites to show, by default all that were recorded.

    Raises:
        RecordingError: for a lag that was not recorded, or a recording whose sites were never reached twice.
    """
    wanted = None if query is None else set(profile.index(query))
    groups = []
    for name, positions in profile.groups():
        sites = [profile.sites[i] for i in positions if wanted is None or i in wanted]
        if not sites:
            continue
        names = tuple(site.name for site in sites)
        joined = "|".join(names)
        per_run = profile.lag(joined, measure, lag, branch)
        values = _mean(per_run, 0)
        shown = profile.branches[profile.cells(joined, branch)[1][0]]
        low, high = _extreme(values, np.fmin), _extreme(values, np.fmax)
        groups.append(
            GroupCurve(name, names, shown, tuple(s.depth for s in sites), values, _mean(values, 0), low, high)
        )
    if not any(np.isfinite(group.values).any() for group in groups):
        raise RecordingError(f"no site was reached at two steps {lag} apart, so there is nothing to show")
    model = profile.info.model.kind if profile.info.model else "denoiser"
    return RedundancyInfo(tuple(groups), measure, lag, profile.runs, model)


def _mean(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The mean of what is there, NaN where nothing is."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(axis=axis)
    count = there.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _extreme(values: NDArray[np.float32], choose: np.ufunc) -> NDArray[np.float32]:
    result: NDArray[np.float32] = choose.reduce(values, axis=0)
    return result


def draw_redundancy(info: RedundancyInfo) -> Figure:
    """Curves by role over the steps with the range over depth as a band, and below them every site as a row."""
    measure = MEASURES[info.measure]
    before = "ᵢ₋" + ("₁₂₃₄₅₆₇₈₉"[info.lag - 1] if info.lag < 10 else "ₖ")
    label = formula(info.measure, before, "ᵢ")
    matrix = difference(info.measure, np.stack([row for group in info.groups for row in group.values]))
    with styled():
        below = min(0.14 * max(len(matrix), 8), 6.0)
        figure = new_figure(8.4, 4.7 + below)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 0.4 + below])
        for g, group in enumerate(info.groups):
            colour = colour_of(group.name, g)
            steps = np.arange(len(group.mean))
            several = f"{len(group.sites)} sites, " if len(group.sites) > 1 else ""
            mean, *band = (difference(info.measure, values) for values in (group.mean, group.low, group.high))
            top.plot(steps, mean, color=colour, label=f"{group.name} ({several}{group.branch})")
            if len(group.sites) > 1:
                top.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0)
        if logarithmic(info.measure):
            top.set_yscale("log", nonpositive="mask")
        else:
            top.set_ylim(bottom=0)
        top.set_ylabel(label)
        top.legend(ncols=min(len(info.groups), 3), loc="best")
        top.set_title("by role: mean over depth, band from least to greatest")
        scale = shades(info.measure, matrix)
        image = bottom.imshow(matrix, aspect="auto", interpolation="nearest", cmap="magma_r", norm=scale.norm)
        bottom.grid(False)
        bottom.set_title("every site, first block on top · light: little change")
        _name_rows(bottom, info.groups, below)
        step_axis(bottom, matrix.shape[1], "denoising step i")
        bar = figure.colorbar(image, ax=bottom, pad=0.01, extend=scale.extend)
        bar.set_label(label, fontsize=8)
        bar.outline.set_visible(False)
        heading(
            figure,
            f"{measure.title} to the value {counted(info.lag, 'step')} before",
            f"{info.model} · {prompts(info.runs)} · exact",
        )
    return figure


def _name_rows(axes: Axes, groups: Sequence[GroupCurve], height: float) -> None:
    """A group's name at its first row, and block numbers down the rows, as many as there is room for."""
    rows = sum(len(group.sites) for group in groups)
    every = max(1, -(-rows // int(height / 0.13)))
    places, names, start = [], [], 0
    for group in groups:
        for row, block in enumerate(group.blocks):
            if row % every and row != 0:
                continue
            number = "" if block < 0 else f"block {block}" if row == 0 else str(block)
            places.append(start + row)
            names.append(" ".join(part for part in (group.name if row == 0 else "", number) if part))
        if start:
            axes.axhline(start - 0.5, color="white", linewidth=2.5)
        start += len(group.sites)
    axes.set_yticks(places, names, fontsize=8)
    axes.tick_params(axis="y", length=0)

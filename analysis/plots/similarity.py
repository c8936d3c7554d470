"""Step x step heatmaps: how well the value of one step stands in for that of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastercache.analysis.measures import MEASURES
from fastercache.analysis.plots.shades import difference, draw_map, formula, shades
from fastercache.analysis.plots.style import heading, new_figure, prompts, styled
from fastercache.analysis.profile import Profile
from fastercache.policies.errors import MeasurementError
from fastercache.policies.vocabulary import Branch


class SimilarityInfo(NamedTuple):
    """A step x step matrix.

    Attributes:
        matrix: (T, T); row i is replaced (its norm is the denominator), column j stands in.
        measure: name of the measure. query: the sites averaged over. sites: how many. branch: the guidance branch.
        runs: prompts averaged over. exact: lags up to which values are exact. error: relative standard error of an L2
            distance beyond. model: the denoiser's class.
    """

    matrix: NDArray[np.float32]
    measure: str
    query: str
    sites: int
    branch: Branch
    runs: int
    exact: int
    error: float
    model: str


def similarity_info(
    profile: Profile, query: str, measure: str = "rel_l1", branch: Branch | None = None
) -> SimilarityInfo:
    """The matrix of a role, kind or single site, averaged over its sites and the prompts."""
    sites, branches = profile.cells(query, branch)
    return SimilarityInfo(
        matrix=profile.matrix(query, measure, branch),
        measure=measure,
        query=query,
        sites=len(sites),
        branch=profile.branches[branches[0]],
        runs=profile.runs,
        exact=profile.info.lags,
        error=profile.info.projection_error,
        model=profile.info.model.kind if profile.info.model else "denoiser",
    )


def draw_similarity(infos: SimilarityInfo | Sequence[SimilarityInfo]) -> Figure:
    """One panel per matrix on a common colour scale. Light is alike: those steps can stand in for each other.

    Raises:
        MeasurementError: if the matrices are of different measures, so that no common scale exists, or there is none.
    """
    panels = [infos] if isinstance(infos, SimilarityInfo) else list(infos)
    names = sorted({info.measure for info in panels})
    if len(names) != 1:
        raise MeasurementError(f"a figure shows matrices of one measure, found {', '.join(names) or 'none'}")
    first = panels[0]
    maps = [difference(first.measure, info.matrix) for info in panels]
    scale = shades(first.measure, np.concatenate([shown.ravel() for shown in maps]))
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    with styled():
        size = 4.2 if len(panels) == 1 else 3.1
        figure = new_figure(1.2 + size * columns, (1.1 if len(panels) > 1 else 1.45) + size * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, info, shown in zip(grid.flat, panels, maps, strict=False):
            image = draw_map(axes, shown, scale)
            count = f"{info.sites} sites" if info.sites > 1 else "1 site"
            axes.set_title(f"{info.query} ({count}, {info.branch})")
        bar = figure.colorbar(image, ax=grid[:, :].ravel().tolist(), extend=scale.extend, shrink=0.85, pad=0.015)
        bar.set_label(formula(first.measure, "ⱼ", "ᵢ"))
        bar.outline.set_visible(False)
        heading(
            figure,
            f"{MEASURES[first.measure].title} between denoising steps",
            f"{first.model} · {prompts(first.runs)} · exact up to {first.exact} steps apart, beyond that "
            f"±{first.error:.1%} (L2) · light: alike",
        )
    return figure

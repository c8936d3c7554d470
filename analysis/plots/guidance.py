"""How alike the guidance branches are over the steps, whole and by frequency band."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastercache.analysis.measures import BANDS, MEASURES, ORDER, Band, measure_of
from fastercache.analysis.plots.style import heading, new_figure, step_axis, styled
from fastercache.analysis.profile import Profile
from fastercache.policies.errors import RecordingError
from fastercache.policies.vocabulary import COND, UNCOND, Branch

BAND_COLOURS = {"whole": "#222222", "low": "#0072B2", "high": "#D55E00"}
FORMULAS = {
    "cosine": "⟨cond, {b}⟩ / (‖cond‖ ‖{b}‖)",
    "rel_l1": "mean|cond − {b}| / mean|{b}|",
    "rel_l2": "‖cond − {b}‖ / ‖{b}‖",
}


class BandCurve(NamedTuple):
    """One band: mean and sample standard deviation over prompts, (T,) each."""

    band: Band
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


class GuidanceInfo(NamedTuple):
    """Per measure the curves of the bands; `branch` is what the conditional output is compared with and divided by."""

    curves: dict[str, tuple[BandCurve, ...]]
    branch: Branch
    runs: int
    model: str


def guidance_info(
    profile: Profile, measures: tuple[str, ...] = ("cosine", "rel_l1"), branch: Branch = UNCOND
) -> GuidanceInfo:
    """The conditional output standing in for another branch's, per step.

    Bands that could not be taken (packed tokens) are left out.

    Raises:
        RecordingError: if there is no such branch, or the denoiser's output was not recorded.
    """
    place = profile.branch(branch)
    if branch == COND or profile.guidance.shape[3] == 0:
        raise RecordingError(
            "the similarity of guidance branches needs the denoiser's output of two branches: record the site "
            "'denoiser' with guidance on, and name the branch that is not the conditional one"
        )
    curves: dict[str, tuple[BandCurve, ...]] = {}
    for name in measures:
        which = ORDER.index(measure_of(name).name)
        found = []
        for b, band in enumerate(BANDS):
            values = profile.guidance[:, place, :, b, which]  # (runs, T)
            if np.isnan(values).all():
                continue
            std = values.std(axis=0, ddof=1) if profile.runs > 1 else np.zeros_like(values[0])
            found.append(BandCurve(band, values.mean(axis=0), std))
        curves[name] = tuple(found)
    model = profile.info.model.kind if profile.info.model else "denoiser"
    return GuidanceInfo(curves, branch, profile.runs, model)


def draw_guidance(info: GuidanceInfo) -> Figure:
    """One panel per measure, a curve per band with its standard deviation over prompts."""
    with styled():
        figure = new_figure(max(1.0 + 4.3 * len(info.curves), 7.2), 4.2)
        panels = figure.subplots(1, len(info.curves), squeeze=False)[0]
        for axes, (name, curves) in zip(panels, info.curves.items(), strict=True):
            for curve in curves:
                steps = np.arange(len(curve.mean))
                colour = BAND_COLOURS[curve.band]
                axes.plot(
                    steps, curve.mean, color=colour, label=f"{curve.band} band" if curve.band != "whole" else "whole"
                )
                axes.fill_between(steps, curve.mean - curve.std, curve.mean + curve.std, color=colour, alpha=0.15, lw=0)
            axes.set_title(MEASURES[name].title)
            axes.set_ylabel(FORMULAS[name].format(b=info.branch))
            if MEASURES[name].identical == 0.0:
                axes.set_ylim(bottom=0)
            step_axis(axes, len(curves[0].mean) if curves else 1)
        panels[0].legend(loc="best")
        spread = f"mean and standard deviation over {info.runs} prompts" if info.runs > 1 else "1 prompt"
        heading(
            figure,
            f"How alike the outputs of cond and {info.branch} are, whole and by frequency band",
            f"{info.model} · {spread} · low: disc of radius min(H, W) // 5 in the latent's spectrum",
        )
    return figure

"""A planned front: quality against speedup, and which steps a plan computes over what skipping each would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fastercache.analysis.plots.style import LINES, heading, new_figure, step_axis, styled
from fastercache.analysis.trajectory import Floats
from fastercache.policies.wording import counted


class FrontInfo(NamedTuple):
    """What planning found, as plain values.

    Attributes:
        predicted: (speedup, PSNR in dB) from the recording. measured: the same of fitted plans, on the search prompts.
        chosen: the plan that was asked for. prompts: how many search prompts.
        error: root mean square miss of the predictions, dB; None where too few plans were measured.
        others: further measured settings by name, each (speedup, PSNR): fewer steps, published methods.
        note: what the others were measured on, in words.
    """

    predicted: tuple[tuple[float, float], ...]
    measured: tuple[tuple[float, float], ...]
    chosen: tuple[float, float] | None
    prompts: int
    error: float | None = None
    others: tuple[tuple[str, float, float], ...] = ()
    note: str = ""


class StepsInfo(NamedTuple):
    """One plan's steps.

    Attributes:
        computed: the steps. alone: (n,) damage in the last latent, dB relative to the largest, of skipping each step
            alone while all others are computed; the first step cannot be skipped and is NaN.
        prompts: how many were recorded.
    """

    computed: tuple[int, ...]
    alone: Floats
    prompts: int


def steps_info(computed: Sequence[int], damage: Floats, prompts: int) -> StepsInfo:
    """From the damage of skipping each step alone, (n,), mean squares; entries that are not known are NaN."""
    known = np.where(damage > 0.0, damage, np.nan)
    largest = np.nanmax(known) if np.isfinite(known).any() else 1.0
    return StepsInfo(tuple(computed), 10.0 * np.log10(known / largest), prompts)


def draw_front(info: FrontInfo) -> Figure:
    """The predicted curve with the measured plans and what else was measured."""
    with styled():
        figure = new_figure(7.6, 4.8)
        axes = figure.subplots()
        if info.predicted:
            across, up = zip(*info.predicted, strict=True)
            axes.plot(across, up, color="#9A9A9A", lw=2, label="planned, predicted from the recording", zorder=1)
            if info.error is not None:
                axes.fill_between(
                    across, np.array(up) - info.error, np.array(up) + info.error, color="#9A9A9A", alpha=0.2, lw=0
                )
        if info.measured:
            axes.plot(*zip(*info.measured, strict=True), "o", color=LINES[0], ms=7, label="planned, measured", zorder=3)
        if info.chosen is not None:
            axes.plot(
                *info.chosen,
                "o",
                ms=13,
                mfc="none",
                mec=LINES[0],
                mew=1.8,
                label="the plan that was asked for",
                zorder=4,
            )
        for i, (name, speedup, quality) in enumerate(info.others):
            axes.plot(speedup, quality, "sD^v"[i % 4], color=LINES[1 + i % 5], ms=7, label=name, zorder=3)
        axes.set_xscale("log")
        ticks = [1, 1.5, 2, 3, 4, 5, 7, 10, 15, 25]
        top = max((x for x, _ in (*info.predicted, *info.measured)), default=10.0)
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(1.0, min(top * 1.05, 30.0))
        axes.set_xlabel("FLOPs speedup: uncached / computed denoiser calls →")
        axes.set_ylabel("PSNR to the uncached video (dB) →")
        axes.legend(loc="upper right")
        band = "" if info.error is None else f"band: predictions miss measured plans by {info.error:.1f} dB"
        facts = (f"measured: mean over {info.prompts} search prompts", info.note, band)
        heading(figure, "What every amount of compute would give", " · ".join(fact for fact in facts if fact))
    return figure


def draw_steps(info: StepsInfo) -> Figure:
    """Computed steps as marks over the damage of skipping each step alone."""
    steps = np.arange(len(info.alone))
    with styled():
        figure = new_figure(7.6, 3.2)
        axes = figure.subplots()
        axes.plot(steps, info.alone, color="#9A9A9A", lw=2, label="damage of skipping this step alone")
        floor = float(np.nanmin(info.alone)) - 6.0
        axes.vlines(list(info.computed), floor, floor + 4.0, color=LINES[0], lw=2.2, label="computed by the plan")
        axes.set_ylabel("dB below the worst step")
        step_axis(axes, len(steps))
        axes.legend(loc="upper right")
        recorded = counted(info.prompts, "recorded prompt")
        note = f"{len(info.computed)} of {len(info.alone)} steps · predicted from {recorded}"
        heading(figure, "Which steps the plan computes", note)
    return figure

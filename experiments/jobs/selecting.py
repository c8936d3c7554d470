"""Choosing among a search's trials by prompts that the search did not see."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import fastercache as fc
from fastercache.experiments.console import progress
from fastercache.tuner import Case, Evaluator, Record, Study


def select(study: Study, evaluator: Evaluator, cases: Sequence[Case]) -> Record:
    """The cheapest trial within the budget that is surely no worse than FasterCache on prompts it was not found by.

    The cheapest of many trials on a few prompts is partly the luckiest. So the trials that met the budget are compared
    with FasterCache prompt by prompt on other prompts, cheapest first, and the first whose mean gain in PSNR exceeds
    its standard error is taken. FasterCache itself, which met the budget too, ends the list.
    """
    with evaluator, progress() as bar:
        feasible = sorted((r for r in study.records if r.feasible), key=lambda r: r.ratio or 1.0)
        paper = next(r for r in feasible if r.policy == fc.FasterCache())
        candidates = feasible[: feasible.index(paper)]
        base = evaluator.evaluate(paper.policy, cases).values["psnr"]
        for record in bar.track(candidates, description="selecting"):
            found = evaluator.evaluate(record.policy, cases, lambda v: _hopeless(v["psnr"], base)).values["psnr"]
            if len(found) == len(cases) and surely_no_worse(found, base):
                return record
    return paper


def surely_no_worse(values: Sequence[float], base: Sequence[float]) -> bool:
    """Whether the mean of the paired differences is at least its standard error; for one pair, at least 0."""
    gains = [v - b for v, b in zip(values, base, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return statistics.fmean(gains) >= error


def _hopeless(values: Sequence[float], base: Sequence[float]) -> str | None:
    """Ends a comparison that is lost by half a dB after a few prompts."""
    gains = [v - b for v, b in zip(values, base, strict=False)]
    return "worse than FasterCache" if len(gains) >= 4 and statistics.fmean(gains) < -0.5 else None

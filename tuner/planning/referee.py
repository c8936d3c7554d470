"""Judging plans by fitted cached runs of a few prompts, in groups, so that poor plans cost little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastercache.tuner.planning.fitting import FittedRuns, Memory, Sampler, SearchRun, Steps, fit
from fastercache.tuner.planning.search import Judged

BEHIND = math.log(10.0**0.5)
"""A run is given up when its error is so much (5 dB) above the incumbent's at the same step."""
KEEPS_UP = 0.5 * math.log(10.0) / 10.0
"""A plan goes on to the next group if it is at most so much (0.5 dB) worse than the incumbent so far."""
TINY = 1e-14


class Referee:
    """Runs plans on groups of search prompts. Called with a plan and the incumbent.

    Args:
        pipe: the pipeline. runs: the search prompts. groups: indices of the prompts of each group, judged in turn.
        history: K. told: called before each group.
    """

    def __init__(
        self, pipe: Any, runs: Sequence[SearchRun], sampler: Sampler, groups: Sequence[Sequence[int]], history: int
    ) -> None:
        self.pipe, self.sampler, self.history = pipe, sampler, history
        self.groups = [[runs[i] for i in group] for group in groups]
        self._memories = [Memory() for _ in groups]
        self._courses: list[dict[Steps, FittedRuns]] = [{} for _ in groups]
        self._scores: dict[Steps, list[float]] = {}
        self.calls_per_generation = sampler.steps * sampler.relations.calls

    def __call__(self, plan: Steps, incumbent: Judged | None) -> Judged:
        scores: list[float] = []
        sizes: list[int] = []
        calls, error = 0, math.inf
        known = self._scores.get(incumbent.computed) if incumbent is not None else None
        for number, group in enumerate(self.groups):
            found = self._run(number, plan, incumbent)
            calls += found.calls
            if not found.complete:
                break
            scores.append(_level(found))
            sizes.append(len(group))
            if known is not None and number + 1 < len(self.groups):
                mine, theirs = _mean(scores, sizes), _mean(known[: number + 1], sizes)
                if mine > theirs + KEEPS_UP:
                    break
        else:
            error = _mean(scores, sizes)
        if incumbent is None or error < incumbent.error:
            self._scores[plan] = scores
            for memory in self._memories:
                memory.only(plan)
        return Judged(plan, error, calls / self.calls_per_generation)

    def _run(self, number: int, plan: Steps, incumbent: Judged | None) -> FittedRuns:
        best = self._courses[number].get(incumbent.computed) if incumbent is not None else None

        def go_on(found: FittedRuns) -> bool:
            if best is None or len(found.ends) < 3:
                return True
            usual = float(np.interp(found.ends[-1], best.ends, [_log(errors) for errors in best.errors]))
            return _log(found.errors[-1]) - usual <= BEHIND

        found = fit(
            self.pipe,
            self.groups[number],
            self.sampler,
            plan,
            history=self.history,
            memory=self._memories[number],
            go_on=go_on,
            finish=False,
        )
        if found.complete:
            self._courses[number][plan] = found
        return found


def _log(errors: Any) -> float:
    return math.log(float(np.mean(errors)) + TINY)


def _level(found: FittedRuns) -> float:
    """Mean over prompts of the logarithm of the last latent's mean squared error."""
    return float(np.mean(np.log(found.errors[-1] + TINY)))


def _mean(scores: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(s * n for s, n in zip(scores, sizes, strict=False)) / sum(sizes[: len(scores)])

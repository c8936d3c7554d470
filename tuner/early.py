"""Stops a trial before all prompts are run, once the budget is out of reach.

Certain bounds are useless for a mean of PSNR, whose range ends at 100 dB. But prompts differ in difficulty much alike
for every policy: on a decibel scale quality is about (policy effect) + (prompt effect). Finished trials tell the prompt
effects and the spread around this sum; a trial is stopped when even three spreads above its projection on every
prompt that remains would miss the budget. Its record keeps the projection, so no measurement is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastercache.analysis.metrics import metric_called
from fastercache.tuner.budget import Budget

PRIOR_SPREAD = 2.0
"""Spread in dB assumed before trials tell; it counts as much as `PRIOR_WEIGHT` residuals."""
PRIOR_WEIGHT = 6.0
SIGMAS = 3.0


class Projection:
    """Projects an unfinished trial from finished ones.

    Args:
        budget: what must be met.
        total: prompts of a whole trial.
        finished: per finished trial that reused something, its values per metric, one for each prompt.
    """

    def __init__(self, budget: Budget, total: int, finished: Sequence[Mapping[str, Sequence[float]]]) -> None:
        self.budget, self.total = budget, total
        self._effects: dict[str, np.ndarray] = {}
        self._spread: dict[str, float] = {}
        for name in budget.metrics:
            scale = metric_called(name).to_decibel
            rows = [[scale(v) for v in values[name]] for values in finished if len(values[name]) == total]
            table = np.array(rows).reshape(len(rows), total)
            inner = table - table.mean(axis=1, keepdims=True)
            effects = inner.sum(axis=0) / (len(rows) + 1.0)  # shrunk: one imagined trial without prompt effects
            residual = inner - effects
            freedom = max(len(rows) - 1, 0) * (total - 1)
            variance = (float((residual**2).sum()) + PRIOR_WEIGHT * PRIOR_SPREAD**2) / (freedom + PRIOR_WEIGHT)
            self._effects[name], self._spread[name] = effects, variance**0.5

    def expected(self, values: Mapping[str, Sequence[float]], sigmas: float = 0.0) -> dict[str, list[float]]:
        """Per metric the values on the prompts that remain, `sigmas` spreads above the projection."""
        result = {}
        for name in self.budget.metrics:
            metric, effects = metric_called(name), self._effects[name]
            known = np.array([metric.to_decibel(v) for v in values[name]])
            n = len(known)
            level = float((known - effects[:n]).mean())
            reach = sigmas * self._spread[name] * (1.0 + 1.0 / n) ** 0.5
            result[name] = [metric.from_decibel(level + float(e) + reach) for e in effects[n:]]
        return result

    def completed(self, values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """The values known, with those that remain as projected."""
        return self.budget.completed(values, self.total, self.expected(values))

    def verdict(self, values: Mapping[str, Sequence[float]]) -> str | None:
        """A reason to stop, or None while the budget may still be met."""
        seen = len(values[self.budget.metrics[0]])
        if not self.budget.can_still_be_met(values, self.total):
            return f"after {seen} of {self.total} prompts {self.budget} cannot be met any more"
        if self.budget.can_still_be_met(values, self.total, self.expected(values, SIGMAS)):
            return None
        projected = self.budget.describe(self.completed(values))
        return f"after {seen} of {self.total} prompts {projected} is projected, over {SIGMAS:g} sigma off {self.budget}"

"""How well a step's value follows from earlier ones, from recorded inner products and without a run.

The squared error of any combination of recorded values is `c' G c`, G their Gram matrix. So one recording tells what
each predictor would have made of each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastercache.analysis.least_squares import ridge
from fastercache.policies.base import Hold, Now, Past, Predictor
from fastercache.policies.notebook import Framed
from fastercache.policies.predictors.adams_bashforth import AdamsBashforth
from fastercache.policies.predictors.chebyshev import Chebyshev
from fastercache.policies.predictors.forecasts import AverageVelocity, FoCaForecast, Hermite
from fastercache.policies.predictors.history import Taylor
from fastercache.policies.vocabulary import Step

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

HISTORY = 5
"""How many earlier values a fitted combination takes at the most."""
RIDGE = 1e-10
"""Added to the diagonal of the normal equations of unit columns."""


def fitted_errors(gram: Floats, history: int = HISTORY) -> Floats:
    """What the best combination of the last values up to step j leaves of step i, for all pairs: (T, T).

    Args:
        gram: (T, T), inner products of a site's values at all steps.
        history: K, how many values are combined: those of steps j, j - 1, .. j - K + 1.

    Returns:
        Row i, column j < i: min_w ||F_i - sum_p w_p F_{j-p}|| / ||F_i||, fitted on the same recording; NaN elsewhere
        and where the recording holds none.
    """
    count = len(gram)
    found = np.full((count, count), np.nan)
    for j in range(count - 1):
        past = np.arange(j, max(j - history, -1), -1)
        later = np.arange(j + 1, count)
        found[later, j] = np.sqrt(left(gram, past, later))
    return found


def left(gram: Floats, past: Ints, wanted: Ints) -> Floats:
    """Squared error of the best combination of `past` at each of `wanted`, relative to its square: (len(wanted),)."""
    weights = fitted_weights(gram, past, wanted)
    size = gram[wanted, wanted]
    square = size - 2.0 * np.einsum("pw,pw->w", weights, gram[np.ix_(past, wanted)])
    square += np.einsum("pw,pq,qw->w", weights, gram[np.ix_(past, past)], weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative: Floats = np.where(size > 0.0, np.maximum(square, 0.0) / size, np.where(np.isnan(size), np.nan, 0.0))
    return relative


def fitted_weights(gram: Floats, past: Ints, wanted: Ints) -> Floats:
    """The weights of that combination, (len(past), len(wanted)); NaN where a value was not recorded.

    The newest value and the differences of the older ones are the columns of the fit, scaled to unit norm.
    """
    change = np.eye(len(past))
    for p in range(1, len(past)):
        change[p, p - 1], change[p, p] = 1.0, -1.0
    products = change @ gram[np.ix_(past, past)] @ change.T
    right = change @ gram[np.ix_(past, wanted)]
    if not np.isfinite(products).all():
        return np.full((len(past), len(wanted)), np.nan)
    weights: Floats = change.T @ ridge(products, right, RIDGE)
    return weights


PREDICTORS: dict[str, Predictor] = {
    "hold": Hold(),
    "Taylor 1": Taylor(order=1),
    "Taylor 2": Taylor(order=2),
    "Hermite": Hermite(),
    "FoCa": FoCaForecast(),
    "Chebyshev": Chebyshev(),
    "Adams-Bashforth": AdamsBashforth(),
    "average velocity": AverageVelocity(),
}
"""The fixed predictors of a league, at their defaults."""
FITTED = "fitted"
INTERVALS = (2, 3, 4, 5, 6)


@dataclass(frozen=True, repr=False)
class Predictability(Framed):
    """What each predictor leaves of each skipped step, where every `interval`-th step is computed.

    Attributes:
        predictors: their names, `fitted` the last. intervals: of the schedules.
        errors: (predictors, intervals, T), ||F - prediction|| / ||F||, root mean square over runs and sites; NaN at
            computed steps.
        runs: recorded prompts. held_out: whether the fitted weights of each run come from the other runs alone.
    """

    predictors: tuple[str, ...]
    intervals: tuple[int, ...]
    errors: Floats
    runs: int
    held_out: bool

    @property
    def means(self) -> Floats:
        """Root mean square over the skipped steps, (predictors, intervals)."""
        found: Floats = np.sqrt(np.nanmean(self.errors**2, axis=2))
        return found

    def league(self, interval: int = 3) -> list[tuple[str, float]]:
        """Predictors and their error at one interval, the best first."""
        column = self.means[:, self.intervals.index(interval)]
        return sorted(zip(self.predictors, column.tolist(), strict=True), key=lambda row: row[1])

    def rows(self) -> list[dict[str, object]]:
        """One row for each predictor and interval: the error over the skipped steps."""
        return [
            {"predictor": name, "interval": interval, "error": float(error)}
            for name, errors in zip(self.predictors, self.means, strict=True)
            for interval, error in zip(self.intervals, errors, strict=True)
        ]

    def _facts(self) -> dict[str, object]:
        middle = self.intervals[len(self.intervals) // 2]
        table = {name: float(f"{error:.3g}") for name, error in self.league(middle)}
        return {f"errors at interval {middle}": table, "runs": self.runs, "held out": self.held_out}


def predictability(
    grams: Floats,
    steps: Sequence[Step],
    *,
    predictors: Mapping[str, Predictor] | None = None,
    intervals: Sequence[int] = INTERVALS,
    starts: Sequence[int] = (0,),
) -> Predictability:
    """The errors that predictors would have made, from inner products.

    Args:
        grams: (R, T, T), one matrix of inner products for each run.
        steps: the T steps. predictors: whose predictions are linear in past values; by default `PREDICTORS`.
        intervals: every so many-th step is computed. starts: first step of each denoiser, computed too; values of
            another denoiser are no history.
    """
    chosen = PREDICTORS if predictors is None else predictors
    names = (*chosen, FITTED)
    whole = grams.mean(axis=0)
    found = np.full((len(names), len(intervals), len(steps)), np.nan)
    for column, interval in enumerate(intervals):
        computed = [k for k in range(len(steps)) if (k - max(s for s in starts if s <= k)) % interval == 0]
        for k in sorted(set(range(len(steps))) - set(computed)):
            begun = max(start for start in starts if start <= k)
            past = [s for s in computed if begun <= s < k]
            for row, predictor in enumerate(chosen.values()):
                mixed = np.zeros(len(steps))
                mixed[past] = weights_at(predictor, [steps[s] for s in past], steps[k])
                mixed[k] -= 1.0
                found[row, column, k] = mixed @ whole @ mixed / whole[k, k]
            found[-1, column, k] = _fitted_error(grams, past[: -HISTORY - 1 : -1], k)
    errors: Floats = np.sqrt(np.maximum(found, 0.0))
    return Predictability(names, tuple(intervals), errors, len(grams), len(grams) > 1)


def weights_at(predictor: Predictor, past: Sequence[Step], now: Step) -> Floats:
    """The weights of a linear predictor at a step, read off unit vectors: (len(past),), in the order of `past`."""
    known = past[-predictor.depth :]
    units = torch.eye(len(known), dtype=torch.float64)
    mixed = predictor.predict([Past(step, units[p]) for p, step in enumerate(known)], Now(now))
    weights: Floats = np.zeros(len(past))
    weights[len(past) - len(known) :] = mixed.numpy()
    return weights


def _fitted_error(grams: Floats, past: Sequence[int], k: int) -> float:
    """Relative squared error of the best combination; with several runs, fitted on all but the one it is judged on."""
    rows, wanted = np.array(past), np.array([k])
    if len(grams) == 1:
        return float(left(grams[0], rows, wanted)[0])
    total = 0.0
    for run, gram in enumerate(grams):
        weights = fitted_weights(np.delete(grams, run, axis=0).mean(axis=0), rows, wanted)[:, 0]
        mixed = np.concatenate([weights, [-1.0]])
        places = [*past, k]
        total += float(mixed @ gram[np.ix_(places, places)] @ mixed)
    return total / float(grams[:, k, k].sum())

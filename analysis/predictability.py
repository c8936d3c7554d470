"""How well a step's value follows from earlier ones, from recorded inner products and without a run.

The squared error of any combination of recorded values is `c' G c`, G their Gram matrix. So one recording tells what
each predictor would have made of each step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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


def left(gram: Floats, past: NDArray[np.intp], wanted: NDArray[np.intp]) -> Floats:
    """Squared error of the best combination of `past` at each of `wanted`, relative to its square: (len(wanted),)."""
    weights = fitted_weights(gram, past, wanted)
    size = gram[wanted, wanted]
    square = size - 2.0 * np.einsum("pw,pw->w", weights, gram[np.ix_(past, wanted)])
    square += np.einsum("pw,pq,qw->w", weights, gram[np.ix_(past, past)], weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative: Floats = np.where(size > 0.0, np.maximum(square, 0.0) / size, np.where(np.isnan(size), np.nan, 0.0))
    return relative


def fitted_weights(gram: Floats, past: NDArray[np.intp], wanted: NDArray[np.intp]) -> Floats:
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
    norms = np.sqrt(np.maximum(np.diagonal(products), 1e-300))
    normal = products / np.outer(norms, norms) + RIDGE * np.eye(len(past))
    weights: Floats = change.T @ (np.linalg.solve(normal, right / norms[:, None]) / norms[:, None])
    return weights

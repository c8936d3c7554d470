"""Least squares with a ridge, from inner products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ridge(products: Floats, right: Floats, strength: float) -> Floats:
    """Weights of the features whose combination is nearest to the targets: `w = v / n` with
    `(G / (n n^T) + strength I) v = r / n`, where `n` are the features' norms, so that the ridge is the same for all.

    Args:
        products: G, the features' inner products (f, f).
        right: r, their inner products with one target (f,) or with several (f, m).
        strength: of the ridge, no unit.

    Returns:
        The weights, shaped as `right`.
    """
    norms = np.sqrt(np.maximum(np.diagonal(products), 1e-300))
    normal = products / np.outer(norms, norms) + strength * np.eye(len(products))
    scale = norms if right.ndim == 1 else norms[:, None]
    weights: Floats = np.linalg.solve(normal, right / scale) / scale
    return weights

"""A small Gaussian process for the quality margin, fitted by maximum marginal likelihood over a grid.

Tuning sees a few dozen points in twenty dimensions, too few to learn a length scale for each. So dimensions come in
groups that share one, and a linear kernel beside the Matern one carries what each dimension does on its own.
Rasmussen and Williams 2006, chapters 2 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

Array = NDArray[np.float64]
SCALES = (0.5, 1.0, 2.0, 4.0)
LINEAR = (0.0, 0.3, 0.7)
NOISE = (0.001, 0.01, 0.05)


@dataclass(frozen=True)
class Surrogate:
    """Posterior over margins. `fit` makes one, `predict` asks it.

    Attributes:
        centre, spread: per dimension, what inputs are standardised by.
        weights: per dimension, one over its group's length scale.
        linear: share of the prior variance that the linear kernel has.
        noise: observation variance over prior variance.
    """

    centre: Array
    spread: Array
    weights: Array
    linear: float
    noise: float
    mean: float
    variance: float
    points: Array
    factor: Array
    alpha: Array

    @classmethod
    def fit(cls, x: Array, y: Array, groups: Sequence[int]) -> Surrogate:
        """Fit to points x (n, d) and margins y (n,); `groups` tells which dimensions share a length scale."""
        centre, spread = x.mean(0), x.std(0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        scaled = (x - centre) / spread
        ids = np.unique(np.asarray(groups))
        best: tuple[float, Surrogate] | None = None
        for scales in product(SCALES, repeat=len(ids)):
            weights = np.zeros(x.shape[1])
            for group, scale in zip(ids, scales, strict=True):
                members = np.asarray(groups) == group
                weights[members] = 1.0 / (scale * np.sqrt(members.sum()))
            points = scaled * weights
            for linear, noise in product(LINEAR, NOISE):
                k = _kernel(points, points, linear)
                lower, _ = cho_factor(k + noise * np.eye(len(y)), lower=True)
                ones = np.ones(len(y))
                # The mean is profiled out by generalised least squares, the variance in closed form.
                k_ones, k_y = cho_solve((lower, True), ones), cho_solve((lower, True), y)
                mean = float(ones @ k_y / (ones @ k_ones))
                alpha = k_y - mean * k_ones
                variance = max(float((y - mean) @ alpha) / len(y), 1e-6)
                evidence = -0.5 * len(y) * np.log(variance) - float(np.log(np.diag(lower)).sum())
                if best is None or evidence > best[0]:
                    model = cls(centre, spread, weights, linear, noise, mean, variance, points, lower, alpha)
                    best = (evidence, model)
        assert best is not None
        return best[1]

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the margin at x (m, d), each (m,)."""
        points = (x - self.centre) / self.spread * self.weights
        cross = _kernel(points, self.points, self.linear)  # (m, n)
        mean = self.mean + cross @ self.alpha
        half = solve_triangular(np.tril(self.factor), cross.T, lower=True)  # (n, m)
        prior = 1.0 - self.linear + self.linear * (points**2).sum(1)
        variance = self.variance * np.maximum(prior - (half**2).sum(0), 1e-6)
        return mean, np.sqrt(variance)


def _kernel(a: Array, b: Array, linear: float) -> Array:
    """(1 - l) Matern-5/2 + l a.b; inputs scaled already."""
    distance = np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T, 0.0))
    r = np.sqrt(5.0) * distance
    matern = (1.0 + r + r**2 / 3.0) * np.exp(-r)
    result: Array = (1.0 - linear) * matern + linear * (a @ b.T)
    return result

"""A ridge on features of unit norm is least squares with a row more for each feature."""

from __future__ import annotations

import numpy as np
import pytest

from fastercache.analysis.least_squares import ridge


@pytest.mark.parametrize("strength", [1e-10, 0.3])
def test_it_is_least_squares_with_a_row_more_for_each_feature(strength: float) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3)) * [1e-3, 1.0, 1e4]  # columns of unlike size
    targets = rng.normal(size=(40, 2))
    norms = np.linalg.norm(features, axis=0)
    rows = np.vstack([features, np.sqrt(strength) * np.diag(norms)])
    expected = np.linalg.lstsq(rows, np.vstack([targets, np.zeros((3, 2))]), rcond=None)[0]
    found = ridge(features.T @ features, features.T @ targets, strength)
    np.testing.assert_allclose(found * norms[:, None], expected * norms[:, None], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ridge(features.T @ features, features.T @ targets[:, 0], strength), found[:, 0])

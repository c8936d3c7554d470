"""Statistics over runs by hand: means over the runs that reached a place, and the spread of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastercache.analysis.aggregate import RunSums
from fastercache.analysis.tape import TapeStatistics
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Role, Run, Site

SITES = tuple(Site(name, Kind.MODULE, Role.SPATIAL, n, (n, n + 1)) for n, name in enumerate("ab"))
STEPS = 3


def tape(level: float, missing: Sequence[int] = (), check: Any = ((),), tokens: Sequence[float] = ()) -> TapeStatistics:
    """Every number of it is of this level, or a multiple; NaN at steps that were not reached."""
    step = np.full(STEPS, level)
    step[list(missing)] = np.nan
    square = np.full((STEPS, STEPS), 10 * level)
    square[list(missing), :] = square[:, list(missing)] = np.nan
    lags = np.stack([step, 2 * step], axis=1)
    return TapeStatistics(
        l1=step, rms=2 * step, lag_l1=lags, lag_rms=3 * lags, gram=square,
        matrices=np.stack([square, 2 * square, 3 * square], axis=-1),
        check=np.asarray(check, dtype=np.float64).reshape(-1, 2), token_check=np.asarray(tokens, dtype=np.float64),
    )  # fmt: skip


def test_means_are_over_the_runs_that_reached_a_place() -> None:
    """Site a in three runs, of which the last lacks step 2; b's second branch in the second run only."""
    sums = RunSums(SITES, Run.of(STEPS))
    sums.add({("a", COND): tape(1.0), ("a", UNCOND): tape(7.0)}, None)
    sums.add({("a", COND): tape(2.0), ("b", UNCOND): tape(5.0)}, None)
    sums.add({("a", COND): tape(6.0, missing=[2])}, None)
    assert sums.runs == 3
    found = sums.arrays()
    expected = np.full((STEPS, STEPS), 30.0)
    expected[2, :] = expected[:, 2] = 15.0
    np.testing.assert_allclose(found["gram"][0, 0], expected)
    np.testing.assert_allclose(found["gram"][0, 1], 70.0)
    np.testing.assert_allclose(found["gram"][1, 1], 50.0)
    assert np.isnan(found["gram"][1, 0]).all()
    for m in range(3):
        np.testing.assert_allclose(found["matrix_mean"][0, 0, :, :, m], (m + 1) * expected, rtol=1e-6)
        spread = np.full((STEPS, STEPS), np.std([10.0, 20.0, 60.0], ddof=1))
        spread[2, :] = spread[:, 2] = np.std([10.0, 20.0], ddof=1)
        np.testing.assert_allclose(found["matrix_std"][0, 0, :, :, m], (m + 1) * spread, rtol=1e-5)
    assert (found["matrix_std"][0, 1] == 0.0).all(), "of a single run there is no spread"
    assert np.isnan(found["matrix_std"][1, 0]).all() and np.isnan(found["matrix_mean"][1, 0]).all()


def test_small_figures_are_kept_by_run() -> None:
    sums = RunSums(SITES, Run.of(STEPS))
    guidance = np.full((2, STEPS, 3, 3), 0.5)
    sums.add({("b", UNCOND): tape(5.0)}, guidance)
    sums.add({("a", COND): tape(2.0, missing=[0])}, 2 * guidance)
    found = sums.arrays()
    assert found["l1"].shape == (2, 2, 2, STEPS) and found["lag_rms"].shape == (2, 2, 2, STEPS, 2)
    np.testing.assert_array_equal(found["l1"][0, 1, 1], [5.0] * 3)
    np.testing.assert_array_equal(found["rms"][1, 0, 0], [np.nan, 4.0, 4.0])
    np.testing.assert_array_equal(found["lag_l1"][1, 0, 0, 1], [2.0, 4.0])
    np.testing.assert_array_equal(found["lag_rms"][0, 1, 1, 2], [15.0, 30.0])
    assert np.isnan(found["l1"][0, 0]).all() and np.isnan(found["lag_l1"][1, 1]).all(), "nothing of another run"
    np.testing.assert_array_equal(found["guidance"], np.stack([guidance, 2 * guidance]))
    without = RunSums(SITES, Run.of(STEPS, (COND,)))
    without.add({("a", COND): tape(1.0)}, None)
    assert without.arrays()["guidance"].shape == (1, 1, STEPS, 0, 0)


def test_errors_of_estimates_are_root_mean_squares_over_all_runs() -> None:
    sums = RunSums(SITES, Run.of(STEPS))
    assert sums.check() is None and sums.token_check() is None
    sums.add({("a", COND): tape(1.0), ("b", COND): tape(1.0, check=[[0.1, 0.2]], tokens=[0.3])}, None)
    sums.add({("a", COND): tape(1.0, check=[[0.3, -0.4], [-0.2, 0.0]], tokens=[-0.1, 0.2, 0.0, 0.4])}, None)
    assert sums.check() == pytest.approx(
        {"rel_l1": np.sqrt((0.01 + 0.09 + 0.04) / 3), "rel_l2": np.sqrt((0.04 + 0.16) / 3)}
    )
    assert sums.token_check() == pytest.approx(np.sqrt((0.09 + 0.01 + 0.04 + 0.0 + 0.16) / 5))

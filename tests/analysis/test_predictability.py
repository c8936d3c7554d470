"""Errors of predictors from inner products alone, beside the predictions themselves on random values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastercache.analysis.predictability import (
    FITTED,
    HISTORY,
    PREDICTORS,
    Predictability,
    fitted_errors,
    predictability,
)
from fastercache.policies.base import Now, Past
from fastercache.policies.vocabulary import Step

T, RUNS = 14, 3
STEPS = [Step(k, T, 1000.0 - 70.0 * k) for k in range(T)]
VALUES = np.random.default_rng(0).normal(size=(RUNS, T, 30)).cumsum(axis=1).cumsum(axis=1)
GRAMS = np.einsum("rid,rjd->rij", VALUES, VALUES)


@pytest.fixture(scope="module")
def found() -> Predictability:
    return predictability(GRAMS, STEPS, intervals=(2, 4))


@pytest.mark.parametrize("name", list(PREDICTORS))
def test_a_fixed_predictor_makes_these_errors(found: Predictability, name: str) -> None:
    predictor = PREDICTORS[name]
    for column, interval in enumerate((2, 4)):
        for k in range(T):
            past = [s for s in range(0, k, interval)][-predictor.depth :]
            got = found.errors[found.predictors.index(name), column, k]
            if k % interval == 0:
                assert np.isnan(got)
                continue
            made = [
                predictor.predict([Past(STEPS[s], torch.from_numpy(run[s])) for s in past], Now(STEPS[k])).numpy()
                for run in VALUES
            ]
            expected = np.sqrt(((np.array(made) - VALUES[:, k]) ** 2).sum() / (VALUES[:, k] ** 2).sum())
            assert got == pytest.approx(expected, rel=1e-6), (interval, k)


def test_fitted_weights_come_from_the_other_runs(found: Predictability) -> None:
    assert found.held_out and found.runs == RUNS
    k, past = 11, [10, 8, 6, 4, 2]
    error = 0.0
    for run in range(RUNS):
        others = [r for r in range(RUNS) if r != run]
        columns = np.concatenate([VALUES[r, past].T for r in others])
        weights = np.linalg.lstsq(columns, np.concatenate([VALUES[r, k] for r in others]), rcond=None)[0]
        error += np.sum((VALUES[run, past].T @ weights - VALUES[run, k]) ** 2)
    expected = np.sqrt(error / (VALUES[:, k] ** 2).sum())
    assert found.errors[found.predictors.index(FITTED), 0, k] == pytest.approx(expected, rel=1e-5)


def test_the_league_is_the_root_mean_square_over_skipped_steps(found: Predictability) -> None:
    league = found.league(2)
    assert [error for _, error in league] == sorted(error for _, error in league)
    row = found.errors[found.predictors.index("hold"), 0, 1::2]
    assert dict(league)["hold"] == pytest.approx(np.sqrt(np.mean(row**2)))
    assert set(dict(league)) == {*PREDICTORS, FITTED}


def test_what_a_fit_leaves_for_every_pair_of_steps() -> None:
    errors = fitted_errors(GRAMS[0])
    for i, j in [(1, 0), (9, 3), (13, 12)]:
        columns = VALUES[0, max(j - HISTORY + 1, 0) : j + 1].T
        left = VALUES[0, i] - columns @ np.linalg.lstsq(columns, VALUES[0, i], rcond=None)[0]
        assert errors[i, j] == pytest.approx(np.linalg.norm(left) / np.linalg.norm(VALUES[0, i]), rel=1e-5)
    assert np.isnan(errors[np.triu_indices(T)]).all()
    assert np.isnan(fitted_errors(np.full((4, 4), np.nan))).all()


def test_two_denoisers_share_no_history() -> None:
    found = predictability(GRAMS, STEPS, intervals=(3,), starts=(0, 7))
    hold = found.errors[found.predictors.index("hold"), 0]
    assert np.flatnonzero(np.isnan(hold)).tolist() == [0, 3, 6, 7, 10, 13]
    expected = np.sqrt(((VALUES[:, 7] - VALUES[:, 8]) ** 2).sum() / (VALUES[:, 8] ** 2).sum())
    assert hold[8] == pytest.approx(expected)

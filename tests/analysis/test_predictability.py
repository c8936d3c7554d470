"""Errors of predictors from inner products alone, beside the predictions themselves on random values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastercache.analysis import predictability as module
from fastercache.analysis.predictability import (
    FITTED,
    HISTORY,
    PREDICTORS,
    Predictability,
    fitted_errors,
    fitted_weights,
    left,
    predictability,
    weights_at,
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


def test_the_ridge_is_on_the_newest_value_and_the_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RIDGE", 0.3)
    past, wanted = np.array([9, 8, 6]), np.array([10, 12])
    values = VALUES[0]
    columns = np.stack([values[9], values[9] - values[8], values[8] - values[6]], axis=1)
    rows = np.vstack([columns, np.sqrt(0.3) * np.diag(np.linalg.norm(columns, axis=0))])
    targets = np.vstack([values[wanted].T, np.zeros((3, 2))])
    solved = np.linalg.lstsq(rows, targets, rcond=None)[0]
    expected = np.stack([solved[0] + solved[1], solved[2] - solved[1], -solved[2]])
    np.testing.assert_allclose(fitted_weights(GRAMS[0], past, wanted), expected, rtol=1e-8)
    error = np.sum((values[past].T @ expected - values[wanted].T) ** 2, axis=0) / np.sum(values[wanted] ** 2, axis=1)
    np.testing.assert_allclose(left(GRAMS[0], past, wanted), error, rtol=1e-8)


def test_of_a_value_of_zero_nothing_is_left_and_of_an_unknown_one_nothing_is_known() -> None:
    values = VALUES[0].copy()
    values[5] = 0.0
    gram = values @ values.T
    assert left(gram, np.array([2, 1]), np.array([5, 4]))[0] == 0.0
    errors = fitted_errors(gram, history=2)
    assert (errors[5, :5] == 0.0).all()
    columns = values[[6, 7]].T
    rest = values[9] - columns @ np.linalg.lstsq(columns, values[9], rcond=None)[0]
    assert errors[9, 7] == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(values[9]), rel=1e-6)
    gram[5], gram[:, 5] = np.nan, np.nan
    errors = fitted_errors(gram, history=2)
    assert np.isnan(errors[5]).all() and np.isnan(errors[:, [5, 6]]).all() and np.isfinite(errors[8, [4, 7]]).all()


def test_one_recorded_run_is_judged_on_itself() -> None:
    found = predictability(GRAMS[:1], STEPS, intervals=(2,))
    assert not found.held_out and found.runs == 1 and found.predictors == (*PREDICTORS, FITTED)
    k, past = 13, [12, 10, 8, 6, 4]
    columns = VALUES[0, past].T
    rest = VALUES[0, k] - columns @ np.linalg.lstsq(columns, VALUES[0, k], rcond=None)[0]
    expected = np.linalg.norm(rest) / np.linalg.norm(VALUES[0, k])
    assert found.errors[-1, 0, k] == pytest.approx(expected, rel=1e-4)


def test_rows_and_what_is_said_of_it(found: Predictability) -> None:
    whole = predictability(GRAMS, STEPS)
    assert whole.intervals == (2, 3, 4, 5, 6)
    assert whole.league() == whole.league(3) != whole.league(2)
    facts = whole._facts()
    assert facts == {
        "errors at interval 4": {name: float(f"{error:.3g}") for name, error in whole.league(4)},
        "runs": RUNS,
        "held out": True,
    }
    names = [*PREDICTORS, FITTED]
    assert [(row["predictor"], row["interval"]) for row in found.rows()] == [(n, i) for n in names for i in (2, 4)]
    for row in found.rows():
        assert row["error"] == dict(found.league(int(str(row["interval"]))))[str(row["predictor"])]


def test_weights_of_a_predictor_are_of_the_last_values_it_looks_at() -> None:
    """Holding takes the newest, the line through two the last two: (1 + d) F_s - d F_r."""
    past = [STEPS[0], STEPS[2], STEPS[4]]
    np.testing.assert_allclose(weights_at(PREDICTORS["hold"], past, STEPS[5]), [0.0, 0.0, 1.0])
    np.testing.assert_allclose(weights_at(PREDICTORS["Taylor 1"], past, STEPS[5]), [0.0, -0.5, 1.5])

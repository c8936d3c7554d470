"""Chebyshev ridge, Adams-Bashforth and exponential forecasts against a few independent lines each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastercache.policies import (
    AdamsBashforth,
    Chebyshev,
    Exponential,
    Linear,
    Now,
    Past,
    Predictor,
    Run,
    Taylor,
    dump,
)
from fastercache.policies.registry import load_predictor

COUNT = 30
STEPS = Run.of(COUNT).steps
RNG = np.random.default_rng(1)
Array = NDArray[np.float64]


def past(indices: list[int], values: list[Array], dtype: torch.dtype = torch.float64) -> list[Past]:
    return [Past(STEPS[i], torch.from_numpy(v).to(dtype)) for i, v in zip(indices, values, strict=True)]


def predict(predictor: Predictor, indices: list[int], arrays: list[Array], step: int) -> Array:
    return predictor.predict(past(indices, arrays), Now(STEPS[step])).numpy()


def values(n: int) -> list[Array]:
    return [RNG.normal(size=(2, 3)) for _ in range(n)]


# -- Adams-Bashforth ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order, weights", [(1, [1]), (2, [2, -1]), (3, [3, -3, 1]), (5, [5, -10, 10, -5, 1])])
def test_adams_bashforth_has_binomial_weights_one_step_ahead(order: int, weights: list[int]) -> None:
    arrays = values(6)
    expected = sum(w * array for w, array in zip(weights, arrays[::-1], strict=False))
    np.testing.assert_allclose(
        predict(AdamsBashforth(order=order), [2, 3, 4, 5, 6, 7], arrays, 8), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_adams_bashforth_continues_a_polynomial_over_uneven_gaps(order: int) -> None:
    steps = [1, 2, 5, 9, 11]
    curve = np.polynomial.Polynomial(RNG.normal(size=order))
    got = predict(AdamsBashforth(order=order), steps, [np.array([curve(float(s))]) for s in steps], 14)
    np.testing.assert_allclose(got, [curve(14.0)], rtol=1e-9)


def test_adams_bashforth_lowers_its_degree_while_few_values_are_known() -> None:
    b, a = values(2)
    np.testing.assert_allclose(
        predict(AdamsBashforth(order=4), [3, 6], [b, a], 8), predict(Linear(), [3, 6], [b, a], 8), rtol=1e-12
    )


# -- Chebyshev ---------------------------------------------------------------------------------------------------------
def test_chebyshev_is_ridge_regression_on_the_cosines() -> None:
    steps, t = [0, 1, 2, 4, 7, 11], 14
    arrays = values(6)

    def row(step: int) -> Array:
        angle = np.arccos(2 * step / COUNT - 1)
        return np.cos(np.arange(4) * angle)  # T_m(cos a) = cos(m a)

    stacked = np.stack([array.reshape(-1) for array in arrays])
    # Ridge regression is ordinary least squares with sqrt(lambda) I appended.
    x = np.vstack([np.stack([row(s) for s in steps]), np.sqrt(0.2) * np.eye(4)])
    y = np.vstack([stacked, np.zeros((4, stacked.shape[1]))])
    polynomial = (row(t) @ np.linalg.lstsq(x, y, rcond=None)[0]).reshape(2, 3)
    line = arrays[-1] + (arrays[-1] - arrays[-2]) * (t - 11) / (11 - 7)
    got = predict(Chebyshev(degree=3, ridge=0.2, blend=0.7), steps, arrays, t)
    np.testing.assert_allclose(got, 0.7 * polynomial + 0.3 * line, rtol=1e-9)


def test_chebyshev_without_polynomial_is_the_line_and_with_one_value_holds() -> None:
    b, a = values(2)
    np.testing.assert_allclose(
        predict(Chebyshev(blend=0.0), [3, 5], [b, a], 8), predict(Linear(), [3, 5], [b, a], 8), rtol=1e-12
    )
    np.testing.assert_array_equal(predict(Chebyshev(), [3], [a], 8), a)


def test_chebyshev_sees_its_history_and_no_more() -> None:
    arrays = values(6)
    short = Chebyshev(history=4)
    assert short.depth == 4
    whole = predict(short, [0, 2, 3, 5, 8, 9], arrays, 11)
    np.testing.assert_array_equal(whole, predict(short, [3, 5, 8, 9], arrays[2:], 11))
    assert not np.allclose(whole, predict(Chebyshev(), [0, 2, 3, 5, 8, 9], arrays, 11))


# -- Exponential -------------------------------------------------------------------------------------------------------
def swings(step: float, width: int = 40) -> Array:
    """Two rows, each a decay and a damped oscillation of its own: what the exponentials are exact on."""
    rng = np.random.default_rng(7)
    out = []
    for decay, damping, turn in ((0.97, 0.93, 0.3), (0.9, 0.98, 0.5)):
        a, b, c = rng.normal(size=(3, width))
        out.append(a * decay**step + damping**step * (b * np.cos(turn * step) + c * np.sin(turn * step)))
    return np.stack(out)


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 41])
def test_exponential_of_values_larger_than_a_chunk_is_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [2, 5, 8, 11, 14]
    arrays = [swings(s) for s in steps]
    whole = predict(Exponential(), steps, arrays, 16)
    monkeypatch.setattr("fastercache.policies.predictors.exponential.CHUNK", chunk)
    np.testing.assert_allclose(predict(Exponential(), steps, arrays, 16), whole, atol=1e-6)
    np.testing.assert_allclose(whole, swings(16), atol=1e-5)


def test_exponential_takes_a_value_of_one_axis_as_one_row() -> None:
    """The rows of a batch have exponentials of their own; the entries of one row share theirs."""
    arrays = [RNG.normal(size=(1, 5)) for _ in range(6)]
    steps = [1, 3, 5, 7, 9, 11]
    whole = predict(Exponential(), steps, arrays, 12)
    flat = predict(Exponential(), steps, [array[0] for array in arrays], 12)
    np.testing.assert_array_equal(flat, whole[0])
    entries = predict(Exponential(), steps, [array.T.copy() for array in arrays], 12)
    assert np.abs(entries[:, 0] - flat).max() > 1e-3


@pytest.mark.parametrize("step", [15, 16, 17])
def test_exponential_continues_decays_and_oscillations_exactly(step: int) -> None:
    steps = [2, 5, 8, 11, 14]
    arrays = [swings(s) for s in steps]
    got = predict(Exponential(), steps, arrays, step)
    np.testing.assert_allclose(got, swings(step), atol=1e-5)
    assert np.abs(predict(Taylor(order=1), steps, arrays, step) - swings(step)).max() > 0.05


def test_exponential_is_dynamic_mode_decomposition_of_the_snapshots() -> None:
    """Against the definition with explicit matrices, on values that no few exponentials fit."""
    steps, t = [4, 6, 8, 10, 12], 15
    arrays = [RNG.normal(size=(2, 20)) for _ in steps]
    for row, got in enumerate(predict(Exponential(), steps, arrays, t)):
        y = np.stack([array[row] for array in arrays], axis=1)  # (20, 5)
        operator = y[:, 1:] @ np.linalg.pinv(y[:, :-1])
        eigenvalues, vectors = np.linalg.eig(operator)
        kept = np.argsort(-np.abs(eigenvalues))[:4]
        b = np.linalg.lstsq(vectors[:, kept], y[:, -1].astype(complex), rcond=None)[0]
        expected = (vectors[:, kept] @ (eigenvalues[kept] ** ((t - 12) / 2) * b)).real
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_exponential_uses_only_the_values_at_equal_distances() -> None:
    steps = [0, 1, 2, 5, 8, 11]
    arrays = [RNG.normal(size=(1, 9)) for _ in steps]
    got = predict(Exponential(), steps, arrays, 12)
    np.testing.assert_array_equal(got, predict(Exponential(), steps[2:], arrays[2:], 12))


def test_exponential_is_taylor_while_too_few_values_are_evenly_spaced() -> None:
    arrays = values(5)
    for steps in ([0, 1, 2], [0, 1, 3, 4, 5], [0, 1, 4, 6, 7]):
        some = arrays[: len(steps)]
        np.testing.assert_array_equal(predict(Exponential(), steps, some, 9), predict(Taylor(), steps, some, 9))


def test_exponential_holds_where_nothing_can_be_identified() -> None:
    zero = np.zeros((2, 3))
    np.testing.assert_array_equal(predict(Exponential(), [1, 2, 3, 4], [zero] * 4, 6), zero)
    bad = np.full((2, 3), np.inf)
    a = values(1)[0]
    np.testing.assert_array_equal(predict(Exponential(), [1, 2, 3, 4], [bad, zero, zero, a], 6), a)


def test_exponential_holds_where_the_forecast_leaves_the_dtype() -> None:
    growing = [np.full((1, 4), 10.0**i) * np.arange(1, 5) for i in range(4)]
    history = past([1, 2, 3, 4], growing, torch.float16)
    got = Exponential().predict(history, Now(STEPS[9]))
    assert got.dtype == torch.float16 and torch.equal(got, history[-1].value)
    assert torch.isfinite(Exponential().predict(history, Now(STEPS[5]))).all()


def test_no_row_changes_another() -> None:
    steps = [1, 3, 5, 7, 9]
    arrays = [RNG.normal(size=(3, 8)) for _ in steps]
    whole = predict(Exponential(), steps, arrays, 10)
    np.testing.assert_allclose(predict(Exponential(), steps, [a[1:2] for a in arrays], 10), whole[1:2], rtol=1e-8)


# -- all ---------------------------------------------------------------------------------------------------------------
ALL: list[Predictor] = [AdamsBashforth(order=4), Chebyshev(degree=2, ridge=0.3), Exponential(history=5)]


@pytest.mark.parametrize("predictor", ALL, ids=lambda p: p.name)
def test_no_prediction_changes_or_aliases_its_values_and_each_comes_back_from_json(predictor: Predictor) -> None:
    history = past([1, 3, 5, 7, 9], values(5), torch.float32)
    before = [entry.value.clone() for entry in history]
    got = predictor.predict(history, Now(STEPS[11]))
    assert got.dtype == torch.float32 and got.shape == before[0].shape
    assert all(torch.equal(entry.value, old) for entry, old in zip(history, before, strict=True))
    assert not any(got.data_ptr() == entry.value.data_ptr() for entry in history)
    assert load_predictor(dump(predictor)) == predictor

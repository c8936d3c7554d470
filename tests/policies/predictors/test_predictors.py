"""Each predictor equals its formula, written out by hand in numpy on small arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastercache.policies import Difference, Hermite, Hold, Linear, Now, Past, Predictor, Ramp, Run, Taylor
from fastercache.policies.predictors.forecasts import Aligned, FoCaForecast
from fastercache.policies.predictors.history import derivatives

RNG = np.random.default_rng(0)
STEPS = Run.of(20).steps
Array = NDArray[np.float64]


def past(indices: list[int], values: list[Array]) -> list[Past]:
    return [Past(STEPS[i], torch.from_numpy(v)) for i, v in zip(indices, values, strict=True)]


def values(n: int) -> list[Array]:
    return [RNG.normal(size=(2, 3)) for _ in range(n)]


def predict(predictor: Predictor, indices: list[int], arrays: list[Array], step: int) -> Array:
    return predictor.predict(past(indices, arrays), Now(STEPS[step])).numpy()


def test_hold_is_the_newest_value() -> None:
    b, a = values(2)
    np.testing.assert_array_equal(predict(Hold(), [1, 3], [b, a], 5), a)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 1.5])
def test_difference_is_equation_5(weight: float) -> None:
    b, a = values(2)
    np.testing.assert_allclose(predict(Difference(weight=weight), [4, 6], [b, a], 7), a + (a - b) * weight, rtol=1e-12)


def test_difference_with_a_ramp_rises_from_its_start_to_one() -> None:
    b, a = values(2)
    predictor = Difference(weight=Ramp(start=5 / 19))
    for step in (5, 9, 19):
        w = (step / 19 - 5 / 19) / (1 - 5 / 19)
        np.testing.assert_allclose(predict(predictor, [2, 4], [b, a], step), a + (a - b) * w, rtol=1e-12)
    assert [Ramp(start=0.25).at(STEPS[i]) for i in (0, 19)] == [0.0, 1.0]
    assert Ramp(start=1.0).at(STEPS[19]) == 0.0


def test_difference_takes_true_distances() -> None:
    b, a = values(2)
    expected = a + 0.5 * (a - b) * 2 / 5
    np.testing.assert_allclose(predict(Difference(weight=0.5, gap=2), [1, 6], [b, a], 7), expected, rtol=1e-12)


def test_second_order_difference_is_newtons_backward_form() -> None:
    c, b, a = values(3)
    w, gap = 0.7, 3
    d1 = (a - b) * gap / (7 - 4)
    d2 = d1 - (b - c) * gap / (4 - 2)
    got = predict(Difference(weight=w, order=2, gap=gap), [2, 4, 7], [c, b, a], 8)
    np.testing.assert_allclose(got, a + w * d1 + w * (w + 1) / 2 * d2, rtol=1e-12)


def test_second_order_difference_is_exact_on_a_parabola() -> None:
    f = [np.array([float(i * i - 3 * i)]) for i in range(9)]
    got = predict(Difference(weight=1.0, order=2, gap=2), [2, 4, 6], [f[2], f[4], f[6]], 8)
    np.testing.assert_allclose(got, f[8])


@pytest.mark.parametrize("predictor", [Difference(weight=1.0, order=2), Linear(), Taylor(order=3)])
def test_with_one_value_every_predictor_holds(predictor: Predictor) -> None:
    (a,) = values(1)
    np.testing.assert_array_equal(predict(predictor, [3], [a], 5), a)


def test_linear_extends_the_line_by_the_true_distance() -> None:
    b, a = values(2)
    np.testing.assert_allclose(predict(Linear(), [2, 5], [b, a], 9), a + (a - b) / 3 * 4, rtol=1e-12)
    np.testing.assert_allclose(predict(Linear(weight=0.5), [2, 5], [b, a], 9), a + 0.5 * (a - b) / 3 * 4, rtol=1e-12)


def test_taylor_sums_finite_differences_each_divided_by_its_newest_gap() -> None:
    d, c, b, a = values(4)
    steps = [1, 3, 6, 7]
    d1 = [(c - d) / 2, (b - c) / 3, (a - b) / 1]
    d2 = [(d1[1] - d1[0]) / 3, (d1[2] - d1[1]) / 1]
    d3 = (d2[1] - d2[0]) / 1
    k = 3
    expected = a + d1[2] * k + d2[1] * k**2 / 2 + d3 * k**3 / math.factorial(3)
    np.testing.assert_allclose(predict(Taylor(order=3), steps, [d, c, b, a], 7 + k), expected, rtol=1e-12)
    got = derivatives(past(steps, [d, c, b, a]), 3)
    for weights, theirs in zip(got, [a, d1[2], d2[1], d3], strict=True):
        mine = sum(w * value for w, value in zip(weights, [d, c, b, a], strict=True))
        np.testing.assert_allclose(mine, theirs, rtol=1e-10)


def test_a_prediction_never_changes_or_aliases_the_values_it_is_made_of() -> None:
    history = past([1, 3, 6, 7], values(4))
    before = [p.value.clone() for p in history]
    for predictor in (Taylor(order=3), Hermite(order=2), FoCaForecast(), Difference(order=2, weight=1.0), Linear()):
        first = predictor.predict(history, Now(STEPS[8]))
        moved = predictor.predict(history, Now(STEPS[9]))
        assert all(torch.equal(p.value, old) for p, old in zip(history, before, strict=True)), predictor.name
        assert not any(moved.data_ptr() == p.value.data_ptr() for p in history), predictor.name
        assert first.shape == moved.shape


def test_history_says_how_many_values_matter() -> None:
    arrays = values(5)
    for predictor in (Hold(), Linear(), Taylor(order=2), Difference(order=2), Difference(order=0)):
        n = predictor.depth
        full = predict(predictor, [0, 2, 3, 5, 8], arrays, 9)
        np.testing.assert_array_equal(full, predict(predictor, [0, 2, 3, 5, 8][-n:], arrays[-n:], 9))


@pytest.mark.parametrize("horizon", [1, 3])
def test_foca_where_the_step_before_the_newest_value_was_skipped(horizon: int) -> None:
    """Computed at 0, 2 and 4: the value at 3 is taken from the line through 0 and 2. The recursion written out."""
    c, b, a = values(3)
    anchor, at_three = (a - b) / 2, b + (b - c) / 2
    forecasts = [at_three, a]  # P_-1 and P_0
    for k in (1, 2, 3):
        forecasts.append(a + k / 2 * (anchor + forecasts[-1] - forecasts[-2]))
        expected = forecasts[1 + min(k, horizon)]
        if k > horizon:
            expected = a + (expected - a) * horizon / k
        got = predict(FoCaForecast(horizon=horizon), [0, 2, 4], [c, b, a], 4 + k)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_residual_moves_only_where_the_probe_is_known_throughout() -> None:
    """p moved by 1 between the computed steps and by 1.5 now, so that g is 1.5 of the last change."""
    older, newer = torch.zeros(2, 3), torch.ones(2, 3)
    before, value, now = torch.full((2, 3), 4.0), torch.full((2, 3), 6.0), torch.full((2, 3), 1.5)

    def predicted(p_older: torch.Tensor | None, p_newer: torch.Tensor | None, seen: torch.Tensor | None) -> list[float]:
        kept = [Past(STEPS[1], (before, p_older)), Past(STEPS[3], (value, p_newer))]
        found: list[float] = Aligned().predict(kept, Now(STEPS[4], seen)).unique().tolist()
        return found

    # r = 4 + 1.5 (6 - 4) = 7 of the site itself, and 0 + 1.5 of the probe, less the probe as it is
    assert predicted(older, newer, now) == [7.0 + 1.5 - 1.5]
    assert predicted(older, newer, 3 * now) == [4 + 2 * 2 + 2 * 1 - 4.5], "g is at most 2"
    for p_older, p_newer, seen in (
        (None, newer, now),
        (older, None, now),
        (older, newer, None),
        (older, newer, torch.zeros(2, 4)),
        (None, None, None),
    ):
        assert predicted(p_older, p_newer, seen) == [6.0]
    alone = [Past(STEPS[3], (value, newer))]
    assert Aligned().predict(alone, Now(STEPS[4], now)).unique().tolist() == [6.0 + 1.0 - 1.5]
    text = [Past(STEPS[1], (torch.full((2, 1), 4.0), older)), Past(STEPS[3], (torch.full((2, 1), 6.0), newer))]
    assert Aligned().predict(text, Now(STEPS[4], now)).unique().tolist() == [7.0], "of another shape than the probe"
    assert Aligned().predict(text[1:], Now(STEPS[4], now)).unique().tolist() == [6.0]

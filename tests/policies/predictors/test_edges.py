"""Predictors at their edges: few values, more values than they use, other shapes, no signal, times that stand still."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastercache.policies import (
    AdamsBashforth,
    Chebyshev,
    Difference,
    Exponential,
    GuidanceDelta,
    Hermite,
    Hold,
    Linear,
    Now,
    Past,
    Predictor,
    Ramp,
    Run,
    Signal,
    Step,
    Taylor,
)
from fastercache.policies.errors import AttachError, InvalidPolicy, ScheduleMismatch
from fastercache.policies.predictors.fitted import Fitted, Stretch, adds_input
from fastercache.policies.predictors.forecasts import Aligned, AverageVelocity, FoCaForecast, Relative, Zero
from fastercache.policies.predictors.frequency import split_bands, wiener
from fastercache.policies.predictors.history import before_variance, combination, joined, variance_axis, weighted

COUNT = 20
STEPS = Run.of(COUNT).steps
RNG = np.random.default_rng(4)
Array = NDArray[np.float64]


def values(n: int, *shape: int) -> list[Array]:
    return [RNG.normal(size=shape or (2, 3)) for _ in range(n)]


def predict(predictor: Predictor, indices: Sequence[int], arrays: Sequence[Array], step: int) -> Array:
    kept = [Past(STEPS[i], torch.from_numpy(v)) for i, v in zip(indices, arrays, strict=True)]
    return predictor.predict(kept, Now(STEPS[step])).numpy()


# -- few values, and more than are used --------------------------------------------------------------------------------
def test_a_second_difference_needs_three_values_and_makes_do_with_two() -> None:
    b, a = values(2)
    got = predict(Difference(weight=0.7, order=2, gap=3), [1, 5], [b, a], 7)
    np.testing.assert_allclose(got, a + 0.7 * (a - b) * 3 / 4, rtol=1e-12)
    np.testing.assert_array_equal(predict(Difference(weight=0.7, order=0), [1, 5], [b, a], 7), a)
    np.testing.assert_array_equal(predict(Difference(weight=Ramp(start=0.5)), [1, 5], [b, a], 9), a)
    got = predict(Difference(weight=-0.5, gap=2), [1, 5], [b, a], 7)
    np.testing.assert_allclose(got, a - 0.5 * (a - b) * 2 / 4, rtol=1e-12)


def test_a_ramp_is_the_share_of_the_way_from_its_start_to_the_end() -> None:
    steps = Run.of(11).steps
    assert [Ramp(start=0.5).at(steps[i]) for i in (0, 4, 5)] == [0.0, 0.0, 0.0]
    assert [Ramp(start=0.5).at(steps[i]) for i in (6, 8, 10)] == pytest.approx([0.2, 0.6, 1.0])
    assert [Ramp().at(steps[i]) for i in (0, 5, 10)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("k", "horizon"), [(1, 3), (2, 3), (4, 2)])
@pytest.mark.parametrize("gap", [1, 3])
def test_foca_from_two_values(k: int, horizon: int, gap: int) -> None:
    """Nothing is known of the steps between them, so the older one stands for the step before the newest."""
    b, a = values(2)
    anchor, forecasts = (a - b) / gap, [b, a]
    for i in range(1, min(k, horizon) + 1):
        forecasts.append(a + i / 2 * (anchor + forecasts[-1] - forecasts[-2]))
    expected = forecasts[-1] if k <= horizon else a + (forecasts[-1] - a) * horizon / k
    got = predict(FoCaForecast(horizon=horizon), [5, 5 + gap], [b, a], 5 + gap + k)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_foca_looks_at_the_third_value_only_across_a_gap() -> None:
    c, b, a = values(3)
    two = predict(FoCaForecast(), [6, 7], [b, a], 9)
    np.testing.assert_allclose(predict(FoCaForecast(), [2, 6, 7], [c, b, a], 9), two, rtol=1e-12)
    assert not np.allclose(predict(FoCaForecast(), [2, 5, 7], [c, b, a], 9), predict(FoCaForecast(), [5, 7], [b, a], 9))


@pytest.mark.parametrize(
    "predictor",
    [
        Taylor(order=1), Hermite(order=1), Linear(weight=0.7), Difference(order=1, weight=0.7), AdamsBashforth(order=2),
        Chebyshev(history=3), Exponential(history=4), FoCaForecast(), Hold(),
    ],
    ids=lambda p: p.name,
)  # fmt: skip
def test_a_prediction_is_made_of_as_many_values_as_the_predictor_says(predictor: Predictor) -> None:
    """Older ones, which another reader may have kept, change nothing."""
    steps, arrays = [1, 3, 5, 7, 9, 11], values(6)
    n = predictor.depth
    expected = predict(predictor, steps[-n:], arrays[-n:], 14)
    np.testing.assert_allclose(predict(predictor, steps, arrays, 14), expected, rtol=1e-9)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_depth_is_one_more_than_the_order(order: Any) -> None:
    assert Taylor(order=order).depth == Hermite(order=order).depth == order + 1
    if order < 3:
        assert Difference(order=order).depth == order + 1


def test_the_depths_of_the_others() -> None:
    found = [Hold(), Linear(), FoCaForecast(), AverageVelocity(span=4), Aligned(), Zero(), AdamsBashforth(order=5)]
    assert [one.depth for one in found] == [1, 2, 3, 4, 2, 1, 5]
    assert Exponential(history=7).depth == 7 and Chebyshev(history=9).depth == 9
    assert Relative(inner=Taylor(order=3)).depth == 4 and GuidanceDelta().depth == 1


def test_dynamic_mode_decomposition_needs_four_values_and_three_are_a_line() -> None:
    """Exact on a decay, which a line is not."""
    base = values(1)[0]
    steps = [2, 4, 6, 8]
    arrays = [base * 0.9**s for s in steps]
    np.testing.assert_allclose(predict(Exponential(), steps, arrays, 11), base * 0.9**11, rtol=1e-4)
    line = arrays[-1] + (arrays[-1] - arrays[-2]) / 2 * 3
    np.testing.assert_allclose(predict(Exponential(), steps[1:], arrays[1:], 11), line, rtol=1e-9)


def test_dynamic_mode_decomposition_stops_at_the_first_other_distance() -> None:
    """5, 8 and 11 are three steps apart, 4 is not; that 2 would be again is of no use."""
    arrays = values(5)
    line = arrays[-1] + (arrays[-1] - arrays[-2]) / 3 * 2
    np.testing.assert_allclose(predict(Exponential(), [2, 4, 5, 8, 11], arrays, 13), line, rtol=1e-9)


def test_a_row_that_cannot_be_fitted_is_held_and_changes_no_other() -> None:
    """Rows of a decay, of nothing, of what is not finite, and of what leaves the range of half precision."""
    steps, base = [2, 4, 6, 8], np.arange(1.0, 6.0)
    growth = [np.stack([base * 0.9**s, 0 * base, base * 0.8**s, base * 10.0 ** (s / 2)]) for s in steps]
    growth[1][2, 3] = np.inf
    history = [Past(STEPS[i], torch.from_numpy(v).half()) for i, v in zip(steps, growth, strict=True)]
    got = Exponential().predict(history, Now(STEPS[11]))
    np.testing.assert_allclose(got[0].float().numpy(), base * 0.9**11, rtol=1e-2)
    assert torch.equal(got[1:], history[-1].value[1:])


# -- times -------------------------------------------------------------------------------------------------------------
def test_an_average_velocity_over_no_time_is_the_newest_value() -> None:
    steps = [Step(i, 4, 500.0, 0.5) for i in range(4)]
    first, last = (torch.from_numpy(v) for v in values(2))
    got = AverageVelocity().predict([Past(steps[0], first), Past(steps[1], last)], Now(steps[3]))
    assert torch.equal(got, last)


def test_an_average_velocity_takes_sigmas_where_there_are_any_though_the_first_is_zero() -> None:
    """Timesteps and sigmas that are no multiples of each other, and one sigma of zero at the end."""
    steps = [Step(i, 4, t, s) for i, (t, s) in enumerate(((900.0, 1.0), (850.0, 0.7), (500.0, 0.4), (100.0, 0.0)))]
    b, a = values(2)
    got = AverageVelocity().predict(
        [Past(steps[1], torch.from_numpy(b)), Past(steps[2], torch.from_numpy(a))], Now(steps[3])
    )
    widths = [after - before for before, after in pairwise((0.7, 0.4, 0.0))]
    average = (b * widths[0] + a * widths[1]) / sum(widths)
    np.testing.assert_allclose(got.numpy(), a - (b - average) / sum(widths) * widths[1], rtol=1e-9)


# -- signals -----------------------------------------------------------------------------------------------------------
def test_a_difference_to_the_input_needs_one_shape_and_is_left_out_where_there_is_no_input() -> None:
    output, source, now = (torch.from_numpy(v) for v in values(3))
    relative = Relative()
    assert relative.needs is Signal.INPUT
    assert torch.equal(relative.keep(output, source), output - source) and relative.keep(output, None) is output
    kept = [Past(STEPS[1], relative.keep(output, source))]
    assert torch.equal(relative.predict(kept, Now(STEPS[2], now)), output - source + now)
    assert torch.equal(relative.predict([Past(STEPS[1], output)], Now(STEPS[2])), output)
    with pytest.raises(AttachError, match=r"output \(2, 3\) and its input \(2, 4\) differ in shape"):
        relative.keep(output, torch.ones(2, 4))


def test_what_is_relative_to_the_input_needs_nothing_else() -> None:
    for inner in (
        Relative(),
        Aligned(),
        Fitted(stretches=(Stretch(after=0, start=1, outputs=(1.0,), input=0.5),), variance=None),
    ):
        with pytest.raises(InvalidPolicy, match=f"'{inner.name}' needs a signal of its own"):
            Relative(inner=inner)
    without = Fitted(stretches=(Stretch(after=0, start=1, outputs=(1.0,), input=0.0),), variance=None)
    assert Relative(inner=without).inner == without


def test_an_aligned_residual_is_moved_from_the_two_newest_values() -> None:
    """Probes at 0, 2 and 4, now at 7: the last change, of 6 from 10, is made two and a half times."""

    def full(value: float) -> Tensor:
        return torch.full((1, 2), value)

    past = [Past(STEPS[i], (full(r), full(p))) for i, r, p in ((1, 99.0, 0.0), (3, 10.0, 2.0), (6, 16.0, 4.0))]
    got = Aligned(limit=4.0).predict(past, Now(STEPS[7], full(7.0)))
    gain = (7.0 - 2.0) / (4.0 - 2.0)
    assert got.tolist() == [[10 + gain * 6 + 2 + gain * 2 - 7.0] * 2]
    still = [Past(STEPS[1], (full(1.0), full(2.0))), Past(STEPS[2], (full(3.0), full(2.0)))]
    moved = Aligned(limit=3.0).predict(still, Now(STEPS[3], full(2.5)))
    assert moved.tolist() == [[1 + 3 * 2 + 2 + 0.0 - 2.5] * 2], "a probe that stood still: no more than the limit"
    at_rest = Aligned(limit=3.0).predict(still, Now(STEPS[3], full(2.0)))
    assert at_rest.tolist() == [[3.0] * 2], "and one that still does: the last change is made once"


def test_nothing_is_of_the_shape_and_kind_of_the_value() -> None:
    got = Zero().predict([Past(STEPS[0], torch.ones(2, 3, dtype=torch.bfloat16))], Now(STEPS[1]))
    assert got.shape == (2, 3) and got.dtype == torch.bfloat16 and not got.any()


# -- fitted weights ----------------------------------------------------------------------------------------------------
def test_weights_serve_from_their_start_until_the_next_ones_do() -> None:
    stretches = tuple(Stretch(after=2, start=s, outputs=(w,), input=0.0) for s, w in ((4, 2.0), (6, 3.0)))
    fitted, past = Fitted(stretches=stretches, variance=None), [Past(STEPS[2], torch.ones(1))]
    assert [fitted.predict(past, Now(STEPS[i])).item() for i in (4, 5, 6, 9)] == [2.0, 2.0, 3.0, 3.0]
    with pytest.raises(ScheduleMismatch, match="for step 3 after computing step 2"):
        fitted.predict(past, Now(STEPS[3]))
    with pytest.raises(InvalidPolicy, match="each once"):
        Fitted(stretches=(stretches[0], stretches[0]), variance=None)


def test_weights_are_of_the_newest_values_first() -> None:
    stretch = Stretch(after=9, start=10, outputs=(0.5, 0.25, 2.0), input=0.0)
    arrays = values(5)
    got = predict(Fitted(stretches=(stretch,), variance=None), [1, 3, 4, 7, 9], arrays, 11)
    np.testing.assert_allclose(got, 0.5 * arrays[4] + 0.25 * arrays[3] + 2.0 * arrays[2], rtol=1e-12)


def test_the_input_that_is_added_is_that_of_the_newest_step() -> None:
    fitted = Fitted(stretches=(Stretch(after=4, start=5, outputs=(1.5, -0.5), input=0.25),), variance=None)
    old, new, before, after = values(4)
    past = [
        Past(STEPS[i], fitted.keep(torch.from_numpy(v), torch.from_numpy(x)))
        for i, v, x in ((2, old, before), (4, new, after))
    ]
    got = fitted.predict(past, Now(STEPS[6], torch.ones(2, 3))).numpy()
    np.testing.assert_allclose(got, 1.5 * new - 0.5 * old + 0.25 * after, rtol=1e-12)


def test_an_input_is_needed_where_any_weight_is_and_left_out_where_none_was_seen() -> None:
    stretches = (
        Stretch(after=0, start=1, outputs=(1.0, 0.5), input=0.0),
        Stretch(after=2, start=3, outputs=(1.0,), input=-0.25),
    )
    fitted = Fitted(stretches=stretches, variance=None)
    assert (fitted.needs, fitted.depth) == (Signal.INPUT, 2)
    value, source = (torch.from_numpy(v) for v in values(2))
    assert fitted.keep(value, None) is value
    kept = fitted.keep(value, source)
    assert isinstance(kept, tuple) and kept[0] is value and kept[1] is source
    for entry, expected in ((value, value), (kept, value - 0.25 * source)):
        got = fitted.predict([Past(STEPS[2], entry)], Now(STEPS[3]))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("output", "source", "variance", "adds"),
    [
        ((2, 4, 5), (2, 4, 5), None, True),
        ((2, 4, 5), (2, 4, 5), False, True),
        ((2, 8, 5), (2, 4, 5), True, True),
        ((2, 8, 5), (2, 4, 5), False, False),
        ((6, 8, 5), (2, 3, 4, 5), False, False),
        ((6, 4, 5), (2, 3, 4, 5), None, True),
    ],
)
def test_whether_an_input_is_added(output: Any, source: Any, variance: bool | None, adds: bool) -> None:
    assert adds_input(output, source, variance) is adds


def test_an_axis_of_twice_the_length_holds_a_variance() -> None:
    for output, shape, axis in (
        ((2, 6, 5), (2, 3, 5), 1),
        ((2, 3, 10), (2, 3, 5), 2),
        ((4, 3, 5), (2, 3, 5), None),
        ((2, 6, 10), (2, 3, 5), None),
        ((2, 9, 5), (2, 3, 5), None),
        ((2, 3, 5), (2, 3, 5), None),
        ((2, 6), (2, 3, 5), None),
    ):
        assert variance_axis(output, shape) == axis, output
    whole = torch.arange(24.0).reshape(2, 6, 2)
    assert torch.equal(before_variance(whole, (2, 3, 2)), whole[:, :3]) and before_variance(whole, (2, 6, 2)) is whole
    with pytest.raises(ValueError, match="no prediction for a latent"):
        before_variance(whole, (2, 4, 2))


def test_leading_axes_are_joined_until_few_enough_are_left() -> None:
    assert joined((2, 3, 4, 5), 3) == (6, 4, 5) and joined((2, 3, 4, 5), 2) == (24, 5)
    assert joined((2, 3), 2) == (2, 3) and joined((2, 3), 4) == (2, 3)


def test_sums_of_any_weights_keep_their_dtype_and_leave_their_values() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        parts = [torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([4.0, 8.0], dtype=dtype)]
        got = weighted([2.0, 0.5], parts)
        assert got.dtype == dtype and got.tolist() == [4.0, 8.0] and parts[0].tolist() == [1.0, 2.0]
    fine = weighted([1.0, 1e-12], [torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
    assert fine.item() == 1.0 + 1e-12


def test_a_combination_is_the_weighted_sum_of_the_newest_values() -> None:
    arrays = values(4)
    past = [Past(STEPS[i], torch.from_numpy(array)) for i, array in enumerate(arrays)]
    for weights in ([1.0], [-0.5, 1.5], [0.0, 1.0], [0.25, -1.0, 1.75], [0.5, 0.0, 0.5], [0.0, -1.0, 2.0]):
        expected = sum(w * array for w, array in zip(weights, arrays[-len(weights) :], strict=True))
        np.testing.assert_allclose(combination(past, weights).numpy(), expected, rtol=1e-12)


# -- bands -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "radius"),
    [({}, 2), ({"divisor": 2}, 5), ({"radius": 0}, 0), ({"radius": 3, "divisor": 2}, 3), ({"divisor": 200}, 0)],
)
def test_the_bands_are_split_at_the_radius_that_is_given_or_follows_from_the_shorter_side(
    fields: dict[str, int], radius: int
) -> None:
    x = torch.from_numpy(RNG.normal(size=(1, 2, 10, 14))).float()
    found, expected = GuidanceDelta(**fields).keep(x, None), split_bands(x, radius)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_low_bands_factor_ends_at_its_switch_and_the_high_bands_begins_at_its_own() -> None:
    """Eleven steps: the sixth stands at 0.5 exactly."""
    steps = Run.of(11).steps
    delta = GuidanceDelta(alpha_low=0.5, alpha_high=0.25, switch=0.5)
    assert [delta.weights(steps[0], steps[i]) for i in (4, 5, 6)] == [(1.5, 1.0), (1.0, 1.25), (1.0, 1.25)]
    apart = GuidanceDelta(alpha_low=0.5, alpha_high=0.25, switch=0.5, switch_high=0.3)
    assert [apart.weights(steps[0], steps[i]) for i in (2, 3, 5)] == [(1.5, 1.0), (1.5, 1.25), (1.0, 1.25)]
    at_once = GuidanceDelta(alpha_low=0.5, alpha_high=0.25, switch=0.5, switch_high=0.0)
    assert at_once.weights(steps[0], steps[1]) == (1.5, 1.25)


def test_only_the_newest_difference_counts() -> None:
    old, new = (torch.from_numpy(v).float() for v in values(2, 1, 1, 10, 10))
    delta = GuidanceDelta(alpha_low=0.5, alpha_high=0.25, switch=0.5, weighting="repo")
    steps = Run.of(11).steps
    past = [Past(steps[1], delta.keep(old, None)), Past(steps[3], delta.keep(new, None))]
    low, high = split_bands(new, 2)
    torch.testing.assert_close(delta.predict(past, Now(steps[6])), 1.5 * low + 1.25**2 * high)


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_the_filter_expects_the_power_spectrum_that_it_is_told(power: float) -> None:
    """In numpy, over height and width of one frame."""
    x, noise = RNG.normal(size=(1, 2, 6, 8)), 0.4
    gain = np.ones((6, 8))
    for axis, size in ((0, 6), (1, 8)):
        clean = 1.0 / (np.abs(np.fft.fftfreq(size)) ** power + 1e-16)
        factor = (1 - noise) * clean / ((1 - noise) ** 2 * clean + noise**2)
        gain = gain * (factor[:, None] if axis == 0 else factor[None, :])
    expected = np.fft.ifft2(np.fft.fft2(x) * gain / gain.mean()).real
    np.testing.assert_allclose(wiener(torch.from_numpy(x), noise, power).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_filter_is_defined_for_pure_noise_and_for_none() -> None:
    """At either end the level is a millionth away from it; half precision comes back as such."""
    x = torch.from_numpy(RNG.normal(size=(1, 2, 6, 8)))
    for noise, near in ((1.0, 1 - 1e-6), (0.0, 1e-6), (2.0, 1 - 1e-6)):
        found = wiener(x, noise)
        assert torch.isfinite(found).all() and torch.equal(found, wiener(x, near))
    assert wiener(x.bfloat16(), 0.5).dtype == torch.bfloat16
    # without noise every frequency passes alike, so that the mean of the gain is its every value
    torch.testing.assert_close(wiener(x, 0.0, power=0.5), x, rtol=1e-3, atol=1e-3)

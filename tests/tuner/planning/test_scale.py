"""Predicted levels on the scale of plans that were run: values worked out by hand."""

from __future__ import annotations

import pytest

from fastercache.tuner.planning.scale import APART, STEEPNESS, Scale


def test_between_two_plans_it_is_their_line_and_beyond_them_the_usual_steepness() -> None:
    scale = Scale([(30.0, 50.0), (20.0, 36.0)])
    assert scale(20.0) == pytest.approx(36.0) and scale(30.0) == pytest.approx(50.0)
    assert scale(25.0) == pytest.approx(43.0)
    assert scale(32.0) == pytest.approx(50.0 + 2.0 * STEEPNESS)
    assert scale(18.0) == pytest.approx(36.0 - 2.0 * STEEPNESS)


def test_one_plan_gives_the_place_and_the_usual_steepness() -> None:
    assert Scale([(30.0, 50.0)])(27.0) == pytest.approx(50.0 - 3.0 * STEEPNESS)


def test_plans_that_are_foreseen_alike_count_as_one() -> None:
    """0.9 dB apart and 6 dB in measurement: a line through both would be seven times too steep."""
    scale = Scale([(30.0, 50.0), (30.0 + 0.9 * APART, 56.0), (20.0, 37.0)])
    middle = 30.0 + 0.45 * APART
    assert scale(middle) == pytest.approx(53.0)
    assert scale(25.0) == pytest.approx(37.0 + 16.0 * (25.0 - 20.0) / (middle - 20.0))


def test_without_a_plan_there_is_no_scale() -> None:
    with pytest.raises(ValueError, match="one plan that was run"):
        Scale([])


def test_plans_at_the_border_are_two_and_a_group_is_as_wide_as_from_its_first() -> None:
    assert Scale([(30.0, 50.0), (30.0 + APART, 57.0)])(30.0) == pytest.approx(50.0)
    chain = Scale([(30.0, 50.0), (30.75, 52.0), (31.5, 60.0)])
    assert chain(30.375) == pytest.approx(51.0) and chain(31.5) == pytest.approx(60.0)
    assert chain.levels.tolist() == [30.375, 31.5]

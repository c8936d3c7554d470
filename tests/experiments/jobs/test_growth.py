"""How costs grow: where a curve ends and stops being practical, and the page made of the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastercache.experiments.jobs.growth import MARKS, WHAT, Curve, Growth, curve, measured
from fastercache.experiments.jobs.growth_page import draw, markdown, shown, where
from fastercache.policies.documents import read_model
from fastercache.policies.errors import MeasurementError

DOCS = Path(__file__).resolve().parents[3] / "docs"


def of(
    *points: tuple[int, float], practical: float | None = 10.0, unit: str = "s", stopped: int | None = None
) -> Curve:
    return Curve(
        what="work", against="steps", unit=unit, beside="", practical=practical, points=points, stopped=stopped
    )


def test_a_curve_ends_before_a_point_that_would_take_too_long() -> None:
    asked: list[int] = []

    def squared(size: int) -> float:
        asked.append(size)
        return size**2 / 100.0

    found = curve("work", "steps", (10, 20, 40, 80, 160), squared, practical=10.0, longest=20.0)
    assert asked == [10, 20, 40] and found.points == ((10, 1.0), (20, 4.0), (40, 16.0)) and found.stopped == 80
    assert curve("work", "steps", (10, 50), lambda n: 1.0, practical=1.0, longest=4.0).stopped == 50, "linear at least"
    whole = curve("work", "steps", (10, 20), squared, practical=10.0, longest=20.0, unit="MB")
    assert whole.stopped is None and len(whole.points) == 2


def test_a_curve_ends_where_a_size_is_refused() -> None:
    def refusing(size: int) -> float:
        if size > 10:
            raise MeasurementError("too large")
        return 1.0

    assert curve("work", "steps", (10, 20), refusing, practical=1.0, longest=9.0).stopped == 20


def test_the_power_and_where_it_stops_being_practical() -> None:
    cubic = of((10, 0.001), (20, 0.008), (40, 0.064))
    assert cubic.slope == pytest.approx(3.0)
    assert cubic.ends == (pytest.approx(40 * (10.0 / 0.064) ** (1 / 3)), True)
    assert of((10, 1.0), (40, 16.0)).ends == (pytest.approx(10 * 10.0**0.5), False)
    assert of((10, 11.0), (40, 16.0)).ends == (10.0, False)
    assert of((10, 1.0), (40, 1.0)).ends is None and where(of((10, 1.0), (40, 1.0))) == "never (10.0 s)"
    assert where(of((10, 1.0), (40, 16.0))) == "10.0 s at about 32 steps"
    refused = of((10, 1.0), (20, 2.0), unit="MB", stopped=40)
    assert where(refused) == "10 MB at about 40 steps" and where(of((10, 1.0), practical=None)) == "-"
    assert where(cubic) == "10.0 s at about 220 steps, foreseen"


def test_costs_are_shown_in_units_that_fit() -> None:
    assert [shown(v, "s") for v in (0.0012, 0.4, 3.21, 150.0)] == ["1.2 ms", "400 ms", "3.2 s", "2.5 min"]
    assert shown(0.42, "MB") == "0.4 MB"


def test_the_pages_table_is_that_of_the_committed_figures() -> None:
    growth = read_model(DOCS / "bench" / "growth.json", Growth, WHAT)
    assert {curve.against for curve in growth.curves} == {"steps", "blocks", "prompts"}
    _, _, rest = (DOCS / "limits.md").read_text().partition(f"{MARKS[0]}\n")
    assert rest.partition(MARKS[1])[0] == markdown(growth)
    assert len(draw(growth).axes) == 4


@pytest.mark.slow
def test_every_curve_can_be_measured() -> None:
    curves = list(measured(40.0, (5, 10), (2, 4), (1, 2)))
    assert all(len(curve.points) == 2 for curve in curves) and len(curves) == 18
    assert len({(curve.what, curve.against) for curve in curves}) == 18
    assert markdown(Growth(hardware="here", curves=tuple(curves))).count("\n| ") == 2 + len(curves)

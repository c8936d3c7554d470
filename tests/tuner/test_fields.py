"""What a field may hold, and the places of its values between 0 and 1: worked out by hand."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel
from pydantic import Field as Info

from fastercache.policies.errors import InvalidPolicy
from fastercache.tuner.fields import Bounds, Field, Parameter, clip, from_unit, options_of, to_unit


def options(annotation: Any, bounds: Bounds | None = None, **limits: Any) -> Field | str:
    """Of a field of this type and these limits."""
    made: Any = type("Made", (BaseModel,), {"__annotations__": {"x": annotation}, "x": Info(default=1, **limits)})
    return options_of(made.model_fields["x"], bounds, "x")


@pytest.mark.parametrize(
    ("annotation", "limits", "span"),
    [
        (int, {"ge": 2, "le": 5}, IntDistribution(2, 5)),
        (int, {"gt": 2, "lt": 5}, IntDistribution(3, 4)),
        (int, {"ge": 0, "le": 12, "multiple_of": 4}, IntDistribution(0, 12, step=4)),
        (int, {"ge": 1, "le": 50}, IntDistribution(1, 50, log=True)),
        (int, {"ge": 1, "le": 49}, IntDistribution(1, 49)),
        (int, {"ge": 2, "le": 100}, IntDistribution(2, 100, log=True)),
        (int, {"ge": 0, "le": 100}, IntDistribution(0, 100)),
        (int, {"ge": 1, "le": 100, "multiple_of": 1}, IntDistribution(1, 100)),
        (float, {"ge": 0.25, "le": 100.0}, FloatDistribution(0.25, 100.0)),
        (float, {"ge": 0.0, "le": 1.0, "multiple_of": 0.25}, FloatDistribution(0.0, 1.0, step=0.25)),
        (float, {"gt": 0.0, "lt": 1.0}, FloatDistribution(1e-9, 1.0 - 1e-9)),
        (Annotated[int, Info(ge=0)], {"ge": 2, "le": 9}, IntDistribution(2, 9)),
        (Annotated[int, Info(ge=3, le=7)], {"ge": 2, "le": 9}, IntDistribution(3, 7)),
    ],
)
def test_a_range_is_what_all_limits_leave(annotation: Any, limits: dict[str, Any], span: Any) -> None:
    assert options(annotation, **limits) == Field((), span)


def test_bounds_are_tighter_and_ordered() -> None:
    assert options(int, (3, 4), ge=2, le=5) == Field((), IntDistribution(3, 4))
    assert options(int, (2, 5), ge=2, le=5) == Field((), IntDistribution(2, 5)), "the ends belong to it"
    assert options(int, (2.5, 4.5), ge=2, le=5) == Field((), IntDistribution(3, 4))
    assert options(float, (0.5, 0.5), ge=0.0, le=1.0) == Field((), FloatDistribution(0.5, 0.5))
    assert options(float, (0.5, 2.0)) == Field((), FloatDistribution(0.5, 2.0)), "where the field itself has none"
    for wrong in ((1, 4), (3, 6), (4, 3)):
        with pytest.raises(InvalidPolicy, match=r"of 'x' must be ordered and lie within \[2, 5\]"):
            options(int, wrong, ge=2, le=5)


@pytest.mark.parametrize(
    ("annotation", "bounds", "found"),
    [
        (bool, None, Field((False, True), None)),
        (Literal["a", "b"], None, Field(("a", "b"), None)),
        (bool | None, None, Field((False, True, None), None)),
        (Literal["a"] | Annotated[float, Info(ge=0.0, le=1.0)], None, Field(("a",), FloatDistribution(0.0, 1.0))),
        (Literal["a"], None, "it has one value"),
        (Literal["a", "a"], None, "it has one value"),
        (str, None, "it is no number and no choice"),
        (Annotated[int, Info(ge=1)], None, "its type has no bounds on both sides"),
        (Annotated[int, Info(le=1)], None, "its type has no bounds on both sides"),
        (Literal["a", "b"], (0, 1), "it has no range"),
        (
            Annotated[int, Info(ge=0, le=3)] | Annotated[float, Info(ge=0.0, le=1.0)],
            None,
            "it has several ranges",
        ),
    ],
)
def test_what_is_searched_and_why_not(annotation: Any, bounds: Bounds | None, found: Field | str) -> None:
    assert options(annotation, bounds) == found


MIXED = Field(("ramp", None), FloatDistribution(0.0, 1.5))
CHOICE = Field((False, True), None)
RANGE = Field((), IntDistribution(2, 8, step=3))


@pytest.mark.parametrize(
    ("field", "value", "params", "exact"),
    [
        (MIXED, "ramp", {"x:kind": "ramp"}, True),
        (MIXED, None, {"x:kind": "None"}, True),
        (MIXED, 0.5, {"x:kind": "value", "x": 0.5}, True),
        (MIXED, 2.0, {"x:kind": "value", "x": 1.5}, False),
        (MIXED, -1.0, {"x:kind": "value", "x": 0.0}, False),
        (MIXED, "other", {"x:kind": "ramp"}, False),
        (MIXED, True, {"x:kind": "ramp"}, False),
        (CHOICE, True, {"x": True}, True),
        (CHOICE, "other", {"x": False}, False),
        (RANGE, 5, {"x": 5}, True),
        (RANGE, 6, {"x": 5}, False),
        (RANGE, 7, {"x": 8}, False),
        (RANGE, 99, {"x": 8}, False),
        (RANGE, "other", {"x": 2}, False),
    ],
)
def test_values_become_parameters_and_come_back(field: Field, value: Any, params: dict[str, Any], exact: bool) -> None:
    assert field.encode("x", value) == (params, exact)
    assert not exact or field.decode("x", params) == value
    assert set(params) <= {parameter.name for parameter in field.parameters("x")}


def test_a_field_of_constants_and_a_range_has_two_dimensions() -> None:
    kind, value = MIXED.parameters("x")
    assert (kind.name, kind.distribution, kind.condition) == (
        "x:kind", CategoricalDistribution(("ramp", "None", "value")), None
    )  # fmt: skip
    assert (value.name, value.distribution, value.condition) == ("x", MIXED.span, ("x:kind", "value"))
    assert value.active({"x:kind": "value"}) and not value.active({"x:kind": "ramp"}) and not value.active({})
    assert kind.active({})
    assert [p.distribution for p in CHOICE.parameters("x")] == [CategoricalDistribution((False, True))]


@pytest.mark.parametrize(
    ("distribution", "places"),
    [
        (IntDistribution(2, 8, step=3), {0.0: 2, 0.33: 2, 0.34: 5, 0.66: 5, 0.67: 8, 1.0: 8, -1.0: 2, 2.0: 8}),
        (CategoricalDistribution(("a", "b", "c")), {0.0: "a", 0.33: "a", 0.34: "b", 0.99: "c", 1.0: "c"}),
        (IntDistribution(1, 1000, log=True), {0.0: 1, 1 / 3: 10, 0.5: 32, 1.0: 1000}),
        (FloatDistribution(1.0, 3.0), {0.0: 1.0, 0.25: 1.5, 1.0: 3.0, 1.5: 3.0, -0.5: 1.0}),
        (FloatDistribution(1.0, 2.0, step=0.25), {0.0: 1.0, 0.3: 1.25, 0.4: 1.5, 1.0: 2.0}),
        (FloatDistribution(1.0, 100.0, log=True), {0.0: 1.0, 0.5: 10.0, 1.0: 100.0}),
    ],
)
def test_equal_shares_of_the_unit(distribution: Any, places: dict[float, Any]) -> None:
    found = {place: from_unit(Parameter("x", distribution), place) for place in places}
    assert found == {
        place: pytest.approx(value) if isinstance(value, float) else value for place, value in places.items()
    }


@pytest.mark.parametrize(
    ("distribution", "places"),
    [
        (IntDistribution(2, 8, step=3), {2: 0.0, 5: 0.5, 8: 1.0}),
        (CategoricalDistribution(("a", "b", "c")), {"a": 0.0, "b": 0.5, "c": 1.0}),
        (CategoricalDistribution(("a",)), {"a": 0.0}),
        (IntDistribution(1, 1000, log=True), {1: 0.0, 10: 1 / 3, 1000: 1.0}),
        (FloatDistribution(1.0, 3.0), {1.5: 0.25}),
        (FloatDistribution(1.0, 100.0, log=True), {5.0: math.log10(5.0) / 2}),
        (FloatDistribution(2.0, 2.0), {2.0: 0.0}),
    ],
)
def test_places_of_values(distribution: Any, places: dict[Any, float]) -> None:
    parameter = Parameter("x", distribution)
    assert {value: to_unit(parameter, value) for value in places} == pytest.approx(places)


def test_values_are_moved_to_the_nearest_that_there_is() -> None:
    stepped = IntDistribution(3, 11, step=4)
    assert [clip(stepped, value) for value in (-9, 4.9, 5.1, 8.9, 9.1, 99)] == [3, 3, 7, 7, 11, 11]
    parts = FloatDistribution(0.5, 1.5, step=0.5)
    assert [clip(parts, value) for value in (-9.0, 0.74, 0.76, 1.3, 9.0)] == [0.5, 0.5, 1.0, 1.5, 1.5]
    assert [clip(FloatDistribution(0.5, 1.5), value) for value in (0.4, 0.6, 1.6)] == [0.5, 0.6, 1.5]

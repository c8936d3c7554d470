"""The setting at which a policy says that it reuses nothing."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

import fastercache as fc
from fastercache.zoo import build
from fastercache.zoo.specimen import Specimen

WITHOUT = {"adacache", "adaptive_guidance", "planned", "schedule", "teacache"}
"""Their fields allow no such setting: a codebook, a plan, a table; a fitted polynomial can be negative."""
GIVEN: dict[str, dict[str, Any]] = {
    "compose": {"policies": [fc.StaticInterval(sites="all"), fc.CFGCache()]},
    **{name: {"inner": fc.StaticInterval(sites="all")} for name in ("warm_up", "window", "max_consecutive")},
    "easycache": {"relative": False},
}


@pytest.fixture(scope="module")
def latte() -> Specimen:
    return build("latte")


@pytest.mark.parametrize("name", sorted(set(fc.known_policies()) - WITHOUT))
def test_at_its_off_setting_a_policy_reuses_nothing(name: str, latte: Specimen) -> None:
    cls = fc.policy_class(name)
    off = cls(**dict(cls.constants) | GIVEN.get(name, {})).switched_off()
    assert off is not None and type(off) is cls
    with fc.attach(latte.pipe, off) as session:
        latte.generate(steps=8)  # enough for every rule to begin
        assert session.last.share() == 0 and session.last.codes.size


@pytest.mark.parametrize("name", sorted(WITHOUT & set(fc.known_policies()) - {"planned", "schedule"}))
def test_where_there_is_none_none_is_given(name: str) -> None:
    assert fc.policy_class(name)().switched_off() is None


def test_a_wrapper_and_a_composition_are_off_where_all_of_it_is() -> None:
    inside = fc.Compose([fc.StaticInterval(interval=4), fc.AdaptiveGuidance()])
    assert inside.switched_off() is None and fc.WarmUp(inner=inside).switched_off() is None
    off = fc.WarmUp(inner=fc.StaticInterval(interval=4, start=0.2), steps=3).switched_off()
    assert off == fc.WarmUp(inner=fc.StaticInterval(interval=1, start=0.2), steps=3)


def test_a_subclass_with_tighter_bounds_has_none() -> None:
    class FromTwo(fc.StaticInterval):
        interval: Annotated[int, Field(ge=2, le=6)] = 2

    assert FromTwo().switched_off() is None


def declare(**said: Any) -> type[fc.Policy]:
    return type("Odd", (fc.StaticInterval,), {"__module__": __name__, **said})


@pytest.mark.filterwarnings('ignore:Field name "off" in "Odd" shadows:UserWarning')
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"off": {"intervall": 1}}, "Odd.off names 'intervall', which is no field; did you mean 'interval'"),
        ({"constants": {"rates": ()}}, "Odd.constants names 'rates', which is no field"),
        ({"constants": {"interval": 1}}, r"Odd has constants: implement the class method calibrated"),
        ({"measures": {"turn": fc.Measure("ff", max)}}, "Odd has constants: implement the class method calibrated"),
        ({"off": 1, "__annotations__": {"off": int}}, "Odd has a field 'off'"),
    ],
)
def test_what_a_class_says_of_itself_must_fit_it(said: dict[str, Any], message: str) -> None:
    with pytest.raises(fc.InvalidPolicy, match=message):
        declare(**said)


def test_which_constants_are_missing() -> None:
    """Those without a default; where all have one, all unless one is given."""
    assert fc.ERTACache.unmeasured({}) == ("errors",) == fc.ERTACache.unmeasured({"gains"})
    assert fc.ERTACache.unmeasured({"errors"}) == () == fc.TeaCache.unmeasured({"coefficients"})
    assert fc.TeaCache.unmeasured({"threshold"}) == ("coefficients",)
    assert fc.StaticInterval.unmeasured({}) == ()

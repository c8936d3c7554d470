"""Signals that somebody adds: a name, what they are made of, and one value a row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import fastercache as fc

pytestmark = pytest.mark.usefixtures("own_registry")
X = torch.arange(12.0).reshape(2, 3, 2)


def mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def test_it_is_computed_from_what_the_runtime_sees() -> None:
    mine = fc.register_signal("mine", of=fc.Signal.INPUT)(mean)
    both = fc.register_signal("both", of=(mine, fc.Signal.PROBE))(lambda a, b: a + mean(b))
    assert both.seen == {fc.Signal.INPUT, fc.Signal.PROBE} and fc.Signal.PROBE.seen == {fc.Signal.PROBE}
    values = {fc.Signal.INPUT: X, fc.Signal.PROBE: 2 * X}
    assert both.value(values.__getitem__).tolist() == [2.5 * 3, 8.5 * 3]
    assert fc.signal_called("both") is both and {"input", "mine", "both"} <= set(fc.known_signals())


def test_a_field_of_a_signal_is_written_by_name() -> None:
    class Held(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=False)
        watched: fc.Signal = fc.Signal.INPUT

    assert Held(watched="probe").watched is fc.Signal.PROBE  # type: ignore[arg-type]
    assert Held().model_dump(mode="json") == {"watched": "input"}
    told = Held.model_json_schema()["properties"]["watched"]
    assert told["default"] == "input" and {"input", "probe"} <= set(told["enum"])
    with pytest.raises(fc.FasterCacheError, match="no signal is called 'probee'; did you mean 'probe'"):
        Held(watched="probee")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        ("input", fc.Signal.PROBE, "the name 'input' is taken by the signal of the runtime"),
        ("My Signal", fc.Signal.PROBE, "cannot be a registered name"),
        ("mine", (), "must be a function `of` one or more signals"),
        ("mine", "input", "must be a function `of` one or more signals"),
    ],
)
def test_what_cannot_be_registered_is_told(name: str, of: Any, message: str) -> None:
    with pytest.raises(fc.InvalidSignal, match=message):
        fc.register_signal(name, of=of)(mean)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:1], r"must give a tensor with the 2 rows of 'input', found shape \(1, 3, 2\)"),
        (lambda x: torch.cat([x, x]), r"with the 2 rows of 'input', found shape \(4, 3, 2\)"),
        (lambda x: x.mean(), r"found shape \(\)"),
        (lambda x: float(x.mean()), "found float"),
        (lambda x: x @ x, "the signal 'mine' failed: RuntimeError"),
    ],
)
def test_a_value_without_the_rows_is_refused(function: Any, message: str) -> None:
    mine = fc.register_signal("mine", of=fc.Signal.INPUT)(function)
    with pytest.raises(fc.InvalidSignal, match=message):
        mine.value(lambda wanted: X)


def test_a_rule_or_predictor_that_names_no_signal_is_refused(latte: Any) -> None:
    class Names(fc.TeaCache):
        @property
        def signal(self) -> Any:
            return "input"

    class Needs(fc.Hold):
        @property
        def needs(self) -> Any:
            return "input"

    watching, predicting = Names(), fc.StaticInterval(stand_in=Needs())
    for policy, who in ((watching, "the signal of Names"), (predicting, "what the predictor Needs needs")):
        expected = rf"{who} must be a fastercache\.Signal"
        with fc.attach(latte.pipe, policy), pytest.raises(fc.InvalidSignal, match=expected):
            latte.generate(steps=2)


def test_a_signal_is_known_by_its_name() -> None:
    """A copy, as a policy that is copied or sent to another process holds, is the same signal."""
    mine = fc.register_signal("mine", of=fc.Signal.INPUT)(mean)
    for signal in (fc.Signal.PROBE, mine):
        again = copy.copy(signal)
        assert again is not signal and again == signal and {again} == {signal} and str(again) == signal.name
    assert fc.Signal.PROBE != fc.Signal.INPUT and mine != "mine"


def test_the_name_of_another_function_is_not_taken_and_the_same_one_may_come_again() -> None:
    first = fc.register_signal("mine", of=fc.Signal.INPUT)(mean)

    def other(x: Tensor) -> Tensor:
        return x

    with pytest.raises(fc.InvalidSignal, match=rf"'mine' is taken by the signal of {__name__}\.mean"):
        fc.register_signal("mine", of=fc.Signal.INPUT)(other)
    assert fc.signal_called("mine") is first
    again = fc.register_signal("mine", of=fc.Signal.PROBE)(mean)  # as when a module is imported anew
    assert fc.signal_called("mine") is again and again.seen == {fc.Signal.PROBE}
    other.__qualname__, other.__module__ = mean.__qualname__, "elsewhere"
    with pytest.raises(fc.InvalidSignal, match=r"is taken by the signal of"):
        fc.register_signal("mine", of=fc.Signal.INPUT)(other)


def test_what_the_runtime_sees_for_a_signal_of_signals_is_at_the_bottom() -> None:
    one = fc.register_signal("one", of=fc.Signal.INPUT)(mean)
    two = fc.register_signal("two", of=(one, one))(lambda a, b: a - 2 * b)
    assert two.seen == {fc.Signal.INPUT} and two.value(lambda wanted: X).tolist() == [-2.5, -8.5]


@pytest.mark.parametrize("error", [fc.FasterCacheError("told already"), torch.OutOfMemoryError("full")])
def test_an_error_that_says_enough_by_itself_is_passed_on(error: Exception) -> None:
    def fails(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as raised:
        fc.register_signal("mine", of=fc.Signal.INPUT)(fails).value(lambda wanted: X)
    assert raised.value is error

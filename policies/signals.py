"""Signals: the cheap values that rules watch before they decide, and that predictors may need.

Four are seen by the runtime itself. Others are functions of these, and anybody can add one:

>>> @register_signal("brightness", of=Signal.INPUT)
... def brightness(x: Tensor) -> Tensor:
...     return x.flatten(1).mean(1, keepdim=True)  # (rows, ...) -> (rows, 1)
>>> signal_called("brightness") is brightness
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic_core import CoreSchema, core_schema
from torch import Tensor

from fastercache.policies.errors import FasterCacheError, InvalidSignal, shown, suggest, told
from fastercache.policies.plugins import Plugins, check_name

Function = Callable[..., Tensor]


class Signal:
    """A value that is known before a site is computed, by its registered name.

    Attributes:
        name: what files call it.
        of: the signals that `function` is given, in its order.
        function: tensors whose first axis is the rows of a call, to one tensor with as many rows; None for a signal
            that the runtime sees itself.
    """

    INPUT: ClassVar[Signal]
    MODULATED_INPUT: ClassVar[Signal]
    FIRST_BLOCK_RESIDUAL: ClassVar[Signal]
    PROBE: ClassVar[Signal]

    __slots__ = ("function", "name", "of")

    def __init__(self, name: str, of: tuple[Signal, ...] = (), function: Function | None = None) -> None:
        self.name, self.of, self.function = name, of, function

    def __eq__(self, other: object) -> bool:
        """By name: a copy is the same signal."""
        return isinstance(other, Signal) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Signal({self.name!r})"

    def __str__(self) -> str:
        return self.name

    @property
    def seen(self) -> frozenset[Signal]:
        """The signals that the runtime has to see for it."""
        return frozenset({self}) if self.function is None else frozenset().union(*(one.seen for one in self.of))

    def value(self, source: Callable[[Signal], Tensor]) -> Tensor:
        """Its value, `source` giving those that the runtime sees.

        Raises:
            InvalidSignal: where the function fails, or gives no tensor with the rows that it was given.
        """
        if self.function is None:
            return source(self)
        given = [one.value(source) for one in self.of]
        try:
            found = self.function(*given)
        except (FasterCacheError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a third party's function raises whatever it likes
            raise InvalidSignal(f"the signal '{self.name}' failed: {told(error)}") from error
        rows = given[0].shape[0]
        if not isinstance(found, Tensor) or found.ndim == 0 or found.shape[0] != rows:
            was = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InvalidSignal(
                f"the signal '{self.name}' must give a tensor with the {rows} rows of '{self.of[0]}', found {was}"
            )
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """A policy's field of this type is written by name."""
        return core_schema.no_info_plain_validator_function(
            lambda found: found if isinstance(found, cls) else signal_called(found),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": list(known_signals())}


_SIGNALS: dict[str, Signal] = {}


def register_signal(name: str, *, of: Signal | Sequence[Signal]) -> Callable[[Function], Signal]:
    """Decorator: makes a function of other signals a signal, known under a name.

    The function is given the value of each signal in `of`, rows first, and gives a tensor with as many rows, made by
    tensor operations alone: before a run it is also called with tensors without content, for its shape. What it costs
    is not counted, so it should cost little, and multiply no matrices.

    Raises:
        InvalidSignal: if the name is none or taken, or `of` names no signal.
    """
    sources = (of,) if isinstance(of, Signal) else tuple(of)
    if not sources or not all(isinstance(one, Signal) for one in sources):
        raise InvalidSignal(f"the signal {shown(name)} must be a function `of` one or more signals, found {shown(of)}")
    return lambda function: _add(Signal(name, sources, function))


def _add(signal: Signal) -> Signal:
    if not isinstance(signal, Signal):
        raise InvalidSignal(f"expected a signal, made with register_signal, found {type(signal).__name__}")
    try:
        check_name(signal.name)
    except FasterCacheError as error:
        raise InvalidSignal(str(error)) from None
    known = _SIGNALS.get(signal.name)
    if known is not None and _origin(known) != _origin(signal):
        raise InvalidSignal(f"the name '{signal.name}' is taken by the signal of {_origin(known)}")
    _SIGNALS[signal.name] = signal
    return signal


def _origin(signal: Signal) -> str:
    function = signal.function
    return "the runtime" if function is None else f"{function.__module__}.{function.__qualname__}"


def declared(signal: object, who: str) -> Signal | None:
    """What a rule watches or a predictor needs, as it declares it. Raises InvalidSignal for what is no signal."""
    if signal is None or isinstance(signal, Signal):
        return signal
    raise InvalidSignal(f"{who} must be a fastercache.Signal or None, found {shown(signal)}: see signal_called(name)")


PLUGINS = Plugins("fastercache.signals", lambda name, found: _add(found))


def known_signals() -> dict[str, Signal]:
    """Every known signal by name: seen by the runtime, registered, and installed as plug-ins."""
    PLUGINS.load()
    return dict(sorted(_SIGNALS.items()))


def signal_called(name: object) -> Signal:
    """The signal registered under a name. Raises InvalidSignal, naming the nearest."""
    if isinstance(name, str) and name in _SIGNALS:
        return _SIGNALS[name]
    known = known_signals()
    if not isinstance(name, str) or name not in known:
        near = PLUGINS.missed(str(name)) or suggest(str(name), known)
        raise InvalidSignal(f"no signal is called {shown(name)}{near}")
    return known[name]


Signal.INPUT = _add(Signal("input"))
"""What the denoiser is called with."""
Signal.MODULATED_INPUT = _add(Signal("modulated_input"))
"""The first block's input after its norm and timestep modulation."""
Signal.FIRST_BLOCK_RESIDUAL = _add(Signal("first_block_residual"))
"""What the blocks before the site's span added."""
Signal.PROBE = _add(Signal("probe"))
"""The output of the first blocks, run for the decision alone."""

"""What one field of a configuration may hold, read off its annotation: constants, and at most one range."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic.fields import FieldInfo

from fastercache.policies.errors import InvalidPolicy

VALUE = "value"
KIND = ":kind"
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Parameter:
    """One dimension: a dotted field name (`interval`, `inner.start`), or a field's choice of kind (`weight:kind`).

    `condition` names the parameter and value without which this one does not exist.
    """

    name: str
    distribution: BaseDistribution
    condition: tuple[str, Any] | None = None

    def active(self, params: Mapping[str, Any]) -> bool:
        """Whether this dimension exists beside these values of the others."""
        return self.condition is None or params.get(self.condition[0]) == self.condition[1]


@dataclass(frozen=True)
class Field:
    """What one field may hold: constants, and at most one range."""

    constants: tuple[Any, ...]
    span: BaseDistribution | None

    def parameters(self, name: str) -> Iterator[Parameter]:
        if self.span is None:
            yield Parameter(name, CategoricalDistribution(self.constants))
        elif not self.constants:
            yield Parameter(name, self.span)
        else:
            kinds = (*map(str, self.constants), VALUE)
            yield Parameter(name + KIND, CategoricalDistribution(kinds))
            yield Parameter(name, self.span, (name + KIND, VALUE))

    def decode(self, name: str, params: Mapping[str, Any]) -> Any:
        if self.span is None or not self.constants:
            return params[name]
        kind = params[name + KIND]
        return params[name] if kind == VALUE else next(c for c in self.constants if str(c) == kind)

    def encode(self, name: str, value: Any) -> tuple[dict[str, Any], bool]:
        """Parameters for a field's value, and whether they stand for exactly that value."""
        if any(value is c or value == c for c in self.constants):
            return ({name: value} if self.span is None else {name + KIND: str(value)}), True
        if self.span is None:
            return {name: self.constants[0]}, False
        kind = {name + KIND: VALUE} if self.constants else {}
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            if self.constants:
                return {name + KIND: str(self.constants[0])}, False
            return {name: self.span.to_external_repr(lowest(self.span))}, False
        clipped = clip(self.span, value)
        return {**kind, name: clipped}, math.isclose(clipped, value, abs_tol=1e-12)


def options_of(info: FieldInfo, bounds: Bounds | None, name: str) -> Field | str:
    """What a field may hold, or why it is not searched."""
    constants: list[Any] = []
    spans: list[BaseDistribution] = []
    for annotation, metadata in _alternatives(info.annotation, list(info.metadata)):
        if annotation is type(None):
            constants.append(None)
        elif annotation is bool:
            constants += [False, True]
        elif get_origin(annotation) is Literal:
            constants += get_args(annotation)
        elif annotation in (int, float):
            span = _span(annotation, metadata, bounds, name)
            if span is None:
                return "its type has no bounds on both sides"
            spans.append(span)
        else:
            return "it is no number and no choice"
    if len(spans) > 1:
        return "it has several ranges"
    if bounds is not None and not spans:
        return "it has no range"
    constants = list(dict.fromkeys(constants))
    if not spans and len(constants) < 2:
        return "it has one value"
    return Field(tuple(constants), spans[0] if spans else None)


def _alternatives(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        unpacked = [m for e in extra for m in (e.metadata if isinstance(e, FieldInfo) else [e])]
        yield from _alternatives(inner, metadata + unpacked)
    elif origin in (Union, types.UnionType):
        for arg in get_args(annotation):
            yield from _alternatives(arg, metadata)
    else:
        yield annotation, metadata


def _span(kind: type, metadata: list[Any], bounds: Bounds | None, name: str) -> BaseDistribution | None:
    low, high, step = -math.inf, math.inf, None
    for item in metadata:
        parts = list(item) if isinstance(item, Interval) else [item]
        for part in parts:
            nudge: float = 1 if kind is int else 1e-9
            if isinstance(part, Ge):
                low = max(low, float(part.ge))  # type: ignore[arg-type]
            elif isinstance(part, Gt):
                low = max(low, float(part.gt) + nudge)  # type: ignore[arg-type]
            elif isinstance(part, Le):
                high = min(high, float(part.le))  # type: ignore[arg-type]
            elif isinstance(part, Lt):
                high = min(high, float(part.lt) - nudge)  # type: ignore[arg-type]
            elif isinstance(part, MultipleOf):
                step = float(part.multiple_of)  # type: ignore[arg-type]
    if bounds is not None:
        if not (low <= bounds[0] <= bounds[1] <= high):
            raise InvalidPolicy(f"bounds {bounds} of '{name}' must be ordered and lie within [{low:g}, {high:g}]")
        low, high = float(bounds[0]), float(bounds[1])
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    if kind is int:
        # A range over orders of magnitude (block counts, step limits) is searched by its logarithm.
        wide = step is None and low >= 1 and high / low >= 50
        return IntDistribution(math.ceil(low), math.floor(high), log=wide, step=int(step or 1))
    return FloatDistribution(low, high, step=step)


def to_unit(parameter: Parameter, value: Any) -> float:
    """A value's place in [0, 1] along its range, or among its choices in order."""
    dist = parameter.distribution
    if isinstance(dist, CategoricalDistribution):
        return list(dist.choices).index(value) / max(len(dist.choices) - 1, 1)
    low, high, value = lowest(dist), highest(dist), float(value)
    if getattr(dist, "log", False):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.0


def from_unit(parameter: Parameter, place: float) -> Any:
    """The value at a place in [0, 1]: the inverse of `to_unit`, equal shares for integers and choices."""
    dist = parameter.distribution
    place = min(max(place, 0.0), 1.0)
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[min(int(place * len(dist.choices)), len(dist.choices) - 1)]
    low, high = lowest(dist), highest(dist)
    if getattr(dist, "log", False):
        return clip(dist, math.exp(math.log(low) + place * (math.log(high) - math.log(low))))
    if isinstance(dist, IntDistribution):
        count = (dist.high - dist.low) // dist.step + 1
        return dist.low + min(int(place * count), count - 1) * dist.step
    return clip(dist, low + place * (high - low))


def lowest(dist: BaseDistribution) -> float:
    assert isinstance(dist, (IntDistribution, FloatDistribution))
    return float(dist.low)


def highest(dist: BaseDistribution) -> float:
    assert isinstance(dist, (IntDistribution, FloatDistribution))
    return float(dist.high)


def clip(dist: BaseDistribution, value: float) -> Any:
    low, high = lowest(dist), highest(dist)
    if isinstance(dist, IntDistribution):
        return int(low + dist.step * round((np.clip(value, low, high) - low) / dist.step))
    assert isinstance(dist, FloatDistribution)
    if dist.step is not None:
        value = low + dist.step * round((value - low) / dist.step)
    return float(np.clip(value, low, high))

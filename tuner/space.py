"""The search space of a policy: its fields' own bounds, as Optuna distributions.

Any policy is searched the same way, third-party ones included: bounded numbers become ranges, literals and booleans
become choices, and a field that is either a constant or a number (`"ramp"` or 0 to 1.5, None or a bin count) becomes a
choice with a range that exists only where it is chosen. Policies and predictors nested in a policy are searched too,
under dotted names. What is left fixed, and why, stands in `SearchSpace.fixed`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial
from pydantic.fields import FieldInfo

from policies.base import Config, Policy
from policies.errors import InvalidPolicy, suggest
from policies.registry import policy_class

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
        return self.condition is None or params.get(self.condition[0]) == self.condition[1]


@dataclass(frozen=True)
class Encoded:
    """A policy as parameters; `changed` names the fields that the space could not represent exactly."""

    params: dict[str, Any]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class _Field:
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
            return {name: self.span.to_external_repr(_low(self.span))}, False
        clipped = _clip(self.span, value)
        return {**kind, name: clipped}, math.isclose(clipped, value, abs_tol=1e-12)


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions of a policy around `base`, which gives every field that is not searched its value.

    >>> from policies import StaticInterval
    >>> [p.name for p in SearchSpace.of(StaticInterval).parameters]
    ['interval', 'start', 'stop']
    """

    base: Policy
    parameters: tuple[Parameter, ...]
    fixed: dict[str, str]
    _fields: dict[str, _Field] = field(repr=False)

    @classmethod
    def of(
        cls,
        policy: Policy | type[Policy] | str,
        *,
        fixed: Mapping[str, Any] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
    ) -> SearchSpace:
        """The space of a policy, by name, class, or an instance whose unsearched fields are kept.

        Args:
            fixed: values by field name that are not searched.
            bounds: tighter (low, high) by field name; also lets a field be searched that the policy lists as
                `unsearched`, because it is redundant with others.

        Raises:
            InvalidPolicy: for names the policy has not, values or bounds outside the field's own, or if nothing is
                left to search.
        """
        fixed, bounds = dict(fixed or {}), dict(bounds or {})
        base = _instance(policy)
        base = _replace(base, fixed)
        found: dict[str, _Field] = {}
        reasons: dict[str, str] = {}
        for name, holder, info in _walk(base):
            leaf = name.rsplit(".", 1)[-1]
            if name in fixed:
                reasons[name] = "given"
            elif leaf in getattr(type(holder), "unsearched", ()) and name not in bounds:
                reasons[name] = "redundant with other fields; give bounds to search it"
            else:
                options = _options(info, bounds.get(name), name)
                if isinstance(options, str):
                    reasons[name] = options
                else:
                    found[name] = options
        known = {*found, *reasons}
        for name in bounds:
            if name not in known:
                raise InvalidPolicy(f"{base.name} has no field '{name}' to bound{suggest(name, known)}")
            if name in reasons:
                raise InvalidPolicy(f"{base.name}.{name} cannot be searched: {reasons[name]}")
        parameters = tuple(p for name, options in found.items() for p in options.parameters(name))
        if not parameters:
            raise InvalidPolicy(f"{base.name} has no field to search: {_listing(reasons)}")
        return cls(base, parameters, reasons, found)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter's distribution, conditional ones included."""
        return {p.name: p.distribution for p in self.parameters}

    def draw(self, value: Callable[[Parameter], Any]) -> dict[str, Any]:
        """Parameters with each active one taken from `value`, in order."""
        params: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(params):
                params[parameter.name] = value(parameter)
        return params

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Ask a trial for every active parameter."""
        return self.draw(lambda p: _ask(trial, p))

    def build(self, params: Mapping[str, Any]) -> Policy:
        """The policy with these parameters. Raises InvalidPolicy if the policy refuses the combination."""
        values = {name: options.decode(name, params) for name, options in self._fields.items()}
        policy: Policy = _replace(self.base, values)
        return policy

    def encode(self, policy: Policy) -> Encoded:
        """Parameters of a policy of the same kind, moved into the space where it lies outside.

        Presets hold values that are not searched (offsets): those are named in `changed`, and `build` of the
        parameters then gives a neighbour of the policy, not the policy itself.
        """
        if type(policy) is not type(self.base):
            raise InvalidPolicy(f"this space is of {self.base.name}, not of {policy.name}")
        params: dict[str, Any] = {}
        changed = []
        values = {name: getattr(holder, name.rsplit(".", 1)[-1]) for name, holder, _ in _walk(policy)}
        for name, options in self._fields.items():
            if name not in values:
                raise InvalidPolicy(f"{policy.name} has no field '{name}': its parts differ from those searched")
            found, exact = options.encode(name, values[name])
            params |= found
            if not exact:
                changed.append(name)
        own = {name: getattr(holder, name.rsplit(".", 1)[-1]) for name, holder, _ in _walk(self.base)}
        changed += [name for name in self.fixed if values.get(name) != own.get(name)]
        return Encoded(params, tuple(changed))


def to_unit(parameter: Parameter, value: Any) -> float:
    """A value's place in [0, 1] along its range, or among its choices in order."""
    dist = parameter.distribution
    if isinstance(dist, CategoricalDistribution):
        return list(dist.choices).index(value) / max(len(dist.choices) - 1, 1)
    low, high, value = _low(dist), _high(dist), float(value)
    if getattr(dist, "log", False):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.0


def from_unit(parameter: Parameter, place: float) -> Any:
    """The value at a place in [0, 1]: the inverse of `to_unit`, equal shares for integers and choices."""
    dist = parameter.distribution
    place = min(max(place, 0.0), 1.0)
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[min(int(place * len(dist.choices)), len(dist.choices) - 1)]
    low, high = _low(dist), _high(dist)
    if getattr(dist, "log", False):
        return _clip(dist, math.exp(math.log(low) + place * (math.log(high) - math.log(low))))
    if isinstance(dist, IntDistribution):
        count = (dist.high - dist.low) // dist.step + 1
        return dist.low + min(int(place * count), count - 1) * dist.step
    return _clip(dist, low + place * (high - low))


def _ask(trial: BaseTrial, parameter: Parameter) -> Any:
    dist = parameter.distribution
    if isinstance(dist, CategoricalDistribution):
        return trial.suggest_categorical(parameter.name, dist.choices)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(parameter.name, dist.low, dist.high, step=dist.step, log=dist.log)
    assert isinstance(dist, FloatDistribution)
    return trial.suggest_float(parameter.name, dist.low, dist.high, step=dist.step, log=dist.log)


def _instance(policy: Policy | type[Policy] | str) -> Policy:
    if isinstance(policy, Policy):
        return policy
    cls = policy_class(policy) if isinstance(policy, str) else policy
    try:
        return cls()
    except TypeError as error:
        raise InvalidPolicy(f"{cls.__name__} cannot be built without arguments ({error}): give an instance") from None


def _walk(config: Config, prefix: str = "") -> Iterator[tuple[str, Config, FieldInfo]]:
    """Every field that holds no further configuration: (dotted name, the configuration it stands in, its info)."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and all(isinstance(item, Config) for item in value):
            for i, item in enumerate(value):
                yield from _walk(item, f"{prefix}{name}.{i}.")
        else:
            yield prefix + name, config, info


def _replace(config: Any, values: Mapping[str, Any]) -> Any:
    """A validated copy with fields replaced, by dotted names."""
    if not values:
        return config
    if isinstance(config, tuple):
        return tuple(_replace(item, _under(values, str(i))) for i, item in enumerate(config))
    cls = type(config)
    heads = {name.split(".", 1)[0] for name in values}
    for head in sorted(heads - set(cls.model_fields)):
        raise InvalidPolicy(f"{cls.name or cls.__name__} has no field '{head}'{suggest(head, cls.model_fields)}")
    fields = {name: getattr(config, name) for name in cls.model_fields}
    for head in heads:
        fields[head] = values[head] if head in values else _replace(fields[head], _under(values, head))
    return cls(**fields)


def _under(values: Mapping[str, Any], head: str) -> dict[str, Any]:
    return {name.split(".", 1)[1]: v for name, v in values.items() if name.split(".", 1)[0] == head and "." in name}


def _options(info: FieldInfo, bounds: Bounds | None, name: str) -> _Field | str:
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
    return _Field(tuple(constants), spans[0] if spans else None)


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


def _low(dist: BaseDistribution) -> float:
    assert isinstance(dist, (IntDistribution, FloatDistribution))
    return float(dist.low)


def _high(dist: BaseDistribution) -> float:
    assert isinstance(dist, (IntDistribution, FloatDistribution))
    return float(dist.high)


def _clip(dist: BaseDistribution, value: float) -> Any:
    low, high = _low(dist), _high(dist)
    if isinstance(dist, IntDistribution):
        return int(low + dist.step * round((np.clip(value, low, high) - low) / dist.step))
    assert isinstance(dist, FloatDistribution)
    if dist.step is not None:
        value = low + dist.step * round((value - low) / dist.step)
    return float(np.clip(value, low, high))


def _listing(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

"""The search space of a policy: its fields' own bounds, as Optuna distributions.

Any policy is searched the same way, third-party ones included: bounded numbers become ranges, literals and booleans
become choices, and a field that is either a constant or a number (`"ramp"` or 0 to 1.5, None or a bin count) becomes a
choice with a range that exists only where it is chosen. Policies and predictors nested in a policy are searched too,
under dotted names. What is left fixed, and why, stands in `SearchSpace.fixed`.

Several policies make one space too: see `fastercache.tuner.joint`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial
from pydantic.fields import FieldInfo

from fastercache.policies.base import Config, Policy
from fastercache.policies.errors import InvalidPolicy, suggest
from fastercache.policies.registry import policy_class
from fastercache.tuner.fields import Bounds, Field, Parameter, options_of, to_unit

METHOD = "method"
"""The parameter of a joint space that chooses the policy."""


@dataclass(frozen=True)
class Encoded:
    """A policy as parameters; `changed` names the fields that the space could not represent exactly."""

    params: dict[str, Any]
    changed: tuple[str, ...]


class Space(ABC):
    """What a search draws from: its dimensions, and the policies that their values stand for."""

    parameters: tuple[Parameter, ...]

    @property
    @abstractmethod
    def bases(self) -> Mapping[str, Policy]:
        """By name, each policy that is searched; it gives the fields that are not searched their values."""

    @abstractmethod
    def build(self, params: Mapping[str, Any]) -> Policy:
        """The policy with these parameters. Raises InvalidPolicy if the policy refuses the combination."""

    @abstractmethod
    def encode(self, policy: Policy) -> Encoded:
        """Parameters of a policy of a searched kind, moved into the space where it lies outside.

        Presets hold values that are not searched (offsets): those are named in `changed`, and `build` of the
        parameters then gives a neighbour of the policy, not the policy itself. Raises InvalidPolicy for other kinds.
        """

    @property
    def static(self) -> bool:
        """Whether every policy of the space is static, so that its cost is known before it runs."""
        return all(base.static for base in self.bases.values())

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

    def position(self, params: Mapping[str, Any]) -> NDArray[np.float64]:
        """Parameters as a point of the unit cube: those that do not exist lie in the middle, and each method has an
        axis of its own, since no method lies between two others."""
        place: list[float] = []
        for p in self.parameters:
            if p.name == METHOD:
                place += [float(name == params[METHOD]) for name in self.bases]
            else:
                place.append(to_unit(p, params[p.name]) if p.name in params else 0.5)
        return np.array(place)


@dataclass(frozen=True)
class SearchSpace(Space):
    """The dimensions of a policy around `base`, which gives every field that is not searched its value.

    >>> from fastercache.policies import StaticInterval
    >>> [p.name for p in SearchSpace.of(StaticInterval).parameters]
    ['interval', 'start', 'stop']
    """

    base: Policy
    parameters: tuple[Parameter, ...]
    fixed: dict[str, str]
    _fields: dict[str, Field] = field(repr=False)

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
        base = _replace(_instance(policy, fixed), fixed)
        found: dict[str, Field] = {}
        reasons: dict[str, str] = {}
        for name, holder, info in _walk(base):
            leaf = name.rsplit(".", 1)[-1]
            if name in fixed:
                reasons[name] = "given"
            elif leaf in getattr(type(holder), "unsearched", ()) and name not in bounds:
                reasons[name] = "redundant with other fields; give bounds to search it"
            else:
                options = options_of(info, bounds.get(name), name)
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
    def bases(self) -> Mapping[str, Policy]:
        return {self.base.name: self.base}

    def build(self, params: Mapping[str, Any]) -> Policy:
        values = {name: options.decode(name, params) for name, options in self._fields.items()}
        policy: Policy = _replace(self.base, values)
        return policy

    def encode(self, policy: Policy) -> Encoded:
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


def _ask(trial: BaseTrial, parameter: Parameter) -> Any:
    dist = parameter.distribution
    if isinstance(dist, CategoricalDistribution):
        return trial.suggest_categorical(parameter.name, dist.choices)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(parameter.name, dist.low, dist.high, step=dist.step, log=dist.log)
    assert isinstance(dist, FloatDistribution)
    return trial.suggest_float(parameter.name, dist.low, dist.high, step=dist.step, log=dist.log)


def _instance(policy: Policy | type[Policy] | str, fixed: Mapping[str, Any]) -> Policy:
    if isinstance(policy, Policy):
        return policy
    cls = policy_class(policy) if isinstance(policy, str) else policy
    try:
        return cls(**{name: value for name, value in fixed.items() if "." not in name})
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


def _listing(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

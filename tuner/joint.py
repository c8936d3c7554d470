"""Several policies searched as one: the method is a choice like any other, and decides which fields exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import CategoricalDistribution

from fastercache.policies.base import Policy
from fastercache.policies.errors import InvalidPolicy
from fastercache.tuner.fields import Parameter
from fastercache.tuner.space import METHOD, Encoded, SearchSpace, Space


@dataclass(frozen=True)
class JointSpace(Space):
    """Several spaces: the parameter `method` chooses one, and only the chosen one's fields exist.

    >>> joint = JointSpace.of({"fora": SearchSpace.of("fora"), "foca": SearchSpace.of("foca")})
    >>> [p.name for p in joint.parameters][:3]
    ['method', 'fora.interval', 'fora.start']

    Attributes:
        spaces: by name; a field is called `name.field` here.
        left_out: policies that were asked for but cannot be searched on this pipeline, and why.
    """

    spaces: Mapping[str, SearchSpace]
    parameters: tuple[Parameter, ...] = field(repr=False)
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, spaces: Mapping[str, SearchSpace], left_out: Mapping[str, str] | None = None) -> JointSpace:
        """The union of some spaces. Raises InvalidPolicy if there is none."""
        if not spaces:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in (left_out or {}).items())
            raise InvalidPolicy(f"no policy is left to search{': ' * bool(reasons)}{reasons}")
        parameters = [Parameter(METHOD, CategoricalDistribution(tuple(spaces)))]
        for name, space in spaces.items():
            for p in space.parameters:
                condition = (METHOD, name) if p.condition is None else (f"{name}.{p.condition[0]}", p.condition[1])
                parameters.append(Parameter(f"{name}.{p.name}", p.distribution, condition))
        return cls(dict(spaces), tuple(parameters), dict(left_out or {}))

    @property
    def bases(self) -> Mapping[str, Policy]:
        return {name: space.base for name, space in self.spaces.items()}

    def build(self, params: Mapping[str, Any]) -> Policy:
        prefix = f"{params[METHOD]}."
        own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        return self.spaces[params[METHOD]].build(own)

    def encode(self, policy: Policy) -> Encoded:
        for name, space in self.spaces.items():
            if type(space.base) is type(policy):
                found = space.encode(policy)
                own = {f"{name}.{key}": value for key, value in found.params.items()}
                return Encoded({METHOD: name, **own}, found.changed)
        raise InvalidPolicy(f"this space is of {', '.join(self.spaces)}, not of {policy.name}")

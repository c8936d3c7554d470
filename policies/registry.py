"""Name -> policy or predictor, strict (de)serialisation, and plug-ins through entry points.

A serialised policy is a JSON object: `{"policy": "dynamic_reuse", "interval": 2, ...}`, nested for compositions.
Only registered types are ever built from a file; no code is loaded from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, PlainSerializer

from fastercache.policies.base import Config, Hold, Policy, Predictor
from fastercache.policies.errors import InvalidPolicy, UnknownPolicy, suggest

GROUP = "fastercache.policies"
"""Entry point group under which an installed package offers policies."""

_POLICIES: dict[str, type[Policy]] = {}
_PREDICTORS: dict[str, type[Predictor]] = {Hold.name: Hold}
P = TypeVar("P", bound=type[Config])


def register(cls: P) -> P:
    """Class decorator: makes a policy or predictor known under its `name`. Raises InvalidPolicy if it is taken."""
    table: dict[str, Any] = _POLICIES if issubclass(cls, Policy) else _PREDICTORS
    if not cls.name:
        raise InvalidPolicy(f"{cls.__name__} needs a class attribute `name` before it can be registered")
    other = table.get(cls.name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InvalidPolicy(f"the name '{cls.name}' is taken by {other.__module__}.{other.__qualname__}")
    table[cls.name] = cls
    return cls


@cache
def _load_plugins() -> None:
    """Register what installed packages offer. Raises InvalidPolicy, naming the plug-in that cannot be used."""
    for point in entry_points(group=GROUP):
        source = f"the plug-in '{point.name}' ({point.value}{f' of {point.dist.name}' if point.dist else ''})"
        try:
            loaded = point.load()
        except Exception as error:  # whatever a foreign package raises when it is imported
            raise InvalidPolicy(
                f"{source} cannot be loaded: {type(error).__name__}: {error}; update or uninstall it"
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, (Policy, Predictor))):
            raise InvalidPolicy(f"{source} is no policy: its entry point must name a subclass of fastercache.Policy")
        register(loaded)


def known_policies() -> dict[str, type[Policy]]:
    """Every known policy class by name: built in, registered, and installed as plug-ins."""
    _load_plugins()
    return dict(sorted(_POLICIES.items()))


def predictors() -> dict[str, type[Predictor]]:
    """Every known predictor class by name."""
    return dict(sorted(_PREDICTORS.items()))


def policy_class(name: str) -> type[Policy]:
    """The policy class registered under `name`. Raises UnknownPolicy, naming the nearest."""
    known = known_policies()
    if name not in known:
        raise UnknownPolicy(f"no policy is called '{name}'{suggest(name, known)}")
    return known[name]


def dump(config: Policy | Predictor) -> dict[str, Any]:
    """The configuration as JSON-ready values, its registered name first."""
    key = "policy" if isinstance(config, Policy) else "predictor"
    return {key: config.name, **config.model_dump(mode="json")}


def load_policy(data: Policy | Mapping[str, Any]) -> Policy:
    """The policy that `dump` wrote. Raises UnknownPolicy, or InvalidPolicy naming the field at fault."""
    if isinstance(data, Policy):
        return data
    if not isinstance(data, Mapping) or "policy" not in data:
        raise InvalidPolicy(f"expected a policy as an object with the key 'policy', found {data!r:.80}")
    fields = {key: value for key, value in data.items() if key != "policy"}
    name = str(data["policy"])
    known = known_policies()
    if name not in known:
        raise UnknownPolicy(
            f"no policy is called '{name}'{suggest(name, known)}; a policy of your own has to be there first: give its "
            "file (--policy FILE.py on the command line), import its module, or install its package"
        )
    return known[name](**fields)


def load_predictor(data: Predictor | Mapping[str, Any]) -> Predictor:
    """The predictor that `dump` wrote."""
    if isinstance(data, Predictor):
        return data
    if not isinstance(data, Mapping) or "predictor" not in data:
        raise InvalidPolicy(f"expected a predictor as an object with the key 'predictor', found {data!r:.80}")
    name = str(data["predictor"])
    if name not in _PREDICTORS:
        raise UnknownPolicy(f"no predictor is called '{name}'{suggest(name, _PREDICTORS)}")
    return _PREDICTORS[name](**{key: value for key, value in data.items() if key != "predictor"})


AnyPolicy = Annotated[Policy, BeforeValidator(load_policy), PlainSerializer(dump)]
"""Field type for a policy of any registered kind, serialised with its name."""

AnyPredictor = Annotated[Predictor, BeforeValidator(load_predictor), PlainSerializer(dump)]
"""Field type for a predictor of any registered kind, serialised with its name."""

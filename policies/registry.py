"""Name -> policy or predictor, strict (de)serialisation, and plug-ins through entry points.

A serialised policy is a JSON object: `{"policy": "dynamic_reuse", "interval": 2, ...}`, nested for compositions.
Only registered types are ever built from a file; no code is loaded from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, PlainSerializer, ValidationError

from fastercache.policies.base import Config, Hold, Policy, Predictor
from fastercache.policies.documents import MAX_DEPTH, deeper_than
from fastercache.policies.errors import FasterCacheError, InvalidPolicy, UnknownPolicy, shown, suggest, told
from fastercache.policies.plugins import NotOffered, Plugins, check_name

_POLICIES: dict[str, type[Policy]] = {}
_PREDICTORS: dict[str, type[Predictor]] = {Hold.name: Hold}
P = TypeVar("P", bound=type[Config])


def register(cls: P) -> P:
    """Class decorator: makes a policy or predictor known under its `name`. Raises InvalidPolicy if it is taken."""
    table: dict[str, Any] = _POLICIES if issubclass(cls, Policy) else _PREDICTORS
    if not cls.name:
        raise InvalidPolicy(f"{cls.__name__} needs a class attribute `name` before it can be registered")
    check_name(cls.name)
    other = table.get(cls.name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InvalidPolicy(f"the name '{cls.name}' is taken by {other.__module__}.{other.__qualname__}")
    table[cls.name] = cls
    return cls


def _register_plugin(name: str, found: Any) -> None:
    if not (isinstance(found, type) and issubclass(found, (Policy, Predictor))):
        raise NotOffered("is no policy: its entry point must name a fastercache.Policy or Predictor subclass")
    register(found)


PLUGINS = Plugins("fastercache.policies", _register_plugin)


def _unknown(name: str, hint: str = "") -> UnknownPolicy:
    """The error for a policy name that nothing is registered under; tells of the plug-in that should bring it."""
    known = known_policies()
    return UnknownPolicy(f"no policy is called '{name}'{PLUGINS.missed(name) or f'{suggest(name, known)}{hint}'}")


def known_policies() -> dict[str, type[Policy]]:
    """Every known policy class by name: built in, registered, and installed as plug-ins."""
    PLUGINS.load()
    return dict(sorted(_POLICIES.items()))


def predictors() -> dict[str, type[Predictor]]:
    """Every known predictor class by name: built in, registered, and installed as plug-ins."""
    PLUGINS.load()
    return dict(sorted(_PREDICTORS.items()))


def policy_class(name: str) -> type[Policy]:
    """The policy class registered under `name`. Raises UnknownPolicy, naming the nearest."""
    known = known_policies()
    if name not in known:
        raise _unknown(name)
    return known[name]


def dump(config: Policy | Predictor) -> dict[str, Any]:
    """The configuration as JSON-ready values, its registered name first."""
    key = "policy" if isinstance(config, Policy) else "predictor"
    return {key: config.name, **config.model_dump(mode="json")}


def load_policy(data: Policy | Mapping[str, Any]) -> Policy:
    """The policy that `dump` wrote. Raises UnknownPolicy, or InvalidPolicy naming the field at fault."""
    if isinstance(data, Policy):
        return data
    if not isinstance(data, Mapping) or not isinstance(data.get("policy"), str):
        raise InvalidPolicy(f"expected a policy as an object with the key 'policy', found {shown(data)}")
    _check_depth(data)
    name = data["policy"]
    known = known_policies()
    if name not in known:
        raise _unknown(
            name,
            "; a policy of your own has to be there first: give its file (--policy FILE.py on the command line), "
            "import its module, or install its package",
        )
    try:
        return known[name](**{str(key): value for key, value in data.items() if key != "policy"})
    except (FasterCacheError, ValidationError):
        raise
    except Exception as error:  # an __init__ of its own that meets what it does not expect
        raise InvalidPolicy(f"{name} cannot be made of these fields: {told(error)}") from error


def _check_depth(data: Mapping[str, Any]) -> None:
    if deeper_than(data, MAX_DEPTH):
        raise InvalidPolicy(f"a configuration is nested more than {MAX_DEPTH} levels deep")


def load_predictor(data: Predictor | Mapping[str, Any]) -> Predictor:
    """The predictor that `dump` wrote."""
    if isinstance(data, Predictor):
        return data
    if not isinstance(data, Mapping) or not isinstance(data.get("predictor"), str):
        raise InvalidPolicy(f"expected a predictor as an object with the key 'predictor', found {shown(data)}")
    _check_depth(data)
    name = data["predictor"]
    cls = _PREDICTORS.get(name) or predictors().get(name)
    if cls is None:
        near = PLUGINS.missed(name) or suggest(name, _PREDICTORS)
        raise UnknownPolicy(f"no predictor is called '{name}'{near}")
    return cls(**{str(key): value for key, value in data.items() if key != "predictor"})


AnyPolicy = Annotated[Policy, BeforeValidator(load_policy), PlainSerializer(dump)]
"""Field type for a policy of any registered kind, serialised with its name."""

AnyPredictor = Annotated[Predictor, BeforeValidator(load_predictor), PlainSerializer(dump)]
"""Field type for a predictor of any registered kind, serialised with its name."""

"""What a module sets by default, found in the module: its constants, and the defaults of whatever it defines."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

PLAIN = (bool, int, float, tuple)


def defaults_of(module: ModuleType) -> dict[str, Any]:
    """Numbers, switches and tuples, by `CONSTANT`, `function(parameter)` or `Class.method(parameter)`.

    The fields of a dataclass and of a model are the parameters of its class.
    """
    found = {name: getattr(module, name) for name in _constants(inspect.getsource(module))}
    for name, value in _callables(module):
        for parameter in inspect.signature(value).parameters.values():
            if parameter.default is not parameter.empty:
                found[f"{name}({parameter.name})"] = parameter.default
    return {name: value for name, value in found.items() if isinstance(value, PLAIN)}


def _constants(source: str) -> Iterator[str]:
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)):
                if name.isupper():
                    yield name


def _callables(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, BaseException):
            yield name, value
            for part, member in vars(value).items():
                inner = getattr(member, "__func__", member)
                if inspect.isfunction(inner) and not part.startswith("__"):
                    yield f"{name}.{part}", inner

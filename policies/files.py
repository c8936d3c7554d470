"""Policies from a user's own file: `my_policy.py`, or `my_policy.py:MyPolicy` where it holds several.

A file is run only where a person names it. Tuned configs and studies hold registered names, never paths, so that
reading one runs no code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

from fastercache.policies.base import Policy, Predictor
from fastercache.policies.errors import ConfigUnreadable, FasterCacheError, InvalidPolicy, suggest, told
from fastercache.policies.registry import register

_SPEC = re.compile(r"^(?P<path>.+\.py)(?::(?P<name>\w+))?$")


def names_file(text: str) -> bool:
    """Whether `text` means a Python file and not a registered name."""
    return _SPEC.match(text) is not None


def policy_from_file(text: str) -> type[Policy]:
    """The policy class that `FILE.py` or `FILE.py:Class` names, registered, with every other policy and predictor of
    that file.

    Raises:
        ConfigUnreadable: if there is no such file.
        InvalidPolicy: if it cannot be run, holds no policy of this name, or several where none is named.
    """
    path, name = split_spec(text)
    module = module_from_file(path)
    own = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, (Policy, Predictor)) and thing.__module__ == module.__name__
    ]
    found: dict[str, type[Policy]] = {cls.__name__: cls for cls in own if issubclass(cls, Policy)}
    if not found:
        raise InvalidPolicy(f"{path} defines no policy: write a subclass of fastercache.Policy with a `name`")
    usable = [cls for cls in found.values() if cls.name] or list(found.values())
    chosen = name or usable[0].__name__
    if name is None and len(usable) > 1:
        listed = ", ".join(cls.__name__ for cls in usable)
        raise InvalidPolicy(f"{path} defines several policies ({listed}): say which, {path}:{chosen}")
    if chosen not in found:
        raise InvalidPolicy(f"{path} defines no policy '{chosen}'{suggest(chosen, found)}")
    try:
        for cls in own:
            if cls.name or cls is found[chosen]:
                register(cls)
    except InvalidPolicy as error:
        raise InvalidPolicy(f"{path}: {error}") from None
    return found[chosen]


def split_spec(text: str) -> tuple[Path, str | None]:
    """`FILE.py:Name` or `FILE.py` as path and name. Raises InvalidPolicy for anything else."""
    match = _SPEC.match(text)
    if match is None:
        raise InvalidPolicy(f"expected a file as FILE.py or FILE.py:Name, found '{text}'")
    return Path(match["path"]).expanduser(), match["name"]


def module_from_file(path: Path) -> ModuleType:
    """A user's Python file, run once per process. Raises ConfigUnreadable, and InvalidPolicy if it cannot be run."""
    return _run(path.resolve())


@cache
def _run(path: Path) -> ModuleType:
    """The file as a module, run once per process under a name of its own."""
    if not path.is_file():
        raise ConfigUnreadable(f"there is no policy file {path}")
    name = f"policy_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved through it
    try:
        spec.loader.exec_module(module)
    except FasterCacheError:
        del sys.modules[name]
        raise
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:  # also SystemExit: a file that ends the process must not end the command in silence
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f" (line {line})" if line else ""
        raise InvalidPolicy(f"{path} cannot be run{where}: {told(error)}") from error
    return module

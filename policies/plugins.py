"""What installed packages offer: registered names, and the entry points under which each kind is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fastercache.policies.errors import InvalidPolicy, shown, told

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
ANY = "any"
"""On the command line this stands for every policy, so nothing can be called so."""


def check_name(name: object) -> None:
    """Whether something can be registered under a name: names end up in file names, JSON and on the command line.

    Raises:
        InvalidPolicy: saying what a name looks like.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidPolicy(
            f"{shown(name)} cannot be a registered name: use small letters, digits and underscores, a letter first"
        )
    if name == ANY:
        raise InvalidPolicy(f"'{ANY}' cannot be a registered name: it stands for every policy")


class NotOffered(Exception):
    """What an entry point names cannot be registered in its group; the message goes on after the plug-in's name."""


class Plugins:
    """Registers what the installed packages offer in one entry point group, when it is first asked for.

    One that cannot be used is remembered in `broken`, by the name of its entry point, and blocks nothing else.

    Args:
        group: of entry points.
        register: called with each entry point's name and what it names. Raises NotOffered for what is of another kind.
    """

    def __init__(self, group: str, register: Callable[[str, Any], object]) -> None:
        self.group, self._register = group, register
        self.broken: dict[str, str] = {}
        self._loaded = False

    def load(self) -> None:
        """Register what is there; the second time nothing happens."""
        if self._loaded:
            return
        self._loaded = True  # before the packages are imported: they may ask for what is registered
        for point in entry_points(group=self.group):
            try:
                self._register(point.name, point.load())
            except KeyboardInterrupt:
                self._loaded = False
                raise
            except NotOffered as error:
                self.broken[point.name] = f"{_source(point)} {error}"
            except BaseException as error:  # whatever a foreign package raises when it is imported, SystemExit included
                self.broken[point.name] = f"{_source(point)} cannot be loaded: {told(error)}; update or uninstall it"

    def reset(self) -> None:
        """Look again the next time, as in a new process."""
        self._loaded = False
        self.broken.clear()

    def missed(self, name: str) -> str:
        """Why something that is asked for by name is not there, as the end of a message; empty where none is broken."""
        why = self.broken.get(name) or next(iter(self.broken.values()), "")
        return f"; {why}" if why else ""


def _source(point: EntryPoint) -> str:
    return f"the plug-in '{point.name}' ({point.value}{f' of {point.dist.name}' if point.dist else ''})"

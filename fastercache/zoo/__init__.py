"""Small random pipelines of every supported family, for tests and for `check_policy` on a machine without weights."""

from __future__ import annotations

from collections.abc import Callable

from fastercache.zoo.latte import latte
from fastercache.zoo.specimen import Specimen
from policies.errors import PipelineUnreadable, suggest

BUILDERS: dict[str, Callable[[], Specimen]] = {"latte": latte}
"""Family name -> builder; each build takes well under a second."""


def build(name: str) -> Specimen:
    """A fresh random pipeline of a family. Raises PipelineUnreadable, naming the families there are."""
    if name not in BUILDERS:
        raise PipelineUnreadable(f"the zoo has no family '{name}'{suggest(name, BUILDERS)}")
    return BUILDERS[name]()


__all__ = ["BUILDERS", "Specimen", "build"]

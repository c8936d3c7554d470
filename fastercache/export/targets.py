"""The targets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastercache.export import cache_dit, diffusers, hub, python
from fastercache.export.recipe import Exported, NotExportable
from fastercache.policies.errors import suggest
from fastercache.tuned import TunedConfig

TARGETS: dict[str, Callable[[TunedConfig], Exported]] = {
    "python": python.python,
    "diffusers": diffusers.diffusers,
    "cache-dit": cache_dit.cache_dit,
    "sglang": cache_dit.sglang,
    "hub": hub.hub,
}
FILES = {
    "python": python.FILE,
    "diffusers": diffusers.FILE,
    "cache-dit": cache_dit.YAML,
    "sglang": cache_dit.ENV,
    "hub": "hub",
}
"""Target -> the file, or for `hub` the folder, that it is written to unless another is named."""


def exported(config: TunedConfig, target: str, file: str | None = None) -> Exported:
    """A tuned config for a target. Raises NotExportable.

    `file`: what it will be called, if not as in `FILES`; the lines that say how to use it name this.
    """
    if target not in TARGETS:
        raise NotExportable(f"there is no target '{target}'{suggest(target, TARGETS)}")
    found = TARGETS[target](config)
    usual = FILES[target]
    if file is None or usual not in found.files:
        return found
    text = found.files[usual].replace(f"from {Path(usual).stem} import", f"from {Path(file).stem} import")
    return replace(found, files={file: text.replace(usual, file)})

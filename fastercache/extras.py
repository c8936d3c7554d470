"""The extras of the package: what a room needs beyond the runtime, and one line that names the extra it comes with."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "lab": (
        "accelerate", "matplotlib", "optuna", "rich", "scipy", "tensorboard", "tokenizers", "torchmetrics",
        "transformers", "typer",
    ),
    "train": ("sklearn",),
    "docs": ("mkdocs",),
    "dev": ("cosmic_ray", "pytest"),
}  # fmt: skip
"""By extra, the modules that only it installs and that the package imports."""


def missing(extra: str, who: str) -> str | None:
    """What to tell whoever lacks an extra, in one line; None where all of it is installed. Nothing is imported."""
    absent = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if not absent:
        return None
    return f"{who} needs {', '.join(absent)}, left out of a plain installation: pip install 'fastercache[{extra}]'"


def need(extra: str, who: str) -> None:
    """Make sure that an extra is installed, without importing anything of it.

    Args:
        extra: a key of `EXTRAS`.
        who: what needs it, for the message.

    Raises:
        MissingDependency: naming the modules that are not there, and the command that installs them.
    """
    if line := missing(extra, who):
        from fastercache.policies.errors import MissingDependency

        raise MissingDependency(line)

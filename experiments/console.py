"""What the command line says, and where: results on standard output, words and progress on standard error."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

words = Console(stderr=True, highlight=False)
"""Everything that is not the result: notes, progress, errors."""

results = Console(highlight=False)
"""Tables for people. With `--json` nothing but one JSON object goes to standard output."""


def quiet() -> None:
    """Keep third-party chatter off the terminal; to be called before torch, diffusers and transformers are imported.

    The user's own settings of these variables are respected.
    """
    for name, value in {
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("tensorboard", "absl", "optuna", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fail(message: str) -> None:
    """One line on standard error, whatever the message contains."""
    line = " ".join(message.split())
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()


def emit(payload: Mapping[str, Any]) -> None:
    """The one JSON object of `--json`. Values that JSON cannot hold (infinities, NaN) become null."""
    sys.stdout.write(json.dumps(plain(payload), indent=2) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """`value` with containers copied and non-finite floats replaced by None, ready for strict JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def progress() -> Progress:
    """A bar with the count, the time spent and the time left, on standard error; gone when it is done.

    Where standard error is no terminal nothing is drawn.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=words,
        transient=True,
        disable=not words.is_terminal,
    )

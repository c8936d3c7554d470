"""What the command line says, and where: results on standard output, words and progress on standard error."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

words = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""Everything that is not the result: notes, progress, errors. Nothing is read as markup: messages hold `[peers]`."""

results = Console(highlight=False, markup=False, emoji=False)
"""Tables for people. With `--json` nothing but one JSON object goes to standard output."""


def say(text: str | Text, console: Console = words) -> None:
    """A sentence. On a terminal it breaks between words, and a path longer than a line is left whole."""
    if console.is_terminal and isinstance(text, str):
        text = textwrap.fill(text, console.width, break_long_words=False, break_on_hyphens=False)
    console.print(text, soft_wrap=True)


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
        for shown in ("this tuned config was made for", "the seconds of this study are those of"):
            warnings.filterwarnings("default", message=shown)
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    for name in ("tensorboard", "absl", "optuna", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fail(message: str) -> None:
    """One line on standard error, whatever the message contains."""
    say(f"error: {' '.join(message.split())}")


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
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=words,
        transient=True,
        disable=not words.is_terminal,
    )

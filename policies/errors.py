"""Every error a user can cause. Each message says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST = 2000
"""Characters of the longest message; of a longer one the middle is left out."""
LONGEST_NAME = 80
"""Characters of the longest name that a similar one is looked up for."""


class FasterCacheError(Exception):
    """Base of all errors this toolkit raises on purpose; the command line prints it in one line and exits 2.

    Whatever a message quotes, it is one printable line of at most `LONGEST` characters.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class UnknownPolicy(FasterCacheError):
    """A policy or predictor name that nothing is registered under."""


class InvalidPolicy(FasterCacheError):
    """A policy configuration with an unknown field, a value out of bounds or of the wrong type."""


class InvalidSignal(FasterCacheError):
    """A signal that does not exist, whose name is taken, or whose function gives no value with the rows of a call."""


class InvalidFamily(FasterCacheError):
    """A model family whose description cannot be, or whose denoiser class has another one."""


class NoSiteMatched(FasterCacheError):
    """A site query that selects nothing."""


class NoGuidance(NoSiteMatched):
    """A site query that asks for nothing but the second guidance branch, of which there is none."""


class SiteConflict(FasterCacheError):
    """Two composed policies claim the same site."""


class BranchUnknown(FasterCacheError):
    """The runtime cannot tell which guidance branch a denoiser call belongs to."""


class ForeignCall(FasterCacheError):
    """The denoiser was called by something else than what the session serves: another pipeline or thread."""


class ClockError(FasterCacheError):
    """The runtime cannot tell which step a denoiser call belongs to."""


class ScheduleMismatch(FasterCacheError):
    """An explicit schedule was applied to a run of another length, or with other branches or sites."""


class AttachError(FasterCacheError):
    """A pipeline or denoiser that cannot be attached to, or is attached already."""


class ConfigMismatch(FasterCacheError):
    """A tuned config that was made for another model, scheduler or guidance."""


class ConfigUnreadable(FasterCacheError):
    """A tuned config, profile, prompt file or study file that is missing, truncated or of a foreign format."""


class PipelineUnreadable(FasterCacheError):
    """A pipeline that does not exist, or a folder that is none."""


class NotFinite(FasterCacheError):
    """A prediction or measurement contains NaN or infinity."""


class MeasurementError(FasterCacheError):
    """Videos or tensors that cannot be compared as asked: other shapes, values outside [0, 1], an unknown metric."""


class InvalidMetric(MeasurementError):
    """A quality metric without a name, range or direction, or whose name is taken."""


class RecordingError(FasterCacheError):
    """A recording without a complete run, with runs of different shape, or asked for what it does not hold."""


class BudgetNotMet(FasterCacheError):
    """No trial met the quality budget; the message gives the closest miss."""


class MissingDependency(FasterCacheError):
    """An optional package is needed; the message names it and the extra that installs it."""


def suggest(found: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `found`, else the list of known names."""
    names = sorted(set(known))
    if len(found) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


def printable(text: str, limit: int = LONGEST) -> str:
    """Text as one line without control characters, the middle left out where it is longer than `limit`."""
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} [...] {text[-limit // 4 :]}"
    if text.isprintable():
        return text
    text = " ".join(text.split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any, limit: int = 80) -> str:
    """`repr` of any value for a message: bounded, and never an error itself."""
    if isinstance(value, (str, bytes)):
        value = value[:limit]
    try:
        text = repr(value)
    except Exception:  # a foreign class, nesting too deep, or a number with too many digits to print
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


def told(error: BaseException) -> str:
    """`TypeName: message` of any error, also of one whose message cannot be made."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__

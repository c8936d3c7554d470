"""Every error a user can cause. Each message says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FasterCacheError(Exception):
    """Base of all errors this toolkit raises on purpose; the command line prints it in one line and exits 2."""


class UnknownPolicy(FasterCacheError):
    """A policy or predictor name that nothing is registered under."""


class InvalidPolicy(FasterCacheError):
    """A policy configuration with an unknown field, a value out of bounds or of the wrong type."""


class NoSiteMatched(FasterCacheError):
    """A site query that selects nothing."""


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


class RecordingError(FasterCacheError):
    """A recording without a complete run, with runs of different shape, or asked for what it does not hold."""


class BudgetNotMet(FasterCacheError):
    """No trial met the quality budget; the message gives the closest miss."""


class MissingDependency(FasterCacheError):
    """An optional package is needed; the message names it and the extra that installs it."""


def suggest(found: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `found`, else the list of known names."""
    names = sorted(set(known))
    close = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""

"""What a search found, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from fastercache.policies.wording import counted
from fastercache.tuner import Outcome, Record

RAN = (Outcome.MEASURED, Outcome.STOPPED)
SEARCHED = "search"
"""Source of the trials that were searched for; all others were there from the start."""


def sentence(records: Sequence[Record], best: Record) -> str:
    """Whether the search improved on what was known before it, and by how much.

    Args:
        records: every trial. best: the cheapest that keeps the budget.
    """
    ran = [r for r in records if r.outcome in RAN]
    kept = sum(r.feasible for r in ran)
    tried = f"of {counted(len(ran), 'trial')} that ran {kept} kept the budget"
    gain = _gain(best)
    if best.source != SEARCHED:
        return f"the search found nothing cheaper than {_named(best)} ({gain}): {tried}"
    known = [r for r in ran if r.feasible and r.source != SEARCHED and (r.cost or 1.0) < 1.0]
    if not known:
        return f"the search found {best.policy.name} with {gain}, where no known setting keeps the budget: {tried}"
    before = min(known, key=lambda r: r.cost or 1.0)
    was = f"{1.0 / (before.cost or 1.0):.2f}x"
    return f"the search found {best.policy.name} with {gain}, where {_named(before)} gives {was}: {tried}"


def _gain(record: Record) -> str:
    """`2.94x fewer FLOPs`, or `2.10x by the clock as foreseen`, whichever was searched for."""
    what = "fewer FLOPs" if record.clocked is None else "by the clock as foreseen"
    return f"{1.0 / (record.cost or 1.0):.2f}x {what}"


def by_the_clock(seconds: float, speedup: float, measured: float | None) -> str:
    """What was foreseen of a call by the clock, and the speedup that was measured beside the uncached pipeline."""
    after = "" if measured is None else f"; measured {measured:.2f}x"
    return f"by the clock, foreseen: {seconds:.3g} s a call, {speedup:.2f}x{after}"


def _named(record: Record) -> str:
    if record.source == "default":
        return f"{record.policy.name} as published"
    return f"{record.policy.name}, {record.source.replace(':', ' ')}"

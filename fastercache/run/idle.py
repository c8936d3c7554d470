"""A run that reused nothing although its policy would have: said in a warning, whatever the reason."""

from __future__ import annotations

import warnings

from fastercache.policies.schedule import Code, Table
from fastercache.run.trace import Trace


class NothingReused(UserWarning):
    """A policy that reuses values had no effect on a run."""


def warn_if_idle(trace: Trace, table: Table | None) -> None:
    """Warn where `table`, what a static policy had planned, reuses values, and the run went on but reused none.

    What a dynamic policy would have done is not known, so that only a run that its steps did not reach is told.
    """
    wanted = not trace.complete if table is None else bool((table.codes == Code.REUSED).any())
    if not wanted or trace.calls <= len(trace.run.branches) or trace.share() > 0:
        return
    name = trace.policy.get("policy", "the policy")
    reason = (
        "its sites were never reached at a step where it reuses"
        if trace.complete
        else "the run ended early, or its pipeline does not step the scheduler that it was attached with"
    )
    warnings.warn(
        f"{name} reused nothing in {trace.calls} denoiser calls, of which {trace.steps_in_words} were heard: {reason}",
        NothingReused,
        stacklevel=2,
    )

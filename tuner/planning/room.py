"""How many past outputs a plan may keep within a limit of the cache: known exactly before anything is recorded.

A plan holds the outputs of the last K computed steps and the denoiser's inputs there, whichever steps those are. So a
limit of the cache is a limit of K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import fastercache as fc
from fastercache.bounds import Limit
from fastercache.policies.errors import BudgetNotMet, ScheduleMismatch
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.tuner.setting import Case, Setting

HISTORY = 5
"""K where nothing limits it."""


def history_within(setting: Setting, case: Case, limit: Limit | None) -> int:
    """The largest K, at most `HISTORY`, with which a run of a case keeps within the limit.

    The pipeline is called a few times and stopped at its first denoiser call.

    Raises:
        BudgetNotMet: if not even one output fits in.
    """
    if limit is None:
        return HISTORY
    with fc.attach(setting.pipe, fc.NoCache(sites="denoiser")) as session:
        call = setting.arguments(case)
        steps = len(session.plan(**call).per_step)
        if steps < 2:  # there is no past output to keep
            return HISTORY
        needed = 0
        for history in range(min(HISTORY, steps - 1), 0, -1):
            needed = made_use_of(session, partial(fullest, steps, history), call).peak
            if needed <= limit.most:
                return history
    raise BudgetNotMet(
        f"a plan that keeps a single past output of the denoiser caches {needed:,} bytes, more than {limit}: raise the "
        "limit"
    )


def made_use_of(session: fc.Session, made: Callable[[float], fc.Planned], call: Mapping[str, Any]) -> fc.MemoryPlan:
    """Let a session run a plan that nothing was fitted for, and tell what a call then holds.

    `made` is given the weight of the denoiser's input: 0 where inputs cannot be added to outputs, as with a latent that
    has an image's channels behind its own. Weights that are fitted leave it out there too.
    """
    session.use(made(1.0))
    try:
        return session.plan(**call)
    except ScheduleMismatch:
        session.use(made(0.0))
        return session.plan(**call)


def fullest(steps: int, history: int, source: float) -> fc.Planned:
    """A plan that holds as much as any with so many past outputs; of a short run with as many as it has."""
    history = min(history, steps - 1)
    if not history:
        return fc.Planned(steps=steps, computed=tuple(range(steps)))
    stretch = Stretch(after=history - 1, start=history, outputs=(1.0 / history,) * history, input=source)
    return fc.Planned(steps=steps, computed=tuple(range(history)), stand_in=Fitted(stretches=(stretch,), variance=True))

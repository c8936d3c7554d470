"""What a study's trials hold, read back as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fastercache.policies.base import Policy
from fastercache.policies.errors import BudgetNotMet
from fastercache.policies.registry import load_policy
from fastercache.policies.wording import counted
from fastercache.tuner.budget import Budget
from fastercache.tuner.codec import Notes


class Outcome(StrEnum):
    """How a trial ended. Only `measured` trials ran every prompt and can be chosen."""

    MEASURED = "measured"
    EXACT = "exact"  # reuses nothing: equal to the reference by law, not run
    STOPPED = "stopped"  # ended after some prompts; its margin is a projection
    DOMINATED = "dominated"  # cannot be cheaper than the incumbent: not run
    INVALID = "invalid"  # cannot be applied to this pipeline: no video was made
    FAILED = "failed"  # raised, or produced NaN
    INTERRUPTED = "interrupted"  # abandoned by its worker; its parameters are queued again


SPENT = (Outcome.MEASURED, Outcome.STOPPED, Outcome.FAILED)
"""Outcomes that count against the number of trials: those that made videos."""


def is_interrupted(trial: FrozenTrial) -> bool:
    """Whether a failed trial was only abandoned by its worker; what it was to try is then tried again."""
    ended = (Outcome.FAILED, Outcome.INVALID)
    return trial.state is TrialState.FAIL and Notes.of(trial).outcome not in ended


SAME = 1e-9
"""Shares of the uncached cost closer than this are equal."""


@dataclass(frozen=True)
class Record:
    """A finished trial.

    Attributes:
        number: the trial's number in the study.
        policy: what was tried. source: `no_cache`, `default`, `preset:...`, a given name, or `search`.
        ratio: computed over uncached FLOPs, measured where it ran, else forecast; None if neither is known.
        values: per metric one value per prompt that was run.
        violation: how far the budget is missed (dB of PSNR or what counts as much); at most 0 where it is met.
        margin: the same as slack on a decibel scale; projected for stopped trials.
        reason: why it was stopped, skipped or failed.
        foreseen: seconds of a call by the study's table; None where steps were not timed.
        hardware: the machine that it ran on, in words, where seconds matter.
        clocked: those over the seconds of an uncached call, in a study by the clock.
    """

    number: int
    outcome: Outcome
    source: str
    policy: Policy
    params: Mapping[str, Any]
    ratio: float | None
    values: Mapping[str, Sequence[float]]
    violation: float | None
    margin: float | None
    seconds: float | None
    cached_bytes: int | None
    reason: str | None
    foreseen: float | None = None
    hardware: str | None = None
    clocked: float | None = None

    @property
    def cost(self) -> float | None:
        """What the study minimises, as a share of the uncached run's; None where it is not known."""
        return self.ratio if self.clocked is None else self.clocked

    @property
    def feasible(self) -> bool:
        """Every search prompt was run (or need not be) and the budget was met."""
        return (
            self.outcome in (Outcome.MEASURED, Outcome.EXACT) and self.violation is not None and self.violation <= 0.0
        )

    @property
    def speedup_flops(self) -> float | None:
        """Uncached over computed FLOPs of the denoiser; None where the trial was not measured."""
        return None if not self.ratio else 1.0 / self.ratio

    @classmethod
    def of(cls, trial: FrozenTrial) -> Record | None:
        """A trial as a record; None for one that is queued, still running, or died before it was described."""
        noted = Notes.of(trial)
        if not trial.state.is_finished() or noted.policy is None:
            return None
        if noted.outcome is None and not is_interrupted(trial):
            return None
        return cls(
            number=trial.number,
            outcome=Outcome.INTERRUPTED if is_interrupted(trial) or noted.outcome is None else Outcome(noted.outcome),
            source=noted.source,
            policy=load_policy(noted.policy),
            params=dict(trial.params),
            ratio=noted.computed,
            values=noted.values,
            violation=noted.violation,
            margin=noted.margin,
            seconds=noted.seconds,
            cached_bytes=noted.cached_bytes,
            reason=noted.reason,
            foreseen=noted.foreseen,
            hardware=noted.hardware,
            clocked=noted.clocked,
        )


def records(study: optuna.Study, known: dict[int, Record] | None = None) -> list[Record]:
    """Every finished trial, in order. `known` keeps those read before: a finished trial does not change."""
    known = {} if known is None else known
    for trial in study.get_trials(deepcopy=False):
        if trial.number not in known:
            record = Record.of(trial)
            if record is not None:
                known[trial.number] = record
    return [known[number] for number in sorted(known)]


def cheapest(found: Sequence[Record], budget: Budget) -> Record:
    """The cheapest measured record that meets the budget and saves something.

    Raises:
        BudgetNotMet: with the closest miss.
    """
    judged = [
        (r.cost, r.violation, r)
        for r in found
        if r.cost is not None and r.cost < 1.0 - SAME and r.violation is not None
    ]
    feasible = [one for one in judged if one[-1].feasible]
    if feasible:
        return min(feasible, key=itemgetter(0, 1))[-1]
    missed = [one for one in judged if one[-1].outcome is Outcome.MEASURED] or judged
    if not missed:
        raise BudgetNotMet(f"no policy that saves anything was measured against {budget}: run more trials")
    closest = min(missed, key=itemgetter(1))[-1]
    projected = "" if closest.outcome is Outcome.MEASURED else ", as projected from its first prompts,"
    tried = sum(r.outcome in SPENT for r in found)
    raise BudgetNotMet(
        f"none of {counted(tried, 'trial')} that save anything met {budget}; the closest reached "
        f"{budget.describe(closest.values)}{projected} at {closest.speedup_flops:.2f}x (trial {closest.number}, "
        f"{closest.source}): loosen the budget, or run more trials"
    )


def front(found: Sequence[Record]) -> list[Record]:
    """The measured records that no other beats in both cost and margin, cheapest first."""
    measured = [
        (r.cost, -r.margin, r)
        for r in found
        if r.outcome is Outcome.MEASURED and r.cost is not None and r.margin is not None
    ]
    result: list[tuple[float, float, Record]] = []
    for one in sorted(measured, key=itemgetter(0, 1)):
        if not result or one[1] < result[-1][1]:
            result.append(one)
    return [record for *_, record in result]

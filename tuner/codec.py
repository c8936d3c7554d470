"""What is written beside an Optuna trial, and read back: the one place that knows the names of its attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial
from pydantic import BaseModel, ConfigDict


class Notes(BaseModel):
    """A trial's attributes; None where they were not written (yet).

    Attributes:
        policy: what is tried, serialised. source: `no_cache`, `default`, `preset:...`, a given name, or `search`.
        worker: who runs it: host, process id and start time.
        forecast: computed over uncached FLOPs as known before the run; ratio: as counted.
        foreseen: seconds of a call by the study's table, of what is decided before the run or was decided in it.
        hardware: the machine of the worker, in words, where seconds matter.
        clocked: those over the seconds of an uncached call, in a study by the clock.
        values: per metric one value per prompt that was run.
        violation, margin: how the budget is met; see `tuner.budget`.
        seconds, cached_bytes: of a run.
        outcome: an `Outcome`. reason: why it was stopped, skipped or failed.
        words: all of it in one line, for whoever reads the study in a dashboard.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # Optuna and its dashboard keep attributes of their own
    policy: dict[str, Any] | None = None
    source: str = "search"
    worker: str | None = None
    forecast: float | None = None
    ratio: float | None = None
    foreseen: float | None = None
    hardware: str | None = None
    clocked: float | None = None
    values: dict[str, list[float]] = {}
    violation: float | None = None
    margin: float | None = None
    seconds: float | None = None
    cached_bytes: int | None = None
    outcome: str | None = None
    reason: str | None = None
    words: str | None = None

    @property
    def computed(self) -> float | None:
        """Computed over uncached FLOPs: as counted where the trial ran, else as forecast; None if neither is known."""
        return self.forecast if self.ratio is None else self.ratio

    @property
    def cost(self) -> float | None:
        """What the study minimises, as a share of the uncached run's; None where it is not known."""
        return self.computed if self.clocked is None else self.clocked

    @classmethod
    def of(cls, trial: FrozenTrial | Trial) -> Notes:
        """Those of a trial."""
        return cls.model_validate(trial.user_attrs)


def note(trial: Trial, **fields: Any) -> None:
    """Write some of a trial's notes."""
    for name, value in checked(fields).items():
        trial.set_user_attr(name, value)


def shown_feasible(trial: Trial, violations: Sequence[float]) -> None:
    """Write how far each term of the budget is missed where optuna-dashboard looks for it, beside Optuna's own form."""
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", list(violations))


def enqueue(study: optuna.Study, params: dict[str, Any], **fields: Any) -> None:
    """Queue parameters with notes."""
    study.enqueue_trial(params, user_attrs=checked(fields))


def checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields, which all must be notes."""
    unknown = fields.keys() - Notes.model_fields.keys()
    assert not unknown, f"a trial has no note {', '.join(unknown)}"
    return fields

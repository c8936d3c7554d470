"""Every plan that was run is a trial of an Optuna study: resuming, dashboards and databases are then Optuna's own."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.trial import TrialState, create_trial

from fastercache.policies.errors import ConfigMismatch
from fastercache.tuner.planning.fitting import Steps
from fastercache.tuner.planning.search import Judged
from fastercache.tuner.storage import open_storage

KEY, PLAN, SPENT = "made_for", "computed_steps", "generations"


class PlanRecord:
    """The judged plans of one recording.

    A trial's value is -10 log10 of the mean squared error that the plan left in the last latent, dB, on the prompts
    that judged it; a plan that was given up is pruned. Its parameters are the number of computed steps and K.

    Args:
        place: a journal file, or a database's URL. name: of the study.
        made_for: everything that determines the outcome; a study of something else is refused.

    Raises:
        ConfigMismatch: if the study is of another model, call, set of prompts or effort.
    """

    def __init__(self, place: str | Path, made_for: str, *, name: str = "plans", history: int = 5) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = open_storage(place)
        try:
            self.study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.study.set_metric_names(["decibels"])
        except DuplicatedStudyError:
            self.study = optuna.load_study(storage=storage, study_name=name)
        before = self.study.user_attrs.get(KEY, made_for)
        if before != made_for:
            raise ConfigMismatch(
                f"the study '{name}' in {place} holds plans of another model, call, set of prompts or effort: repeat "
                "the old call to continue it, or give another --study folder"
            )
        self.study.set_user_attr(KEY, made_for)
        self.history = history
        self._known = {plan.computed: plan for plan in map(_judged, self.study.trials) if plan is not None}

    @property
    def known(self) -> dict[Steps, Judged]:
        """The plans that were judged, by this call or an interrupted one."""
        return dict(self._known)

    def add(self, plan: Judged) -> None:
        """Keep a plan; one that is known already is not kept twice."""
        if plan.computed in self._known:
            return
        self._known[plan.computed] = plan
        whole = math.isfinite(plan.error)
        self.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if whole else TrialState.PRUNED,
                value=plan.decibels if whole else None,
                params={"computed": len(plan.computed), "history": self.history},
                distributions={"computed": IntDistribution(1, 10_000), "history": IntDistribution(1, 16)},
                user_attrs={PLAN: list(plan.computed), SPENT: plan.spent, "error": plan.error if whole else None},
            )
        )


def _judged(trial: optuna.trial.FrozenTrial) -> Judged | None:
    steps = trial.user_attrs.get(PLAN)
    if not isinstance(steps, list):
        return None
    error = trial.user_attrs.get("error")
    return Judged(tuple(map(int, steps)), math.inf if error is None else float(error), float(trial.user_attrs[SPENT]))

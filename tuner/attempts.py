"""One trial of a study after another: what is tried, when it ends, and what is told to Optuna.

A proposal that cannot be cheaper than the best ends before a video is made; one that cannot keep the budget any more
ends after the prompt that shows it.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from fastercache.policies.base import Policy
from fastercache.policies.errors import FasterCacheError, NotFinite, printable
from fastercache.policies.registry import dump, load_policy
from fastercache.run.memory import CacheTooLarge
from fastercache.tuner.budget import Budget
from fastercache.tuner.clock import Timekeeper
from fastercache.tuner.codec import Notes, note, shown_feasible
from fastercache.tuner.early import Projection
from fastercache.tuner.evaluate import Evaluation, Evaluator
from fastercache.tuner.propose import Proposer
from fastercache.tuner.record import SAME, Outcome, Record, is_interrupted
from fastercache.tuner.setting import Case
from fastercache.tuner.simulate import CostModel, Forecast
from fastercache.tuner.space import Space
from fastercache.tuner.storage import heartbeat, requeue, this_worker

GUEST = "planned:"
"""How the sources begin of policies that are tried beside the searched ones."""
PROPOSING = 10.0
"""Seconds that a worker waits for what another one is about to try."""


class Attempts:
    """The trials of a study that this worker makes.

    Args:
        study, storage: of Optuna. space, proposer: what is searched. evaluator, search: what runs it, on which cases.
        budget, time: what it is held to. cost_model, records: asked for when they are needed, for they cost a run and
            change with every trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        *,
        space: Space,
        proposer: Proposer,
        evaluator: Evaluator,
        search: Sequence[Case],
        budget: Budget,
        time: Timekeeper,
        cost_model: Callable[[], CostModel],
        records: Callable[[], Sequence[Record]],
    ) -> None:
        self._study, self._storage, self._space, self._proposer = study, storage, space, proposer
        self._evaluator, self._search, self._budget, self._time = evaluator, search, budget, time
        self._cost_model, self._records = cost_model, records

    def next(self) -> Record | None:
        """Try what Optuna proposes; None where another worker took the trial over meanwhile."""
        with warnings.catch_warnings():
            # Optuna warns that ask() sends no heartbeats; `heartbeat` below does.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            trial = self._study.ask()
        note(trial, worker=this_worker())
        try:
            with heartbeat(self._storage, trial._trial_id):
                self._try(trial)
        except UpdateFinishedTrialError:
            return None  # another worker took this one for dead and queued its trial again
        except Exception:
            self._finish(trial, Outcome.FAILED, "raised an error that ended the search")
            raise
        except BaseException:  # Ctrl-C: nothing of this trial counts, and it is tried again
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            self._finish(trial, Outcome.INTERRUPTED, "interrupted")
            requeue(self._study, frozen)
            raise
        return Record.of(self._study.get_trials(deepcopy=False)[trial.number])

    def _try(self, trial: Trial) -> None:
        noted = Notes.of(trial)
        params = {} if noted.source.startswith(GUEST) else self._space.suggest(trial)
        if noted.policy is not None:
            policy = load_policy(noted.policy)
        else:
            try:
                policy = self._space.build(params)
            except FasterCacheError as error:
                return self._finish(trial, Outcome.INVALID, str(error))
            note(trial, policy=dump(policy), source="search")
        forecast = self._proposer.forecast(policy) if policy.static else None
        if forecast is not None:
            note(trial, forecast=forecast.ratio)
            self._note_seconds(trial, forecast.seconds)
            if too_long := self._time.too_long(forecast.seconds):
                return self._finish(trial, Outcome.INVALID, too_long)
            if (other := self._same_under_way(trial, forecast)) is not None:
                return self._finish(trial, Outcome.DOMINATED, f"trial {other}, of another worker, does the same")
            incumbent = min((r.cost for r in self._records() if r.feasible and r.cost is not None), default=1.0)
            if forecast.ratio >= 1.0 - SAME and incumbent >= 1.0 - SAME:
                return self._tell_exact(trial)
            if forecast.cost >= incumbent - SAME:
                what = "FLOPs" if forecast.clocked is None else "seconds"
                reason = f"costs {forecast.cost:.4f} of the uncached {what}, the best so far {incumbent:.4f}"
                return self._finish(trial, Outcome.DOMINATED, reason)
        finished = [r.values for r in self._records() if r.outcome is Outcome.MEASURED]
        projection = Projection(self._budget, len(self._search), finished)

        def stop(result: Evaluation) -> str | None:
            return self._time.too_long(self._foreseen(result)) or projection.verdict(result.values)

        try:
            result = self._evaluator.evaluate(policy, self._search, stop)
        except NotFinite as error:
            return self._finish(trial, Outcome.FAILED, str(error))
        except CacheTooLarge as error:  # known before the first step: no video was made
            return self._finish(trial, Outcome.INVALID, str(error))
        except torch.OutOfMemoryError as error:
            self._evaluator.close()  # with its cached values
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return self._finish(trial, Outcome.FAILED, printable(f"out of memory: {error}", 300))
        except FasterCacheError as error:
            # Bounds know nothing of the model: a draw may span more blocks than there are. Where not even the only
            # policy's defaults can be applied, there is nothing to search.
            if len(self._space.bases) == 1 and noted.source != "search":
                raise
            return self._finish(trial, Outcome.INVALID, str(error))
        self._tell(trial, result, projection)

    def _same_under_way(self, trial: Trial, forecast: Forecast) -> int | None:
        """The number of an earlier trial, running or just ended, that does what this one would.

        Earlier trials whose policy is not known yet are waited for. So of two workers that come to the same policy at
        the same time the one with the lower number tries it, and never both.
        """
        until = time.monotonic() + PROPOSING
        while True:
            *earlier, own = self._study.get_trials(deepcopy=False)[: trial.number + 1]
            others = [t for t in earlier if _beside(t, own)]
            if time.monotonic() > until or not any(
                Notes.of(t).policy is None for t in others if not t.state.is_finished()
            ):
                break
            time.sleep(0.05)
        for other in others:
            policy = None if is_interrupted(other) else Notes.of(other).policy
            known = None if policy is None else self._proposer.forecast(load_policy(policy))
            if known is not None and known.behaviour == forecast.behaviour:
                return other.number
        return None

    def _tell_exact(self, trial: Trial) -> None:
        values = self._evaluator.exact(self._search)
        note(trial, ratio=1.0)
        self._judge(trial, values)
        self._finish(trial, Outcome.EXACT, "reuses nothing, so it equals the reference bit for bit", 1.0)

    def _tell(self, trial: Trial, result: Evaluation, projection: Projection) -> None:
        seconds = sorted(result.seconds)[len(result.seconds) // 2]
        note(trial, values=result.values, ratio=result.ratio, seconds=seconds, cached_bytes=result.cached_bytes)
        self._note_seconds(trial, self._foreseen(result))  # of a policy that decides while it runs only now
        if result.stopped is None:
            self._judge(trial, result.values, seconds)
            self._finish(trial, Outcome.MEASURED, self._time.took_too_long(seconds), Notes.of(trial).cost)
        else:
            self._judge(trial, projection.completed(result.values))
            self._finish(trial, Outcome.STOPPED, result.stopped)

    def _foreseen(self, result: Evaluation) -> float | None:
        """Seconds of a call by the table, the mean over the cases that were run; None where steps were not timed."""
        if self._time.table is None:
            return None
        found = [s for table in result.tables if (s := self._cost_model().seconds(table)) is not None]
        return statistics.fmean(found)

    def _note_seconds(self, trial: Trial, foreseen: float | None) -> None:
        if foreseen is None:
            return
        note(trial, foreseen=foreseen, hardware=self._time.here)
        if (clocked := self._cost_model().clocked(foreseen)) is not None:
            note(trial, clocked=clocked)

    def _judge(self, trial: Trial, values: Mapping[str, Sequence[float]], seconds: float | None = None) -> None:
        """Record how the budget is met; these values are projections where the trial was stopped.

        `seconds`: of a call as measured.
        """
        violations = self._budget.violations(values) | self._time.excess(seconds)
        violation = max(self._budget.violation(values), self._time.violation(seconds))
        note(trial, violation=violation, margin=self._budget.margin(values))
        for term, amount in violations.items():
            trial.set_constraint(term, amount)
        shown_feasible(trial, list(violations.values()))

    def _finish(self, trial: Trial, outcome: Outcome, reason: str | None, value: float | None = None) -> None:
        note(trial, outcome=str(outcome), **({} if reason is None else {"reason": reason}))
        noted = Notes.of(trial)
        note(trial, words=self._words(noted))
        if value is not None:
            self._study.tell(trial, value, skip_if_finished=True)
        else:
            skipped = outcome in (Outcome.STOPPED, Outcome.DOMINATED)
            if skipped and noted.cost is not None:
                trial.report(noted.cost, 0)  # what a pruned trial would have cost, for its place in a plot
            self._study.tell(trial, state=TrialState.PRUNED if skipped else TrialState.FAIL, skip_if_finished=True)

    def _words(self, noted: Notes) -> str:
        """`FORA(interval=3): 2.94x fewer FLOPs; psnr 31.2, misses psnr>=33`."""
        policy = "" if noted.policy is None else repr(load_policy(noted.policy))
        cost = "" if not noted.computed else f": {1.0 / noted.computed:.2f}x fewer FLOPs"
        if noted.clocked:
            cost += f", {1.0 / noted.clocked:.2f}x by the clock"
        kept = ""
        if noted.violation is not None and all(noted.values.get(name) for name in self._budget.metrics):
            verb = "keeps" if noted.violation <= 0.0 else "misses"
            kept = f"; {self._budget.describe(noted.values)}, {verb} {self._budget}"
        why = "" if noted.reason is None else f" ({noted.reason})"
        return f"{policy}{cost}{kept}{why}"


def under_way(study: optuna.Study) -> list[Policy]:
    """What is being tried, by this worker and others."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [load_policy(noted.policy) for t in running if (noted := Notes.of(t)).policy is not None]


def _beside(other: FrozenTrial, own: FrozenTrial) -> bool:
    """Whether a trial was at work when another one began."""
    if other.state is TrialState.RUNNING:
        return True
    ended, begun = other.datetime_complete, own.datetime_start
    return ended is not None and begun is not None and ended > begun

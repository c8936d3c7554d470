"""Tuning: the cheapest policy, in computed FLOPs or by the clock, whose quality stays within a budget.

An Optuna study with one objective and the budget as its constraint. It can be interrupted at any moment, by Ctrl-C or
by `kill -9`, and the same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from fastercache.model.families import Guidance
from fastercache.policies.base import Policy
from fastercache.policies.errors import ConfigMismatch, ConfigUnreadable, FasterCacheError, NotFinite, printable
from fastercache.policies.notebook import Framed
from fastercache.policies.registry import dump, load_policy
from fastercache.policies.wording import counted
from fastercache.prompts import Prompt
from fastercache.run.memory import CacheTooLarge
from fastercache.tuned import Certificate, Measured
from fastercache.tuner.budget import Budget
from fastercache.tuner.certify import certificate
from fastercache.tuner.clock import Foresight, Objective, Timekeeper, agreed, foresight, needs_table
from fastercache.tuner.codec import Notes, enqueue, note, shown_feasible
from fastercache.tuner.database import HEARTBEAT
from fastercache.tuner.early import Projection
from fastercache.tuner.evaluate import Evaluation, Evaluator
from fastercache.tuner.propose import Proposer, SamplerName, Seen, make_sampler
from fastercache.tuner.record import SAME, SPENT, Outcome, Record, cheapest, front, is_interrupted, records
from fastercache.tuner.seconds import Seconds
from fastercache.tuner.setting import Case
from fastercache.tuner.simulate import CostModel, Forecast
from fastercache.tuner.space import Space
from fastercache.tuner.storage import heartbeat, open_storage, recover, requeue, this_worker

FINGERPRINT = "fastercache"
SEEDED = "seeded"
PROPOSING = 10.0
"""Seconds that a worker waits for what another one is about to try."""
SEEDING = 30.0
"""Seconds that a worker waits for the one that made the study to queue its seeds."""

OnTrial = Callable[["Study", Record], None]
Guests = Callable[[], Mapping[str, Policy]]
"""Makes policies that are tried beside the searched ones, by name; all names begin with `GUEST`."""
GUEST = "planned:"
Clock = Callable[[CostModel], Seconds]
"""Measures what steps take on this machine."""
OBJECTIVES = {
    Objective.FLOPS: "computed FLOPs, share of uncached",
    Objective.TIME: "seconds of a call, share of uncached",
}
"""What a study minimises, as its plots call it."""


class Study(Framed):
    """A tuning study: made or resumed by `tune`, asked for results afterwards.

    Attributes:
        budget, space, evaluator: what is searched, and how it is judged.
        search, held_out: the disjoint sets of cases.
        objective: what is minimised. time: what steps take, in a study that goes by the clock or limits time.
        ended: why the last call of `optimise` stopped.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        space: Space,
        budget: Budget,
        search: Sequence[str],
        held_out: Sequence[str] = (),
        *,
        storage: str | Path,
        name: str = "tuning",
        seed: int = 0,
        sampler: SamplerName = "known-cost",
        seeds: Mapping[str, Policy] | None = None,
        guests: Guests | None = None,
        objective: Objective = Objective.FLOPS,
        clock: Clock | None = None,
    ) -> None:
        disjoint(search, held_out)
        self.objective = objective
        self.time = Timekeeper(None, budget.time, evaluator.setting.hardware)
        self.evaluator, self.space, self.budget = evaluator, space, budget
        self.search, self.held_out = evaluator.cases(search), evaluator.cases(held_out)
        self.ended = ""
        self._storage = open_storage(storage)
        self._place = f"{storage}"
        # TPE does not know costs: it may take many proposals to find one that can beat the incumbent.
        self._patience = 3 if sampler == "known-cost" and space.static else 100
        most = math.inf if budget.time is None else budget.time.most
        self._proposer = Proposer(
            space, lambda policy: self.cost_model.forecast(policy), running=self._under_way, most=most
        )
        self._cost_model: CostModel | None = None
        self._records: dict[int, Record] = {}
        self._seeds, self._guests = dict(seeds or {}), guests
        optuna_verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.optuna, self._made = self._create(name)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise ConfigUnreadable(f"{storage} is no study file ({type(error).__name__}: {error})") from None
        finally:
            optuna.logging.set_verbosity(optuna_verbosity)
        self._check_fingerprint()
        if needs_table(objective, budget):
            table = agreed(self.optuna, self._made, None if clock is None else lambda: clock(self.cost_model))
            self.time = replace(self.time, table=table)
            self._cost_model = None
        drawn = len(self.optuna.get_trials(deepcopy=False))
        self.optuna.sampler = make_sampler(sampler, self._proposer, lambda _: self.seen(), seed, drawn)

    def _create(self, name: str) -> tuple[optuna.Study, bool]:
        """The study, and whether this worker is the one of many that made it."""
        if "://" not in self._place and (there := optuna.get_all_study_names(self._storage)):
            name = there[0]  # a file holds one study, whatever an older version called it
        try:
            study = optuna.create_study(storage=self._storage, study_name=name, direction="minimize")
        except DuplicatedStudyError:
            return optuna.load_study(storage=self._storage, study_name=name), False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([OBJECTIVES[self.objective]])
        return study, True

    # -- identity ----------------------------------------------------------------------------------------------------
    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a study and its continuation."""
        shape = {p.name: str(p.distribution) for p in self.space.parameters}
        return {
            **self.evaluator.setting.identity,
            "budget": str(self.budget),
            "prompts": _digest([list(c.identity.values()) for c in self.search]),
            "policy": ", ".join(self.space.bases),
            "search space": _digest([*map(dump, self.space.bases.values()), shape]),
            "objective": str(self.objective),
        }

    def _check_fingerprint(self) -> None:
        now = self.fingerprint()
        begun = bool(self.optuna.get_trials(deepcopy=False))  # read first: who begins writes the fingerprint first
        then = self.optuna.user_attrs.get(FINGERPRINT)
        if then is None:
            if begun:
                raise ConfigUnreadable(f"{self._place} holds a study that is not of this tuner: give another path")
            self.optuna.set_user_attr(FINGERPRINT, now)
            return
        then = {"objective": str(Objective.FLOPS), **then}  # older studies knew no other
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                raise ConfigMismatch(
                    f"the study in {self._place} was made with {key} {then.get(key)}, this call has {now.get(key)}: "
                    "repeat the old call to continue it, or give another place for a new study"
                )

    @property
    def cost_model(self) -> CostModel:
        """Costs of any static policy on this study's runs; one counted run is made the first time it is asked for."""
        if self._cost_model is None:
            counted = self.evaluator.cost_model(self.search[0])
            self._cost_model = replace(counted, clock=self.time.table, by_clock=self.objective is Objective.TIME)
        return self._cost_model

    @property
    def guidance(self) -> Guidance:
        """How this pipeline's runs compute their branches."""
        return self.cost_model.guidance if len(self.cost_model.run.branches) > 1 else "none"

    # -- search ------------------------------------------------------------------------------------------------------
    def optimise(self, trials: int = 30, timeout: float | None = None, on_trial: OnTrial | None = None) -> Study:
        """Search until `trials` trials of this study have made videos, `timeout` seconds have passed, or no proposal
        can beat the incumbent any more. Trials that were resumed count; trials skipped without a video do not. Of N
        workers each may be in one when the number is reached: up to N - 1 more are made."""
        started = time.monotonic()
        self._enqueue_seeds()
        recovered = -math.inf
        fruitless = 0
        self.ended = f"{counted(trials, 'trial')} done"
        try:
            while sum(r.outcome in SPENT for r in self.records) < trials:
                if timeout is not None and time.monotonic() - started > timeout:
                    self.ended = f"{timeout:g} seconds passed"
                    break
                if time.monotonic() - recovered > HEARTBEAT:  # other workers may die while this one goes on
                    recover(self.optuna)
                    recovered = time.monotonic()
                record = self._step()
                if record is not None and on_trial is not None:
                    on_trial(self, record)
                skipped = record is None or (record.source == "search" and record.outcome not in SPENT)
                fruitless = fruitless + 1 if skipped else 0
                if fruitless >= self._patience:
                    if recover(self.optuna):
                        fruitless = 0  # what a dead worker was trying comes first
                        continue
                    longer = "" if self.budget.time is None else ", or would take too long"
                    self.ended = f"{fruitless} proposals in a row could not be cheaper than the best{longer}"
                    break
            recover(self.optuna)  # no trial of a dead worker is left running
        finally:
            self.evaluator.close()
        return self

    def _enqueue_seeds(self) -> None:
        """Queue the seeds that are not there yet: of workers that begin together, the one that made the study does."""
        until = time.monotonic() + SEEDING
        while not self._made and SEEDED not in self.optuna.user_attrs and time.monotonic() < until:
            time.sleep(0.05)  # where the one that made the study died before, another does it after a while
        present = {Notes.of(t).source for t in self.optuna.get_trials(deepcopy=False) if not is_interrupted(t)}
        if self._guests is not None and not any(source.startswith(GUEST) for source in present):
            made = self._guests()
            # Minutes have passed: another worker may have planned as well.
            planned = {Notes.of(t).source for t in self.optuna.get_trials(deepcopy=False)}
            for source, policy in made.items() if not any(s.startswith(GUEST) for s in planned) else ():
                enqueue(self.optuna, {}, policy=dump(policy), source=source)
        for source, policy in self._seeds.items():
            if source not in present:
                encoded = self.space.encode(policy)
                enqueue(self.optuna, encoded.params, policy=dump(policy), source=source)
        if SEEDED not in self.optuna.user_attrs:
            self.optuna.set_user_attr(SEEDED, True)

    def _step(self) -> Record | None:
        with warnings.catch_warnings():
            # Optuna warns that ask() sends no heartbeats; `heartbeat` below does.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            trial = self.optuna.ask()
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
            frozen = self.optuna.get_trials(deepcopy=False)[trial.number]
            self._finish(trial, Outcome.INTERRUPTED, "interrupted")
            requeue(self.optuna, frozen)
            raise
        return Record.of(self.optuna.get_trials(deepcopy=False)[trial.number])

    def _try(self, trial: Trial) -> None:
        noted = Notes.of(trial)
        params = {} if noted.source.startswith(GUEST) else self.space.suggest(trial)
        if noted.policy is not None:
            policy = load_policy(noted.policy)
        else:
            try:
                policy = self.space.build(params)
            except FasterCacheError as error:
                return self._finish(trial, Outcome.INVALID, str(error))
            note(trial, policy=dump(policy), source="search")
        forecast = self._proposer.forecast(policy) if policy.static else None
        if forecast is not None:
            note(trial, forecast=forecast.ratio)
            self._note_seconds(trial, forecast.seconds)
            if too_long := self.time.too_long(forecast.seconds):
                return self._finish(trial, Outcome.INVALID, too_long)
            if (other := self._same_under_way(trial, forecast)) is not None:
                return self._finish(trial, Outcome.DOMINATED, f"trial {other}, of another worker, does the same")
            incumbent = min((r.cost for r in self.records if r.feasible and r.cost is not None), default=1.0)
            if forecast.ratio >= 1.0 - SAME and incumbent >= 1.0 - SAME:
                return self._tell_exact(trial)
            if forecast.cost >= incumbent - SAME:
                what = "FLOPs" if forecast.clocked is None else "seconds"
                reason = f"costs {forecast.cost:.4f} of the uncached {what}, the best so far {incumbent:.4f}"
                return self._finish(trial, Outcome.DOMINATED, reason)
        finished = [r.values for r in self.records if r.outcome is Outcome.MEASURED]
        projection = Projection(self.budget, len(self.search), finished)

        def stop(result: Evaluation) -> str | None:
            return self.time.too_long(self._foreseen(result)) or projection.verdict(result.values)

        try:
            result = self.evaluator.evaluate(policy, self.search, stop)
        except NotFinite as error:
            return self._finish(trial, Outcome.FAILED, str(error))
        except CacheTooLarge as error:  # known before the first step: no video was made
            return self._finish(trial, Outcome.INVALID, str(error))
        except torch.OutOfMemoryError as error:
            self.evaluator.close()  # with its cached values
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return self._finish(trial, Outcome.FAILED, printable(f"out of memory: {error}", 300))
        except FasterCacheError as error:
            # Bounds know nothing of the model: a draw may span more blocks than there are. Where not even the only
            # policy's defaults can be applied, there is nothing to search.
            if len(self.space.bases) == 1 and noted.source != "search":
                raise
            return self._finish(trial, Outcome.INVALID, str(error))
        self._tell(trial, result, projection)

    def _under_way(self) -> list[Policy]:
        """What is being tried, by this worker and others."""
        running = self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [load_policy(noted.policy) for t in running if (noted := Notes.of(t)).policy is not None]

    def _same_under_way(self, trial: Trial, forecast: Forecast) -> int | None:
        """The number of an earlier trial, running or just ended, that does what this one would.

        Earlier trials whose policy is not known yet are waited for. So of two workers that come to the same policy at
        the same time the one with the lower number tries it, and never both.
        """
        until = time.monotonic() + PROPOSING
        while True:
            *earlier, own = self.optuna.get_trials(deepcopy=False)[: trial.number + 1]
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
        values = self.evaluator.exact(self.search)
        note(trial, ratio=1.0)
        self._judge(trial, values)
        self._finish(trial, Outcome.EXACT, "reuses nothing, so it equals the reference bit for bit", 1.0)

    def _tell(self, trial: Trial, result: Evaluation, projection: Projection) -> None:
        seconds = sorted(result.seconds)[len(result.seconds) // 2]
        note(trial, values=result.values, ratio=result.ratio, seconds=seconds, cached_bytes=result.cached_bytes)
        self._note_seconds(trial, self._foreseen(result))  # of a policy that decides while it runs only now
        if result.stopped is None:
            self._judge(trial, result.values, seconds)
            self._finish(trial, Outcome.MEASURED, self.time.took_too_long(seconds), Notes.of(trial).cost)
        else:
            self._judge(trial, projection.completed(result.values))
            self._finish(trial, Outcome.STOPPED, result.stopped)

    def _foreseen(self, result: Evaluation) -> float | None:
        """Seconds of a call by the table, the mean over the cases that were run; None where steps were not timed."""
        if self.time.table is None:
            return None
        found = [s for table in result.tables if (s := self.cost_model.seconds(table)) is not None]
        return statistics.fmean(found)

    def _note_seconds(self, trial: Trial, foreseen: float | None) -> None:
        if foreseen is None:
            return
        note(trial, foreseen=foreseen, hardware=self.time.here)
        if (clocked := self.cost_model.clocked(foreseen)) is not None:
            note(trial, clocked=clocked)

    def _judge(self, trial: Trial, values: Mapping[str, Sequence[float]], seconds: float | None = None) -> None:
        """Record how the budget is met; these values are projections where the trial was stopped.

        `seconds`: of a call as measured.
        """
        violations = self.budget.violations(values) | self.time.excess(seconds)
        violation = max(self.budget.violation(values), self.time.violation(seconds))
        note(trial, violation=violation, margin=self.budget.margin(values))
        for term, amount in violations.items():
            trial.set_constraint(term, amount)
        shown_feasible(trial, list(violations.values()))

    def _finish(self, trial: Trial, outcome: Outcome, reason: str | None, value: float | None = None) -> None:
        note(trial, outcome=str(outcome), **({} if reason is None else {"reason": reason}))
        noted = Notes.of(trial)
        note(trial, words=self._words(noted))
        if value is not None:
            self.optuna.tell(trial, value, skip_if_finished=True)
        else:
            skipped = outcome in (Outcome.STOPPED, Outcome.DOMINATED)
            if skipped and noted.cost is not None:
                trial.report(noted.cost, 0)  # what a pruned trial would have cost, for its place in a plot
            self.optuna.tell(trial, state=TrialState.PRUNED if skipped else TrialState.FAIL, skip_if_finished=True)

    def _words(self, noted: Notes) -> str:
        """`FORA(interval=3): 2.94x fewer FLOPs; psnr 31.2, misses psnr>=33`."""
        policy = "" if noted.policy is None else repr(load_policy(noted.policy))
        cost = "" if not noted.computed else f": {1.0 / noted.computed:.2f}x fewer FLOPs"
        if noted.clocked:
            cost += f", {1.0 / noted.clocked:.2f}x by the clock"
        kept = ""
        if noted.violation is not None and all(noted.values.get(name) for name in self.budget.metrics):
            verb = "keeps" if noted.violation <= 0.0 else "misses"
            kept = f"; {self.budget.describe(noted.values)}, {verb} {self.budget}"
        why = "" if noted.reason is None else f" ({noted.reason})"
        return f"{policy}{cost}{kept}{why}"

    # -- results -----------------------------------------------------------------------------------------------------
    def _facts(self) -> dict[str, object]:
        found = self.records
        kept = [(1.0 / record.cost, record) for record in found if record.feasible and record.cost]
        speedup, best = max(kept, key=itemgetter(0), default=(None, None))
        return {
            "budget": str(self.budget),
            "trials": len(found),
            "within budget": len(kept),
            "best": "none yet" if speedup is None else f"{speedup:.2f}x",
            "best policy": None if best is None else best.policy,
            "search prompts": len(self.search),
        }

    @property
    def records(self) -> list[Record]:
        """Every finished trial, in order."""
        return records(self.optuna, self._records)

    def rows(self) -> list[dict[str, object]]:
        """One row for each finished trial: what was tried, what it cost, and each metric's mean over the prompts that
        were run."""
        return [
            {
                "number": one.number,
                "policy": one.policy.name,
                "fields": dump(one.policy),
                "source": one.source,
                "outcome": str(one.outcome),
                "speedup_flops": one.speedup_flops,
                "within_budget": one.feasible,
                "margin": one.margin,
                "seconds": one.seconds,
                "foreseen": one.foreseen,
                "cached_bytes": one.cached_bytes,
                "reason": one.reason,
                **{name: sum(values) / len(values) for name, values in one.values.items() if values},
            }
            for one in self.records
        ]

    def seen(self) -> list[Seen]:
        """What the proposer learns from; a failed trial counts as one that missed the budget by far."""
        found = []
        for r in self.records:
            margin = -15.0 if r.outcome is Outcome.FAILED else r.margin
            if r.cost is not None and margin is not None and r.params:
                found.append(Seen(r.params, r.policy, r.cost, margin, r.feasible))
        return found

    def best(self) -> Record:
        """The cheapest measured trial that meets the budget on the search prompts and saves something.

        Raises BudgetNotMet with the closest miss.
        """
        return cheapest(self.records, self.budget)

    @property
    def foresight(self) -> Foresight | None:
        """How well the table foresaw the seconds of the trials that ran where it was measured; None without any."""
        where = None if self.time.table is None else self.time.table.hardware
        ran = [r for r in self.records if r.outcome in (Outcome.MEASURED, Outcome.STOPPED) and r.hardware == where]
        return foresight([(r.foreseen, r.seconds) for r in ran if r.foreseen is not None and r.seconds is not None])

    def front(self) -> list[Record]:
        """The measured trials that no other beats in both cost and margin, cheapest first."""
        return front(self.records)

    def verify(self, policy: Policy | None = None, prompts: Sequence[str] | None = None, repeats: int = 1) -> Measured:
        """Measure a policy (by default the best) on the held-out or given prompts, with interleaved timing."""
        cases: Sequence[Case] = self.held_out if prompts is None else self.evaluator.cases(prompts)
        if not cases:
            raise ConfigUnreadable("there are no held-out prompts to verify on: give some that the search did not use")
        return self.evaluator.compare(policy or self.best().policy, cases, repeats)[0]

    def certify(self, prompts: Sequence[str], policy: Policy | None = None, confidence: float = 0.95) -> Certificate:
        """Bound the rate of prompts on which a policy misses the budget, from prompts used for nothing else."""
        disjoint([c.prompt for c in (*self.search, *self.held_out)], prompts)
        try:
            values = self.evaluator.evaluate(policy or self.best().policy, self.evaluator.cases(prompts)).values
        finally:
            self.evaluator.close()
        single = [{name: [v[i]] for name, v in values.items()} for i in range(len(prompts))]
        return certificate([self.budget.violation(v) > 0.0 for v in single], str(self.budget), confidence)


def disjoint(search: Sequence[str], others: Sequence[str]) -> None:
    """Raises ConfigUnreadable if a prompt, up to case and spacing, is in both sets."""
    known = {_spelled(p) for p in search}
    shared = [p for p in others if _spelled(p) in known]
    if shared:
        raise ConfigUnreadable(
            f"{len(shared)} prompts are in two sets that must be disjoint: remove '{shared[0]:.60}' from one of them"
        )


def _beside(other: FrozenTrial, own: FrozenTrial) -> bool:
    """Whether a trial was at work when another one began."""
    if other.state is TrialState.RUNNING:
        return True
    ended, begun = other.datetime_complete, own.datetime_start
    return ended is not None and begun is not None and ended > begun


def _spelled(prompt: str) -> str:
    """A prompt up to case and spacing, with what it brings."""
    further = prompt.digests if isinstance(prompt, Prompt) else {}
    return " ".join(prompt.casefold().split()) + (json.dumps(further, sort_keys=True) if further else "")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

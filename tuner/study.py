"""Tuning: the cheapest policy, in computed FLOPs or by the clock, whose quality stays within a budget.

An Optuna study with one objective and the budget as its constraint. It can be interrupted at any moment, by Ctrl-C or
by `kill -9`, and the same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning

from fastercache.model.families import Guidance
from fastercache.policies.base import Policy
from fastercache.policies.errors import ConfigMismatch, ConfigUnreadable
from fastercache.policies.notebook import Framed
from fastercache.policies.registry import dump
from fastercache.policies.wording import counted
from fastercache.prompts import prompt_hash
from fastercache.tuned import Certificate, Measured
from fastercache.tuner.attempts import GUEST, Attempts, under_way
from fastercache.tuner.budget import Budget
from fastercache.tuner.certify import certificate
from fastercache.tuner.clock import Foresight, Objective, Timekeeper, agreed, foresight, needs_table
from fastercache.tuner.codec import Notes, enqueue
from fastercache.tuner.database import HEARTBEAT
from fastercache.tuner.evaluate import Evaluator
from fastercache.tuner.propose import Proposer, SamplerName, Seen, make_sampler
from fastercache.tuner.record import SPENT, Outcome, Record, cheapest, front, is_interrupted, records
from fastercache.tuner.seconds import Seconds
from fastercache.tuner.setting import Case
from fastercache.tuner.simulate import CostModel
from fastercache.tuner.space import Space
from fastercache.tuner.storage import open_storage, recover

FINGERPRINT = "fastercache"
SEEDED = "seeded"
SEEDING = 30.0
"""Seconds that a worker waits for the one that made the study to queue its seeds."""

OnTrial = Callable[["Study", Record], None]
Guests = Callable[[], Mapping[str, Policy]]
"""Makes policies that are tried beside the searched ones, by name; all names begin with `GUEST`."""
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
            space, lambda policy: self.cost_model.forecast(policy), running=lambda: under_way(self.optuna), most=most
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
        self._attempts = Attempts(
            self.optuna,
            self._storage,
            space=space,
            proposer=self._proposer,
            evaluator=evaluator,
            search=self.search,
            budget=budget,
            time=self.time,
            cost_model=lambda: self.cost_model,
            records=lambda: self.records,
        )
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
            while self.spent < trials:
                if timeout is not None and time.monotonic() - started > timeout:
                    self.ended = f"{timeout:g} seconds passed"
                    break
                if time.monotonic() - recovered > HEARTBEAT:  # other workers may die while this one goes on
                    recover(self.optuna)
                    recovered = time.monotonic()
                record = self._attempts.next()
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

    @property
    def spent(self) -> int:
        """Trials that made videos, or failed at it: what `optimise` counts."""
        return sum(record.outcome in SPENT for record in self.records)

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
    known = set(map(prompt_hash, search))
    shared = [p for p in others if prompt_hash(p) in known]
    if shared:
        raise ConfigUnreadable(
            f"{len(shared)} prompts are in two sets that must be disjoint: remove '{shared[0]:.60}' from one of them"
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

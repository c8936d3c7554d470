"""Tuning: the cheapest policy, in computed FLOPs, whose quality stays within a budget.

An Optuna study with one objective and the budget as its constraint. It can be interrupted at any moment, by Ctrl-C or
by `kill -9`, and the same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from fastercache.model.families import Guidance, family_of
from fastercache.policies.base import Policy
from fastercache.policies.errors import BudgetNotMet, ConfigMismatch, ConfigUnreadable, FasterCacheError, NotFinite
from fastercache.policies.registry import dump, load_policy
from fastercache.tuned import Certificate, Measured, denoisers
from fastercache.tuner.budget import METRICS, Budget
from fastercache.tuner.certify import certificate
from fastercache.tuner.early import Projection
from fastercache.tuner.evaluate import Case, Evaluation, Evaluator
from fastercache.tuner.propose import Proposer, SamplerName, Seen, make_sampler
from fastercache.tuner.record import SAME, SPENT, Outcome, Record, cheapest, front, is_interrupted, records
from fastercache.tuner.simulate import CostModel
from fastercache.tuner.space import Space
from fastercache.tuner.storage import WORKER, heartbeat, open_storage, recover, requeue, this_worker

FINGERPRINT = "fastercache"

OnTrial = Callable[["Study", Record], None]


class Study:
    """A tuning study: made or resumed by `tune`, asked for results afterwards.

    Attributes:
        budget, space, evaluator: what is searched, and how it is judged.
        search, held_out: the disjoint sets of cases.
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
    ) -> None:
        disjoint(search, held_out)
        self.evaluator, self.space, self.budget = evaluator, space, budget
        self.search, self.held_out = evaluator.cases(search), evaluator.cases(held_out)
        self.ended = ""
        self._storage = open_storage(storage)
        self._place = f"{storage}"
        # TPE does not know costs: it may take many proposals to find one that can beat the incumbent.
        self._patience = 3 if sampler == "known-cost" and space.static else 100
        self._proposer = Proposer(space, lambda policy: self.cost_model.forecast(policy))
        self._cost_model: CostModel | None = None
        self._records: dict[int, Record] = {}
        self._seeds = dict(seeds or {})
        optuna_verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.optuna = optuna.create_study(
                storage=self._storage, study_name=name, load_if_exists=True, direction="minimize"
            )
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise ConfigUnreadable(f"{storage} is no study file ({type(error).__name__}: {error})") from None
        finally:
            optuna.logging.set_verbosity(optuna_verbosity)
        self._check_fingerprint()
        drawn = len(self.optuna.get_trials(deepcopy=False))
        self.optuna.sampler = make_sampler(sampler, self._proposer, lambda _: self.seen(), seed, drawn)

    # -- identity ----------------------------------------------------------------------------------------------------
    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a study and its continuation."""
        shape = {p.name: str(p.distribution) for p in self.space.parameters}
        return {
            **self.evaluator.identity,
            "budget": str(self.budget),
            "prompts": _digest([[c.prompt, c.seed] for c in self.search]),
            "policy": ", ".join(self.space.bases),
            "search space": _digest([*map(dump, self.space.bases.values()), shape]),
        }

    def _check_fingerprint(self) -> None:
        now = self.fingerprint()
        then = self.optuna.user_attrs.get(FINGERPRINT)
        if then is None:
            if self.optuna.get_trials(deepcopy=False):
                raise ConfigUnreadable(f"{self._place} holds a study that is not of this tuner: give another path")
            self.optuna.set_user_attr(FINGERPRINT, now)
            return
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                raise ConfigMismatch(
                    f"the study in {self._place} was made with {key} {then.get(key)}, this call has {now.get(key)}: "
                    "repeat the old call to continue it, or give another place for a new study"
                )

    @property
    def cost_model(self) -> CostModel:
        """FLOPs of any static policy on this study's runs; one counted run is made the first time it is asked for."""
        if self._cost_model is None:
            self._cost_model = self.evaluator.cost_model(self.search[0])
        return self._cost_model

    @property
    def guidance(self) -> Guidance:
        """How this pipeline's runs compute their branches."""
        family = family_of(next(iter(denoisers(self.evaluator.pipe).values())))
        return "none" if family is None or len(self.cost_model.run.branches) == 1 else family.guidance

    # -- search ------------------------------------------------------------------------------------------------------
    def optimise(self, trials: int = 30, timeout: float | None = None, on_trial: OnTrial | None = None) -> Study:
        """Search until `trials` trials of this study have made videos, `timeout` seconds have passed, or no proposal
        can beat the incumbent any more. Trials that were resumed count; trials skipped without a video do not."""
        started = time.monotonic()
        recover(self.optuna)
        self._enqueue_seeds()
        fruitless = 0
        self.ended = f"{trials} trials done"
        try:
            while sum(r.outcome in SPENT for r in self.records) < trials:
                if timeout is not None and time.monotonic() - started > timeout:
                    self.ended = f"{timeout:g} seconds passed"
                    break
                record = self._step()
                if record is not None and on_trial is not None:
                    on_trial(self, record)
                skipped = record is None or (record.source == "search" and record.outcome not in SPENT)
                fruitless = fruitless + 1 if skipped else 0
                if fruitless >= self._patience:
                    self.ended = f"{fruitless} proposals in a row could not be cheaper than the best"
                    break
        finally:
            self.evaluator.close()
        return self

    def _enqueue_seeds(self) -> None:
        present = {t.user_attrs.get("source") for t in self.optuna.get_trials(deepcopy=False) if not is_interrupted(t)}
        for source, policy in self._seeds.items():
            if source not in present:
                encoded = self.space.encode(policy)
                attrs = {"policy": dump(policy), "source": source}
                self.optuna.enqueue_trial(encoded.params, user_attrs=attrs)

    def _step(self) -> Record | None:
        with warnings.catch_warnings():
            # Optuna warns that ask() sends no heartbeats; `heartbeat` below does.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            trial = self.optuna.ask()
        trial.set_user_attr(WORKER, this_worker())
        try:
            with heartbeat(self._storage, trial._trial_id):
                self._try(trial)
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
        params = self.space.suggest(trial)
        if "policy" in trial.user_attrs:
            policy = load_policy(trial.user_attrs["policy"])
        else:
            try:
                policy = self.space.build(params)
            except FasterCacheError as error:
                return self._finish(trial, Outcome.INVALID, str(error))
            trial.set_user_attr("policy", dump(policy))
            trial.set_user_attr("source", "search")
        forecast = self._proposer.forecast(policy) if policy.static else None
        if forecast is not None:
            trial.set_user_attr("forecast", forecast.ratio)
            incumbent = min((r.ratio or 1.0 for r in self.records if r.feasible), default=1.0)
            if forecast.ratio >= 1.0 - SAME and incumbent >= 1.0 - SAME:
                return self._tell_exact(trial)
            if forecast.ratio >= incumbent - SAME:
                reason = f"costs {forecast.ratio:.4f} of the uncached FLOPs, the best so far {incumbent:.4f}"
                return self._finish(trial, Outcome.DOMINATED, reason)
        finished = [r.values for r in self.records if r.outcome is Outcome.MEASURED]
        projection = Projection(self.budget, len(self.search), finished)
        try:
            result = self.evaluator.evaluate(policy, self.search, projection.verdict)
        except NotFinite as error:
            return self._finish(trial, Outcome.FAILED, str(error))
        except FasterCacheError as error:
            # Bounds know nothing of the model: a draw may span more blocks than there are. Where not even the only
            # policy's defaults can be applied, there is nothing to search.
            if len(self.space.bases) == 1 and trial.user_attrs["source"] != "search":
                raise
            return self._finish(trial, Outcome.INVALID, str(error))
        self._tell(trial, result, projection)

    def _tell_exact(self, trial: Trial) -> None:
        values = {name: [METRICS[name].best] * len(self.search) for name in self.evaluator.metrics}
        trial.set_user_attr("ratio", 1.0)
        self._judge(trial, values)
        self._finish(trial, Outcome.EXACT, "reuses nothing, so it equals the reference bit for bit", 1.0)

    def _tell(self, trial: Trial, result: Evaluation, projection: Projection) -> None:
        trial.set_user_attr("values", result.values)
        trial.set_user_attr("ratio", result.ratio)
        trial.set_user_attr("seconds", sorted(result.seconds)[len(result.seconds) // 2])
        trial.set_user_attr("cached_bytes", result.cached_bytes)
        if result.stopped is None:
            self._judge(trial, result.values)
            self._finish(trial, Outcome.MEASURED, None, result.ratio)
        else:
            self._judge(trial, projection.completed(result.values))
            self._finish(trial, Outcome.STOPPED, result.stopped)

    def _judge(self, trial: Trial, values: Mapping[str, Sequence[float]]) -> None:
        """Record how the budget is met; these values are projections where the trial was stopped."""
        trial.set_user_attr("violation", self.budget.violation(values))
        trial.set_user_attr("margin", self.budget.margin(values))
        for term, amount in self.budget.violations(values).items():
            trial.set_constraint(term, amount)

    def _finish(self, trial: Trial, outcome: Outcome, reason: str | None, value: float | None = None) -> None:
        trial.set_user_attr("outcome", str(outcome))
        if reason is not None:
            trial.set_user_attr("reason", reason)
        if value is not None:
            self.optuna.tell(trial, value)
        else:
            skipped = outcome in (Outcome.STOPPED, Outcome.DOMINATED)
            self.optuna.tell(trial, state=TrialState.PRUNED if skipped else TrialState.FAIL, skip_if_finished=True)

    # -- results -----------------------------------------------------------------------------------------------------
    @property
    def records(self) -> list[Record]:
        """Every finished trial, in order."""
        return records(self.optuna, self._records)

    def seen(self) -> list[Seen]:
        """What the proposer learns from; a failed trial counts as one that missed the budget by far."""
        found = []
        for r in self.records:
            margin = -15.0 if r.outcome is Outcome.FAILED else r.margin
            if r.ratio is not None and margin is not None and r.params:
                found.append(Seen(r.params, r.policy, r.ratio, margin, r.feasible))
        return found

    def best(self) -> Record:
        """The cheapest measured trial that meets the budget on the search prompts and saves something.

        Raises BudgetNotMet with the closest miss.
        """
        return cheapest(self.records, self.budget)

    def front(self) -> list[Record]:
        """The measured trials that no other beats in both FLOPs and margin, cheapest first."""
        return front(self.records)

    def select(self, prompts: Sequence[str], limit: int = 8) -> Record:
        """The cheapest feasible trial that also meets the budget on `prompts`, tried cheapest first.

        The cheapest on a few search prompts is partly the luckiest; prompts of a selection set, disjoint from search
        and held-out ones, correct for that. Raises BudgetNotMet if none of the `limit` cheapest meets it.
        """
        disjoint([c.prompt for c in self.search], prompts)
        disjoint([c.prompt for c in self.held_out], prompts)
        self.best()
        feasible = [r for r in self.records if r.feasible and r.ratio is not None and r.ratio < 1.0 - SAME]
        feasible = sorted(feasible, key=lambda r: r.ratio or 1.0)[:limit]
        closest, reached = -1e9, ""
        cases = self.evaluator.cases(prompts)
        try:
            for record in feasible:
                result = self.evaluator.evaluate(record.policy, cases)
                violation = self.budget.violation(result.values)
                if violation <= 0.0:
                    return record
                if -violation > closest:
                    closest, reached = -violation, self.budget.describe(result.values)
        finally:
            self.evaluator.close()
        raise BudgetNotMet(
            f"of the {len(feasible)} cheapest trials that met {self.budget} on the search prompts none met it on "
            f"{len(cases)} selection prompts; the closest reached {reached}: search with more prompts"
        )

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
    plain = {" ".join(p.casefold().split()) for p in search}
    shared = [p for p in others if " ".join(p.casefold().split()) in plain]
    if shared:
        raise ConfigUnreadable(
            f"{len(shared)} prompts are in two sets that must be disjoint: remove '{shared[0]:.60}' from one of them"
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

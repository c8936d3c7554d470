"""Which policy to try next, when its cost is known and only its quality must be guessed.

Optuna's general samplers learn objective and constraint alike from trials. Here the objective, the computed FLOPs of a
static policy or its seconds by a table, is known before any video is made. So candidates that cannot beat the incumbent
are never run, a Gaussian process models only the quality margin, and the next trial maximises the expected saving

    (best cost - cost(x)) P(margin(x) >= 0)^CAUTION

which for CAUTION = 1 is constrained expected improvement with a known objective (Gardner et al. 2014).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm

from fastercache.policies.base import Policy
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.registry import dump
from fastercache.tuner.fields import Parameter, from_unit, to_unit
from fastercache.tuner.record import is_interrupted
from fastercache.tuner.simulate import Forecast
from fastercache.tuner.space import METHOD, Space
from fastercache.tuner.surrogate import Surrogate

Array = NDArray[np.float64]
CAUTION = 2.0
"""Power of the chance to meet the budget. At 1 the expected saving is maximal, but the surrogate is overconfident far
from what was seen; at 2 fewer videos are lost on policies that miss the budget by far."""
SamplerName = Literal["known-cost", "tpe"]
LEAST_GAIN = 0.002
"""A candidate must save at least this share of the uncached cost more than the incumbent."""


@dataclass(frozen=True)
class Seen:
    """An evaluated policy: its parameters, its cost as a share of the uncached run's, and its margin in dB over the
    budget (projected where stopped early)."""

    params: Mapping[str, Any]
    policy: Policy
    cost: float
    margin: float
    feasible: bool


@dataclass(frozen=True)
class Candidate:
    """A policy that has not been run, with its unit-cube position and forecast."""

    params: dict[str, Any]
    policy: Policy
    forecast: Forecast

    def vector(self, space: Space) -> Array:
        return np.concatenate([self.forecast.features, space.position(self.params)])


class Proposer:
    """Proposes parameters from what was seen.

    Args:
        space: what to search.
        forecast: what a static policy does and costs.
        running: the policies that other workers are trying, which need no second trial.
        pool: how many candidates are weighed against each other.
        most: seconds that a call may take by the forecast.
    """

    def __init__(
        self,
        space: Space,
        forecast: Callable[[Policy], Forecast],
        *,
        running: Callable[[], Iterable[Policy]] = tuple,
        pool: int = 96,
        most: float = math.inf,
    ) -> None:
        self.space = space
        self.most = most
        self.pool = pool
        self._running = running
        self._forecast = forecast
        self._forecasts: dict[str, Forecast | None] = {}

    def forecast(self, policy: Policy) -> Forecast | None:
        """The policy's forecast; None if it cannot be applied to this run."""
        key = json.dumps(dump(policy), sort_keys=True)
        if key not in self._forecasts:
            try:
                self._forecasts[key] = self._forecast(policy)
            except FasterCacheError:
                self._forecasts[key] = None
        return self._forecasts[key]

    def propose(self, seen: Sequence[Seen], rng: np.random.Generator) -> dict[str, Any]:
        """Parameters of the next trial. Where nothing cheaper than the incumbent is found, a random point."""
        best = min((s.cost for s in seen if s.feasible), default=1.0)
        tried = [*(s.policy for s in seen), *self._running()]
        known = {forecast.behaviour for policy in tried if (forecast := self.forecast(policy)) is not None}
        model, columns = self._model(seen)
        pool = self._first_pool(seen, best, known, rng)
        if not pool:
            return self.space.draw(lambda p: from_unit(p, rng.random()))
        for _ in range(2):  # local ascent: vary the most promising, keep what is better
            order = np.argsort(-self._gain(pool, best, model, columns))[:6]
            parents = [pool[i].params for i in order]
            pool = [pool[i] for i in order]
            for _ in range(self.pool // 3):
                params = self._mutate(parents[rng.integers(len(parents))], rng, width=0.08)
                self._admit(params, best, known, pool)
        return pool[int(np.argmax(self._gain(pool, best, model, columns)))].params

    def _first_pool(
        self, seen: Sequence[Seen], best: float, known: set[str], rng: np.random.Generator
    ) -> list[Candidate]:
        """Neighbours and crossings of the cheapest feasible and the least infeasible policies, and a few points from
        anywhere: far from what was seen the surrogate knows nothing, and most of a large space is far worse."""
        feasible = sorted((s for s in seen if s.feasible and s.cost < 1.0), key=lambda s: s.cost)[:4]
        missed = sorted((s for s in seen if not s.feasible), key=lambda s: -s.margin)[:3]
        parents = [s.params for s in (*feasible, *missed)]
        pool: list[Candidate] = []
        for attempt in range(3 * self.pool):
            if len(pool) >= self.pool:
                break
            if parents and attempt % 8:
                params = dict(parents[rng.integers(len(parents))])
                if attempt % 2:
                    params = self._cross(params, parents[rng.integers(len(parents))], rng)
                params = self._mutate(params, rng, width=0.15)
            else:
                params = self.space.draw(lambda p: from_unit(p, rng.random()))
            self._admit(params, best, known, pool)
        return pool

    def _admit(self, params: dict[str, Any], best: float, known: set[str], pool: list[Candidate]) -> None:
        try:
            policy = self.space.build(params)
        except FasterCacheError:
            return  # a combination of fields that the policy itself refuses
        forecast = self.forecast(policy)
        if forecast is None or forecast.cost > best - LEAST_GAIN or (forecast.seconds or 0.0) > self.most:
            return
        if forecast.behaviour not in known:
            pool.append(Candidate(params, policy, forecast))

    def _cross(self, params: Mapping[str, Any], other: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The first's parameters, a third of them taken from the other."""

        def value(parameter: Parameter) -> Any:
            first, second = (params, other) if rng.random() > 1 / 3 else (other, params)
            for source in (first, second):
                if parameter.name in source:
                    return source[parameter.name]
            return from_unit(parameter, rng.random())

        return self.space.draw(value)

    def _mutate(self, params: Mapping[str, Any], rng: np.random.Generator, width: float) -> dict[str, Any]:
        """A neighbour: about three parameters moved by a normal step, choices drawn anew; the method stays."""
        own = [p.name for p in self.space.parameters if p.name in params and p.name != METHOD]
        chosen = {name for name in own if rng.random() < 3.0 / len(own)} or {own[rng.integers(len(own))]}

        def value(parameter: Parameter) -> Any:
            if parameter.name not in params:
                return from_unit(parameter, rng.random())
            if parameter.name not in chosen:
                return params[parameter.name]
            if isinstance(parameter.distribution, CategoricalDistribution):
                return from_unit(parameter, rng.random())
            place = to_unit(parameter, params[parameter.name])
            return from_unit(parameter, place + rng.normal(0.0, width))

        return self.space.draw(value)

    def _model(self, seen: Sequence[Seen]) -> tuple[Surrogate | None, NDArray[np.bool_] | None]:
        """The surrogate, once there are points to fit, and which columns of a candidate's vector it uses."""
        rows, margins, schedule = [], [], 0
        for s in seen:
            forecast = self.forecast(s.policy)
            if forecast is not None:  # a policy that reuses nothing tells where the margin ends up
                rows.append(np.concatenate([forecast.features, self.space.position(s.params)]))
                schedule = len(forecast.features)
                margins.append(s.margin)
        if len(rows) < 2:
            return None, None
        # Far misses must not set the scale on which near ones are told apart.
        y = np.clip(margins, min(max(margins), 0.0) - 15.0, 10.0)
        x = np.stack(rows)
        _, first = np.unique(x.round(9), axis=1, return_index=True)  # sites of several roles may age alike
        used = np.zeros(x.shape[1], dtype=bool)
        used[first] = True
        used[schedule:] = True
        groups = [0 if i < schedule else 1 for i in np.flatnonzero(used)]
        return Surrogate.fit(x[:, used], y, groups), used

    def _gain(
        self, pool: Sequence[Candidate], best: float, model: Surrogate | None, used: NDArray[np.bool_] | None
    ) -> Array:
        """Expected saving of each candidate, as a share of the uncached cost."""
        saving = np.array([best - c.forecast.cost for c in pool])
        if model is None or used is None:
            return -np.abs(saving - 0.05)  # nothing known yet: a small step
        mean, std = model.predict(np.stack([c.vector(self.space)[used] for c in pool]))
        gain: Array = saving * norm.cdf(mean / std) ** CAUTION
        return gain


class KnownCostSampler(optuna.samplers.BaseSampler):
    """`Proposer` as an Optuna sampler; what was seen comes from the study, so that workers share and resume it.

    The proposer weighs policies of known cost only. Where others are searched with them, `general` makes every second
    proposal, over the whole space.

    Args:
        proposer: the search.
        seen: reads evaluated policies off a study's finished trials.
        seed: the n-th trial draws from (seed, n), interrupted ones not counted, so that a resumed study goes on as an
            uninterrupted one would.
        general: a sampler for policies whose cost is not known.
    """

    def __init__(
        self,
        proposer: Proposer,
        seen: Callable[[optuna.Study], Sequence[Seen]],
        seed: int | None = None,
        general: optuna.samplers.BaseSampler | None = None,
    ) -> None:
        self._proposer = proposer
        self._seen = seen
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        self._general = general

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        other = self._turn(study, trial)
        return other.infer_relative_search_space(study, trial) if other else self._proposer.space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if trial.system_attrs.get("fixed_params"):
            return {}  # an enqueued trial brings its own
        if other := self._turn(study, trial):
            return other.sample_relative(study, trial, search_space)
        return self._proposer.propose(self._seen(study), self._rng(study, trial))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """For `general`, and for parameters an enqueued trial left open: those are drawn at random."""
        if (other := self._turn(study, trial)) and not trial.system_attrs.get("fixed_params"):
            return other.sample_independent(study, trial, param_name, param_distribution)
        parameter = next(p for p in self._proposer.space.parameters if p.name == param_name)
        return from_unit(parameter, self._rng(study, trial).random())

    def _turn(self, study: optuna.Study, trial: FrozenTrial) -> optuna.samplers.BaseSampler | None:
        """The general sampler, if there is one and it is its turn."""
        return self._general if self._place(study, trial) % 2 else None

    def _rng(self, study: optuna.Study, trial: FrozenTrial) -> np.random.Generator:
        return np.random.default_rng([abs(self._seed), self._place(study, trial)])

    def _place(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """The trial's number as if no trial had been interrupted."""
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return trial.number - sum(t.number < trial.number and is_interrupted(t) for t in failed)


def make_sampler(
    name: SamplerName, proposer: Proposer, seen: Callable[[optuna.Study], Sequence[Seen]], seed: int, drawn: int
) -> optuna.samplers.BaseSampler:
    """The sampler of a study that has `drawn` trials: TPE alone where no cost is known, or if it is asked for."""
    static = [base.static for base in proposer.space.bases.values()]
    if name == "known-cost" and all(static):
        return KnownCostSampler(proposer, seen, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A resumed study must not draw the same numbers again.
        general = optuna.samplers.TPESampler(seed=seed + drawn, multivariate=True, group=True)
    return KnownCostSampler(proposer, seen, seed, general) if name == "known-cost" and any(static) else general

"""The search finds cheap feasible policies with few trials, and never proposes one that cannot win."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import optuna
import pytest

import fastercache as fc
from fastercache.tuner import CostModel, SearchSpace
from fastercache.tuner.propose import CAUTION, LEAST_GAIN, Candidate, Proposer, Seen
from fastercache.tuner.simulate import Forecast, staleness
from fastercache.tuner.surrogate import Surrogate

SITES = [fc.Site("b.0.attn1", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1)), fc.Site("branch", fc.Kind.BRANCH)]
STEPS = 20
RUN = fc.Run.of(STEPS, sites=SITES)
MODEL = CostModel(RUN, (100,) * STEPS, {"b.0.attn1": 0.3})
SPACE = SearchSpace.of("fastercache", bounds={"radius": (0, 4)})


def quality(policy: fc.Policy) -> float:
    """A made-up PSNR: reuse hurts more the older the value and the earlier the step; the levers matter too."""
    assert isinstance(policy, fc.FasterCache)
    table = fc.compile_policy(policy, RUN)
    early = 0.2 + 3.0 * (1.0 - np.linspace(0, 1, STEPS)) ** 2
    levers = 1.0 + 4.0 * (policy.alpha_low - 0.1) ** 2 + (0.5 if policy.order == 0 else 0.0)
    damage = 1e-5 + 2e-5 * levers * float((staleness(table) ** 1.5 * early).sum())
    return float(-10.0 * np.log10(damage))


PAPER, OFF = fc.FasterCache(), fc.FasterCache(interval=1, cfg_interval=1)
BOUND = quality(PAPER)


def seen(policy: fc.Policy) -> Seen:
    margin = quality(policy) - BOUND
    return Seen(SPACE.encode(policy).params, policy, MODEL.forecast(policy).ratio, margin, margin >= 0)


def known_cost(trials: int, seed: int) -> list[Seen]:
    found = [seen(OFF), seen(PAPER)]
    proposer = Proposer(SPACE, MODEL.forecast, pool=40)
    for i in range(trials):
        policy = SPACE.build(proposer.propose(found, np.random.default_rng([seed, i])))
        found.append(seen(policy))
    return found


def test_every_proposal_is_cheaper_than_the_best_so_far_and_new() -> None:
    found = known_cost(8, seed=0)
    for i, candidate in enumerate(found[1:], start=1):
        assert candidate.cost < min(s.cost for s in found[:i] if s.feasible)
    assert len({str(fc.dump(s.policy)) for s in found}) == len(found)


@pytest.mark.slow
def test_it_beats_the_general_sampler_at_equal_videos() -> None:
    """Both skip what cannot be cheaper; TPE must learn cost and quality, ours quality alone."""
    trials, ours, theirs = 10, [], []
    for seed in range(2):
        ours.append(min(s.cost for s in known_cost(trials, seed) if s.feasible))
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        best, ran = seen(PAPER).cost, 0
        for _ in range(150):
            trial = study.ask()
            policy = SPACE.build(SPACE.suggest(trial))
            ratio = MODEL.forecast(policy).ratio
            if ratio >= best:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
            miss = BOUND - quality(policy)
            trial.set_constraint("psnr", miss)
            study.tell(trial, ratio)
            best, ran = ratio if miss <= 0 else best, ran + 1
            if ran == trials:
                break
        theirs.append(best)
    assert np.mean(ours) < np.mean(theirs)
    assert max(ours) < seen(PAPER).cost


class Told:
    """A surrogate that says what it was told: the margins of the candidates in order, each as unsure as given."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = np.array(mean), np.array(std)

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert len(x) == len(self.mean)
        return self.mean, self.std


def test_the_gain_is_the_saving_times_how_likely_the_budget_is_kept() -> None:
    proposer = Proposer(SPACE, MODEL.forecast)
    policies = [fc.FasterCache(interval=2, cfg_interval=n, start=0.2, cfg_start=0.2) for n in (2, 3, 5)]
    pool = [Candidate(SPACE.encode(p).params, p, MODEL.forecast(p)) for p in policies]
    saving = np.array([0.9 - c.forecast.ratio for c in pool])
    mean, std = [1.0, -0.5, 0.0], [0.5, 1.0, 2.0]
    likely = [NormalDist(m, s).cdf(0.0) for m, s in zip(mean, std, strict=True)]  # that the margin is below 0
    used = np.ones(len(pool[0].vector(SPACE)), dtype=bool)
    got = proposer._gain(pool, 0.9, Told(mean, std), used)  # type: ignore[arg-type]
    assert got == pytest.approx(saving * (1 - np.array(likely)) ** CAUTION) and (saving > 0).all()
    # while nothing is known, the candidate that saves about a twentieth comes first
    assert proposer._gain(pool, 0.9, None, None) == pytest.approx(-np.abs(saving - 0.05))


def test_only_what_is_cheaper_and_new_is_weighed() -> None:
    proposer = Proposer(SPACE, MODEL.forecast)
    policy = fc.FasterCache(interval=2, cfg_interval=3, start=0.2, cfg_start=0.2)
    params, forecast = SPACE.encode(policy).params, MODEL.forecast(policy)
    for best, known, admitted in (
        (forecast.ratio + 2 * LEAST_GAIN, set[str](), True),
        (forecast.ratio + 0.5 * LEAST_GAIN, set[str](), False),
        (1.0, {forecast.behaviour}, False),
    ):
        pool: list[Candidate] = []
        proposer._admit(dict(params), best, known, pool)
        assert bool(pool) is admitted


def test_what_another_worker_is_trying_is_not_proposed() -> None:
    """One by one, every proposal goes to another worker that is not done: none comes twice."""
    found, away = [seen(OFF), seen(PAPER)], list[fc.Policy]()
    proposer = Proposer(SPACE, MODEL.forecast, running=lambda: away, pool=40)
    for _ in range(4):
        away.append(SPACE.build(proposer.propose(found, np.random.default_rng([0, 0]))))
    behaviours = [MODEL.forecast(policy).behaviour for policy in away]
    assert len(set(behaviours)) == len(away)


def test_same_seed_same_proposal() -> None:
    assert [s.policy for s in known_cost(3, 5)] == [s.policy for s in known_cost(3, 5)]


def test_surrogate_interpolates_and_is_unsure_far_away() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((25, 3))
    y = np.sin(4 * x[:, 0]) + x[:, 1]
    model = Surrogate.fit(x, y, [0, 0, 1])
    mean, near = model.predict(x)
    assert np.abs(mean - y).max() < 0.3
    fresh = rng.random((200, 3))
    mean, std = model.predict(fresh)
    truth = np.sin(4 * fresh[:, 0]) + fresh[:, 1]
    assert np.mean(np.abs(mean - truth) < 3 * std) > 0.9
    assert np.corrcoef(mean, truth)[0, 1] > 0.9
    _, far = model.predict(x + 20.0)
    assert far.min() > near.max()


def test_surrogate_posterior_by_hand() -> None:
    """Mean and variance equal the textbook formulas with the fitted hyper-parameters."""
    rng = np.random.default_rng(1)
    x, y = rng.random((8, 2)), rng.random(8)
    m = Surrogate.fit(x, y, [0, 1])
    at = rng.random((3, 2))

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = ((v - m.centre) / m.spread * m.weights for v in (a, b))
        r = np.sqrt(5 * ((a[:, None] - b[None]) ** 2).sum(-1))
        return (1 - m.linear) * (1 + r + r**2 / 3) * np.exp(-r) + m.linear * a @ b.T

    inverse = np.linalg.inv(k(x, x) + m.noise * np.eye(8))
    mean = m.mean + k(at, x) @ inverse @ (y - m.mean)
    variance = m.variance * np.diag(k(at, at) - k(at, x) @ inverse @ k(x, at))
    got_mean, got_std = m.predict(at)
    assert got_mean == pytest.approx(mean)
    assert got_std**2 == pytest.approx(variance)


def test_by_the_clock_a_candidate_costs_its_seconds_and_what_takes_just_as_long_as_allowed_is_weighed() -> None:
    """By FLOPs it costs 0.1, by the clock 0.5, and a call takes 5 s."""
    policy = fc.FasterCache()
    params = SPACE.encode(policy).params
    timed = Forecast(0.1, np.zeros(3), "its own", 5.0, 0.5)
    for best, most, admitted in ((0.502, 5.0, True), (0.5015, 5.0, False), (0.7, 4.99, False), (0.7, math.inf, True)):
        proposer = Proposer(SPACE, lambda policy: timed, most=most)
        pool: list[Candidate] = []
        proposer._admit(dict(params), best, set(), pool)
        assert bool(pool) is admitted, (best, most)
    assert proposer._gain(pool, 0.7, None, None) == pytest.approx([-abs(0.2 - 0.05)])
    told, used = Told([0.0], [1.0]), np.ones(3 + len(SPACE.position(params)), dtype=bool)
    assert proposer._gain(pool, 0.7, told, used) == pytest.approx([0.2 * 0.5**CAUTION])  # type: ignore[arg-type]

"""The search finds cheap feasible policies with few trials, and never proposes one that cannot win."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

import fastercache as fc
from fastercache.tuner import CostModel, SearchSpace
from fastercache.tuner.propose import Proposer, Seen
from fastercache.tuner.simulate import staleness
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
        assert candidate.ratio < min(s.ratio for s in found[:i] if s.feasible)
    assert len({str(fc.dump(s.policy)) for s in found}) == len(found)


@pytest.mark.slow
def test_it_beats_the_general_sampler_at_equal_videos() -> None:
    """Both skip what cannot be cheaper; TPE must learn cost and quality, ours quality alone."""
    trials, ours, theirs = 10, [], []
    for seed in range(2):
        ours.append(min(s.ratio for s in known_cost(trials, seed) if s.feasible))
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        best, ran = seen(PAPER).ratio, 0
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
    assert max(ours) < seen(PAPER).ratio


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

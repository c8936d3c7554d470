"""The rehearsal beside a cached run of explicit vectors, step by step, and what moves make of a plan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastercache.analysis.response import Kind, Response
from fastercache.analysis.sampling import Relations
from fastercache.analysis.trajectory import Trajectory, gram
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.fitting import Sampler
from fastercache.tuner.planning.portfolio import bettered, portfolio
from fastercache.tuner.planning.rehearsal import Foresight, Rehearsal

Floats = NDArray[np.float64]
N, RUNS, SIZE = 7, 2, 40


class Toy:
    """Random recorded runs of x_{k+1} = a_k x_k + b_k ((1 + c) F_k - c F_{k-1}), all runs in one long vector.

    The vector has N further coordinates, in which nothing was recorded, and its squared length is the mean square over
    the elements of a latent and the runs. `gains`: b, with a = 1.
    """

    def __init__(self, memory: float = 0.0, seed: int = 0, gains: Sequence[float] = ()) -> None:
        rng = np.random.default_rng(seed)
        self.a, self.b, self.memory = rng.uniform(0.8, 1.2, N), rng.uniform(-1.0, -0.2, N), memory
        if gains:
            self.a, self.b = np.ones(N), np.array(gains)
        shape = (N, RUNS * SIZE)
        outputs = rng.normal(size=shape).cumsum(axis=0) / np.sqrt(RUNS * SIZE)
        self.outputs = np.hstack([outputs, np.zeros((N, N))])
        first = np.r_[rng.normal(size=RUNS * SIZE) / np.sqrt(RUNS * SIZE), np.zeros(N)]
        self.latents = self.sampled(first, self.outputs)
        recorded = np.vstack([self.latents, self.outputs])[:, : RUNS * SIZE] * np.sqrt(RUNS * SIZE)
        parts = recorded.reshape(2 * N + 1, RUNS, SIZE)
        products = np.stack([gram([torch.from_numpy(v) for v in parts[:, r]]) for r in range(RUNS)])
        self.trajectory = Trajectory(products, np.arange(N, 0.0, -1.0), np.zeros((RUNS, 0, 0)))
        unit = np.eye(N + 1)
        self.matrix = np.array([*self.sampled(unit[0], unit[1:])])

    def sampled(self, first: Floats, outputs: Floats) -> Floats:
        latents = [first]
        for k in range(N):
            previous = outputs[k - 1] if k else outputs[k]
            used = (1 + self.memory) * outputs[k] - self.memory * previous
            latents.append(self.a[k] * latents[-1] + self.b[k] * used)
        return np.array(latents)

    def cached(
        self,
        plan: Sequence[int],
        history: int,
        latent: bool,
        growth: float,
        novelty: float,
        starts: Sequence[int],
        ridge: float = 0.0,
    ) -> float:
        """Mean squared error of the last latent of a cached run whose stretches are fitted on it.

        A stretch over which no output carries is fitted to its first output; a step that does not move the latent adds
        no error of its own. `ridge`: of unit columns, towards holding the newest output.
        """
        impulse = self.matrix[-1, 1:]
        used = self.outputs.copy()  # what is not decided yet adds nothing to what the run is behind by
        past: list[Floats] = []
        for s, end in itertools.pairwise([*plan, N]):
            now = self.sampled(self.latents[0], used)[s]
            error = now - self.latents[s]
            gain = N * self.matrix[s + 1, 1 + s]
            if gain:
                used[s] += growth / gain * error
                used[s, RUNS * SIZE + s] += novelty / abs(gain) * np.linalg.norm(error)
            past = [used[s].copy(), *([] if s in starts else past)][:history]
            if end == s + 1:
                continue
            behind = self.latents[N] - self.sampled(self.latents[0], used)[N]
            weight = impulse[s + 1 : end].sum()
            ahead = impulse[s + 1 : end] @ self.outputs[s + 1 : end] + behind
            target = ahead / weight if weight else self.outputs[s + 1]
            columns = np.array([past[0], *(a - b for a, b in itertools.pairwise(past)), *([now] if latent else [])]).T
            rows = np.vstack([columns, np.sqrt(ridge) * np.diag(np.linalg.norm(columns, axis=0))])
            wanted = np.r_[target - past[0], np.zeros(columns.shape[1])]
            used[s + 1 : end] = past[0] + columns @ np.linalg.lstsq(rows, wanted, rcond=None)[0]
        return float(np.sum((self.sampled(self.latents[0], used)[N] - self.latents[N]) ** 2))


@pytest.mark.parametrize("memory", [0.0, 0.5], ids=["memoryless", "two outputs back"])
@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize(("growth", "novelty"), [(0.0, 0.0), (1.3, 0.0), (0.6, 0.9)])
def test_it_is_the_cached_run(memory: float, latent: bool, growth: float, novelty: float) -> None:
    toy = Toy(memory)
    rehearsal = Rehearsal(toy.trajectory, toy.matrix, history=2, latent=latent, growth=growth, novelty=novelty)
    for plan in ((0, 2, 4), (0, 1, 3, 6), (0, 1, 3, 5), (0,), (0, 2, 5, 6), tuple(range(N))):
        expected = toy.cached(plan, 2, latent, growth, novelty, (0,))
        assert rehearsal.of(plan) == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("latent", [True, False])
def test_a_ridge_draws_towards_holding_the_newest_output(latent: bool) -> None:
    toy = Toy()
    rehearsal = Rehearsal(toy.trajectory, toy.matrix, history=3, latent=latent, ridge=0.2, growth=0.6, novelty=0.9)
    for plan in ((0, 2, 4), (0, 1, 3, 5), (0,)):
        assert rehearsal.of(plan) == pytest.approx(toy.cached(plan, 3, latent, 0.6, 0.9, (0,), 0.2), rel=1e-6)


def test_a_stretch_that_carries_nothing_and_a_step_that_moves_nothing() -> None:
    """What the outputs of steps 2 and 3 do to the last latent cancels; that of step 5 does nothing."""
    toy = Toy(gains=(-0.5, -0.4, -0.3, 0.3, -0.6, 0.0, -0.2))
    rehearsal = Rehearsal(toy.trajectory, toy.matrix, history=2, growth=0.6, novelty=0.9)
    for plan in ((0, 1, 4, 5), (0, 1, 4), (0, 3, 5)):
        assert rehearsal.of(plan) == pytest.approx(toy.cached(plan, 2, True, 0.6, 0.9, (0,)), rel=1e-6)


def test_outputs_that_do_not_change_do_no_harm() -> None:
    """The difference of equal outputs has no length by which a column could be scaled."""
    toy = Toy()
    toy.outputs[2] = toy.outputs[1]
    toy.latents = toy.sampled(toy.latents[0], toy.outputs)
    rows = np.vstack([toy.latents, toy.outputs])
    trajectory = Trajectory((rows @ rows.T)[None], toy.trajectory.times, np.zeros((1, 0, 0)))
    rehearsal = Rehearsal(trajectory, toy.matrix, history=2, growth=0.0, novelty=0.0)
    assert rehearsal.of((0, 1, 2, 5)) == pytest.approx(toy.cached((0, 1, 2, 5), 2, True, 0.0, 0.0, (0,)), rel=1e-5)


def test_values_of_another_denoiser_are_no_history() -> None:
    toy = Toy()
    rehearsal = Rehearsal(toy.trajectory, toy.matrix, history=3, growth=0.5, novelty=0.5, starts=(0, 3))
    plan = (0, 1, 3, 5)
    expected = toy.cached(plan, 3, True, 0.5, 0.5, (0, 3))
    assert rehearsal.of(plan) == pytest.approx(expected, rel=1e-5)
    assert rehearsal.of(plan) != pytest.approx(toy.cached(plan, 3, True, 0.5, 0.5, (0,)), rel=1e-3)


def test_what_is_kept_of_other_plans_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    plans = [(0, *rest) for rest in itertools.combinations(range(1, N), 3)]
    fresh = [Rehearsal(toy.trajectory, toy.matrix).of(plan) for plan in plans]
    shared = Rehearsal(toy.trajectory, toy.matrix)
    assert [shared.of(plan) for plan in plans] == fresh
    monkeypatch.setattr("fastercache.tuner.planning.rehearsal.KEPT", 3)
    short = Rehearsal(toy.trajectory, toy.matrix)
    assert [short.of(plan) for plan in plans] == fresh
    assert len(short._kept) <= 3


def test_foresight_is_the_geometric_mean_or_the_isolated_damage() -> None:
    toy = Toy()
    damage = Damage(toy.trajectory, toy.matrix[-1, 1:])
    rehearsal = Rehearsal(toy.trajectory, toy.matrix)
    plan = (0, 2, 5)
    assert Foresight(damage, rehearsal).of(plan) ** 2 == pytest.approx(damage.of(plan) * rehearsal.of(plan))
    assert Foresight(damage, None).of(plan) == damage.of(plan)


@pytest.mark.parametrize("scale", [None, np.ones(N)], ids=["no latent", "latent"])
@pytest.mark.parametrize("kind", ["memory", "nonlinear"])
def test_what_a_recording_foresees(kind: Kind, scale: Floats | None) -> None:
    """Rehearsed where one output can be held over a stretch; the latent is a feature where the denoiser is given it."""
    toy = Toy()
    response = Response(kind, toy.trajectory.times, toy.matrix, toy.a, toy.b, 1, np.ones(N), False, 0.0)
    sampler = Sampler(response, Relations(scale, "", True, True, (0, 3), 1))
    words: Any = {"history": 2, "starts": (0, 3), "latent": scale is not None and kind == "memory"}
    damage = Damage(toy.trajectory, toy.matrix[-1, 1:], **words)
    rehearsal = Rehearsal(toy.trajectory, toy.matrix, **words)
    found = Foresight.recorded(toy.trajectory, sampler, 2)
    plan = (0, 1, 3, 4)
    assert found.damage.of(plan) == damage.of(plan)
    if kind == "nonlinear":
        assert found.rehearsal is None and found.of(plan) == damage.of(plan)
    else:
        assert found.of(plan) == pytest.approx(np.sqrt(damage.of(plan) * rehearsal.of(plan)), rel=1e-12)


def test_moves_go_downhill_to_where_no_neighbour_is_better() -> None:
    wanted = (0, 5, 9)

    def predicted(plan: tuple[int, ...]) -> float:
        return float(sum(abs(a - b) for a, b in zip(plan, wanted, strict=True)))

    found = bettered([(0, 1, 2), (0, 10, 11)], predicted, 12, (0,), best=3)
    assert found[0] == wanted
    assert all(len(set(a) - set(b)) >= 2 for a, b in itertools.combinations(found, 2))
    assert [predicted(plan) for plan in found] == sorted(predicted(plan) for plan in found)
    kept = bettered([(0, 1, 2)], predicted, 12, (0, 2))
    assert kept == [(0, 2, 9)]


def test_a_portfolio_begins_with_the_plan_of_least_foreseen_damage() -> None:
    toy = Toy(seed=3)
    damage = Damage(toy.trajectory, toy.matrix[-1, 1:], history=2)
    rehearsal = Rehearsal(toy.trajectory, toy.matrix, history=2)
    foresight = Foresight(damage, rehearsal)
    found = portfolio(foresight, 3)
    every = [(0, *rest) for rest in itertools.combinations(range(1, N), 2)]
    assert found[0] == min(every, key=foresight.of)
    assert min(every, key=rehearsal.of) in found
    assert min(every, key=damage.of) in found
    assert len(set(found)) == len(found)
    alone = portfolio(Foresight(damage, None), 3)
    assert alone[0] == min(every, key=damage.of)

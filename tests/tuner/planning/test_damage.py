"""Damage and shortest paths beside direct least squares and brute force on random runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastercache.analysis.trajectory import Trajectory, gram
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.paths import plans

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Runs:
    """Random runs of a random sampler x_{k+1} = a_k x_k + b_k F_k: latents (P, n + 1, d), outputs (P, n, d)."""

    latents: Floats
    outputs: Floats
    a: Floats
    b: Floats

    @property
    def steps(self) -> int:
        return len(self.a)

    @property
    def impulse(self) -> Floats:
        return np.array([self.b[m] * np.prod(self.a[m + 1 :]) for m in range(self.steps)])

    @property
    def trajectory(self) -> Trajectory:
        rows = np.concatenate([self.latents, self.outputs], axis=1)
        products = np.stack([gram([torch.from_numpy(v) for v in run]) for run in rows])
        return Trajectory(products, np.arange(self.steps, 0.0, -1.0), np.zeros((len(rows), 0, 0)))


def random_runs(n: int, runs: int = 2, size: int = 40, seed: int = 0) -> Runs:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.8, 1.2, n), rng.uniform(-1.0, -0.2, n)
    outputs = rng.normal(size=(runs, n, size)).cumsum(axis=1)
    latents = [rng.normal(size=(runs, size))]
    for k in range(n):
        latents.append(a[k] * latents[-1] + b[k] * outputs[:, k])
    return Runs(np.stack(latents, axis=1), outputs, a, b)


def residual(runs: Runs, past: Sequence[int], j: int, *, latent: bool = True, share: Sequence[float] = ()) -> float:
    """Least mean square of sum h_m F_m, m = past[0] + 1 .. j - 1, less any mix of the past outputs and x_i."""
    i = past[0]
    if j == i + 1:
        return 0.0
    weight = (
        np.sqrt(np.array(share) / np.sum(share)) if share else np.full(len(runs.latents), len(runs.latents) ** -0.5)
    )
    columns = [runs.outputs[:, s] for s in past] + ([runs.latents[:, i]] if latent else [])
    target = sum(runs.impulse[m] * runs.outputs[:, m] for m in range(i + 1, j))
    matrix = np.stack([(weight[:, None] * column).ravel() for column in columns], axis=1)
    right = (weight[:, None] * target).ravel()
    solution = np.linalg.lstsq(matrix, right, rcond=None)[0]
    return float(np.sum((matrix @ solution - right) ** 2)) / runs.latents.shape[-1]


def brute(
    runs: Runs, history: int, starts: Sequence[int], **options: Any
) -> dict[int, list[tuple[float, tuple[int, ...]]]]:
    """Every plan, by number computed, least damage first."""
    n = runs.steps
    found: dict[int, list[tuple[float, tuple[int, ...]]]] = {b: [] for b in range(1, n + 1)}
    free = [k for k in range(n) if k not in starts]
    for chosen in itertools.chain.from_iterable(itertools.combinations(free, r) for r in range(len(free) + 1)):
        plan = sorted({*chosen, *starts})
        total = 0.0
        for q, i in enumerate(plan):
            begun = max(s for s in starts if s <= i)
            past = [s for s in plan[: q + 1] if s >= begun][::-1][:history]
            total += residual(runs, past, [*plan, n][q + 1], **options)
        found[len(plan)].append((total, tuple(plan)))
    return {b: sorted(plans) for b, plans in found.items()}


@pytest.mark.parametrize("starts", [(0,), (0, 4)], ids=["one denoiser", "two denoisers"])
@pytest.mark.parametrize("history", [1, 2, 3, 7])
def test_paths_equal_brute_force(history: int, starts: tuple[int, ...]) -> None:
    runs = random_runs(7)
    damage = Damage(runs.trajectory, runs.impulse, history=history, starts=starts)
    found = plans(damage, width=10_000, alternatives=10_000, best=3)
    for count, every in brute(runs, history, starts).items():
        assert [path.computed for path in found[count]] == [plan for _, plan in every[:3]]
        np.testing.assert_allclose(
            [path.damage for path in found[count]], [d for d, _ in every[:3]], rtol=1e-5, atol=1e-9
        )


@pytest.mark.parametrize("latent", [True, False])
def test_damage_is_a_least_squares_residual(latent: bool) -> None:
    runs = random_runs(9, runs=3)
    damage = Damage(runs.trajectory, runs.impulse, history=3, latent=latent)
    recent = np.array([[4, 2, 0], [4, 3, -1], [4, -1, -1]])
    found = damage.stretches(recent)
    assert found.shape == (3, 5)
    for row, past in zip(found, ([4, 2, 0], [4, 3], [4]), strict=True):
        np.testing.assert_allclose(row, [residual(runs, past, j, latent=latent) for j in range(5, 10)], rtol=1e-6)


def test_alone_is_the_damage_of_skipping_one_step() -> None:
    runs = random_runs(7)
    found = Damage(runs.trajectory, runs.impulse, history=3, starts=(0, 4)).alone()
    assert np.isnan(found[[0, 4]]).all()
    past = {1: [0], 2: [1, 0], 3: [2, 1, 0], 5: [4], 6: [5, 4]}
    for step, known in past.items():
        assert found[step] == pytest.approx(residual(runs, known, step + 1), rel=1e-5)


def test_plans_apart_and_no_longer_than_asked() -> None:
    runs = random_runs(8)
    damage = Damage(runs.trajectory, runs.impulse, history=2)
    wide = {"counts": [4], "width": 1000, "alternatives": 1000}
    apart = [set(path.computed) for path in plans(damage, best=4, apart=2, **wide)[4]]
    assert len(apart) > 1
    assert all(len(a - b) >= 2 for a, b in itertools.combinations(apart, 2))
    (short,) = plans(damage, longest=3, **wide)[4]
    every = [p for _, p in brute(runs, 2, (0,))[4] if max(np.diff([*p, 8])) <= 3]
    assert short.computed == every[0]
    assert plans(damage, longest=1, **wide)[4] == []


def test_two_hundred_steps_take_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of histories looked at grows with steps, counts and width, not with the number of plans."""
    runs = random_runs(200, runs=1, size=8)
    damage = Damage(runs.trajectory, runs.impulse, history=5)
    looked: list[int] = []
    original = Damage.stretches

    def counting(self: Damage, recent: NDArray[np.int64]) -> Floats:
        looked.append(len(recent))
        return original(self, recent)

    monkeypatch.setattr(Damage, "stretches", counting)
    found = plans(damage, counts=[10], width=3)
    assert len(looked) <= 200 and max(looked) <= 10 * 3
    assert len(found[10][0].computed) == 10
    even = tuple(range(0, 200, 20))
    assert found[10][0].damage < damage.of(even)

"""Damage and shortest paths beside direct least squares and brute force on random runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastercache.analysis.trajectory import Trajectory, gram
from fastercache.tuner.planning import paths as module
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


def test_skipping_each_step_alone_looks_at_one_stretch_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others are empty; looking at them took a thousand steps a million."""
    runs = random_runs(40)
    damage = Damage(runs.trajectory, runs.impulse, history=3)
    looked: list[tuple[int, ...]] = []
    original = Damage._row
    monkeypatch.setattr(Damage, "_row", lambda self, recent: (looked.append(recent), original(self, recent))[1])
    found = damage.alone()
    assert len(looked) == 39 and np.isfinite(found[1:]).all()


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
        assert (np.diff(recent, axis=1)[recent[:, 1:] >= 0] < 0).all(), "no step stands twice in a history"
        assert (recent[:, 1:][recent[:, :-1] < 0] == -1).all(), "what is missing stands last"
        return original(self, recent)

    monkeypatch.setattr(Damage, "stretches", counting)
    found = plans(damage, counts=[10], width=3)
    assert len(looked) <= 200 and max(looked) <= 10 * 3
    assert len(found[10][0].computed) == 10
    even = tuple(range(0, 200, 20))
    assert found[10][0].damage < damage.of(even)


def ridged(columns: list[Floats], target: Floats, strength: float) -> float:
    """The squared error of a ridge on unit columns: a row more for each column, as large as it."""
    matrix = np.stack(columns, axis=1)
    rows = np.vstack([matrix, np.sqrt(strength) * np.diag(np.linalg.norm(matrix, axis=0))])
    weights = np.linalg.lstsq(rows, np.r_[target, np.zeros(len(columns))], rcond=None)[0]
    return float(np.sum((matrix @ weights - target) ** 2))


@pytest.mark.parametrize("latent", [True, False])
def test_the_ridge_is_on_the_newest_output_the_differences_and_the_latent(latent: bool) -> None:
    runs = random_runs(8, runs=1)
    damage = Damage(runs.trajectory, runs.impulse, history=3, latent=latent, ridge=0.3)
    for recent, past in (((4, 3, 1), (4, 3, 1)), ((4, 2, -1), (4, 2)), ((4, -1, -1), (4,))):
        found = damage.stretches(np.array([recent]))[0]
        outputs = [runs.outputs[0, step] for step in past]
        columns = [outputs[0], *(a - b for a, b in itertools.pairwise(outputs))]
        columns += [runs.latents[0, 4]] if latent else []
        for end in range(6, 9):
            target = np.asarray(sum(runs.impulse[m] * runs.outputs[0, m] for m in range(5, end)))
            size = runs.latents.shape[-1]
            assert found[end - 5] == pytest.approx(ridged(columns, target, 0.3) / size, rel=1e-9)


def test_equal_outputs_and_outputs_of_zero_do_no_harm() -> None:
    """Their difference, or they themselves, have no length by which a column could be scaled."""
    plain = random_runs(7)
    outputs = plain.outputs.copy()
    outputs[:, 1] = outputs[:, 2]
    outputs[:, 4] = 0.0
    latents = [plain.latents[:, 0]]
    for k in range(7):
        latents.append(plain.a[k] * latents[-1] + plain.b[k] * outputs[:, k])
    runs = Runs(np.stack(latents, axis=1), outputs, plain.a, plain.b)
    damage = Damage(runs.trajectory, runs.impulse, history=3)
    for past, distinct in (([2, 1, 0], [2, 0]), ([4, 2, 1], [4, 2])):
        expected = [residual(runs, distinct, j) for j in range(past[0] + 1, 8)]
        np.testing.assert_allclose(damage.stretches(np.array([past]))[0], expected, rtol=1e-6, atol=1e-12)


def test_no_damage_is_negative() -> None:
    """Every output is one mix of a few, so what is skipped can be made of what was computed."""
    runs = random_runs(9)
    mixed = np.einsum("pnd,mn->pmd", runs.outputs[:, :2], np.random.default_rng(1).normal(size=(9, 2)))
    latents = [runs.latents[:, 0]]
    for k in range(9):
        latents.append(runs.a[k] * latents[-1] + runs.b[k] * mixed[:, k])
    poor = Runs(np.stack(latents, axis=1), mixed, runs.a, runs.b)
    damage = Damage(poor.trajectory, poor.impulse, history=4)
    found = np.concatenate([damage.stretches(np.array([[i, i - 1, i - 2, i - 3]]))[0] for i in range(3, 8)])
    assert (found >= 0.0).all() and (found < 1e-6).all()


def test_what_is_kept_of_other_histories_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = random_runs(7)
    every = [(0, *rest) for rest in itertools.combinations(range(1, 7), 3)]
    fresh = [Damage(runs.trajectory, runs.impulse).of(plan) for plan in every]
    monkeypatch.setattr("fastercache.tuner.planning.damage.KEPT", 4)
    short = Damage(runs.trajectory, runs.impulse)
    sizes = []
    for plan, expected in zip(every, fresh, strict=True):
        assert short.of(plan) == expected
        sizes.append(len(short._rows))
    assert max(sizes) == 4


def test_what_arrives_is_cut_to_four_times_the_width_and_to_64_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = random_runs(6, runs=1, size=8)
    damage = Damage(runs.trajectory, runs.impulse, history=2)
    widths: list[int] = []
    original = module._selected

    def noting(count: Any, cost: Any, width: int) -> Any:
        widths.append(width)
        return original(count, cost, width)

    monkeypatch.setattr(module, "_selected", noting)
    for width, most in ((3, 64), (15, 64), (17, 68), (100, 400)):
        widths.clear()
        plans(damage, width=width)
        assert set(widths) == {most}


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), max_size=14), st.integers(1, 3), st.integers(1, 3))
def test_of_each_count_so_many_paths_are_kept_and_so_many_of_one_history(
    paths: list[tuple[int, int]], width: int, alternatives: int
) -> None:
    count = [c for c, _ in paths]
    cost = np.random.default_rng(len(paths)).permutation(len(paths)).tolist()
    rows = sorted(range(len(paths)), key=lambda row: (count[row], cost[row]))
    cheapest = [row for place, row in enumerate(rows) if [count[r] for r in rows[:place]].count(count[row]) < width]
    assert module._selected(np.array(count, dtype=np.int64), np.array(cost, dtype=float), width).tolist() == cheapest
    kept: list[int] = []
    for place, row in enumerate(rows):
        alike = [paths[r] for r in rows[:place]].count(paths[row])
        if alike < alternatives and [count[rows[k]] for k in kept].count(count[row]) < width:
            kept.append(place)
    recent = np.array([[paths[row][1], 7] for row in rows], dtype=np.int64).reshape(len(rows), 2)
    counts = np.array([count[row] for row in rows], dtype=np.int64)
    assert module._limited(counts, recent, width, alternatives).tolist() == kept

"""The reasons are right: errors at single steps against the model's own values, factors against sums by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.record import record
from fastercache.experiments.reproduce.trajectory import on_path, relative, uncached
from fastercache.experiments.reproduce.why import bands, best_weight, mixed_errors, weighted_error
from fastercache.policies.schedule import Code

STEPS = 13


def test_relative_error() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])
    assert relative([(a, b)]) == pytest.approx(4.0 / 3.0)
    assert relative([(a, b), (torch.zeros(2), torch.tensor([0.0, 4.0]))]) == pytest.approx((32.0**0.5) / 5.0)
    assert relative([]) == 0.0


def test_a_run_is_put_back_on_its_trajectory(latte: Any) -> None:
    """Without reuse nothing changes; with it a step errs by what it reuses itself; the scheduler is as before."""
    path = uncached(latte.pipe, lambda: latte.generate(steps=STEPS))
    assert len(path.outputs) == len(path.samples) == STEPS
    with fc.attach(latte.pipe, fc.NoCache()) as session:
        plain = on_path(latte.pipe, path, lambda: latte.generate(steps=STEPS))
        session.use(fc.DynamicReuse(order=0))
        held = on_path(latte.pipe, path, lambda: latte.generate(steps=STEPS))
        reused = [i for i in range(STEPS) if (np.array(session.last.codes)[..., i] == Code.REUSED).any()]
    assert all(torch.equal(a, b) for a, b in zip(plain, path.outputs, strict=True))
    changed = [i for i in range(STEPS) if not torch.equal(held[i], path.outputs[i])]
    assert changed == reused == [5, 7, 9, 11]
    assert "step" not in vars(latte.pipe.scheduler)


@pytest.fixture(scope="module")
def recorded() -> tuple[Any, dict[tuple[str, str], Any]]:
    """A profile, and each attention's own values: (T, n) by site and branch."""
    latte = zoo.build("latte")
    seen: dict[tuple[str, str], list[Any]] = {}
    with record(latte.pipe, "attention", lags=1) as recorder:
        recorder.session.watch(
            "attention",
            lambda one: seen.setdefault((one.site.name, one.branch), []).append(one.value.flatten().double().numpy()),
        )
        latte.generate(steps=STEPS)
    return recorder.profile(), {place: np.stack(values) for place, values in seen.items()}


def test_errors_of_stand_ins_are_those_of_the_values(recorded: Any) -> None:
    """F_a, F_a + 0.5 (F_a - F_b), and the weight that is best by least squares, from the values themselves."""
    profile, values = recorded
    steps = (5, 7, 9, 11)

    def error(weight: float) -> float:
        squares = [
            np.sum((v[k - 1] + weight * (v[k - 1] - v[k - 3]) - v[k]) ** 2) / np.sum(v[k] ** 2)
            for v in values.values()
            for k in steps
        ]
        return float(np.sqrt(np.mean(squares)))

    sizes = {len(v[0]) for v in values.values()}
    assert max(sizes) <= profile.info.sketch, "so small that the recording's inner products are exact"
    assert mixed_errors(profile, fc.DynamicReuse(order=0)) == pytest.approx(error(0.0), rel=1e-3)
    best = best_weight(profile)
    assert weighted_error(profile, best) == pytest.approx(error(best), rel=1e-3)
    assert error(best) < min(error(best - 0.01), error(best + 0.01), error(0.0))


def test_a_constant_weight_at_the_first_reuse_builds_on_adjacent_steps(recorded: Any) -> None:
    """At step 5 the newest values are those of steps 4 and 3, one step apart, so the difference counts twice."""
    profile, values = recorded
    squares = []
    for v in values.values():
        for k in (5, 7, 9, 11):
            slope = 2.0 * (v[4] - v[3]) if k == 5 else v[k - 1] - v[k - 3]
            squares.append(np.sum((v[k - 1] + 0.5 * slope - v[k]) ** 2) / np.sum(v[k] ** 2))
    found = mixed_errors(profile, fc.DynamicReuse(weight=0.5))
    assert found == pytest.approx(float(np.sqrt(np.mean(squares))), rel=1e-3)


def test_factors_of_the_guidance_difference() -> None:
    """Bands that shrink by r at each step: the best factor for a value of age k is r^k, over all by least squares."""
    count = 13
    low, high = np.ones((8, 8)), np.indices((8, 8)).sum(axis=0) % 2 * 2.0 - 1.0  # the mean, and a checkerboard
    delta = torch.tensor(np.stack([0.9**i * low + 1.1**i * high for i in range(count)]), dtype=torch.float64)
    site = fc.Site("branch", fc.Kind.BRANCH)
    found = {(b.band, b.stage): b for b in bands([delta], fc.Run.of(count, sites=[site]))}
    reused = {"early": ((4, 5), (4, 6), (4, 7)), "late": ((4, 8), (9, 10), (9, 11), (9, 12))}
    for (band, stage), one in found.items():
        r = 0.9 if band == "low" else 1.1
        pairs = reused[stage]
        best = sum(r ** (a + k) for a, k in pairs) / sum(r ** (2 * a) for a, _ in pairs)
        size = sum(r ** (2 * k) for _, k in pairs)
        left = {f: (sum((f * r**a - r**k) ** 2 for a, k in pairs) / size) ** 0.5 for f in (1.0, one.factor, best)}
        assert one.best == pytest.approx(best)
        assert (one.plain, one.weighted, one.fitted) == pytest.approx((left[1.0], left[one.factor], left[best]))
        assert one.factor == (1.2 if (band, stage) in (("low", "early"), ("high", "late")) else 1.0)

"""What the page computes is what Python computes, to 1e-6."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache.experiments.pictures.browser import Browser
from fastercache.experiments.report.given import Given
from fastercache.experiments.report.recording import WARY
from fastercache.policies.registry import load_policy
from fastercache.tuner.planning.attribution import decisions, predicted
from fastercache.tuner.planning.rehearsal import GROWTH, Rehearsal
from fastercache.tuner.planning.scale import STEEPNESS, Scale
from tests.experiments.report.conftest import PLANS, STEPS, Made

RANDOM = np.random.default_rng(0)
SCHEDULES = [
    *PLANS,
    (0,),
    tuple(range(STEPS)),
    *(tuple(sorted({0, *RANDOM.choice(STEPS, size=5, replace=False).tolist()})) for _ in range(10)),
]


def asked(window: Browser, expression: str, plans: Sequence[Sequence[int]] = SCHEDULES) -> list[Any]:
    """A JavaScript expression of `s`, the page's schedules, and `p`, for each plan."""
    code = f"const s = report.schedules; return arguments[0].map((p) => {expression})"
    return list(window.run(code, [list(plan) for plan in plans]))


def test_damage_rehearsal_and_foresight(shown: Browser, found: Given) -> None:
    assert found.planning is not None
    foresight = found.planning.foresight
    assert foresight.rehearsal is not None
    isolated, rehearsed = asked(shown, "s.damage.of(p)"), asked(shown, "s.rehearsal.run(p).error")
    assert isolated == pytest.approx([foresight.damage.of(p) for p in SCHEDULES], rel=1e-6, abs=1e-14)
    assert rehearsed == pytest.approx([foresight.rehearsal.of(p) for p in SCHEDULES], rel=1e-6, abs=1e-14)
    decibels = [-10.0 * math.log10(max(foresight.of(p), 1e-14)) for p in SCHEDULES]
    assert asked(shown, "s.decibels(p)") == pytest.approx(decibels, abs=1e-6)
    for plan, mine in zip(SCHEDULES, asked(shown, "s.damage.byStretch(p)"), strict=True):
        assert mine == pytest.approx(foresight.damage.by_stretch(plan).tolist(), rel=1e-6, abs=1e-14)
    alone = shown.run(f"return Array.from({{length: {STEPS}}}, (_, k) => report.schedules.damage.alone(k))")
    assert alone[0] is None
    assert alone[1:] == pytest.approx(foresight.damage.alone()[1:].tolist(), rel=1e-6, abs=1e-14)


def test_the_bars_shares_are_those_that_attribute_predicts(shown: Browser, found: Given) -> None:
    assert found.planning is not None
    trajectory, sampler = found.planning.profile.trajectory, found.planning.sampler
    plans = [plan for plan in SCHEDULES if 1 < len(plan) < STEPS]
    grown, policies = asked(shown, "s.damage.attributed(p)", plans), asked(shown, "s.policy(p)", plans)
    for plan, mine, policy in zip(plans, grown, policies, strict=True):
        loaded = load_policy(policy)
        assert isinstance(loaded, fc.Planned)
        skipping = [mine[plan.index(decision.after)] for decision in decisions(loaded)]
        assert skipping == pytest.approx(predicted(trajectory, sampler, loaded).tolist(), rel=1e-6, abs=1e-14)
    shown.run("report.editor.load(arguments[0])", list(plans[0]))
    told = shown.run("return [...document.querySelectorAll('.step')].map((cell) => cell.title)")
    parts = [int(re.search(r"makes (\d+) %", words)[1]) for words in told if "skipped" in words]  # type: ignore[index]
    whole = np.array(grown[0]) / sum(grown[0])
    after = [max(q for q, step in enumerate(plans[0]) if step <= k) for k in range(STEPS) if k not in plans[0]]
    assert parts == pytest.approx([100.0 * whole[q] for q in after], abs=0.51)


def test_the_predicted_psnr_is_moved_to_the_measured_plan(shown: Browser, found: Given) -> None:
    """With one measured plan, every prediction is moved to it, and a foreseen decibel counts `STEEPNESS`."""
    assert found.planning is not None and found.planning.front is not None
    (measured,) = (point for point in found.planning.points if point.verified and len(point.computed) < STEPS)
    assert measured.psnr is not None

    def level(plan: Sequence[int]) -> float:
        return -10.0 * math.log10(found.planning.foresight.of(plan))  # type: ignore[union-attr]

    plans = [plan for plan in SCHEDULES if len(plan) < STEPS]
    expected = [min(measured.psnr + STEEPNESS * (level(p) - level(measured.computed)), 100.0) for p in plans]
    assert asked(shown, "s.psnr(p)", plans) == pytest.approx(expected, abs=1e-6)
    assert asked(shown, "s.psnr(p)", [measured.computed]) == pytest.approx([measured.psnr], abs=1e-6)
    assert asked(shown, "s.speedup(p)", plans) == pytest.approx([STEPS / len(p) for p in plans])


def test_the_scale_of_measured_plans_is_the_planners(shown: Browser) -> None:
    """Through three plans, two of which are foreseen alike: the page's line against `Scale`."""
    anchors, levels = [(30.0, 50.0), (30.9, 56.0), (20.0, 37.0)], [15.0, 20.0, 25.0, 30.4, 31.0, 40.0]
    found = shown.run(
        "const [anchors, levels] = arguments, s = Object.create(report.schedules);"
        "s.scale = anchored(anchors, s.apart);"
        "return levels.map((level) => { s.decibels = () => level; return s.psnr([0]); })",
        anchors,
        levels,
    )
    assert found == pytest.approx([Scale(anchors)(level) for level in levels], abs=1e-9)


def test_the_files_weights_leave_what_the_rehearsal_says(shown: Browser, found: Given) -> None:
    """Applied to coordinates of the recorded vectors, with the rehearsal's model of the denoiser, in a plain loop."""
    planning = found.planning
    assert planning is not None and planning.sampler.input is not None
    n, matrix = STEPS, planning.sampler.response.matrix
    values, vectors = np.linalg.eigh(planning.profile.trajectory.products.mean(axis=0))
    points = np.hstack([vectors * np.sqrt(np.maximum(values, 0.0)), np.zeros((2 * n + 1, n))])
    plans = [p for p in SCHEDULES if 1 < len(p) < n]
    for plan, policy in zip(plans, asked(shown, "s.policy(p)", plans), strict=True):
        used: list[Any] = []
        sources: list[Any] = []
        for k in range(n):
            latent = matrix[k, 0] * points[0] + sum((matrix[k, 1 + m] * used[m] for m in range(k)), np.zeros(3 * n + 1))
            sources.append(latent)
            if k in plan:
                error = latent - points[k]
                output = points[n + 1 + k] + GROWTH / (n * matrix[k + 1, 1 + k]) * error
                output[2 * n + 1 + k] += WARY / (n * abs(matrix[k + 1, 1 + k])) * np.linalg.norm(error)
            else:
                stretch = [s for s in policy["stand_in"]["stretches"] if s["start"] <= k][-1]
                past = [s for s in plan if s <= stretch["after"]][::-1]
                output = sum(w * used[s] for w, s in zip(stretch["outputs"], past, strict=False))
                output += stretch["input"] * planning.sampler.input[stretch["after"]] * sources[stretch["after"]]
            used.append(output)
        last = sum(h * (points[n + 1 + m] - used[m]) for m, h in enumerate(planning.sampler.impulse))
        starts, trajectory = planning.sampler.relations.starts, planning.profile.trajectory
        expected = Rehearsal(trajectory, matrix, starts=starts, novelty=WARY).of(plan)
        assert last @ last == pytest.approx(expected, rel=1e-5, abs=1e-13), plan


def test_cached_bytes_are_those_of_a_run(shown: Browser, made: Made) -> None:
    plans = [plan for plan in SCHEDULES if 1 < len(plan) < STEPS][:3]
    for plan, size, policy in zip(
        plans, asked(shown, "s.bytes(p)", plans), asked(shown, "s.policy(p)", plans), strict=True
    ):
        with fc.attach(made.subject.pipe, load_policy(policy)) as session:
            made.subject.pipe("a red seven moving left", **made.subject.call, output_type="latent")
        assert size == session.last.cached_bytes, plan


def test_maps_are_the_profiles(shown: Browser, found: Given) -> None:
    assert found.profile is not None
    profile = found.profile
    entries = shown.run("return report.map.entries.map((e) => [e.label, e.branch, e.source])")
    assert ["spatial", "cond"] in [[label.split(",")[0], branch] for label, branch, _ in entries]
    for number, (label, branch, source) in enumerate(entries):
        if source != "feature profile":
            continue
        query = label.split(",")[0]
        for measure in ("rel_l1", "cosine", "rel_l2"):
            flat = shown.run(
                f"const e = report.map.entries[{number}], all = [];"
                f"for (let i = 0; i < {STEPS}; i++) for (let j = 0; j < {STEPS}; j++)"
                f" all.push(report.map.value('{measure}', i, j, e)); return all.map((v) => Number.isNaN(v) ? null : v)"
            )
            mine = np.array([np.nan if v is None else v for v in flat]).reshape(STEPS, STEPS)
            np.testing.assert_allclose(mine, profile.matrix(query, measure, branch), rtol=1e-6, atol=1e-7)


def test_maps_of_the_denoisers_outputs(shown: Browser, found: Given) -> None:
    """Distance, cosine and the error of a fit, each from coordinates of the recorded outputs."""
    assert found.planning is not None
    trajectory = found.planning.profile.trajectory
    values, vectors = np.linalg.eigh(trajectory.products.mean(axis=0)[STEPS + 1 :, STEPS + 1 :])
    points = vectors * np.sqrt(np.maximum(values, 0.0))
    place = "report.map.entries.find((e) => e.label === 'denoiser output' && e.branch === 'guided')"
    size = np.linalg.norm
    for i, j in [(7, 4), (11, 10), (3, 0), (4, 7)]:
        got = shown.run(
            f"const e = {place}; return ['rel_l2', 'cosine', 'fitted'].map((m) => report.map.value(m, {i}, {j}, e))"
            ".map((v) => Number.isNaN(v) ? null : v)"
        )
        a, b = points[j], points[i]
        expected = [size(a - b) / size(b), a @ b / size(a) / size(b)]
        assert got[:2] == pytest.approx(expected, rel=1e-6)
        if i < j:
            assert got[2] is None
            continue
        columns = points[max(j - 4, 0) : j + 1].T
        left = b - columns @ np.linalg.lstsq(columns, b, rcond=None)[0]
        assert got[2] == pytest.approx(size(left) / size(b), rel=1e-4, abs=1e-6)

"""Each variant is what its name says: what it skips, and what stands in, by the paper's equations in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import fastercache as fc
from fastercache.experiments.bench.entries import FewerSteps
from fastercache.experiments.reproduce.findings import FEWER, FINDINGS
from fastercache.experiments.reproduce.variants import GUIDANCE, POLICIES, entries, fewer
from fastercache.policies.base import Now, Past
from fastercache.policies.schedule import Code, compile_policy
from fastercache.policies.vocabulary import Step

STEPS = 13
"""The first third ends at step 4, the switch of CFG-Cache is at step 8."""
EVERY_SECOND = {5, 7, 9, 11}
REUSED: dict[str, tuple[set[int], set[int]]] = {
    # self-attention, guidance difference
    "hold": (EVERY_SECOND, set()),
    "constant 0.5": (EVERY_SECOND, set()),
    "ramp": (EVERY_SECOND, set()),
    "reuse 3": ({5, 6, 8, 9, 11, 12}, set()),
    "reuse 4": ({5, 6, 7, 9, 10, 11}, set()),
    "reuse 5": ({5, 6, 7, 8, 10, 11, 12}, set()),
    "no weighting": (set(), {5, 6, 7, 8, 10, 11, 12}),
    "low": (set(), {5, 6, 7, 8, 10, 11, 12}),
    "high": (set(), {5, 6, 7, 8, 10, 11, 12}),
    "both": (set(), {5, 6, 7, 8, 10, 11, 12}),
    "guidance 3": (set(), {5, 6, 8, 9, 11, 12}),
    "guidance 7": (set(), {5, 6, 7, 8, 9, 10, 12}),
    "guidance 9": (set(), {5, 6, 7, 8, 9, 10, 11, 12}),
    "FasterCache": (EVERY_SECOND, {5, 6, 7, 8, 10, 11, 12}),
    "FasterCache, hold": (EVERY_SECOND, {5, 6, 7, 8, 10, 11, 12}),
    "FasterCache, no weighting": (EVERY_SECOND, {5, 6, 7, 8, 10, 11, 12}),
}
"""By hand, of a run of 13 steps, in the conditional branch for attention and the unconditional one for guidance."""


def skipped(sites: Any, codes: Any) -> tuple[set[int], set[int]]:
    """The steps reused by all attentions in the conditional branch, and by the guidance difference in the other."""
    rows = [[set(np.flatnonzero(branch == Code.REUSED)) for branch in site] for site in np.array(codes)]
    attention = [row[0] for row, site in zip(rows, sites, strict=True) if site.kind is not fc.Kind.BRANCH]
    guidance = [row[1] for row, site in zip(rows, sites, strict=True) if site.kind is fc.Kind.BRANCH]
    assert all(row == attention[0] for row in attention) and len(guidance) <= 1
    return attention[0] if attention else set(), guidance[0] if guidance else set()


def test_they_skip_what_they_say(tiny_latte: Any) -> None:
    run = fc.Run.of(STEPS, branches=("cond", "uncond"), sites=fc.find_sites(tiny_latte))
    tables = {name: compile_policy(POLICIES[name], run) for name in REUSED}
    assert {name: skipped(table.sites, table.codes) for name, table in tables.items()} == REUSED


@pytest.mark.slow
def test_and_so_they_do_in_a_run(latte: Any) -> None:
    found = {}
    with fc.attach(latte.pipe, fc.NoCache()) as session:
        for name in REUSED:
            session.use(POLICIES[name])
            latte.generate(steps=STEPS)
            found[name] = skipped(session.last.sites, session.last.codes)
    assert found == REUSED


def predicted(name: str, kind: str, steps: dict[int, Any], now: int, count: int = 30) -> Any:
    """What the variant puts in place of step `now`, given values by step."""
    run = fc.Run.of(count, sites=[fc.Site("a", fc.Kind.MODULE, fc.Role.SPATIAL), fc.Site("branch", fc.Kind.BRANCH)])
    policy: Any = POLICIES[name]
    site = run.sites[0 if kind == "attention" else 1]
    predictor = policy.predictor(site, run)
    kept = [Past(run.steps[i], predictor.keep(torch.from_numpy(v), None)) for i, v in steps.items()]
    return predictor.predict(kept, Now(run.steps[now])).numpy()


@pytest.mark.parametrize(
    ("name", "weight"), [("hold", 0.0), ("constant 0.5", 0.5), ("ramp", (21 - 11) / (29 - 11)), ("reuse 5", None)]
)
def test_equation_5(name: str, weight: float | None) -> None:
    """F_{t-1} = F_t + (F_t - F_{t+2}) w(t), w from 0 at the first reuse (step 11 of 30) to 1 at the last step."""
    new, old = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    gap = 2 if weight is not None else 5
    steps = {20: new, 20 - gap: old}
    factor = weight if weight is not None else (21 - 11) / (29 - 11)
    steps = dict(sorted(steps.items()))
    np.testing.assert_allclose(
        predicted(name, "attention", steps, 21), new + factor * (new - old), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "early", "late"),
    [
        ("no weighting", (1.0, 1.0), (1.0, 1.0)),
        ("low", (1.2, 1.0), (1.0, 1.0)),
        ("high", (1.0, 1.0), (1.0, 1.2)),
        ("both", (1.2, 1.0), (1.0, 1.2)),
    ],
)
def test_equations_8_to_11(name: str, early: tuple[float, float], late: tuple[float, float]) -> None:
    """The disc of radius 8 // 5 = 1 around the centre of the shifted spectrum counts w1, the rest w2."""
    delta = np.random.default_rng(1).normal(size=(2, 8, 8)).astype(np.float32)
    spectrum = np.fft.fftshift(np.fft.fft2(delta), axes=(-2, -1))
    y, x = np.mgrid[-4:4, -4:4]
    low = y**2 + x**2 <= 1
    for step, (w1, w2) in ((11, early), (28, late)):  # of 30; two thirds of the way are at step 19.3
        expected = np.fft.ifft2(np.fft.ifftshift(spectrum * np.where(low, w1, w2), axes=(-2, -1))).real
        np.testing.assert_allclose(predicted(name, "branch", {10: delta}, step), expected, rtol=1e-4, atol=1e-5)


def test_fewer_steps() -> None:
    assert list(fewer(30).values()) == [FewerSteps(n) for n in (27, 25, 22, 20, 18)]
    assert FewerSteps(6) not in fewer(6).values()


def names() -> Iterator[str]:
    for finding in FINDINGS:
        for claim in finding.claims:
            yield from (claim.worse, claim.better)


def test_findings_name_variants_that_are_run() -> None:
    assert set(names()) <= {FEWER, "uncached", *entries(30)}
    assert {one.key for one in FINDINGS} and len({one.key for one in FINDINGS}) == len(FINDINGS)
    assert all(len({claim.kind for claim in one.claims}) == 1 for one in FINDINGS), "one kind of figure in a finding"
    assert set(POLICIES) <= {*names(), "guidance 3"}, "nothing is run that no finding needs"


def test_the_guidance_interval_of_both_is_the_papers() -> None:
    assert GUIDANCE["both"] == fc.CFGCache(interval=5, alpha_low=0.2, alpha_high=0.2)
    assert Step(10, 30, 0.0).progress >= 1 / 3 > Step(9, 30, 0.0).progress

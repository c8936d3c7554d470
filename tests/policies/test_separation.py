"""Rule, reused value and predictor are exchanged in one line of configuration, and each does its own part of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache.experiments.arguments import choose
from fastercache.zoo import build
from fastercache.zoo.specimen import Specimen

STEPS = 9
Seen = dict[tuple[str, str], list[tuple[int, bool, np.ndarray]]]


@pytest.fixture(scope="module")
def specimens() -> dict[str, Specimen]:
    return {name: build(name) for name in ("latte", "wan")}


def run(specimen: Specimen, policy: fc.Policy, watched: str) -> tuple[Seen, Any]:
    """Values of the watched sites by site and branch: step, whether it was computed, value."""
    seen: Seen = {}

    def note(observed: fc.Observation) -> None:
        entry = (observed.step.index, observed.code == fc.Code.COMPUTED, observed.value.double().numpy().copy())
        seen.setdefault((observed.site.name, observed.branch), []).append(entry)

    with fc.attach(specimen.pipe, policy) as session:
        session.watch(watched, note)
        specimen.generate(steps=STEPS)
        return seen, session.last


def letters(trace: Any, site: str) -> list[str]:
    row = [s.name for s in trace.sites].index(site)
    return ["".join("CR-"[c] for c in codes) for codes in trace.codes[row]]


@pytest.mark.parametrize("family", ["latte", "wan"])
def test_teacaches_rule_with_taylors_forecast(specimens: dict[str, Specimen], family: str) -> None:
    """Which steps are reused is TeaCache's sum of changes; what stands in is the line through computed residuals."""
    given = ["threshold=0.5", "coefficients=[1, 0]", 'stand_in={"predictor": "taylor", "order": 1}']
    policy = choose("teacache", given, None)
    assert policy == fc.TeaCache(threshold=0.5, coefficients=(1.0, 0.0), stand_in=fc.Taylor(order=1))
    seen, trace = run(specimens[family], policy, "stack")
    held = run(specimens[family], fc.TeaCache(threshold=0.5, coefficients=(1.0, 0.0)), "stack")[1]
    rows = letters(trace, "stack")
    assert rows[0] == rows[1] and 1 < rows[0].count("R") < STEPS - 2  # the call decides for both of its branches ...
    first = rows[0].index("R")
    assert letters(held, "stack")[0][: first + 1] == rows[0][: first + 1]  # ... as without the forecast, until it tells
    for branch in trace.run.branches:
        past: list[tuple[int, np.ndarray]] = []
        for step, computed, value in seen["stack", branch]:
            if computed:
                past.append((step, value))
                continue
            a, newest = past[-1]
            expected = newest
            if len(past) > 1:
                b, older = past[-2]
                expected = newest + (newest - older) / (a - b) * (step - a)
            np.testing.assert_allclose(value, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["latte", "wan"])
def test_first_block_cache_beside_cfg_cache(specimens: dict[str, Specimen], family: str) -> None:
    """Each part decides about its own sites: the branch by its interval, the blocks by what the first one adds."""
    rule = fc.FirstBlockCache(threshold=0.6, scope=fc.Scope.BRANCH)
    policy = fc.Compose([rule, fc.CFGCache(interval=3, start=0.0, offset=0)])
    assert fc.load_policy(fc.dump(policy)) == policy
    seen, trace = run(specimens[family], policy, "stack[1:]")
    stack = next(site.name for site in trace.sites if site.kind is fc.Kind.STACK)
    branch, blocks = letters(trace, "branch"), letters(trace, stack)
    # no difference is known before a step at which both branches were computed
    assert branch[1][0] == "C" and branch[1].count("R") >= 4 and set(branch[0]) == {"-"}
    assert "R" in blocks[0] and all(b == "-" for b, g in zip(blocks[1], branch[1], strict=True) if g == "R")
    alone = letters(run(specimens[family], rule, "stack[1:]")[1], stack)
    assert blocks[0][:2] == alone[0][:2] == "CR"  # before the parts can have influenced each other
    for step, computed, value in seen[stack, "cond"]:
        if computed:
            held = value
        else:
            np.testing.assert_array_equal(value, held)
        assert computed == (blocks[0][step] == "C")
    assert trace.speedup_flops > 1.3


@pytest.mark.parametrize(
    ("policy", "site"),
    [
        (fc.TeaCache(threshold=0.6, sites="stack[1:]", stand_in=fc.Linear()), "stack"),
        (fc.FirstBlockCache(threshold=0.6, sites="stack[1:-1]", stand_in=fc.Hermite(order=1)), "stack"),
        (fc.EasyCache(threshold=0.9, start=0.0, relative=False, stand_in=fc.AverageVelocity()), "denoiser"),
        (fc.SeaCache(threshold=0.9, sites="denoiser", stand_in=fc.Taylor(order=2)), "denoiser"),
        (fc.AdaCache(sites="temporal", stand_in=fc.FoCaForecast(horizon=2)), "module"),
        (fc.StaticInterval(sites="ff", interval=3, stand_in=fc.Difference(weight=0.5)), "module"),
        (fc.MagCache(ratios={"*": (1.0,) * 5}, sites="block", stand_in=fc.Linear()), "block"),
    ],
)
def test_any_rule_takes_any_site_and_any_predictor(specimens: dict[str, Specimen], policy: Any, site: str) -> None:
    _, trace = run(specimens["latte"], policy, "denoiser")
    assert {str(s.kind) for s in trace.sites} == {site} and trace.share() > 0
    assert {row.predictor for row in trace.schedule().rows} == {policy.stand_in}

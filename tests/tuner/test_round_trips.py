"""What is written to a file or a trial and read again is the same: policies, searched parameters, schedules, fronts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import fastercache as fc
from fastercache.policies.registry import load_policy
from fastercache.policies.schedule import Schedule, compile_policy
from fastercache.policies.vocabulary import Run, Site
from fastercache.tuned import Identity, Model
from fastercache.tuner.budget import Budget
from fastercache.tuner.planning.front import Front, Point
from fastercache.tuner.space import SearchSpace

SITES = (
    Site("denoiser", fc.Kind.DENOISER),
    Site("stack", fc.Kind.STACK, None, 0, (0, 2)),
    *(Site(f"blocks.{d}", fc.Kind.BLOCK, None, d, (d, d + 1)) for d in range(2)),
    *(Site(f"blocks.{d}.ff", fc.Kind.MODULE, fc.Role.FF, d, (d, d + 1)) for d in range(2)),
)
SEARCHED = ("ab_cache", "adacache", "cfg_cache", "deepcache", "dicache", "fastercache", "meancache", "pab", "seacache")
NUMBERS = st.floats(-1e3, 1e3, allow_nan=False, width=64)


def drawn(data: st.DataObject, distribution: Any, name: str) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return data.draw(st.sampled_from(distribution.choices), name)
    if isinstance(distribution, IntDistribution):
        count = (distribution.high - distribution.low) // distribution.step
        return distribution.low + distribution.step * data.draw(st.integers(0, count), name)
    assert isinstance(distribution, FloatDistribution)
    if distribution.step:
        count = int((distribution.high - distribution.low) / distribution.step + 1e-9)
        return distribution.low + distribution.step * data.draw(st.integers(0, count), name)
    return data.draw(st.floats(distribution.low, distribution.high), name)


@pytest.mark.parametrize("name", SEARCHED)
@settings(max_examples=20)
@given(data=st.data())
def test_searched_parameters_come_back_from_the_policy_and_the_policy_from_json(name: str, data: st.DataObject) -> None:
    space = SearchSpace.of(name)
    params: dict[str, Any] = {}
    for parameter in space.parameters:
        if parameter.condition is None or params.get(parameter.condition[0]) == parameter.condition[1]:
            params[parameter.name] = drawn(data, parameter.distribution, parameter.name)
    try:
        policy = space.build(params)
    except fc.InvalidPolicy:  # fields that contradict each other
        return
    found = space.encode(policy)
    assert not found.changed and space.build(found.params) == policy
    assert set(found.params) == set(params)
    for key, value in found.params.items():
        assert value == pytest.approx(params[key]) if isinstance(value, float) else value == params[key]
    assert load_policy(json.loads(json.dumps(fc.dump(policy)))) == policy


@given(data=st.data(), count=st.integers(2, 9))
def test_a_schedule_repeats_any_table_also_from_json(data: st.DataObject, count: int) -> None:
    """Every site and branch has decisions of its own."""
    run = Run.of(count, branches=("cond", "uncond"), sites=SITES)
    letters = st.text("CR", min_size=count, max_size=count)
    rows = [
        {"sites": site.name, "branch": branch, "steps": data.draw(letters), "predictor": {"predictor": "hold"}}
        for site in SITES
        for branch in ("cond", "uncond")
    ]
    table = compile_policy(load_policy({"policy": "schedule", "rows": rows}), run)
    again = load_policy(json.loads(json.dumps(fc.dump(Schedule.of(table)))))
    assert (compile_policy(again, run).codes == table.codes).all()


@st.composite
def plans(draw: st.DrawFn, steps: int = 12) -> fc.Planned:
    computed = (0, *sorted(draw(st.sets(st.integers(1, steps - 1), min_size=1, max_size=steps - 2))))
    stretches = []
    for k in range(1, steps):
        past = [s for s in computed if s < k]
        if k not in computed and (k - 1 in computed or draw(st.booleans())):
            weights = draw(st.lists(NUMBERS, min_size=1, max_size=min(len(past), 5)))
            stretches.append(fc.Stretch(after=past[-1], start=k, outputs=tuple(weights), input=draw(NUMBERS)))
    if not stretches:
        return fc.Planned(steps=steps, computed=computed)
    variance = draw(st.sampled_from([None, True, False]))
    return fc.Planned(steps=steps, computed=computed, stand_in=fc.Fitted(stretches=tuple(stretches), variance=variance))


@given(plan=plans())
def test_a_plan_comes_back_from_json_to_the_last_bit(plan: fc.Planned) -> None:
    assert load_policy(json.loads(json.dumps(fc.dump(plan)))) == plan


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(found=st.lists(st.tuples(plans(), st.lists(st.floats(0.0, 100.0), max_size=4)), min_size=1, max_size=4))
def test_a_front_comes_back_from_its_file(found: list[tuple[fc.Planned, list[float]]], tmp_path: Path) -> None:
    points = [
        Point(
            computed=plan.computed,
            predicted_psnr=values[0] if values else None,
            quality={"psnr": tuple(values)} if values else {},
            predictor=plan.stand_in if isinstance(plan.stand_in, fc.Fitted) else None,
        )
        for plan, values in found
    ]
    front = Front(
        model=Model(pipeline="Pipe", denoiser=Identity(kind="Net", fingerprint="1" * 64, config={"width": 3})),
        scheduler=Identity(kind="Sampler", fingerprint="2" * 64, config={}),
        guidance_scale=4.0,
        steps=12,
        prompts=4,
        points=tuple({len(p.computed): p for p in sorted(points, key=lambda p: len(p.computed))}.values()),
        prediction_error=None,
        generations=3.5,
    )
    assert Front.load(front.save(tmp_path / "front.json")) == front


TERMS = st.one_of(
    st.builds(lambda v: f"psnr>={v:.3f}", st.floats(1.0, 90.0)),
    st.builds(lambda v: f"ssim>={v:.4f}", st.floats(0.1, 0.99)),
    st.builds(lambda v: f"lpips<={v:.4f}", st.floats(0.01, 0.9)),
    st.builds(lambda p, v: f"p{p}:psnr>={v:.2f}", st.integers(1, 99), st.floats(1.0, 90.0)),
    st.builds(lambda q, v: f"q{q:.2f}(tpsnr)>={v:.2f}", st.floats(0.01, 0.99), st.floats(1.0, 90.0)),
    st.builds(lambda v: f"cache<={v}MiB", st.integers(1, 4000)),
)


@given(terms=st.lists(TERMS, min_size=1, max_size=4, unique_by=lambda term: term.split("=")[0]))
def test_a_budget_comes_back_from_its_own_words(terms: list[str]) -> None:
    if all(term.startswith("cache") for term in terms):
        return  # a limit alone is no budget
    budget = Budget.parse(",".join(terms))
    again = Budget.parse(str(budget))
    assert str(again) == str(budget) and again.words == budget.words
    for term, other in zip(budget.terms, again.terms, strict=True):
        assert (term.metric, term.bound, term.quantile, term.share) == (
            other.metric,
            other.bound,
            other.quantile,
            other.share,
        )

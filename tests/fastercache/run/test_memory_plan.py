"""Cached bytes of a plan, added up by hand from what each step stores and lets go. No model is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.run.memory import CacheTooLarge, MemoryForecast, MemoryPlan, Shape, ValueShapes, plan_static
from fastercache.run.plan import RunPlan
from tests.fastercache.run.test_store import Keeping

MODULE, OTHER = (Site(f"blocks.{i}.ff", Kind.MODULE, fc.Role.FF, i, (i, i + 1)) for i in range(2))
GUIDANCE, WHOLE = Site("branch", Kind.BRANCH), Site("denoiser", Kind.DENOISER)
BATCHED, SEPARATE = [("uncond", "cond")], [("cond",), ("uncond",)]
ONE = 2 * 5 * 4
"""Bytes of one branch's rows of a module's value: 2 x 5 floats."""
SEEN = 2 * 7 * 4
"""Bytes of the input's."""


def shapes(*more: Shape) -> ValueShapes:
    return ValueShapes(lambda site: [((2, 5), torch.float32), *more], ((2, 7), torch.float32))


def table(*rows: tuple[Site, str, str], stand_in: Any = None) -> fc.Table:
    sites = list(dict.fromkeys(site for site, _, _ in rows))
    made = [fc.Row(sites=site.name, branch=b, steps=steps) for site, b, steps in rows]
    if stand_in is not None:
        made = [row.model_copy(update={"predictor": stand_in}) for row in made]
    return fc.compile_policy(fc.Schedule(rows=tuple(made)), Run.of(len(rows[0][2]), sites=sites))


def test_a_batched_entry_stays_until_none_of_its_branches_is_read_any_more() -> None:
    made = table((MODULE, "cond", "CRCR"), (MODULE, "uncond", "CRRC"))
    batched = plan_static(made, shapes(), BATCHED, None)
    # the first entry holds both branches until step 2, where only the conditional value of that step stays
    assert batched.per_step == [2 * ONE, 2 * ONE, ONE, 0] and batched.exact
    assert batched.by_site == {MODULE.name: 2 * ONE} and batched.peak == 2 * ONE
    separate = plan_static(made, shapes(), SEPARATE, None)
    assert separate.per_step == [2 * ONE, ONE, ONE, 0]
    assert plan_static(made, shapes(), SEPARATE, torch.float16).per_step == [ONE, ONE // 2, ONE // 2, 0]
    text = plan_static(made, shapes(((3, 1), torch.float32)), SEPARATE, None)
    assert text.per_step == [2 * (ONE + 12), ONE + 12, ONE + 12, 0], "a second stream is kept too"


def test_sites_add_up_and_one_that_is_never_reused_holds_nothing() -> None:
    made = table((MODULE, "cond", "CRC"), (OTHER, "cond", "CCR"), (WHOLE, "cond", "CCC"))
    found = plan_static(made, shapes(), SEPARATE, None)
    assert found.per_step == [ONE, ONE, 0]
    assert found.by_site == {MODULE.name: ONE, OTHER.name: ONE, "denoiser": 0}


def test_differences_are_kept_branch_by_branch_whatever_the_call() -> None:
    made = table((GUIDANCE, "uncond", "CRCR"))
    assert plan_static(made, shapes(), BATCHED, None).per_step == [ONE, 0, ONE, 0]
    three = ("uncond", "cond", "perturbed")
    rows = [fc.Row(sites="branch", branch=b, steps=steps) for b, steps in (("uncond", "CRCC"), ("perturbed", "CRRR"))]
    run = Run.of(4, branches=("cond", "uncond", "perturbed"), sites=[GUIDANCE])
    made = fc.compile_policy(fc.Schedule(rows=tuple(rows)), run)
    assert plan_static(made, shapes(), [three], None).per_step == [2 * ONE, ONE, ONE, 0]


def test_what_a_predictor_sees_is_counted_once_for_a_module_and_once_for_the_whole_output() -> None:
    rows = [("cond", "CR"), ("uncond", "CR")]
    module = table(*[(MODULE, *row) for row in rows], stand_in=Keeping())
    assert plan_static(module, shapes(), BATCHED, None).per_step == [2 * (ONE + SEEN), 0]
    second = shapes(((2, 5), torch.float32))
    assert plan_static(module, second, BATCHED, None).per_step == [2 * (2 * ONE + SEEN), 0], "streams share it"
    whole = table(*[(WHOLE, *row) for row in rows], stand_in=Keeping())
    assert plan_static(whole, second, BATCHED, None).per_step == [2 * (2 * ONE + SEEN), 0]


def test_a_limit_may_be_reached_and_the_largest_three_sites_are_named() -> None:
    mib = 2**20
    plan = MemoryPlan([mib, 5 * mib, 0], {"a": mib // 2, "b": 3 * mib, "c": 5 * mib // 4, "d": 2 * mib}, exact=True)
    plan.check(None)
    plan.check(5 * mib)
    with pytest.raises(CacheTooLarge) as error:
        plan.check(5 * mib - 1)
    assert str(error.value).startswith(
        "this policy caches up to 5.00 MiB, more than max_cache_bytes=5242879 (5.00 MiB); "
        "most of it at b 3.00 MiB, d 2.00 MiB, c 1.25 MiB: "
    )
    assert MemoryPlan([], {}, exact=True).peak == 0


def test_a_forecast_is_made_anew_where_the_plan_or_the_shapes_or_the_calls_are_others() -> None:
    run = Run.of(3, sites=[MODULE, OTHER])
    rows = tuple(fc.Row(sites=site.name, branch="cond", steps="CRC") for site in (MODULE, OTHER))
    plan, again = (RunPlan.of(fc.Schedule(rows=rows), run) for _ in range(2))
    forecast = MemoryForecast(None)
    first = forecast.of(plan, [MODULE], shapes(), SEPARATE, False)
    assert first.by_site == {MODULE.name: ONE}, "of the other site nothing is known"
    assert forecast.of(plan, [MODULE], shapes(), SEPARATE, False) is first
    other_plan = forecast.of(again, [MODULE], shapes(), SEPARATE, False)
    assert other_plan is not first and other_plan == first
    wider = forecast.of(again, [MODULE], shapes(((1, 1), torch.float32)), SEPARATE, False)
    assert wider.by_site == {MODULE.name: ONE + 4}
    both = forecast.of(again, [MODULE, OTHER], shapes(), SEPARATE, False)
    assert both.by_site == {MODULE.name: ONE, OTHER.name: ONE} and both.per_step == [2 * ONE, 0, 0]
    assert forecast.of(again, [MODULE, OTHER], shapes(), BATCHED, False) is not both
    assert forecast.of(again, [MODULE, OTHER], shapes(), BATCHED, True) is not forecast.of(
        again, [MODULE, OTHER], shapes(), BATCHED, False
    )
    halved = MemoryForecast(torch.float16).of(again, [MODULE, OTHER], shapes(), SEPARATE, False)
    assert halved.per_step == [ONE, 0, 0]


def test_of_a_dynamic_policy_the_forecast_is_its_bound_at_the_sites_that_are_known() -> None:
    policy = fc.FirstBlockCache(sites="blocks.0.ff|blocks.1.ff")
    run = Run.of(4, branches=("cond",), sites=[MODULE, OTHER])
    plan = RunPlan.of(policy, run)
    assert plan.table is None
    found = MemoryForecast(None).of(plan, [OTHER], shapes(), SEPARATE, False)
    (assigned,) = [one for site, one in plan.assigned.items() if site == OTHER]
    remembers = assigned.rule.remembers  # type: ignore[union-attr]
    assert found.by_site == {OTHER.name: ONE + remembers * ONE} and not found.exact
    assert found.per_step == [sum(found.by_site.values())] * 4


def test_a_signal_of_functions_is_as_large_as_what_they_give_of_values_of_these_shapes() -> None:
    signal = fc.Signal(
        "of_both", of=(fc.Signal.MODULATED_INPUT, fc.Signal.INPUT), function=lambda a, b: (a.sum(1), b)[0].half()
    )
    found = shapes()
    assert found.seen(MODULE, None) is None
    assert found.seen(MODULE, fc.Signal.INPUT) == ((2, 7), torch.float32)
    assert found.seen(MODULE, signal) == ((2,), torch.float16)

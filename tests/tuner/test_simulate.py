"""What is forecast without a video is what a run then does."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache import zoo
from fastercache.policies.schedule import Code
from fastercache.tuner import CostModel, Evaluator, Seconds
from fastercache.tuner.simulate import BINS, staleness

POLICIES = [
    fc.FasterCache(start=0.2, cfg_start=0.2),
    fc.FasterCache(interval=4, cfg_interval=3, start=0.0, cfg_start=0.5, cfg_stop=0.9),
    fc.StaticInterval(sites="all", interval=3),
    fc.StaticInterval(sites="block[1:3]", interval=2),
    fc.StaticInterval(sites="stack[1:3]", interval=3),
    fc.StaticInterval(sites="denoiser", interval=2),
    fc.Schedule(  # a stack reused for one branch alone saves nothing
        rows=(
            fc.Row(sites="stack[1:3]", branch="cond", steps="CRCRCR"),
            fc.Row(sites="stack[1:3]", branch="uncond", steps="CCRRCR"),
        )
    ),
    fc.Compose([fc.StaticInterval(sites="ff", interval=2), fc.CFGCache(interval=2, start=0.0)]),
    fc.NoCache(),
    *fc.PRESETS.values(),
]


def test_forecast_flops_equal_those_counted_on_the_real_run(evaluator: Evaluator) -> None:
    case = evaluator.cases(["a red seven"])[0]
    model = evaluator.cost_model(case)
    for policy in POLICIES:
        _, trace, _ = evaluator.run(policy, case)
        measured = trace.total_flops / sum(trace.flops_full)
        assert model.forecast(policy).ratio == pytest.approx(measured, abs=1e-6), policy


@pytest.mark.parametrize(
    "policy",
    [
        fc.StaticInterval(sites="block", interval=2, start=0.0),
        fc.StaticInterval(sites="all", interval=3),
        fc.TaylorSeer(interval=4, start=0.0),
        fc.NoCache(),
    ],
    ids=lambda policy: str(policy.name),
)
def test_of_two_experts_each_step_runs_one(policy: fc.Policy) -> None:
    """Wan 2.2: what each saves counts at its own steps only, and its first step has nothing to reuse."""
    specimen = zoo.build("wan-2.2")
    with fc.attach(specimen.pipe, fc.NoCache()) as session:
        model = CostModel.measured(session, lambda: specimen.generate(steps=8))
        assert sorted(len(steps) for steps in model.active.values()) == [4, 4]
        assert model.guidance == "separate"
        session.use(policy)
        specimen.generate(steps=8)
        counted = session.last.total_flops / sum(session.last.flops_full)
    assert model.forecast(policy).ratio == pytest.approx(counted, abs=1e-6)


def test_dynamic_policies_have_no_forecast(evaluator: Evaluator) -> None:
    with pytest.raises(fc.InvalidPolicy):
        evaluator.cost_model(evaluator.cases(["x"])[0]).forecast(fc.EasyCache())


def table(policy: fc.Policy, count: int = 9) -> fc.Table:
    sites = [fc.Site("b.0.attn1", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1)), fc.Site("branch", fc.Kind.BRANCH)]
    return fc.compile_policy(policy, fc.Run.of(count, sites=sites))


def test_staleness_is_the_distance_to_the_last_computed_step() -> None:
    made = table(fc.FasterCache(interval=3, start=0.2, cfg_interval=4, cfg_start=0.3))
    ages = staleness(made)
    for s, b in np.ndindex(made.codes.shape[:2]):
        last = None
        for i, code in enumerate(made.codes[s, b]):
            last = i if code == Code.COMPUTED else last
            expected = i - last if code == Code.REUSED and last is not None else 0
            assert ages[s, b, i] == expected


def test_a_value_ages_also_while_its_site_is_not_reached() -> None:
    made = table(fc.StaticInterval(interval=4, sites="spatial"), 4)
    codes = np.array([[[Code.COMPUTED, Code.UNREACHED, Code.REUSED, Code.REUSED]]], made.codes.dtype)
    site, predictor = made.sites[:1], made.predictors[:1]
    aged = staleness(fc.Table(made.run, site, codes, predictor))
    assert aged.tolist() == [[[0, 0, 2, 3]]]
    longer = np.concatenate([codes, codes[:, :, 1:]], axis=2)
    assert staleness(fc.Table(made.run, site, longer, predictor)).tolist() == [[[0, 0, 2, 3, 0, 5, 6]]]


def test_features_tell_where_and_how_much_is_reused() -> None:
    run = table(fc.FasterCache()).run
    model = CostModel(run, (10,) * run.count, {"b.0.attn1": 0.3})
    nothing = model.forecast(fc.FasterCache(interval=1, cfg_interval=1)).features
    assert not nothing[:-1].any() and nothing[-1] == 1.0
    late = model.forecast(fc.FasterCache(interval=1, cfg_interval=4, cfg_start=0.8)).features
    branch, module = late[:BINS], late[BINS:-1]
    assert branch[-1] > 0 and not branch[0] and not module.any()


def test_features_are_the_mean_over_the_sites_of_a_role() -> None:
    """Two attentions, the value of one of them older: the age counts that they have on average."""
    sites = [fc.Site(f"b.{d}.attn1", fc.Kind.MODULE, fc.Role.SPATIAL, d, (d, d + 1)) for d in range(2)]
    run = fc.Run.of(8, sites=sites)
    model = CostModel(run, (10,) * run.count, {site.name: 0.3 for site in sites})
    old, young = "CRRRRRRR", "CRCRCRCR"
    ages = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [0, 1] * 4])
    edges = np.linspace(0, 8, BINS + 1).round().astype(int)
    for steps in ((old, young), (young, old)):
        rows = tuple(fc.Row(sites=f"b.{d}.attn1", steps=letters) for d, letters in enumerate(steps))
        features = model.forecast(fc.Schedule(rows=rows)).features
        log = np.log2(1.0 + ages.mean(axis=0))
        assert np.allclose(features[:BINS], [log[a:b].mean() for a, b in pairwise(edges)], atol=1e-9)


def test_behaviour_is_what_is_done_and_what_stands_in() -> None:
    """Policies with one behaviour give the same video, so the tuner runs one of them only."""
    run = table(fc.FasterCache()).run
    model = CostModel(run, (10,) * run.count, {"b.0.attn1": 0.3})

    def behaviour(**fields: Any) -> str:
        return model.forecast(fc.StaticInterval(**fields)).behaviour

    assert behaviour(interval=9) == behaviour(interval=10), "of 9 steps both compute the first only"
    assert behaviour(interval=3) != behaviour(interval=4)
    assert behaviour(interval=3) != behaviour(interval=3, stand_in=fc.Linear())
    assert behaviour(interval=1) == behaviour(interval=1, stand_in=fc.Linear()), "what never stands in does not count"


def test_forecasts_add_up_what_every_cell_costs() -> None:
    """Two branches in one call: a reused attention saves its share of a branch, a reused branch all of it."""
    run = table(fc.FasterCache()).run
    model = CostModel(run, tuple(range(10, 10 + run.count)), {"b.0.attn1": 0.3})
    policy = fc.FasterCache(interval=3, start=0.2, cfg_interval=4, cfg_start=0.3)
    made = fc.compile_policy(policy, run)
    rows = {site.name: codes for site, codes in zip(made.sites, made.codes.tolist(), strict=True)}
    spent = 0.0
    for i, flops in enumerate(model.step_flops):
        for b in range(2):
            if rows["branch"][b][i] != Code.REUSED:
                spent += flops / 2 * (1 - 0.3 * (rows["b.0.attn1"][b][i] == Code.REUSED))
    assert any(Code.REUSED in row for row in rows["branch"]) and any(Code.REUSED in row for row in rows["b.0.attn1"])
    assert model.forecast(policy).ratio == pytest.approx(spent / sum(model.step_flops))


def test_features_are_the_mean_log_of_the_ages_in_four_stretches() -> None:
    """An attention of two branches over 8 steps, two steps a stretch; the module that is not claimed has age 0."""
    sites = [
        fc.Site(f"b.0.{n}", fc.Kind.MODULE, r, 0, (0, 1)) for n, r in (("a", fc.Role.SPATIAL), ("c", fc.Role.CROSS))
    ]
    rows = (
        fc.Row(sites="b.0.a", branch="cond", steps="CRRRCCRR"),
        fc.Row(sites="b.0.a", branch="uncond", steps="CCCRCRRR"),
    )
    ages = [[0, 1, 2, 3, 0, 0, 1, 2], [0, 0, 0, 1, 0, 1, 2, 3]]
    model = CostModel(fc.Run.of(8, sites=sites), (10,) * 8, {"b.0.a": 0.4, "b.0.c": 0.2})
    found = model.forecast(fc.Schedule(rows=rows))
    logs = [math.log2(1 + (a + b) / 2) for a, b in zip(*ages, strict=True)]
    stretches = [sum(logs[i : i + 2]) / 2 for i in range(0, 8, 2)]
    assert found.ratio == pytest.approx(1 - 0.4 * (5 + 4) / 16)
    assert found.features.tolist() == pytest.approx([0.0] * 4 + stretches + [found.ratio])  # cross comes before spatial


def test_what_no_share_is_known_of_saves_nothing() -> None:
    """A run of three blocks, of one of which nothing was counted; the denoiser and the branch are whole."""
    blocks = [fc.Site(f"blocks.{i}", fc.Kind.BLOCK, None, i, (i, i + 1)) for i in range(3)]
    stack = fc.Site("stack[0:2]", fc.Kind.STACK, None, 0, (0, 2))
    whole = [fc.Site("denoiser", fc.Kind.DENOISER), fc.Site("branch", fc.Kind.BRANCH)]
    model = CostModel(fc.Run.of(4, sites=[*blocks, stack, *whole]), (10,) * 4, {"blocks.1": 0.25, "blocks.2": 0.5})
    assert [model.share(site) for site in (*blocks, stack, *whole)] == [0.0, 0.25, 0.5, 0.25, 1.0, 1.0]
    assert model.share(stack) == 0.25, "as the first time"


def test_a_run_of_fewer_steps_than_stretches_has_features_all_the_same() -> None:
    """Of two steps the second and the fourth stretch hold one each, and the others nothing."""
    site = fc.Site("b.0.a", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1))
    model = CostModel(fc.Run.of(2, sites=[site]), (10,) * 2, {"b.0.a": 0.5})
    found = model.forecast(fc.StaticInterval(sites="b.0.a", interval=2)).features.tolist()
    assert len(found) == BINS + 1 and found[-1] == pytest.approx(0.75)
    assert sorted(found[:-1]) == [0.0, 0.0, 0.0, 1.0] and found[-2] + found[-3] == 1.0


def test_of_two_experts_what_is_reused_before_the_first_own_step_is_computed() -> None:
    """The second denoiser runs at steps 2, 3 and 5: a table that reuses from its second step on finds nothing there."""
    first = fc.Site("a/denoiser", fc.Kind.DENOISER, denoiser="a")
    second = fc.Site("b/denoiser", fc.Kind.DENOISER, denoiser="b")
    run = fc.Run.of(6, branches=("cond",), sites=[first, second])
    rows = tuple(fc.Row(sites=site.name, branch="cond", steps="CRCRRR") for site in (first, second))
    own = {"a/": frozenset({0, 1, 4}), "b/": frozenset({3, 4, 5})}
    model = CostModel(run, (10,) * 6, {}, own)
    made = model.reached(fc.compile_policy(fc.Schedule(rows=rows), run))
    letters = {
        site.name: "".join("CR-"[code] for code in codes[0]) for site, codes in zip(made.sites, made.codes, strict=True)
    }
    assert letters == {"a/denoiser": "CR--R-", "b/denoiser": "---CCC"}


def test_to_reuse_other_sites_is_another_behaviour() -> None:
    """Two modules with one schedule and one predictor: which of them is reused decides what comes out."""
    sites = [
        fc.Site(f"b.0.{n}", fc.Kind.MODULE, r, 0, (0, 1)) for n, r in (("a", fc.Role.SPATIAL), ("c", fc.Role.CROSS))
    ]
    model = CostModel(fc.Run.of(8, sites=sites), (10,) * 8, {"b.0.a": 0.3, "b.0.c": 0.3})
    found = {
        sites: model.forecast(fc.StaticInterval(sites=sites, interval=2)).behaviour for sites in ("b.0.a", "b.0.c")
    }
    assert found["b.0.a"] != found["b.0.c"]
    assert model.forecast(fc.StaticInterval(sites="spatial", interval=2)).behaviour == found["b.0.a"]


def test_seconds_of_steps_that_cost_differently_and_reuse_in_one_branch_or_both() -> None:
    """Skipping a whole step saves 0.8 s, the attention in both branches 0.4 s, and a branch 0.3 s.

    The steps cost 1/2, 1, 3/2 and 1 of what one costs on average. At the third the branch is reused, and the attention
    in the other one.
    """
    sites = [fc.Site("b.0.a", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1)), fc.Site("branch", fc.Kind.BRANCH)]
    table = Seconds(4, computed=1.0, skipped=0.2, rest=2.0, kinds={"spatial": 0.6, "branch": 0.7})
    model = CostModel(fc.Run.of(4, sites=sites), (10, 20, 30, 20), {"b.0.a": 0.5}, clock=table, by_clock=True)
    rows = (fc.Row(sites="branch", branch="uncond", steps="CCRC"), fc.Row(sites="b.0.a", steps="CRRC"))
    found = model.forecast(fc.Schedule(rows=rows))
    spent = [0.5 * 0.8, 0.8 - 0.4, 1.5 * (0.8 - 0.3 - 0.4 / 2), 0.8]
    assert found.seconds == pytest.approx(2.0 + 4 * 0.2 + sum(spent))
    assert found.clocked == pytest.approx((2.0 + 4 * 0.2 + sum(spent)) / (2.0 + 4 * 1.0))
    fast = replace(model, clock=replace(table, kinds={"spatial": 0.1, "branch": 0.7}))
    every = fast.forecast(fc.Schedule(rows=(fc.Row(sites="b.0.a", steps="CRRR"),))).seconds
    assert every == pytest.approx(2.0 + 4 * 0.2 + 0.5 * 0.8), "no step takes less than a skipped one"


def test_a_denoiser_that_is_not_called_saves_the_whole_step_and_a_stack_only_in_all_branches() -> None:
    """By a table without branches, one of two saves half of what a step takes."""
    block = fc.Site("b.0", fc.Kind.BLOCK, None, 0, (0, 1))
    sites = [block, fc.Site("stack", fc.Kind.STACK, None, 0, (0, 1)), fc.Site("denoiser", fc.Kind.DENOISER)]
    table = Seconds(4, computed=1.0, skipped=0.2, rest=2.0, kinds={"stack": 0.5})
    model = CostModel(fc.Run.of(4, sites=sites), (10,) * 4, {"b.0": 0.9}, clock=table)

    def seconds(*rows: fc.Row) -> float | None:
        return model.forecast(fc.Schedule(rows=rows)).seconds

    assert seconds(fc.Row(sites="denoiser", steps="CRRC")) == pytest.approx(2.0 + 2 * 1.0 + 2 * 0.2)
    assert seconds(fc.Row(sites="denoiser", branch="cond", steps="CRRC")) == pytest.approx(2.0 + 4 * 1.0 - 2 * 0.4)
    assert seconds(fc.Row(sites="stack", steps="CRRC")) == pytest.approx(2.0 + 4 * 1.0 - 2 * 0.5)
    assert seconds(fc.Row(sites="stack", branch="cond", steps="CRRC")) == pytest.approx(6.0)


def test_what_was_timed_of_a_kind_is_divided_over_the_sites_of_one_denoiser() -> None:
    """All feed-forwards of a step save 0.4 s: of the first denoiser's two the larger one saves 3/4 of it."""
    shares = {"a/f.0": 0.3, "a/f.1": 0.1, "b/f.0": 0.2}
    sites = [fc.Site(n, fc.Kind.MODULE, fc.Role.FF, 0, (0, 1), denoiser=n[0]) for n in shares]
    steps = {"a/": frozenset({0, 1}), "b/": frozenset({2, 3})}
    table = Seconds(4, computed=1.0, skipped=0.2, rest=2.0, kinds={"ff": 0.6})
    model = CostModel(fc.Run.of(4, branches=("cond",), sites=sites), (10,) * 4, shares, steps, clock=table)
    for site, saved in (("a/f.0", 0.3), ("a/f.1", 0.1), ("b/f.0", 0.4)):
        rows = (fc.Row(sites=site, branch="cond", steps="CRCR"),)
        assert model.forecast(fc.Schedule(rows=rows)).seconds == pytest.approx(6.0 - saved), site

"""Tables of several denoisers, branches and predictors, and the schedules made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fastercache as fc
from fastercache.policies.compose import Parts
from fastercache.policies.errors import NoGuidance, NoSiteMatched
from fastercache.policies.rules import begin_all
from fastercache.policies.schedule import Code, Row, Schedule, compile_policy
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Kind, Role, Run, Scope, Site, Step, select

SITES = (
    Site("blocks.0.attn1", Kind.MODULE, Role.SPATIAL, 0, (0, 1)),
    Site("blocks.0.ff", Kind.MODULE, Role.FF, 0, (0, 1)),
    Site("stack", Kind.STACK, None, 0, (0, 2)),
    Site("blocks.0", Kind.BLOCK, None, 0, (0, 1)),
    Site("blocks.1", Kind.BLOCK, None, 1, (1, 2)),
    Site("denoiser", Kind.DENOISER),
    Site("branch", Kind.BRANCH),
)
TWO = tuple(
    replace(site, name=f"{name}/{site.name}", denoiser=name)
    for name in ("high", "low")
    for site in (Site("denoiser", Kind.DENOISER), Site("branch", Kind.BRANCH))
)


def letters(policy: fc.Policy, run: Run) -> dict[str, list[str]]:
    """By site, the row of each branch."""
    table = compile_policy(policy, run)
    return {s.name: ["".join("CR-"[c] for c in row) for row in table.codes[i]] for i, s in enumerate(table.sites)}


def changing_over(count: int, at: int) -> Run:
    """A run whose first `at` steps are those of one denoiser and the others those of the second."""
    steps = tuple(replace(step, denoiser="high" if step.index < at else "low") for step in Run.of(count).steps)
    return Run(steps, ("cond", "uncond"), TWO)


def test_a_denoisers_sites_are_unreached_while_the_other_one_runs() -> None:
    """The second denoiser computes its first step, though the interval would reuse it."""
    found = letters(fc.StaticInterval(sites="denoiser", interval=2), changing_over(8, 3))
    assert found == {"high/denoiser": ["CRC-----"] * 2, "low/denoiser": ["---CCRCR"] * 2}


def test_a_predicted_branch_spares_its_own_denoiser() -> None:
    policy = fc.Compose([fc.NoCache(sites="denoiser"), fc.GuidanceReuse(interval=2, start=0.0)])
    assert letters(policy, changing_over(8, 3)) == {
        "high/denoiser": ["CCC-----", "C-C-----"],
        "low/denoiser": ["---CCCCC", "---CC-C-"],
        "high/branch": ["--------", "CRC-----"],
        "low/branch": ["--------", "---CCRCR"],
    }


def test_sites_of_equal_steps_and_unequal_predictors_have_rows_of_their_own() -> None:
    weak, strong = fc.Difference(weight=0.2), fc.Difference(weight=0.9)
    parts = [fc.StaticInterval(sites="spatial", stand_in=weak), fc.StaticInterval(sites="ff", stand_in=strong)]
    schedule = Schedule.of(compile_policy(fc.Compose(parts), Run.of(4, sites=SITES)))
    assert schedule.rows == (
        Row(sites="blocks.0.attn1", steps="CRCR", predictor=weak),
        Row(sites="blocks.0.ff", steps="CRCR", predictor=strong),
    )


def test_of_three_branches_the_middle_one_keeps_its_own_row() -> None:
    """The first and the last branch do the same."""
    run = Run.of(6, branches=("cond", "uncond", "perturbed"), sites=SITES)
    given = Schedule(
        rows=(
            Row(sites="ff", branch="cond", steps="CRCRCR"),
            Row(sites="ff", branch="uncond", steps="CRRCRR"),
            Row(sites="ff", branch="perturbed", steps="CRCRCR"),
        )
    )
    assert letters(given, run) == {"blocks.0.ff": ["CRCRCR", "CRRCRR", "CRCRCR"]}
    assert letters(Schedule.of(compile_policy(given, run)), run) == letters(given, run)


def test_every_branch_but_the_conditional_one_can_be_predicted() -> None:
    run = Run.of(6, branches=("cond", "uncond", "perturbed"), sites=SITES)
    policy = fc.Compose([fc.CFGCache(interval=3, start=0.0), fc.NoCache(sites="ff|denoiser")])
    assert letters(policy, run) == {
        "denoiser": ["CCCCCC", "C--C--", "C--C--"],
        "branch": ["------", "CRRCRR", "CRRCRR"],
        "blocks.0.ff": ["CCCCCC", "C--C--", "C--C--"],
    }


def test_a_schedule_without_rows_computes_everything() -> None:
    table = compile_policy(Schedule(rows=()), Run.of(4, sites=SITES))
    assert table.codes.shape == (0, 2, 4) and table.share() == table.share(Code.COMPUTED) == 0.0


def test_a_schedules_sites_stand_in_the_order_of_the_model_not_of_its_rows() -> None:
    rows = (Row(sites="ff", steps="CR"), Row(sites="blocks.1|spatial", steps="CC"))
    assert [site.name for site in Schedule(rows=rows).claims(SITES)] == ["blocks.0.attn1", "blocks.0.ff", "blocks.1"]


@pytest.mark.parametrize("count", [3, 5])
def test_a_schedule_that_is_longer_or_shorter_than_the_run_is_refused(count: int) -> None:
    with pytest.raises(fc.ScheduleMismatch, match=f"for 4 steps, the run has {count}"):
        compile_policy(Schedule(rows=(Row(sites="ff", steps="CRCR"),)), Run.of(count, sites=SITES))


def test_every_row_of_a_site_is_checked_against_the_branches() -> None:
    rows = tuple(Row(sites="ff", branch=branch, steps="CR") for branch in ("cond", "other"))
    with pytest.raises(fc.ScheduleMismatch, match="branch 'other', the run has cond, uncond"):
        compile_policy(Schedule(rows=rows), Run.of(2, sites=SITES))


def test_a_branch_without_a_row_is_computed() -> None:
    schedule = Schedule(rows=(Row(sites="ff", branch="uncond", steps="CRR"),))
    assert letters(schedule, Run.of(3, sites=SITES)) == {"blocks.0.ff": ["CCC", "CRR"]}


def test_shares_count_cells_of_one_code() -> None:
    """Two sites, two branches, six steps: the block rests at half of them, where the module inside is not reached."""
    policy = fc.Compose([fc.StaticInterval(sites="blocks.0", interval=2), fc.NoCache(sites="ff")])
    table = compile_policy(policy, Run.of(6, sites=SITES))
    assert [table.share(code) for code in Code] == [12 / 24, 6 / 24, 6 / 24] and table.share() == 6 / 24


def test_values_are_kept_for_as_many_readers_as_the_predictor_has() -> None:
    """Computed at 0 to 4, 6 and 8: a line at 5 reads 3 and 4, at 7 it reads 4 and 6."""
    table = compile_policy(
        fc.StaticInterval(sites="ff", interval=2, start=0.5, stand_in=fc.Linear()), Run.of(9, sites=SITES)
    )
    assert letters(fc.StaticInterval(sites="ff", interval=2, start=0.5), Run.of(9, sites=SITES)) == {
        "blocks.0.ff": ["CCCCCRCRC"] * 2
    }
    assert table.reads() == [[{3: 5, 4: 7, 6: 7}] * 2]
    assert [np.flatnonzero(kept).tolist() for kept in table.kept()[0]] == [[3, 4, 6]] * 2


@pytest.mark.parametrize("steps", ["", "CX", "cr", "C R", "CR1", "C\nR"])
def test_a_row_has_no_other_letters(steps: str) -> None:
    with pytest.raises(fc.InvalidPolicy, match=r"row\.steps"):
        Row(sites="ff", steps=steps)


def test_a_site_that_a_row_does_not_reach_is_computed_where_it_is_reached() -> None:
    """As when the outer site of the table it was made of is not claimed any more."""
    schedule = Schedule(rows=(Row(sites="ff", steps="C-R-"),))
    assert letters(schedule, Run.of(4, sites=SITES)) == {"blocks.0.ff": ["CCRC"] * 2}


def test_a_site_has_the_predictor_of_the_rows_that_reuse_it() -> None:
    """A row without any reuse needs none, so that the default it was given says nothing."""
    line, taylor = fc.Linear(), fc.Taylor(order=2)

    def schedule(cond: str, first: fc.Predictor, uncond: str, second: fc.Predictor) -> Schedule:
        rows = (
            Row(sites="ff", branch="cond", steps=cond, predictor=first),
            Row(sites="ff", branch="uncond", steps=uncond, predictor=second),
        )
        return Schedule(rows=rows)

    run = Run.of(3, sites=SITES)
    for given, expected in (
        (schedule("CRR", line, "CRR", line), line),
        (schedule("CRR", line, "CCC", fc.Hold()), line),
        (schedule("CCC", fc.Hold(), "CCR", line), line),
        (schedule("CCC", taylor, "C--", fc.Hold()), taylor),
    ):
        assert compile_policy(given, run).predictors == (expected,)
    for other in (taylor, fc.Linear(weight=0.5)):
        with pytest.raises(fc.InvalidPolicy, match=r"give blocks\.0\.ff other predictors"):
            compile_policy(schedule("CRR", line, "CCR", other), run)


def test_a_row_that_finds_no_site_is_refused() -> None:
    rows = (Row(sites="ff", steps="CR"), Row(sites="joint", steps="CR"))
    with pytest.raises(NoSiteMatched, match="joint"):
        compile_policy(Schedule(rows=rows), Run.of(2, sites=SITES))


def test_a_schedule_of_unreached_sites_says_so_branch_by_branch() -> None:
    policy = fc.Compose([fc.CFGCache(interval=2, start=0.0), fc.NoCache(sites="ff")])
    run = Run.of(4, sites=SITES)
    schedule = Schedule.of(compile_policy(policy, run))
    rows = {(row.sites, row.branch): row.steps for row in schedule.rows}
    assert rows == {
        ("branch", "cond"): "----",
        ("branch", "uncond"): "CRCR",
        ("blocks.0.ff", "cond"): "CCCC",
        ("blocks.0.ff", "uncond"): "C-C-",
    }
    assert letters(schedule, run) == letters(policy, run)


# -- compositions ------------------------------------------------------------------------------------------------------
def test_two_parts_of_one_kind_that_claim_a_site_are_refused() -> None:
    policy = fc.Compose([fc.StaticInterval(sites="spatial"), fc.StaticInterval(sites="all", interval=4)])
    with pytest.raises(fc.SiteConflict, match=r"static_interval and static_interval both claim blocks\.0\.attn1"):
        policy.assign(Run.of(4, sites=SITES))


def test_a_composition_is_static_where_all_of_its_parts_are() -> None:
    static, watching = fc.StaticInterval(sites="ff"), fc.TeaCache()
    assert fc.Compose([static, fc.CFGCache()]).static
    for parts in ([static, watching], [watching, static]):
        policy: Parts = fc.Compose(parts)
        assert not policy.static and not fc.WarmUp(inner=policy).static
        with pytest.raises(fc.InvalidPolicy, match="compose decides while the model runs"):
            compile_policy(policy, Run.of(4, sites=SITES))


def test_only_a_part_of_the_other_branch_may_find_nothing() -> None:
    """A part that asks for a site which the model lacks is refused, whatever the guidance."""
    alone = tuple(site for site in SITES if site.kind is not Kind.BRANCH)
    ff = fc.StaticInterval(sites="ff")
    assert list(fc.Compose([ff, fc.CFGCache()]).assign(Run.of(4, branches=("cond",), sites=alone))) == [SITES[1]]
    with pytest.raises(NoSiteMatched, match="temporal"):
        fc.Compose([ff, fc.StaticInterval(sites="temporal")]).assign(Run.of(4, sites=SITES))
    with pytest.raises(NoSiteMatched) as raised:
        fc.Compose([ff, fc.BranchReuse(sites="branch|denoiser")]).assign(Run.of(4, branches=("cond",), sites=alone))
    assert not isinstance(raised.value, NoGuidance)


def test_the_other_branch_is_missed_in_a_model_not_in_an_empty_list() -> None:
    alone = tuple(site for site in SITES if site.kind is not Kind.BRANCH)
    for query, sites, error in (
        ("branch", alone, NoGuidance),
        ("branch|branch", alone, NoGuidance),
        ("branch", (), NoSiteMatched),
        ("denoiser|branch", alone, NoSiteMatched),
        ("branch|temporal", SITES, NoSiteMatched),
        ("branch[0:1]", SITES, NoSiteMatched),
    ):
        with pytest.raises(NoSiteMatched) as raised:
            select(query, sites)
        assert type(raised.value) is error, query


# -- wrappers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("inner", "signal", "scope", "remembers"),
    [
        (fc.EasyCache(), Signal.INPUT, Scope.COND, 6),
        (fc.TeaCache(), Signal.MODULATED_INPUT, Scope.CALL, 3),
        (fc.TeaCache(scope=Scope.BRANCH), Signal.MODULATED_INPUT, Scope.BRANCH, 3),
        (fc.AdaCache(), None, Scope.CALL, 1),
        (fc.AdaptiveGuidance(), None, Scope.BRANCH, 1),
    ],
)
def test_a_wrapped_rule_watches_decides_and_remembers_as_it_does_by_itself(
    inner: Any, signal: Signal | None, scope: Scope, remembers: int
) -> None:
    for policy in (inner, fc.WarmUp(inner=inner), fc.Window(inner=fc.MaxConsecutive(inner=inner), start=0.1)):
        rule: Any = next(iter(policy.assign(Run.of(4, sites=SITES)).values())).rule
        assert (rule.signal, rule.decides, rule.remembers) == (signal, scope, remembers)


def test_a_wrapper_around_two_parts_of_one_kind_leaves_each_its_own_rule() -> None:
    inner = fc.Compose([fc.StaticInterval(sites="ff", interval=2), fc.StaticInterval(sites="spatial", interval=3)])
    found = letters(fc.WarmUp(inner=inner, steps=2), Run.of(8, sites=SITES))
    assert found == {"blocks.0.attn1": ["CCRCRRCR"] * 2, "blocks.0.ff": ["CCCRCRCR"] * 2}
    nested = fc.MaxConsecutive(inner=fc.WarmUp(inner=inner, steps=2), limit=1)
    assert letters(nested, Run.of(8, sites=SITES))["blocks.0.attn1"] == ["CCRCRCCR"] * 2


def test_a_wrapper_keeps_the_predictors_and_the_order_of_the_sites() -> None:
    inner = fc.Compose([fc.StaticInterval(sites="ff", stand_in=fc.Taylor(order=2)), fc.StaticInterval(sites="spatial")])
    run = Run.of(4, sites=SITES)
    found = {site.name: one.predictor for site, one in fc.WarmUp(inner=inner).assign(run).items()}
    assert list(found.items()) == [("blocks.0.ff", fc.Taylor(order=2)), ("blocks.0.attn1", fc.Hold())]


def test_a_window_whose_ends_are_sums_of_tenths_holds_the_step_at_its_start_and_not_the_one_at_its_stop() -> None:
    """0.1 + 0.2 is a little more than 0.3, the progress of step 3 of 11, and 0.7 + 0.1 a little less than 0.8."""
    inner = fc.StaticInterval(sites="ff", interval=12)
    for start, stop in ((0.1 + 0.2, 0.7 + 0.1), (0.3, 0.8)):
        policy = fc.Window(inner=inner, start=start, stop=stop)
        assert letters(policy, Run.of(11, sites=SITES)) == {"blocks.0.ff": ["CCCRRRRRCCC"] * 2}
    ends_late = fc.Window(inner=inner, start=0.1, stop=0.1 + 0.2)
    assert letters(ends_late, Run.of(11, sites=SITES)) == {"blocks.0.ff": ["CRRCCCCCCCC"] * 2}


def test_what_switches_a_wrapper_off_is_inside() -> None:
    policy = fc.Window(inner=fc.MaxConsecutive(inner=fc.FORA(interval=4), limit=2), start=0.25, stop=0.75)
    assert policy.switched_off() == fc.Window(
        inner=fc.MaxConsecutive(inner=fc.FORA(interval=1), limit=2), start=0.25, stop=0.75
    )


def test_states_are_shared_by_the_sites_of_a_rule_in_one_denoiser_and_branch_alone() -> None:
    blocks = [Site(f"{name}/b.{d}", Kind.BLOCK, None, d, (d, d + 1), name) for name in ("high", "low") for d in (0, 1)]
    run, firsts = Run.of(4, sites=blocks), dict[tuple[int, str], dict[str, Any]]()
    rules = [fc.AdaCache(), fc.AdaCache()]
    watches: dict[int, set[tuple[int, str, str, int]]] = {}
    for site in blocks:
        for number, rule in enumerate(rules):
            for branch, state in begin_all(rule, site, run, firsts).items():
                watches.setdefault(id(state.watch), set()).add((number, site.denoiser, branch, site.depth))
    expected = [
        {(number, name, branch, depth) for depth in (0, 1)}
        for number in (0, 1)
        for name in ("high", "low")
        for branch in ("cond", "uncond")
    ]
    assert sorted(map(sorted, watches.values())) == sorted(map(sorted, expected))


def test_sites_begin_by_themselves_unless_a_rule_says_otherwise() -> None:
    class Own(fc.StaticInterval):
        def begin(self, site: Site, branch: str, run: Run) -> Any:
            return site.name, branch

    run, firsts = Run.of(4, sites=SITES), dict[tuple[int, str], dict[str, Any]]()
    rule = Own()
    found = [begin_all(rule, site, run, firsts) for site in SITES[:2]]
    assert found == [{b: (site.name, b) for b in ("cond", "uncond")} for site in SITES[:2]]


@pytest.mark.parametrize(
    ("site", "step", "runs"),
    [("", "", True), ("high", "", True), ("high", "high", True), ("high", "low", False), ("", "low", False)],
)
def test_a_site_runs_at_the_steps_of_its_denoiser_where_they_are_known(site: str, step: str, runs: bool) -> None:
    assert Site("x", Kind.DENOISER, denoiser=site).runs_at(Step(0, 4, 1.0, None, step)) is runs


def test_queries_of_two_models_in_turn_do_not_mix() -> None:
    other = tuple(replace(site, name=site.name.replace("blocks", "layers")) for site in SITES)
    for _ in range(2):
        for sites, word in ((SITES, "blocks"), (other, "layers"), (list(SITES), "blocks")):
            assert [site.name for site in select("ff", sites)] == [f"{word}.0.ff"]


def test_joint_attention_is_attention() -> None:
    joint = Site("blocks.0.attn", Kind.MODULE, Role.JOINT, 0, (0, 1))
    cross = Site("blocks.0.attn2", Kind.MODULE, Role.CROSS, 0, (0, 1))
    assert select("attention", [joint, cross]) == (joint,) and select("all", [joint, cross]) == (joint, cross)


def test_a_part_of_a_stack_stands_where_the_stack_does() -> None:
    """Behind the modules and before the blocks, in this list; in each of two denoisers."""
    assert [site.name for site in select("denoiser|blocks.1|stack[1:]|ff", SITES)] == [
        "blocks.0.ff",
        "stack[1:2]",
        "blocks.1",
        "denoiser",
    ]
    both = [replace(site, name=f"{name}/{site.name}", denoiser=name) for name in ("high", "low") for site in SITES]
    assert [site.name for site in select("stack[1:]|denoiser", both)] == [
        "high/stack[1:2]",
        "high/denoiser",
        "low/stack[1:2]",
        "low/denoiser",
    ]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_bound_on_reuses_in_a_row_begins_anew_after_each_computed_step_of_a_rule_that_watches(limit: int) -> None:
    policy = fc.MaxConsecutive(inner=fc.FirstBlockCache(sites="stack", threshold=1.0), limit=limit)
    rule: Any = next(iter(policy.assign(Run.of(9, sites=SITES)).values())).rule
    state, found, value = rule.begin(SITES[2], "cond", Run.of(9)), "", torch.ones(1, 2)
    for step in Run.of(9).steps:
        wanted = rule.reuse(state, step, value)
        if not wanted:
            state = rule.update(state, step, value)
        found += "CR"[wanted]
    assert found == {1: "CRCRCRCRC", 2: "CRRCRRCRR"}[limit]


def test_the_other_branch_lies_inside_the_denoiser_and_all_that_is_computed_inside_both() -> None:
    by = {site.name: site for site in SITES}
    order = ["denoiser", "branch", "stack", "blocks.0", "blocks.0.ff"]
    for i, inner in enumerate(order):
        assert [by[inner].inside(by[outer]) for outer in order] == [j < i for j in range(len(order))], inner
    assert not by["blocks.0.ff"].inside(by["blocks.1"]) and not by["blocks.1"].inside(by["blocks.0"])

"""Static policies compile to the table the runtime would follow; tables round-trip through schedules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastercache.policies import (
    CFGCache,
    Code,
    Compose,
    Difference,
    EasyCache,
    FasterCache,
    Hold,
    InvalidPolicy,
    Kind,
    NoCache,
    Policy,
    Role,
    Run,
    Schedule,
    ScheduleMismatch,
    Site,
    StaticInterval,
    Taylor,
    compile_policy,
    dump,
    load_policy,
)
from fastercache.policies.schedule import Row, last_reads

SITES = (
    Site("blocks.0", Kind.BLOCK, None, 0, (0, 1)),
    Site("blocks.0.attn1", Kind.MODULE, Role.SPATIAL, 0, (0, 1)),
    Site("blocks.0.ff", Kind.MODULE, Role.FF, 0, (0, 1)),
    Site("stack", Kind.STACK, None, 0, (0, 1)),
    Site("denoiser", Kind.DENOISER),
    Site("branch", Kind.BRANCH),
)


def run(count: int = 8) -> Run:
    return Run.of(count, sites=SITES)


def letters(policy: Policy, count: int, site: str = "blocks.0.attn1", branch: int = 0) -> str:
    table = compile_policy(policy, run(count))
    names = [s.name for s in table.sites]
    return "".join("CR-"[c] for c in table.codes[names.index(site), branch])


def test_static_interval_counts_from_the_start_of_its_window() -> None:
    assert letters(StaticInterval(interval=3), 8) == "CRRCRRCR"
    assert letters(StaticInterval(interval=3, start=3 / 7), 8) == "CCCCRRCR"
    assert letters(StaticInterval(interval=2, stop=4 / 7), 8) == "CRCRCCCC"
    assert letters(StaticInterval(interval=3, offset=1), 8) == "CCRRCRRC"


def test_the_first_reuse_without_a_value_becomes_a_computation() -> None:
    assert letters(StaticInterval(interval=4, offset=2), 8) == "CRCRRRCR"


def test_interval_one_and_no_cache_reuse_nothing() -> None:
    for policy in (StaticInterval(interval=1), NoCache(), FasterCache(interval=1, cfg_interval=1)):
        assert compile_policy(policy, run()).share() == 0.0


def test_sites_inside_a_reused_site_are_unreached() -> None:
    policy = Compose([StaticInterval(sites="block", interval=2), StaticInterval(sites="ff", interval=2, offset=1)])
    assert letters(policy, 6, "blocks.0") == "CRCRCR"
    assert letters(policy, 6, "blocks.0.ff") == "C-R-R-"


def test_the_conditional_branch_is_never_a_branch_site_and_guidance_skips_what_is_inside() -> None:
    policy = Compose([StaticInterval(interval=2), CFGCache(interval=3, start=0.0)])
    assert letters(policy, 6, "branch", 0) == "------"
    assert letters(policy, 6, "branch", 1) == "CRRCRR"
    assert letters(policy, 6, "blocks.0.attn1", 0) == "CRCRCR"
    assert letters(policy, 6, "blocks.0.attn1", 1) == "C--R--"


def test_without_a_second_branch_guidance_reuse_rests_in_a_composition() -> None:
    sites = tuple(s for s in SITES if s.kind is not Kind.BRANCH)
    table = compile_policy(FasterCache(), Run.of(12, branches=("cond",), sites=sites))
    assert [s.name for s in table.sites] == ["blocks.0.attn1"]
    assert table.share() > 0


def test_a_dynamic_policy_does_not_compile() -> None:
    with pytest.raises(InvalidPolicy, match="decides while the model runs"):
        compile_policy(EasyCache(), run())


def test_last_reads_names_only_values_that_a_reuse_reads() -> None:
    codes = [Code.COMPUTED, Code.COMPUTED, Code.REUSED, Code.REUSED, Code.COMPUTED, Code.COMPUTED]
    assert last_reads(codes, 1) == {1: 3}
    assert last_reads(codes, 2) == {0: 3, 1: 3}
    assert last_reads([Code.COMPUTED] * 3, 2) == {}


def test_kept_follows_the_predictors_history() -> None:
    table = compile_policy(StaticInterval(interval=3, stand_in=Taylor(order=1)), run(9))
    assert "".join("K" if k else "." for k in table.kept()[0, 0]) == "K..K..K.."
    table = compile_policy(StaticInterval(interval=2, stop=0.5, stand_in=Hold()), run(9))
    assert "".join("K" if k else "." for k in table.kept()[0, 0]) == "K.K......"


def test_of_groups_equal_rows_and_replays_the_same_codes() -> None:
    policy = Compose(
        [StaticInterval(interval=2, stand_in=Difference()), StaticInterval(sites="ff", interval=3), CFGCache()]
    )
    table = compile_policy(policy, run(12))
    schedule = Schedule.of(table)
    replay = compile_policy(schedule, run(12))
    order = [[s.name for s in replay.sites].index(s.name) for s in table.sites]
    np.testing.assert_array_equal(replay.codes[order], table.codes)
    assert [replay.predictors[i] for i in order] == list(table.predictors)
    assert load_policy(dump(schedule)) == schedule


def test_a_schedule_refuses_another_length_or_branch() -> None:
    schedule = Schedule(rows=(Row(sites="ff", steps="CRCR"),))
    with pytest.raises(ScheduleMismatch, match="for 4 steps, the run has 8"):
        compile_policy(schedule, run(8))
    with pytest.raises(ScheduleMismatch, match="branch 'perturbed'"):
        compile_policy(Schedule(rows=(Row(sites="ff", branch="perturbed", steps="CRCR"),)), run(4))


def test_rows_must_agree_in_length_and_not_overlap() -> None:
    with pytest.raises(InvalidPolicy, match="same number of steps"):
        Schedule(rows=(Row(sites="ff", steps="CR"), Row(sites="block", steps="CRC")))
    with pytest.raises(InvalidPolicy, match="two rows"):
        compile_policy(Schedule(rows=(Row(sites="ff", steps="CR"), Row(sites="all", steps="CR"))), run(2))


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [("cond", "cond", "cond"), ("*", "cond", "cond"), ("cond", "*", "cond"), ("uncond", "*", "uncond")],
)
def test_two_rows_about_a_branch_of_a_site_are_refused(first: str, second: str, named: str) -> None:
    rows = (Row(sites="ff", branch=first, steps="CR"), Row(sites="ff", branch=second, steps="CC"))
    with pytest.raises(InvalidPolicy, match=f"two rows .* blocks.0.ff in branch {named}"):
        compile_policy(Schedule(rows=rows), run(2))
    apart = (Row(sites="ff", branch="cond", steps="CR"), Row(sites="ff", branch="uncond", steps="CC"))
    assert compile_policy(Schedule(rows=apart), Run.of(2, sites=SITES, branches=("cond", "uncond"))).codes.shape[1] == 2


def test_a_schedule_of_many_rows_is_laid_out_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in looks at a site's path, which every query begins with: not in seconds."""
    looks: dict[int, int] = {}
    for blocks in (50, 100):
        sites = tuple(
            Site(f"blocks.{d}.{leaf}", Kind.MODULE, role, d, (d, d + 1))
            for d in range(blocks)
            for leaf, role in (("attn", Role.SPATIAL), ("ff", Role.FF))
        )
        rows = tuple(Row(sites=site.name, steps="CR") for site in sites)
        counted = 0

        def path(self: Site) -> str:
            nonlocal counted
            counted += 1
            return self.name

        with monkeypatch.context() as patch:
            patch.setattr(Site, "path", property(path))
            table = compile_policy(Schedule(rows=rows), Run.of(2, sites=sites))
        assert (table.codes == [0, 1]).all() and len(table.sites) == len(sites)
        looks[blocks] = counted
    assert looks[100] <= 2.2 * looks[50]


@pytest.mark.parametrize(
    "data",
    [
        {"policy": "teacache", "coefficients": [float("nan")]},
        {"policy": "magcache", "ratios": {"*": [float("inf")] * 8}},
        {"policy": "smoothcache", "curves": {"ff": [[float("nan")] * 8]}},
        {"policy": "ertacache", "errors": [[0.0] * 8], "gains": [[float("inf")] * 8]},
        {"policy": "static_interval", "stand_in": {"predictor": "rectified", "offsets": [[float("nan")]]}},
    ],
)
def test_a_constant_that_is_no_number_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy, match="finite number"):
        load_policy(data)


def test_a_site_is_reused_if_one_of_its_values_is() -> None:
    """Not by being computed at every step, nor by being skipped inside another one."""
    policy = Compose([StaticInterval(sites="block", interval=2), NoCache(sites="denoiser")])
    table = compile_policy(policy, run())
    found = {site.name: table.reuses(i) for i, site in enumerate(table.sites)}
    assert found == {"blocks.0": True, "denoiser": False}

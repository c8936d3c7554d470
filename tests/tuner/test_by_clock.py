"""Searching by the clock: what calls take is foreseen from a table, which one worker measures for the whole study.

No test reads a real clock: it is made up, or the table is given.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from torch import Tensor

import fastercache as fc
from fastercache.bounds import read_limit
from fastercache.policies.errors import MeasurementError
from fastercache.policies.vocabulary import Run
from fastercache.tuned import OtherConditions
from fastercache.tuner import Budget, Evaluator, Outcome, Seconds, Study, tune
from fastercache.tuner import clock as module
from fastercache.tuner import seconds as timing
from fastercache.tuner.clock import Objective, Timekeeper, agreed, foresight, needs_table
from fastercache.tuner.propose import Proposer
from fastercache.tuner.seconds import kind_of, kinds_reused, taking_turns
from fastercache.tuner.setting import Setting, hardware, run
from fastercache.tuner.simulate import CostModel
from tests.tuner.conftest import CALL, SEARCH, STEPS
from tests.tuner.test_propose import MODEL, SPACE

HERE = hardware("cpu")
KINDS = {"branch": 0.6, "stack": 0.15, "block": 0.2, "spatial": 0.7, "temporal": 0.8, "cross": 0.9, "ff": 0.5}
TABLE = Seconds(STEPS, computed=1.0, skipped=0.1, rest=2.0, kinds=KINDS, hardware=HERE)
"""8 s for an uncached call."""
SPENT = {"spatial": 0.5, "temporal": 0.25, "cross": 0.125, "ff": 0.0625}
OVERHEAD, SCHEDULER, TEXT, DECODER = 1.0, 0.125, 0.25, 0.5


@pytest.fixture
def slow(tiny_latte: Any, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A pipeline whose parts take as long as the constants say: modules by the number of rows, for both branches."""
    now = [0.0]

    def takes(owner: Any, method: str, seconds: float, by_rows: bool = False) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def slowly(*args: Any, **kwargs: Any) -> Any:
            rows = 1.0
            if by_rows:
                first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
                rows = len(first) / whole.setdefault(id(owner), len(first))
            now[0] += seconds * rows
            return original(*args, **kwargs)

        monkeypatch.setitem(vars(owner), method, slowly)

    whole: dict[int, int] = {}
    transformer = tiny_latte.transformer
    takes(transformer, "forward", OVERHEAD)
    for site in fc.find_sites(tiny_latte):
        if site.role is not None:
            takes(transformer.get_submodule(site.name), "forward", SPENT[site.role], by_rows=True)
    takes(tiny_latte.scheduler, "step", SCHEDULER)
    takes(tiny_latte, "encode_prompt", TEXT)
    takes(tiny_latte, "decode_latents", DECODER)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return Setting(tiny_latte, CALL)


def counted(setting: Setting) -> dict[str, int]:
    """How many modules of each role there are."""
    roles = [str(site.role) for site in fc.find_sites(setting.pipe) if site.role is not None]
    return {role: roles.count(role) for role in roles}


def test_each_kind_of_site_is_timed_and_runs_are_foreseen(
    slow: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this clock a step's parts add up, so what the table foresees of a run is what the run takes."""
    monkeypatch.setattr(timing, "SAMPLES", 1)  # the made-up clock does not vary
    case = slow.cases(["a"])[0]
    with Evaluator(slow.pipe, CALL, store=tmp_path) as evaluator:
        model = evaluator.cost_model(case)
    kinds = list(dict.fromkeys(kind_of(site) for site in model.run.sites))
    table = Seconds.of_kinds(slow, case, model.run, kinds)
    number = counted(slow)
    inner = {role: number[role] * SPENT[role] for role in number}
    full = OVERHEAD + sum(inner.values()) + SCHEDULER
    assert (table.computed, table.skipped, table.rest) == (full, SCHEDULER, TEXT + DECODER)
    assert {role: table.kinds[role] for role in inner} == {role: full - spent for role, spent in inner.items()}
    assert table.kinds["branch"] == full - sum(inner.values()) / 2
    assert table.kinds["stack"] == table.kinds["block"] == OVERHEAD + SCHEDULER
    assert table.hardware == HERE and table.of(STEPS) == STEPS * full + TEXT + DECODER

    timed = replace(model, clock=table, by_clock=True)
    for policy in (
        fc.StaticInterval(sites="temporal|ff", interval=3),
        fc.StaticInterval(sites="stack", interval=3),
        fc.StaticInterval(sites="denoiser", interval=2),
        fc.FasterCache(),
        fc.EasyCache(threshold=0.5, relative=False),
    ):
        _, trace, seconds = run(slow, policy, case)
        assert timed.seconds(trace.table) == pytest.approx(seconds), policy
        if policy.static:
            found = timed.forecast(policy)
            assert found.seconds == pytest.approx(seconds) and found.cost == found.clocked
            assert found.clocked == pytest.approx(seconds / table.of(STEPS))
    assert model.forecast(fc.FasterCache()).seconds is None
    assert model.forecast(fc.FasterCache()).cost == model.forecast(fc.FasterCache()).ratio


def test_the_kind_that_has_its_turn_is_reused_and_nothing_else() -> None:
    made_up = Run.of(STEPS, sites=[fc.Site("denoiser", fc.Kind.DENOISER), fc.Site("branch", fc.Kind.BRANCH)])
    policy = taking_turns(made_up, ["computed", "denoiser", "computed", "branch", "computed", "computed"])
    assert [(row.sites, row.steps) for row in policy.rows] == [("denoiser", "CRCCCC"), ("branch", "CCCRCC")]


def test_only_what_may_be_reused_is_timed() -> None:
    sites = [fc.Site("denoiser", fc.Kind.DENOISER), fc.Site("branch", fc.Kind.BRANCH)]
    sites += [fc.Site(f"b.0.{role}", fc.Kind.MODULE, role, 0, (0, 1)) for role in (fc.Role.SPATIAL, fc.Role.FF)]
    guided, unguided = Run.of(6, sites=sites), Run.of(6, branches=("cond",), sites=sites)
    policies = [fc.FasterCache(), fc.StaticInterval(sites="ff"), fc.StaticInterval(sites="temporal")]
    assert sorted(kinds_reused(policies, guided)) == ["branch", "ff", "spatial"]
    assert sorted(kinds_reused(policies[:1], unguided)) == ["spatial"]


def test_seconds_of_a_kind_that_was_not_timed_follow_its_flops() -> None:
    site = fc.Site("b.0.attn", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1))
    branch = fc.Site("branch", fc.Kind.BRANCH)
    table = Seconds(4, computed=1.0, skipped=0.2, rest=3.0)
    model = CostModel(Run.of(4, sites=[site, branch]), (10, 10, 10, 10), {site.name: 0.25}, clock=table)
    every_second = fc.StaticInterval(sites="spatial", interval=2)
    assert model.forecast(every_second).seconds == pytest.approx(7.0 - 2 * 0.25 * 0.8)
    assert model.forecast(fc.CFGCache(interval=2, start=0.0)).seconds == pytest.approx(7.0 - 2 * 0.5 * 0.8)


def search(pipe: Any, out: Path, **changes: Any) -> Study:
    words: dict[str, Any] = {"budget": "psnr>=1", "call": CALL, "trials": 3, "table": TABLE, "objective": "time"}
    words |= {"policy": "static_interval", "fixed": {"stop": 1.0}, "out": out}
    return tune(pipe, SEARCH, **{**words, **changes})


def test_a_study_by_the_clock_minimises_what_the_table_foresees(tiny_latte: Any, tmp_path: Path) -> None:
    """By FLOPs the feed-forwards are worth more than spatial attention; by this table it is the other way round."""
    seeds = {role: fc.StaticInterval(sites=role, interval=2, stop=1.0) for role in ("spatial", "ff")}
    fixed = {"stop": 1.0, "start": 0.0, "offset": 0}
    table = Seconds(STEPS, 1.0, 0.1, 2.0, {"ff": 0.9, "spatial": 0.5}, HERE)
    study = search(tiny_latte, tmp_path, seeds=seeds, fixed=fixed, trials=2, table=table)
    by_source = {record.source: record for record in study.records}
    spatial = by_source["spatial"]
    assert spatial.clocked == spatial.cost == pytest.approx(6.5 / 8.0) and spatial.foreseen == pytest.approx(6.5)
    ff = study.cost_model.forecast(seeds["ff"])
    assert spatial.ratio is not None and ff.ratio < spatial.ratio and ff.cost == pytest.approx(7.7 / 8.0)
    assert by_source["ff"].outcome is Outcome.DOMINATED, "it cannot be cheaper than the best so far"
    assert study.best().cost == min(r.cost or 1.0 for r in study.records if r.feasible)
    values = {t.number: t.value for t in study.optuna.get_trials() if t.value is not None}
    assert values == {r.number: r.cost for r in study.records if r.number in values}
    assert study.optuna.metric_names == ["seconds of a call, share of uncached"]
    assert study.rows()[-1]["foreseen"] == study.records[-1].foreseen

    with pytest.raises(fc.ConfigMismatch, match="was made with objective time, this call has flops"):
        search(tiny_latte, tmp_path, seeds=seeds, fixed=fixed, objective="flops")
    again = search(tiny_latte, tmp_path, seeds=seeds, fixed=fixed, trials=2, table=TABLE)
    assert again.time.table == table, "a study keeps the table that it began with"


def test_what_would_take_too_long_is_passed_over_before_it_runs(tiny_latte: Any, tmp_path: Path) -> None:
    policies = {f"{n}": fc.StaticInterval(sites="stack", interval=n, stop=1.0) for n in (2, 3)}
    limit = 8.0 - 4 * 0.85  # interval 3 reuses four of six steps, interval 2 three
    study = search(
        tiny_latte, tmp_path, budget=f"psnr>=1,time<={limit + 1e-6:.6f}s", objective="flops", seeds=policies, trials=1
    )
    by_source = {record.source: record for record in study.records}
    assert by_source["2"].outcome is Outcome.INVALID and by_source["2"].seconds is None
    assert str(by_source["2"].reason).startswith("would take 5.45 s a call, more than time<=")
    assert by_source["no_cache"].outcome is Outcome.INVALID, "an uncached call takes 8 s"
    ran = [record for record in study.records if record.outcome is Outcome.MEASURED]
    assert ran and all((record.foreseen or 9.0) <= limit + 1e-6 for record in ran)
    assert all(record.clocked is None for record in study.records), "it minimises FLOPs"


def test_nothing_is_proposed_that_would_take_too_long() -> None:
    seconds = Seconds(MODEL.run.count, computed=1.0, skipped=0.1, rest=0.0)
    timed = replace(MODEL, clock=seconds)
    for most in (0.8 * MODEL.run.count, math.inf):
        proposer = Proposer(SPACE, timed.forecast, pool=30, most=most)
        pool = proposer._first_pool([], 1.0, set(), np.random.default_rng(0))
        longest = max(candidate.forecast.seconds or math.inf for candidate in pool)
        assert (longest <= most) and (longest > 0.8 * MODEL.run.count) == (most == math.inf)


def test_a_policy_that_decides_while_it_runs_ends_after_a_prompt_that_took_too_long(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"policy": "first_block_cache", "fixed": {}, "trials": 1}
    loose = search(tiny_latte, tmp_path / "loose", **words)
    [record] = [r for r in loose.records if r.outcome is Outcome.MEASURED]
    assert record.foreseen is not None and record.clocked == pytest.approx(record.foreseen / 8.0)
    assert len(record.values["psnr"]) == 2

    with monkeypatch.context() as patch:  # by FLOPs nobody asks what a step costs
        patch.setattr(Evaluator, "cost_model", lambda *_: pytest.fail("an uncached run was counted"))
        by_flops = search(tiny_latte, tmp_path / "flops", **{**words, "objective": "flops", "seeds": {}})
        assert by_flops.records[-1].foreseen is None

    tight = search(tiny_latte, tmp_path / "tight", budget="psnr>=1,time<=2.5s", **words)
    [stopped] = [r for r in tight.records if r.outcome is Outcome.STOPPED]
    assert len(stopped.values["psnr"]) == 1 and not stopped.feasible
    assert str(stopped.reason).startswith(f"would take {record.foreseen:.3g} s a call") or stopped.foreseen


def test_what_was_measured_is_held_to_the_limit_too(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Evaluator.run

    def timed(self: Evaluator, policy: fc.Policy, case: Any) -> Any:
        video, trace, _ = original(self, policy, case)
        return video, trace, 60.0

    monkeypatch.setattr(Evaluator, "run", timed)
    words: dict[str, Any] = {"budget": "psnr>=1,time<=6s", "trials": 1, "objective": "flops"}
    words |= {"seeds": {"good": fc.StaticInterval(sites="stack", interval=2, stop=1.0)}}
    study = search(tiny_latte, tmp_path / "here", **words)
    [record] = [r for r in study.records if r.outcome is Outcome.MEASURED]
    assert not record.feasible and record.violation == pytest.approx(10.0)  # ten times as long, in decibels
    assert record.reason == "took 60 s a call, more than time<=6s"
    with pytest.raises(fc.BudgetNotMet):
        study.best()

    elsewhere = Seconds(**{**TABLE.payload(), "hardware": "a GPU"})
    with pytest.warns(OtherConditions, match=f"seconds of this study are those of a GPU.*on {HERE}, does not count"):
        other = search(tiny_latte, tmp_path / "there", table=elsewhere, **words)
    [record] = [r for r in other.records if r.outcome is Outcome.MEASURED]
    assert record.feasible and record.reason is None and other.foresight is None
    assert study.foresight is not None and study.foresight.trials == 1


def test_how_well_seconds_were_foreseen() -> None:
    found = foresight([(1.0, 2.0), (2.0, 3.0), (4.0, 5.0), (3.0, 6.0)])
    assert found is not None and found.trials == 4
    assert found.rank == pytest.approx(1 - 6 * 2 / (4 * 15))  # two neighbours are exchanged
    assert found.ratio == pytest.approx((2 + 1.5 + 1.25 + 2) / 4)
    assert found.words == (
        "over 4 trials the measured seconds are 1.69x the foreseen ones on average, rank correlation 0.80"
    )
    assert foresight([]) is None
    alone = foresight([(2.0, 1.0)])
    assert alone is not None and (alone.rank, alone.ratio) == (None, 0.5)


def test_a_call_that_cannot_be_timed_leaves_no_study(tiny_latte: Any, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="calls of at least 4, found 3"):
        search(tiny_latte, tmp_path, table=None, call={**CALL, "num_inference_steps": 3})
    assert not (tmp_path / "study.journal").exists()


# -- many workers --------------------------------------------------------------------------------------------------
class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: Callable[[], None] = lambda: None) -> None:
        self.seconds = 0.0

        def sleep(seconds: float) -> None:
            self.seconds += seconds
            each()

        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.seconds, sleep=sleep))


def never() -> Seconds:
    pytest.fail("measured")


def test_one_worker_measures_and_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    assert agreed(study, True, None) is None, "nobody searches, so nobody measures"
    assert agreed(study, True, lambda: TABLE) == TABLE
    assert agreed(study, True, never) == TABLE and agreed(study, False, None) == TABLE

    waited = optuna.create_study()

    def other() -> None:
        """The worker that made the study signs again and again, for ten minutes."""
        if clock.seconds < 600:
            waited.set_user_attr(module.TIMING, f"another-host/1/2 {int(clock.seconds / 20)}")
        else:
            waited.set_user_attr(module.TABLE, TABLE.payload())

    clock = Clock(monkeypatch, other)
    assert agreed(waited, False, never) == TABLE


@pytest.mark.parametrize(
    ("sign", "after"), [("", module.UNSIGNED), ("another-host/1/2 5", 4 * module.HEARTBEAT), (None, 0.0)]
)
def test_another_worker_measures_where_the_first_died(
    sign: str | None, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study()
    if sign is None:  # of this machine, and gone
        sign = f"{module.this_worker().split('/')[0]}/999999999/1 0"
    if sign:
        study.set_user_attr(module.TIMING, sign)
    clock = Clock(monkeypatch)
    assert agreed(study, False, lambda: TABLE) == TABLE
    assert clock.seconds == pytest.approx(after, abs=0.3)


def test_no_two_signs_of_life_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks for a change, so the first sign in a row counts too."""
    signs: list[str] = []
    enough = threading.Event()

    class Study:
        def set_user_attr(self, name: str, value: str) -> None:
            assert name == module.TIMING
            signs.append(value)
            if len(signs) == 4:
                enough.set()

    monkeypatch.setattr(module, "HEARTBEAT", 0.001)
    with module._signed(Study()):  # type: ignore[arg-type]
        assert enough.wait(60)
    assert len(set(signs)) == len(signs) and {sign.rpartition(" ")[0] for sign in signs} == {module.this_worker()}


def test_a_table_that_came_in_between_is_the_one() -> None:
    study, first = optuna.create_study(), Seconds(4, 9.0, 0.5, 1.0)

    def measured() -> Seconds:
        study.set_user_attr(module.TABLE, first.payload())
        return TABLE

    assert agreed(study, True, measured) == first


def test_without_a_limit_nothing_takes_too_long() -> None:
    keeper = Timekeeper(TABLE, None, HERE)
    assert keeper.too_long(1e9) is None and keeper.excess(1e9) == {} and keeper.violation(1e9) < 0


def test_a_limit_that_is_just_kept_is_kept_where_steps_were_timed() -> None:
    limit = read_limit("time<=8s")
    here, there = Timekeeper(TABLE, limit, HERE), Timekeeper(TABLE, limit, "another machine")
    untimed = Timekeeper(None, limit, HERE)
    for keeper in (here, there, untimed):
        assert keeper.too_long(8.0) is None is keeper.too_long(None)
        assert keeper.too_long(8.001) == "would take 8 s a call, more than time<=8s"
        assert keeper.violation(8.0) == -math.inf == keeper.violation(None) and keeper.excess(None) == {}
    for keeper in (here, untimed):
        assert keeper.elsewhere is None and keeper.took_too_long(16.0) == "took 16 s a call, more than time<=8s"
        assert keeper.excess(6.0) == {"time<=8s": -2.0} and keeper.excess(16.0) == {"time<=8s": 8.0}
        assert keeper.violation(16.0) == pytest.approx(10.0 * math.log10(2.0))
    assert there.took_too_long(16.0) is None and there.excess(16.0) == {} and there.violation(16.0) == -math.inf


def test_steps_are_timed_where_any_budget_limits_time_or_the_search_goes_by_it() -> None:
    plain, limited = Budget.parse("psnr>=1"), Budget.parse("psnr>=1,time<=8s")
    assert not needs_table(Objective.FLOPS, plain, plain) and not needs_table(Objective.FLOPS)
    assert needs_table(Objective.FLOPS, plain, limited) and needs_table(Objective.TIME, plain)


def test_ranks_are_told_only_where_both_differ() -> None:
    for pairs in ([(1.0, 2.0), (1.0, 3.0)], [(1.0, 2.0), (2.0, 2.0)]):
        found = foresight(pairs)
        assert found is not None and found.rank is None and "rank" not in found.words

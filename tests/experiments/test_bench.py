"""The bench: nothing runs twice, nothing is dropped silently, peers leave no trace, and verdicts follow their rule."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastercache as fc
from fastercache.analysis.calibrate import Calibration
from fastercache.experiments import cli
from fastercache.experiments.bench import lineup, standings, verdict
from fastercache.experiments.bench import plans as making
from fastercache.experiments.bench import runner as work
from fastercache.experiments.bench.contest import UNCACHED, heats
from fastercache.experiments.bench.entries import FewerSteps, once
from fastercache.experiments.bench.peers import Peer, Refused, counted, twin
from fastercache.experiments.pipelines import Subject
from fastercache.tuner import Evaluator, Setting

PROMPTS = ("a red seven moving left", "a blue two moving up", "one", "two", "three")
CALL = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False, "num_inference_steps": 4}
METHODS = lineup.chosen(["fora", "magcache"])
PEERS = tuple(p for p in lineup.PEERS if p.label in ("PAB", "FirstBlockCache"))


@pytest.fixture
def subject(tiny_latte: Any) -> Subject:
    return Subject("tiny", tiny_latte, dict(CALL), reference=False)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every video."""
    cases: list[Any] = []
    original = Setting.generate

    def counting(self: Setting, case: Any) -> Any:
        cases.append(case)
        return original(self, case)

    monkeypatch.setattr(Setting, "generate", counting)
    return cases


@pytest.fixture(autouse=True)
def few_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineup, "PEERS", PEERS)


def plan(subject: Subject, methods: Any = METHODS, count: int = 2, peers: bool = True) -> work.Plan:
    return work.plan_for(subject, methods, PROMPTS, count, 0, peers)


# -- running -----------------------------------------------------------------------------------------------------------
def test_every_setting_has_a_line_with_figures_or_a_reason(subject: Subject, tmp_path: Path) -> None:
    results = work.bench(subject, plan(subject), tmp_path)
    methods = [line.method for line in results.lines]
    for name in ("FORA", "MagCache", "PAB (diffusers)", "FirstBlockCache (diffusers)"):
        assert methods.count(name) == 3
    for line in results.ran:
        assert line.prompts == 2 and line.quality["psnr"] is not None and line.speedup_wall is not None
        assert line.beats_by_flops in ("yes", "no", "undecided", "outside") or line.label == lineup.FEWER
    fora = [line for line in results.ran if line.label == "FORA"]
    assert [line.speedup_flops.value > 1 for line in fora if line.speedup_flops] == [True, True, True]
    (reason,) = {line.refused for line in results.refused}
    assert {line.method for line in results.refused} == {"FirstBlockCache (diffusers)"}
    assert reason is not None and "must match" in reason and "\n" not in reason
    assert "FirstBlockCache (diffusers): RuntimeError" in standings.markdown(results)


def test_the_same_bench_again_runs_nothing_and_more_methods_only_themselves(
    subject: Subject, tmp_path: Path, generated: list[Any]
) -> None:
    first = work.bench(subject, plan(subject, peers=False), tmp_path)
    assert generated
    generated.clear()
    assert work.bench(subject, plan(subject, peers=False), tmp_path) == first
    assert generated == []
    more = work.bench(subject, plan(subject, lineup.chosen(["fora", "magcache", "tgate"]), peers=False), tmp_path)
    # per prompt: three settings and the uncached run of their heat; once: a warm-up, and two runs for the estimate
    assert len(generated) == 2 * (3 + 1) + 3
    assert [line for line in more.lines if line.label == "FORA"] == [
        line for line in first.lines if line.label == "FORA"
    ]


def test_other_weights_are_another_case(subject: Subject, tmp_path: Path) -> None:
    """Figures of a model that was trained further are not those of the model before."""
    before = work.Contest(subject, {}, PROMPTS[:2], tmp_path)._case_keys
    assert work.Contest(subject, {}, PROMPTS[:2], tmp_path)._case_keys == before and len(set(before)) == 2
    assert set(work.Contest(subject, {}, PROMPTS[:2], tmp_path, seed=7)._case_keys).isdisjoint(before)
    with torch.no_grad():
        next(iter(subject.pipe.transformer.parameters())).add_(0.01)
    assert set(work.Contest(subject, {}, PROMPTS[:2], tmp_path)._case_keys).isdisjoint(before)


def test_an_interrupted_bench_goes_on(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, ran = work.Contest._run_heat, []

    def stops(self: Any, i: int, *rest: Any) -> None:
        if i == 1:
            raise KeyboardInterrupt
        original(self, i, *rest)

    monkeypatch.setattr(work.Contest, "_run_heat", stops)
    with pytest.raises(KeyboardInterrupt):
        work.bench(subject, plan(subject, peers=False), tmp_path)
    monkeypatch.setattr(work.Contest, "_run_heat", lambda self, i, *rest: (ran.append(i), original(self, i, *rest))[1])
    assert all(line.prompts == 2 for line in work.bench(subject, plan(subject, peers=False), tmp_path).ran)
    assert set(ran) == {1}


def test_without_prompts_to_calibrate_on_methods_that_need_it_say_so(subject: Subject, tmp_path: Path) -> None:
    results = work.bench(subject, plan(subject, count=len(PROMPTS), peers=False), tmp_path)
    assert {(line.label, line.level) for line in results.refused} == {("MagCache", level) for level in lineup.LEVELS}
    assert all("calibrate" in (line.refused or "") for line in results.refused)


def test_constants_are_measured_once_and_on_other_prompts(subject: Subject, tmp_path: Path, generated: Any) -> None:
    made = plan(subject)
    assert not set(made.prompts) & set(made.calibration) and len(made.calibration) == work.CALIBRATED_ON
    first = work.calibrated(subject, made, tmp_path)
    assert len(generated) == work.CALIBRATED_ON
    assert work.calibrated(subject, made, tmp_path) == first and len(generated) == work.CALIBRATED_ON


def test_a_method_that_cannot_apply_is_listed_with_its_reason(subject: Subject, tmp_path: Path) -> None:
    unguided = replace(subject, call={**subject.call, "guidance_scale": 1.0})
    results = work.bench(unguided, plan(unguided, lineup.chosen(["cfg_cache"]), count=1, peers=False), tmp_path)
    assert [line.label for line in results.refused] == ["CFG-Cache"] * 3
    assert all("branch" in (line.refused or "") for line in results.refused)


def test_seconds_are_compared_within_a_heat(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine gets ten times slower from one heat to the next: every ratio stays what it is within its own."""
    monkeypatch.setattr(work, "HEAT", 2)
    monkeypatch.setattr("fastercache.experiments.bench.contest.HEAT", 2)
    turn = [0]

    def timed(evaluator: Any, entry: Any, case: Any, *rest: Any, **more: Any) -> Any:
        outcome = once(evaluator, entry, case, *rest, **more)
        turn[0] += 1
        return replace(outcome, seconds=(1.0 if entry is None else 0.5) * 10 ** ((turn[0] - 1) // 3))

    monkeypatch.setattr("fastercache.experiments.bench.contest.once", timed)
    entries = {str(n): fc.FORA(interval=n) for n in range(2, 8)}
    contest = work.Contest(subject, entries, PROMPTS[:1], tmp_path, keep=0)
    contest.run()
    assert [contest.row(name).speedup_wall for name in entries] == [2.0] * 6
    assert contest.row(UNCACHED).speedup_wall == 1.0


def test_a_metric_added_later_is_measured_for_what_was_run_before(subject: Subject, tmp_path: Path) -> None:
    """The uncached runs among it, whose figures are as old; nothing is run a third time."""
    entries = {"every second": fc.FORA(interval=2)}
    work.Contest(subject, entries, PROMPTS[:2], tmp_path, keep=0).run()
    contest = work.Contest(subject, entries, PROMPTS[:2], tmp_path, keep=0, metrics=("psnr", "tpsnr"))
    contest.run()
    for name in (UNCACHED, "every second"):
        assert [set(run["quality"]) for run in contest.figures(name)] == [{"psnr", "ssim", "tpsnr"}] * 2
    assert contest.missing(0) == contest.missing(1) == []


def test_heats_hold_every_entry_once_and_change_their_order() -> None:
    names = [str(n) for n in range(40)]
    for i in range(5):
        found = heats(names, i)
        assert sorted(n for heat in found for n in heat) == sorted(names) and max(map(len, found)) <= 15
    assert len({heats(names, i)[0][0] for i in range(5)}) == 5
    assert heats([], 3) == [[]]


# -- peers -------------------------------------------------------------------------------------------------------------
def state(pipe: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(name, tuple(sorted(vars(module)))) for name, module in pipe.transformer.named_modules()]


def attributes_of(pipe: Any) -> dict[str, Any]:
    """The class's attributes; `__slotnames__` is what Python itself notes when it copies an instance."""
    return {name: value for name, value in vars(type(pipe)).items() if name != "__slotnames__"}


@pytest.mark.parametrize("method", ["PyramidAttentionBroadcast", "FasterCache", "TaylorSeerCache", "FirstBlockCache"])
def test_a_peer_leaves_nothing_behind(subject: Subject, tmp_path: Path, method: str) -> None:
    fields = next(p.settings[0] for p in ALL_PEERS if p.method == method)
    evaluator = Evaluator(subject.pipe, subject.call, store=tmp_path)
    (case,) = evaluator.cases(PROMPTS[:1])
    before, modules, attributes = evaluator.run_bare(case)[0], state(subject.pipe), attributes_of(subject.pipe)
    try:
        assert once(evaluator, Peer("diffusers", method, fields), case).flops
    except Refused:
        assert method == "FirstBlockCache"
    assert evaluator.pipe is subject.pipe
    assert state(subject.pipe) == modules and attributes_of(subject.pipe) == attributes
    assert torch.equal(evaluator.run_bare(case)[0], before)


ALL_PEERS = lineup.PEERS


def test_a_twin_shares_every_weight_and_no_module(subject: Subject) -> None:
    other = twin(subject.pipe)
    mine, theirs = subject.pipe.transformer, other.transformer
    assert all(a is b for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert not set(map(id, mine.modules())) & set(map(id, theirs.modules()))


def test_counted_flops_are_those_the_runtime_counts(subject: Subject, tmp_path: Path) -> None:
    evaluator = Evaluator(subject.pipe, subject.call, store=tmp_path)
    (case,) = evaluator.cases(PROMPTS[:1])
    full = sum(evaluator.cost_model(case).step_flops)
    evaluator.close()
    before = state(subject.pipe)
    with counted(subject.pipe) as calls:
        evaluator.setting.generate(case)
    assert (len(calls), sum(calls)) == (CALL["num_inference_steps"], full)
    assert state(subject.pipe) == before
    peer = once(evaluator, Peer("diffusers", "PyramidAttentionBroadcast", ALL_PEERS[0].settings[2]), case)
    assert peer.flops_full == full and 0 < (peer.flops or 0) < full and peer.cache_bytes is None


def test_a_peer_that_is_not_installed_says_how_to_get_it(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cache_dit", None)
    with pytest.raises(Refused, match=r"fastercache\[peers\]"), Peer("cache-dit", "DBCache").applied(subject.pipe, {}):
        pass


def test_a_peer_that_hooks_nothing_is_refused(subject: Subject) -> None:
    peer = Peer("diffusers", "TaylorSeerCache", {"cache_identifiers": ["no such module"]})
    with pytest.raises(Refused, match="attached to nothing"), peer.applied(subject.pipe, subject.call):
        pass


# -- the line-up -------------------------------------------------------------------------------------------------------
def test_the_lineup_has_every_registered_method_at_three_valid_settings() -> None:
    listed = {method.policy for method in lineup.METHODS}
    assert listed | lineup.PARTS == set(fc.known_policies())
    assert not listed & lineup.PARTS
    for method in lineup.METHODS:
        assert len(method.settings) == 3
        if not method.calibrated and not method.planned:
            assert len({json.dumps(fc.dump(p)) for p in method.entries(None)}) == 3, method.label  # type: ignore[arg-type]
    names = [c.name for c in lineup.lineup(lineup.METHODS, 50, None, "no")]
    assert len(names) == len(set(names))
    counts = [c.entry.steps for c in lineup.lineup((), 50, None) if isinstance(c.entry, FewerSteps)]
    assert counts == [45, 40, 33, 25, 17, 12, 10]


def fast(speedup: float) -> fc.Planned:
    return fc.Planned(steps=50, computed=tuple(range(0, 50, round(speedup))))


def test_planned_takes_part_at_the_speedups_that_it_was_planned_for() -> None:
    methods = lineup.chosen(["planned"])
    (speedups,) = [method.speedups for method in methods]
    assert speedups == (2.5, 3.33, 5.0)
    plans = {speedup: fast(speedup) for speedup in speedups}
    ran = [c for c in lineup.lineup(methods, 50, None, plans=plans, peers=False) if c.label == "planned"]
    assert [c.entry for c in ran] == list(plans.values())
    assert [c.setting for c in ran] == ["speedup 2.5", "speedup 3.33", "speedup 5.0"]
    refused = lineup.lineup(methods, 50, None, why_no_plans="no prompts", peers=False)[-3:]
    assert [(c.entry, c.refused) for c in refused] == [(None, "no prompts")] * 3


def test_plans_are_made_once_on_prompts_that_are_not_measured(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[float] = []

    class Maker:
        steps = 50

        def for_speedup(self, speedup: float) -> Any:
            opened.append(speedup)
            return SimpleNamespace(policy=lambda steps: fast(speedup))

    monkeypatch.setattr(making, "open_planner", lambda *args, **more: Maker())
    made = work.plan_for(subject, lineup.chosen(["planned"]), [f"prompt {i}" for i in range(15)], 4, 0, False)
    assert made.search == tuple(f"prompt {i}" for i in range(4, 12))
    first = making.plans_for(subject, made.search, (2.0, 5.0), tmp_path)
    assert first == ({2.0: fast(2.0), 5.0: fast(5.0)}, "") and opened == [2.0, 5.0]
    assert making.plans_for(subject, made.search, (2.0, 5.0), tmp_path) == first and opened == [2.0, 5.0]
    (file,) = tmp_path.glob("planning-*/plans.json")
    file.write_text('{"2": {"policy": "planned", "steps": 50}}')
    assert making.plans_for(subject, made.search, (2.0,), tmp_path)[0] == {2.0: fast(2.0)} and opened[2:] == [2.0]
    assert making.plans_for(subject, (), (2.0,), tmp_path) == (
        None,
        "no prompts are left to plan on: give more than --count in the file",
    )


@pytest.mark.usefixtures("own_registry")
def test_a_policy_of_somebody_s_that_has_no_defaults_is_left_out_of_all_and_told_by_name() -> None:
    class Given(fc.StaticInterval):
        name: ClassVar[str] = "given"
        level: int

    fc.register(Given)
    assert "given" not in {method.policy for method in lineup.chosen(["all"])}
    with pytest.raises(fc.InvalidPolicy, match=r"given has no defaults .*: level must be given"):
        lineup.chosen(["given", "fora"])


@pytest.mark.usefixtures("own_registry")
def test_the_table_keeps_every_field_but_a_policy_s_own_constants() -> None:
    class Shifted(fc.StaticInterval):
        name: ClassVar[str] = "shifted"
        offsets: tuple[float, ...] = (0.5,)  # called as ERTACache's constants, and none

    fc.register(Shifted)
    assert work.trimmed(fc.dump(Shifted()))["offsets"] == [0.5]
    constants = {"errors": ((0.0, 0.1),), "gains": ((0.0, 1.0),), "offsets": ((0.0, 0.0),)}
    kept = {"policy": "ertacache", "threshold": 0.2, "max_skip": 6, "start": 0.1, "sites": "stack"}
    assert work.trimmed(fc.dump(fc.ERTACache(threshold=0.2, **constants))) == kept


@pytest.mark.usefixtures("own_registry")
def test_a_method_that_cannot_be_made_of_what_was_measured_is_one_refused_row() -> None:
    class Picky(fc.MagCache):
        name: ClassVar[str] = "picky"

        @classmethod
        def calibrated(cls, measured: Any, **fields: Any) -> Any:
            return cls(ratios=measured.own("picky")["ratio"], **fields)

    fc.register(Picky)
    (method,) = lineup.chosen(["picky"])
    assert method.calibrated
    empty: Any = Calibration(
        steps=2, runs=1, inputs=((0.1,),), outputs=((0.1,),), ratios={}, curves={}, errors=((0.0, 0.1),), gains=()
    )
    (row,) = [row for row in lineup.lineup([method], 4, empty, peers=False) if row.label == "picky"]
    assert row.entry is None and row.refused is not None and "lacks what picky measures" in row.refused


def test_an_unknown_method_is_one_line_that_names_the_nearest() -> None:
    result = CliRunner().invoke(cli.app, ["bench", "latte-digits", "--policies", "teacach"])
    assert result.exit_code == 2
    assert result.stderr == "error: no method is called 'teacach'; did you mean 'teacache'?\n"


# -- results -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def finished(subject: Subject, tmp_path: Path) -> Iterator[tuple[standings.Results, Path]]:
    yield work.bench(subject, plan(subject, lineup.chosen(["fora"]), peers=False), tmp_path / "tiny"), tmp_path / "tiny"


def test_plot_only_prints_and_draws_what_was_measured(finished: tuple[standings.Results, Path]) -> None:
    results, folder = finished
    files = results.write(folder)
    first = {name: Path(path).read_bytes() for name, path in files.items()}
    answer = CliRunner().invoke(cli.app, ["bench", "tiny", "--plot-only", "--out", str(folder), "--json"])
    assert answer.exit_code == 0, answer.stderr
    assert {name: Path(path).read_bytes() for name, path in files.items()} == first
    found = json.loads(answer.stdout)
    assert found.pop("files") == files
    assert standings.Results.model_validate(found) == results == standings.Results.load(folder)


def test_plot_only_without_results_or_with_damaged_ones_is_one_line(tmp_path: Path) -> None:
    words = ["bench", "tiny", "--plot-only", "--out", str(tmp_path)]
    assert "without --plot-only first" in CliRunner().invoke(cli.app, words).stderr
    (tmp_path / "results.json").write_text('{"format": "other"}')
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "is no bench's results" in result.stderr


def test_the_table_goes_into_its_place_in_a_page(finished: tuple[standings.Results, Path], tmp_path: Path) -> None:
    results, _ = finished
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench tiny -->\nold\n<!-- end bench -->\nafter\n")
    for _ in range(2):
        standings.put_into(page, results)
        text = page.read_text()
        assert text.startswith("before\n<!-- bench tiny -->\n") and text.endswith("<!-- end bench -->\nafter\n")
        assert text.count("| FORA |") == 3 and "old" not in text
    page.write_text("no place")
    with pytest.raises(fc.ConfigUnreadable, match="<!-- bench tiny -->"):
        standings.put_into(page, results)


# -- verdicts ----------------------------------------------------------------------------------------------------------
BASE = verdict.Baseline.of([(4.0, [20.0, 24.0, 22.0]), (1.0, [40.0, 44.0, 42.0]), (2.0, [30.0, 32.0, 31.0])])


def test_the_baseline_is_linear_in_log_speedup_on_each_prompt() -> None:
    assert BASE.at(2.0) == [30.0, 32.0, 31.0]
    assert BASE.at(math.sqrt(8.0)) == pytest.approx([25.0, 28.0, 26.5])
    assert BASE.at(0.99) is None and BASE.at(4.01) is None and verdict.Baseline.of([]).at(2.0) is None


def test_verdicts_follow_the_interval_of_the_paired_difference() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt 3, t(0.975, 2) = 4.3027: 2 +- 2.484."""
    word, difference = verdict.verdict(2.0, [31.0, 34.0, 34.0], BASE)
    assert word == "undecided" and difference is not None
    assert difference == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert verdict.verdict(2.0, [33.0, 35.1, 34.0], BASE).word == "yes"
    assert verdict.verdict(2.0, [27.0, 28.9, 28.0], BASE).word == "no"
    assert verdict.verdict(5.0, [99.0, 99.0, 99.0], BASE) == ("outside", None)
    alone = verdict.Baseline.of([(1.0, [40.0]), (2.0, [30.0])])
    assert verdict.verdict(2.0, [50.0], alone).word == "undecided"


def test_pairing_decides_what_means_alone_would_not() -> None:
    """Prompts differ by 4 dB, the setting is better by 0.5 on each: paired it is sure."""
    assert verdict.verdict(4.0, [20.5, 24.52, 22.51], BASE).word == "yes"


def test_intervals() -> None:
    assert verdict.mean_interval([3.0]) == (3.0, None, None)
    value, low, high = verdict.ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (value, low, high) == (2.0, 2.0, 2.0)
    value, low, high = verdict.ratio_interval([2.0, 4.0, 9.0], [1.0, 2.5, 3.0])
    assert (value, low, high) == (1.6, 1.6, 3.0)


def test_the_interval_of_a_ratio_is_that_of_all_resamplings() -> None:
    """Of 6 prompts there are 6^6 resamplings; 2,000 draws give their 2.5 % and 97.5 % quantiles, not those of 5 %."""
    over, under = np.array([7.9, 7.3, 4.9, 3.8, 5.6, 4.8]), np.array([2.6, 1.6, 2.0, 2.2, 2.8, 2.0])
    every = np.stack(np.meshgrid(*[np.arange(6)] * 6), axis=-1).reshape(-1, 6)
    ratios = np.median(over[every], axis=1) / np.median(under[every], axis=1)
    value, low, high = verdict.ratio_interval(over.tolist(), under.tolist())
    assert value == pytest.approx(5.25 / 2.1) and low is not None and high is not None
    assert np.quantile(ratios, 0.015) <= low <= np.quantile(ratios, 0.035) < np.quantile(ratios, 0.05)
    assert np.quantile(ratios, 0.95) < np.quantile(ratios, 0.965) <= high <= np.quantile(ratios, 0.985)


def test_the_summary_counts_wins_by_method_and_says_each_once() -> None:
    def line(label: str, level: str, flops: str, wall: str, family: str = "any") -> standings.Line:
        who = {"label": label, "setting": level, "level": level, "family": family, "package": "fastercache"}
        return standings.Line.model_construct(**who, beats_by_flops=flops, beats_by_wall=wall, refused=None)

    said = standings.in_short(
        [
            line("fewer steps", "25", "outside", "outside", lineup.FEWER),
            line("A", "gentle", "yes", "no"),
            line("A", "strong", "undecided", "no"),
            line("B", "gentle", "yes", "yes"),
            line("B", "strong", "no", "no"),
            line("C", "gentle", "outside", "outside"),
        ]
    )
    assert said == [
        "- At equal FLOPs, beat fewer steps wherever it is decided: A (1 of 2).",
        "- At equal FLOPs, beat fewer steps at some settings and lose at others: B (1 of 2).",
        "- At equal FLOPs, undecided, or outside what fewer steps were measured at: C.",
        "- At equal time, beat fewer steps at some settings and lose at others: B (1 of 2).",
        "- At equal time, never beat fewer steps: A.",
        "- At equal time, undecided, or outside what fewer steps were measured at: C.",
    ]

"""The parts of a bench by themselves, without a run: its plan, its keys, its line-up, and what a line is made of."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fastercache as fc
from fastercache.analysis.calibrate import Calibration
from fastercache.experiments.bench import entries, lineup, peers, runner, standings
from fastercache.experiments.bench import plans as making
from fastercache.experiments.bench.entries import FewerSteps, described, once
from fastercache.experiments.bench.lineup import FEWER, LEVELS, Contender, Method, PeerMethod
from fastercache.experiments.bench.peers import Peer, Refused
from fastercache.experiments.bench.rows import Row, size
from fastercache.experiments.bench.standings import Line, Results
from fastercache.experiments.bench.verdict import Baseline, Interval, Verdict, mean_interval, ratio_interval, verdict
from fastercache.experiments.pipelines import Subject


# -- what a bench runs ---------------------------------------------------------------------------------------------
@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(Subject, "captions", lambda self, split: [f"{split} {i}" for i in range(20)] + ["held_out 1"])
    return Subject("tiny", None, {}, reference=True)


def test_of_a_file_the_prompts_after_the_measured_ones_serve_for_the_rest(subject: Subject) -> None:
    given = [str(n) for n in range(20)]
    plan = runner.plan_for(subject, (), given, 3, 7, False, ("lpips",))
    assert (plan.prompts, plan.search) == (("0", "1", "2"), tuple(map(str, range(3, 3 + making.PLANNED_ON))))
    assert plan.calibration == ("17", "18", "19") and (plan.seed, plan.peers, plan.metrics) == (7, False, ("lpips",))
    repeated = runner.plan_for(subject, (), ["a", "b", "a", "c", "b"], 2, 0, True)
    assert repeated.search == repeated.calibration == ("c",), "a prompt that is measured serves for nothing else"
    whole = runner.plan_for(subject, (), given, 20, 0, True)
    assert len(whole.prompts) == 20 and whole.search == whole.calibration == ()
    with pytest.raises(fc.ConfigUnreadable, match="asks for 21 prompts, found 20"):
        runner.plan_for(subject, (), given, 21, 0, True)


def test_without_a_file_held_out_captions_are_measured_and_training_ones_serve_for_the_rest(subject: Subject) -> None:
    plan = runner.plan_for(subject, (), None, 2, 0, True)
    assert plan.prompts == ("held_out 0", "held_out 1")
    assert plan.search == tuple(f"train {i}" for i in range(making.PLANNED_ON))
    assert plan.calibration == ("train 17", "train 18", "train 19"), "a caption that is measured is in neither"


class Planner:
    steps = 50

    def __init__(self, made: list[float]) -> None:
        self.made = made

    def for_speedup(self, speedup: float) -> Any:
        self.made.append(speedup)
        number = len(self.made)
        return SimpleNamespace(policy=lambda steps: fc.Planned(steps=steps, computed=tuple(range(0, steps, number))))


def test_plans_are_kept_by_setting_prompts_and_speedup(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    monkeypatch.setattr(making, "open_planner", lambda *args, **more: Planner(made))
    subject = Subject("tiny", tiny_latte, {"num_inference_steps": 50}, reference=False)
    ways: list[tuple[Subject, Sequence[str], tuple[float, ...]]] = [
        (subject, ("a", "b"), (2.0,)),
        (subject, ("a", "b"), (2.5, 2.0)),
        (subject, ("a", "c"), (2.0,)),
        (subject, ("b", "a"), (2.0,)),
        (replace(subject, call={"num_inference_steps": 50, "guidance_scale": 2.0}), ("a", "b"), (2.0,)),
    ]
    found = [making.plans_for(*way, tmp_path) for way in ways]
    assert made == [2.0, 2.5, 2.0, 2.0, 2.0] and len(list(tmp_path.glob("planning-*"))) == 4
    assert found[1][0] is not None and found[0][0] is not None and found[1][0][2.0] == found[0][0][2.0]
    assert [making.plans_for(*way, tmp_path) for way in ways] == found and len(made) == 5

    def failing(*args: Any, **more: Any) -> Any:
        raise fc.RecordingError("no such sampler")

    monkeypatch.setattr(making, "open_planner", failing)
    assert making.plans_for(subject, ("a", "b"), (2.0, 9.0), tmp_path) == (None, "planning failed: no such sampler")


CONSTANTS: dict[str, Any] = {
    "steps": 3, "runs": 1, "inputs": ((0.1, 0.2),), "outputs": ((0.1, 0.2),),
    "ratios": {"cond": (1.0, 2.0, 3.0), "uncond": (1.0, 4.0, 5.0)}, "curves": {}, "errors": ((0.0, 0.1, 0.1),),
    "gains": ((0.0, 1.0, 1.0),),
}  # fmt: skip


def test_constants_are_kept_by_setting_and_prompts_and_measured_again_where_some_lack(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []
    found = Calibration(**CONSTANTS)

    @contextmanager
    def calibrate(pipe: Any, policies: Any) -> Any:
        yield SimpleNamespace(result=lambda: found)

    monkeypatch.setattr(runner, "calibrate", calibrate)
    monkeypatch.setattr(runner.Setting, "generate", lambda self, case: ran.append((case.prompt, case.seed)))
    subject = Subject("tiny", tiny_latte, {"num_inference_steps": 3}, reference=False)
    plan = runner.Plan((), ("m",), ("a", "b"))
    assert runner.calibrated(subject, plan, tmp_path) == (found, "")
    assert ran == [("a", 200_000), ("b", 200_001)]
    assert runner.calibrated(subject, plan, tmp_path) == (found, "") and len(ran) == 2
    runner.calibrated(subject, replace(plan, calibration=("a", "c")), tmp_path)
    assert ran[2:] == [("a", 200_000), ("c", 200_001)]
    runner.calibrated(replace(subject, call={"num_inference_steps": 3, "width": 8}), plan, tmp_path)
    assert len(ran) == 6 and len(list(tmp_path.glob("calibration-*.json"))) == 3
    assert runner.calibrated(subject, replace(plan, methods=tuple(lineup.chosen(["magcache"]))), tmp_path)[0] == found
    assert len(ran) == 6, "what MagCache needs is in every calibration"
    monkeypatch.setattr(Calibration, "measured_for", lambda self, policies: False)
    assert runner.calibrated(subject, plan, tmp_path) == (found, "") and len(ran) == 8
    damaged = next(iter(tmp_path.glob("calibration-*.json")))
    damaged.write_text("{")
    for where in (subject, replace(subject, call={"num_inference_steps": 3, "width": 8})):
        for prompts in (("a", "b"), ("a", "c")):
            assert runner.calibrated(where, replace(plan, calibration=prompts), tmp_path) == (found, "")
    assert runner.calibrated(subject, replace(plan, calibration=()), tmp_path)[0] is None


# -- a line ----------------------------------------------------------------------------------------------------------
class Figures:
    """Stands in for a contest: the figures of each entry, chosen."""

    metrics = ("psnr", "ssim")

    def __init__(self, runs: dict[str, list[dict[str, Any]]], refused: dict[str, str] | None = None) -> None:
        self.runs, self.refused = runs, refused or {}
        self.subject = SimpleNamespace(name="tiny")
        setting = SimpleNamespace(call={"num_inference_steps": 50}, seed=4, hardware="here")
        self.evaluator = SimpleNamespace(setting=setting)
        self.cases = [0, 1, 2]

    def refusal(self, name: str) -> str | None:
        return self.refused.get(name)

    def figures(self, name: str) -> list[dict[str, Any]]:
        return self.runs[name]

    def row(self, name: str) -> Row:
        own = self.runs[name]
        counted = [run for run in own if run["flops"]]
        return Row(
            name=name,
            speedup_flops=sum(r["flops_full"] for r in counted) / sum(r["flops"] for r in counted),
            speedup_wall=statistics.median(r["seconds_uncached"] for r in own)
            / statistics.median(r["seconds"] for r in own),
            quality={},
            judge=None,
            cache_bytes=12,
            prompts=len(own),
            policy=fc.dump(fc.FORA(interval=2)),
        )


def ran(
    psnr: Sequence[float], flops: Sequence[int | None], seconds: Sequence[float], **more: Any
) -> list[dict[str, Any]]:
    return [
        {"quality": {"psnr": p, "ssim": p / 100}, "flops": f, "flops_full": None if f is None else 120, "seconds": s,
         "seconds_uncached": 6.0 + i, "judge": None} | {key: values[i] for key, values in more.items()}
        for i, (p, f, s) in enumerate(zip(psnr, flops, seconds, strict=True))
    ]  # fmt: skip


def contender(label: str, level: str, entry: Any = None, **more: Any) -> Contender:
    return Contender(label, f"setting {level}", level, "any", "fastercache", entry, **more)


RUNS = {
    f"{FEWER} 25": ran([50.0, 51.0, 49.5], [60, 60, 60], [4.0, 4.0, 4.0]),
    f"{FEWER} 10": ran([30.0, 31.0, 29.5], [20, 20, 20], [2.0, 2.0, 2.0]),
    "ours middle": ran([44.0, 47.0, 42.0], [30, 40, None], [2.5, 3.5, 2.5], judge=[True, False, True]),
    "ours strong": ran([80.0, 80.5, 80.1], [30, 30, 30], [6.0, 7.0, 8.0]),
}
ENTRIES = [contender(FEWER, "25"), contender(FEWER, "10"), contender("ours", "middle"), contender("ours", "strong")]


def test_a_line_is_judged_at_its_own_flops_and_at_its_own_time() -> None:
    """The two speedups of fewer steps differ, so each has a curve of its own."""
    contest: Any = Figures(RUNS | {"uncached": ran([100.0] * 3, [None] * 3, [6.0, 7.5, 8.0])})
    found = runner.judged(contest, ENTRIES)
    curves = {
        "flops": Baseline.of([(2.0, [50.0, 51.0, 49.5]), (6.0, [30.0, 31.0, 29.5])]),
        "time": Baseline.of([(7.0 / 4.0, [50.0, 51.0, 49.5]), (7.0 / 2.0, [30.0, 31.0, 29.5])]),
    }
    fewer, _, middle, strong = found.lines
    assert (fewer.beats_by_flops, fewer.beats_by_wall, fewer.difference_by_flops) == ("", "", None)
    values = [44.0, 47.0, 42.0]
    by_flops, by_time = verdict(240 / 70, values, curves["flops"]), verdict(7.0 / 2.5, values, curves["time"])
    assert (middle.beats_by_flops, middle.difference_by_flops) == by_flops
    assert (middle.beats_by_wall, middle.difference_by_wall) == by_time and by_flops != by_time
    assert (strong.beats_by_flops, strong.beats_by_wall) == ("yes", "outside")
    spread = mean_interval([4.0, 3.0])
    assert middle.speedup_flops == Interval(240 / 70, spread.low, spread.high)
    assert middle.speedup_wall == ratio_interval([6.0, 7.0, 8.0], [2.5, 3.5, 2.5])
    assert middle.quality == {"psnr": mean_interval(values), "ssim": mean_interval([0.44, 0.47, 0.42])}
    assert middle.judge == mean_interval([1.0, 0.0, 1.0]) and strong.judge is None
    assert (middle.cache_bytes, middle.prompts, middle.label, middle.level) == (12, 3, "ours", "middle")
    assert (found.pipeline, found.steps, found.prompts, found.seed, found.hardware) == ("tiny", 50, 3, 4, "here")
    assert found.seconds_uncached == pytest.approx(21.5 / 3) and found.counted == 2 and found.lineup == lineup.VERSION


def test_what_was_refused_before_or_while_running_has_a_line_with_the_reason() -> None:
    early, late = contender("early", "middle", refused="no constants"), contender("late", "middle")
    runs = RUNS | {"uncached": ran([100.0], [None], [6.0])}
    del runs[f"{FEWER} 10"]
    contest: Any = Figures(runs, {"late middle": "raised", f"{FEWER} 10": "too few"})
    lines = runner.judged(contest, [*ENTRIES[:3], early, late]).lines
    assert [line.refused for line in lines] == [None, "too few", None, "no constants", "raised"]
    assert lines[2].beats_by_flops == "outside", "what was refused is no point of the curve"
    assert lines[3].speedup_flops is None and lines[3].prompts == 0


# -- entries ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ratio", "steps", "kept"),
    [(0.5, 50, 25), (0.49, 50, 24), (0.499, 50, 24), (0.29, 100, 29), (0.001, 50, 1), (1.0, 7, 7)],
)
def test_fewer_steps_cost_no_more_than_the_ratio(ratio: float, steps: int, kept: int) -> None:
    assert FewerSteps.within(ratio, steps) == FewerSteps(kept)


def test_an_entry_is_described_by_all_that_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "package_versions", lambda names: {name: "1.0" for name in names})
    one = Peer("diffusers", "TaylorSeerCache", {"max_order": 1})
    found = described(one)
    assert found == {"peer": "diffusers", "versions": {"diffusers": "1.0"}, "method": "TaylorSeerCache", "max_order": 1}
    assert described(replace(one, order=0)) == found | {"taylorseer_order": 0}
    monkeypatch.setattr(peers, "package_versions", lambda names: {name: "1.1" for name in names})
    assert described(one)["versions"] == {"diffusers": "1.1"}
    assert described(FewerSteps(7)) == {"policy": "no_cache", "num_inference_steps": 7}
    assert described(None) == {"policy": "no_cache"} and described(fc.FORA(interval=3)) == fc.dump(fc.FORA(interval=3))


class Bare:
    """Stands in for an evaluator; notes what is generated."""

    def __init__(self) -> None:
        self.closed, self.made = 0, 0
        self.setting: Any = SimpleNamespace(pipe="pipe", call={"num_inference_steps": 4}, on=lambda twin: self.setting)

    def close(self) -> None:
        self.closed += 1

    def cost_model(self, case: Any) -> Any:
        return SimpleNamespace(step_flops=[10, 10, 20, 20])


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A peer whose runs are stand-ins: the first makes video 1, the next video 2."""
    made: list[int] = []

    def video() -> torch.Tensor:
        made.append(1)
        return torch.full((1,), float(len(made)))

    @contextmanager
    def on_twin(setting: Any, peer: Any) -> Any:
        yield SimpleNamespace(pipe="twin", generate=lambda case: video())

    @contextmanager
    def counted(pipe: Any) -> Any:
        yield [7, 8]

    monkeypatch.setattr(entries, "_on_twin", on_twin)
    monkeypatch.setattr(entries, "counted", counted)
    monkeypatch.setattr(entries, "run_bare", lambda setting, case: (video(), 2.5))
    return made


@pytest.mark.parametrize(
    ("count", "timed", "video", "rest", "runs"),
    [
        (True, True, 1.0, (2.5, 15, 60, None), 2),
        (False, True, 1.0, (2.5, None, None, None), 1),
        (True, False, 1.0, (None, 15, 60, None), 1),
    ],
)
def test_a_peer_is_timed_and_counted_in_runs_of_their_own(
    peer: list[int], count: bool, timed: bool, video: float, rest: tuple[Any, ...], runs: int
) -> None:
    evaluator: Any = Bare()
    found = once(evaluator, Peer("diffusers", "X"), "case", count=count, timed=timed)  # type: ignore[arg-type]
    assert float(found.video) == video and len(peer) == runs
    assert (found.seconds, found.flops, found.flops_full, found.cache_bytes) == rest


def test_fewer_steps_are_counted_against_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = SimpleNamespace(flops=[10, 10, 10], flops_full=[11, 11, 11], cached_bytes=0)
    given: list[Any] = []

    def run(setting: Any, policy: Any, case: Any, allow: Any) -> Any:
        given.append((setting, policy, allow))
        return torch.zeros(1), trace, 1.5

    monkeypatch.setattr(entries, "run", run)
    evaluator: Any = Bare()
    evaluator.setting.calling = lambda **changes: changes
    found = once(evaluator, FewerSteps(3), "case", frozenset({"steps"}))  # type: ignore[arg-type]
    assert (found.flops, found.flops_full, found.seconds) == (30, 40, 1.5)
    assert given == [({"num_inference_steps": 3}, fc.NoCache(), frozenset())]
    own = once(evaluator, fc.FORA(interval=2), "case", frozenset({"steps"}))  # type: ignore[arg-type]
    assert (own.flops, own.flops_full) == (30, 33) and given[1][1:] == (fc.FORA(interval=2), frozenset({"steps"}))


# -- the line-up -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("steps", "counts"), [(50, [45, 40, 33, 25, 17, 12, 10]), (8, [7, 6, 5, 4, 3, 2]), (3, [2, 1]), (1, [])]
)
def test_fewer_steps_are_shares_of_all_each_once(steps: int, counts: list[int]) -> None:
    rows = lineup.lineup((), steps, None, peers=False)
    assert [(row.level, row.setting, row.entry) for row in rows] == [
        (str(n), f"{n} of {steps}", FewerSteps(n)) for n in counts
    ]


def test_settings_are_called_by_how_many_there_are() -> None:
    assert [lineup.named(n) for n in (1, 2, 3, 4, 5)] == [
        ("default",), ("gentle", "strong"), LEVELS, (*LEVELS, "strongest"), ("1", "2", "3", "4", "5"),
    ]  # fmt: skip
    assert PeerMethod("P", "diffusers", "M", "any", ({}, {}), names=("a", "b")).levels == ("a", "b")


def test_a_method_is_refused_only_for_what_it_needs_itself() -> None:
    constants = Calibration(**CONSTANTS)
    plain, calibrated = Method("F", "fora", "any", ({"interval": 2},)), Method("M", "magcache", "any", ({},))
    planned = Method("P", "planned", "any", ({"speedup": 2.0},), planned=True)
    peer = PeerMethod("Q", "diffusers", "MagCache", "any", ({"threshold": 0.1},), calibrated=True)
    other = PeerMethod("R", "diffusers", "SeaCache", "any", ({"threshold": 0.1},), order=2)
    parts = (plain, calibrated, planned, peer, other)
    rows = lineup.lineup(parts, 1, None, "none", why_no_plans="unplanned", peers=False)
    assert [row.refused for row in rows] == [None, "none", "unplanned", "none", None]
    assert [row.entry is None for row in rows] == [False, True, True, True, False]
    plan = fc.Planned(steps=4, computed=(0, 2))
    rows = lineup.lineup(parts, 1, constants, "none", plans={2.0: plan}, why_no_plans="unplanned", peers=False)
    assert [row.refused for row in rows] == [None] * 5
    assert rows[0].entry == fc.FORA(interval=2) and rows[2].entry == plan
    assert rows[1].entry == fc.MagCache.calibrated(constants)
    assert rows[3].entry == Peer("diffusers", "MagCache", {"threshold": 0.1, "mag_ratios": [1.0, 3.0, 4.0]})
    assert rows[4].entry == Peer("diffusers", "SeaCache", {"threshold": 0.1}, 2)
    assert [row.name for row in rows] == [
        "F default",
        "M default",
        "P default",
        "Q (diffusers) default",
        "R (diffusers) default",
    ]
    assert [row.setting for row in rows] == [
        "interval 2",
        "as published",
        "speedup 2.0",
        "threshold 0.1",
        "threshold 0.1",
    ]


def test_methods_are_chosen_by_name_in_the_order_of_the_list() -> None:
    assert [method.policy for method in lineup.chosen(["teacache", "fora"])] == ["fora", "teacache"]
    assert [method.label for method in lineup.chosen(["easycache"])] == ["EasyCache", "EasyCache, output held"]
    assert [method.policy for method in lineup.chosen(["all"])][: len(lineup.METHODS)] == [
        m.policy for m in lineup.METHODS
    ]
    for name in ("no_cache", "compose", "al"):
        with pytest.raises(fc.UnknownPolicy):
            lineup.chosen([name])


# -- other packages ---------------------------------------------------------------------------------------------------
class Config:
    def __init__(self, threshold: float, num_inference_steps: int = 0, tensor_format: str = "") -> None:
        self.all = (threshold, num_inference_steps, tensor_format)


def test_a_peers_configuration_is_filled_with_what_it_asks_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "import_module", lambda name: SimpleNamespace(ThisConfig=Config))
    pipe = SimpleNamespace(transformer=nn.Linear(1, 1))
    call = {"num_inference_steps": 9}
    assert peers._config("This", pipe, call, {"threshold": 0.5}).all == (0.5, 9, "BCFHW")
    assert peers._config("This", pipe, call, {"threshold": 0.5, "num_inference_steps": 3}).all[1] == 3
    named = type("CogVideoXThing", (nn.Linear,), {})(1, 1)
    assert peers._config("This", SimpleNamespace(transformer=named), call, {"threshold": 0.5}).all[2] == "BFCHW"


def test_what_is_set_on_a_class_is_taken_back_even_after_an_error() -> None:
    class Kept:
        own = 1

    with pytest.raises(RuntimeError, match="stop"), peers.class_kept(Kept):
        Kept.own, Kept.other = 2, 3  # type: ignore[attr-defined]
        raise RuntimeError("stop")
    assert Kept.own == 1 and not hasattr(Kept, "other")


def test_calls_are_counted_in_each_denoiser_and_forwards_put_back() -> None:
    pipe = SimpleNamespace(transformer=nn.Linear(3, 5, bias=False), transformer_2=nn.Linear(3, 7, bias=False))
    patched = pipe.transformer_2.forward
    pipe.transformer_2.forward = own = lambda x: patched(x)
    with peers.counted(pipe) as calls:
        pipe.transformer(torch.zeros(2, 3))
        pipe.transformer_2(torch.zeros(1, 3))
        pipe.transformer(torch.zeros(4, 3))
    assert calls == [2 * 2 * 3 * 5, 2 * 3 * 7, 2 * 4 * 3 * 5]
    assert "forward" not in vars(pipe.transformer) and vars(pipe.transformer_2)["forward"] is own


def test_a_reason_is_one_short_line() -> None:
    assert peers.reason(ValueError(" first\nsecond")) == "ValueError: first"
    assert peers.reason(KeyError()) == "KeyError" and len(peers.reason(ValueError("x" * 500))) == 160


def test_a_peer_that_raises_is_refused_with_its_reason_and_a_refusal_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "twin", copy.copy)
    pipe = SimpleNamespace(transformer=nn.Linear(1, 1), components={})
    with pytest.raises(Refused, match="Linear has no enable_cache"), Peer("diffusers", "X").applied(pipe, {}):
        pass
    raised: Any = SimpleNamespace(applied=lambda pipe, call: nullcontext(pipe))
    setting: Any = SimpleNamespace(pipe=1, call={}, on=str)
    for error, said in ((ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"), (Refused("why"), "why")):
        with pytest.raises(Refused) as caught, entries._on_twin(setting, raised):
            raise error
        assert str(caught.value) == said


# -- results ---------------------------------------------------------------------------------------------------------
def line(label: str, level: str = "middle", flops: float = 2.0, **more: Any) -> Line:
    fields: dict[str, Any] = {
        "package": "fastercache",
        "family": "any",
        "quality": {"psnr": Interval(40.0, 39.0, 41.0)},
    }
    speed = {"speedup_flops": Interval(flops, None, None), "speedup_wall": Interval(flops, None, None)}
    return Line(label=label, setting="set", level=level, **{**fields, **speed, **more})


def results(*lines: Line) -> Results:
    return Results(
        pipeline="tiny", steps=50, prompts=3, seed=0, hardware="here", versions={}, seconds_uncached=1.0, counted=2,
        rule="", lines=lines,
    )  # fmt: skip


def test_a_setting_that_skips_nothing_has_no_point_in_the_figure() -> None:
    idle, least = line("A", flops=1.0049), line("B", flops=1.005)
    assert idle.idle and not least.idle and not line(FEWER, flops=1.0).idle
    refused = Line(label="D", setting="", level="", family="", package="", refused="why")
    lacking, untimed = line("E", quality={}), line("F", speedup_wall=None)
    found = results(idle, least, line("C", package="diffusers"), refused, lacking, untimed)
    assert [(one.method, one.package) for one in map(_point, standings.points(found, "psnr"))] == [
        ("B", ""), ("C", "diffusers"),
    ]  # fmt: skip
    assert standings.points(found, "lpips") == []
    assert [one.label for one in found.refused] == ["D"] and [one.label for one in found.ran] == list("ABCEF")
    assert found.lines[2].method == "C (diffusers)" and found.metrics == ["psnr", "ssim"]


def _point(point: Any) -> Any:
    values = list(vars(point).values()) if hasattr(point, "__dict__") else list(point)
    return SimpleNamespace(method=values[0], package=values[2])


def test_reasons_are_told_once_for_all_settings_of_a_method() -> None:
    lines = [
        Line(label=label, setting="", level=level, family="", package="diffusers", refused=why)
        for label, level, why in (
            ("A", "gentle", "x"), ("A", "middle", "x"), ("A", "strong", "x"), ("B", "gentle", "x"),
            ("B", "strong", "x"),
            ("C", "gentle", "x"), ("C", "strong", "y"),
        )
    ]  # fmt: skip
    assert standings.refusals(lines) == [
        ("A (diffusers)", "x"), ("B (diffusers) gentle, strong", "x"), ("C (diffusers) gentle", "x"),
        ("C (diffusers) strong", "y"),
    ]  # fmt: skip


def test_bytes_are_said_in_the_largest_unit_below() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536 * 1024, 2**30, 5 * 2**40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1.0 GiB", "5120.0 GiB",
    ]  # fmt: skip


def test_a_verdict_is_taken_prompt_by_prompt() -> None:
    base = Baseline.of([(2.0, [50.0, 10.0]), (4.0, [40.0, 0.0])])
    assert verdict(2.0, [51.0, 11.0], base) == Verdict("yes", Interval(1.0, 1.0, 1.0))
    assert verdict(2.0, [11.0, 51.0], base).word == "undecided"

"""What steps take by the clock, and plans that are asked for by it. The clock of these tests is made up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.experiments.jobs import planning
from fastercache.experiments.pipelines import Subject
from fastercache.model.hooks import MethodTap
from fastercache.policies.errors import MeasurementError
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.tuner import seconds as module
from fastercache.tuner.clock import Objective, objective_called
from fastercache.tuner.seconds import Seconds, _every_second, timed_runs
from fastercache.tuner.setting import Setting

STEPS = 6
CALL = {"num_inference_steps": STEPS, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}
DENOISER, SCHEDULER, TEXT, DECODER = 1.0, 0.125, 0.25, 0.5


@pytest.fixture
def setting(tiny_latte: Any, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A pipeline each of whose parts takes as long as the constants say."""
    clock = [0.0]

    def takes(owner: Any, method: str, seconds: float) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def slowly(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return original(*args, **kwargs)

        monkeypatch.setitem(vars(owner), method, slowly)

    takes(tiny_latte.transformer, "forward", DENOISER)
    takes(tiny_latte.scheduler, "step", SCHEDULER)
    takes(tiny_latte, "encode_prompt", TEXT)
    takes(tiny_latte, "decode_latents", DECODER)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return Setting(tiny_latte, CALL)


def full(computed: int) -> float:
    return TEXT + DECODER + computed * DENOISER + STEPS * SCHEDULER


def test_each_part_of_a_call_is_timed(setting: Setting) -> None:
    found = Seconds.measured(setting, setting.cases(["a"])[0])
    assert found == Seconds(STEPS, DENOISER + SCHEDULER, SCHEDULER, TEXT + DECODER, {}, setting.hardware)
    assert [found.of(count) for count in (1, 3, STEPS)] == [full(1), full(3), full(STEPS)]
    assert found.speedup(2) == full(STEPS) / full(2)
    assert found.words == "a computed step takes 1.12 s here, a skipped one 125 ms, and the rest of a call 750 ms"


def test_how_many_steps_may_be_computed() -> None:
    seconds = Seconds(10, computed=1.0, skipped=0.1, rest=2.0)  # 3.9 s with one computed step, 0.9 s more for each
    assert [seconds.most(limit) for limit in (2.0, 3.91, 5.6, 5.71, 1e9)] == [0, 1, 2, 3, 10]
    for speedup in (1.0, 1.5, 2.0, 3.0):
        count = seconds.computed_for(speedup)
        assert 12.0 / (3.0 + 0.9 * count) >= speedup - 1e-6 > 12.0 / (3.0 + 0.9 * (count + 1)) - 1e-6 or count == 10
    with pytest.raises(
        fc.BudgetNotMet, match=r"by the clock here: at most 3.08x, because a computed step takes 1.00 s"
    ):
        seconds.computed_for(3.2)


def test_steps_that_cannot_be_timed_are_refused(setting: Setting) -> None:
    short = Setting(setting.pipe, CALL | {"num_inference_steps": 3})
    with pytest.raises(MeasurementError, match="calls of at least 4, found 3: go by FLOPs"):
        Seconds.measured(short, short.cases(["a"])[0])


def test_a_speedup_by_the_clock_computes_fewer_steps(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = Subject("tiny-latte", setting.pipe, CALL, reference=False)
    words: dict[str, Any] = {"folder": tmp_path / "study", "out": tmp_path / "tuned.json", "effort": 0}
    by_flops = planning.plan(subject, ["a"], speedups=[1.5], **words)
    assert len(by_flops["computed_steps"]) == 4 and by_flops["predicted_seconds"] is None
    found = planning.plan(subject, ["a"], speedups=[1.5], objective=Objective.TIME, **words)
    most = max(count for count in range(1, STEPS) if full(STEPS) / full(count) >= 1.5)
    assert len(found["computed_steps"]) == most == 3
    assert found["predicted_seconds"] == full(3) and found["predicted_speedup_wall"] == full(STEPS) / full(3)
    assert "foreseen: 4.5 s a call, 1.67x" in " ".join(capsys.readouterr().out.split())

    within = planning.plan(subject, ["a"], budgets=["psnr>=1,time<=3.6s"], margin=0.0, **words)
    assert full(len(within["computed_steps"])) <= 3.6
    with pytest.raises(
        fc.BudgetNotMet, match=r"no plan keeps time<=1s: with . computed steps?, the fewest, a call takes"
    ):
        planning.plan(subject, ["a"], budgets=["psnr>=1,time<=1s"], **words)
    with pytest.raises(
        fc.BudgetNotMet, match=r"psnr>=70 takes . computed steps, .* s a call here; time<=3.6s leaves room"
    ):
        planning.plan(subject, ["a"], budgets=["psnr>=70,time<=3.6s"], margin=0.0, **words)


def test_an_objective_that_does_not_exist_is_named() -> None:
    assert objective_called("time") is Objective.TIME
    with pytest.raises(fc.InvalidPolicy, match="no objective is called 'speed': give flops or time"):
        objective_called("speed")


def test_a_limit_that_is_just_kept_is_kept_and_seconds_are_shown_as_they_are_read() -> None:
    seconds = Seconds(8, computed=1.0, skipped=0.5, rest=2.0)  # 6.5 s with one computed step
    assert [seconds.most(limit) for limit in (6.5 - 2**-20, 6.5, 7.0, 10.0)] == [0, 1, 2, 8]
    assert Seconds(8, computed=1.0, skipped=0.01, rest=0.0099).words == (
        "a computed step takes 1.00 s here, a skipped one 10 ms, and the rest of a call 9.9 ms"
    )
    assert Seconds(8, computed=0.9996, skipped=0.009552, rest=0.5).words == (
        "a computed step takes 1000 ms here, a skipped one 9.6 ms, and the rest of a call 500 ms"
    )
    table = Seconds(8, 1.0, 0.5, 2.0, {"ff": 0.75}, "a machine")
    assert Seconds(**json.loads(json.dumps(table.payload()))) == table
    assert table.told("there") == (
        "a computed step takes 1.00 s there, a skipped one 500 ms (one that reuses all of ff 750 ms), and the rest of "
        "a call 2.00 s"
    )


def test_what_is_timed_computes_every_second_step_and_mixes_as_many_outputs_as_a_plan() -> None:
    plan = _every_second(7, 2, 0.5)
    weights = [(1, (1.0,)), (3, (0.5, 0.5)), (5, (0.5, 0.5))]
    stretches = tuple(Stretch(after=k - 1, start=k, outputs=outputs, input=0.5) for k, outputs in weights)
    assert plan == fc.Planned(steps=7, computed=(0, 2, 4, 6), stand_in=Fitted(stretches=stretches, variance=True))


def test_the_first_run_is_not_timed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs are made, which take 100 s, 4 s and 6 s longer than their parts."""
    longer = [100.0, 4.0, 6.0]
    original = module.run_under

    def slowly(*args: Any) -> Any:
        video, trace, seconds = original(*args)
        return video, trace, seconds + longer.pop(0)

    monkeypatch.setattr(module, "run_under", slowly)
    found = Seconds.measured(setting, setting.cases(["a"])[0])
    assert not longer and found.rest == TEXT + DECODER + 5.0
    assert (found.computed, found.skipped) == (DENOISER + SCHEDULER, SCHEDULER)


def test_a_scheduler_that_is_called_twice_a_step_ends_it_the_second_time(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    def now() -> float:
        heard.append(len(heard))
        return time.perf_counter() if len(heard) % 2 == 0 else 1000.0 * len(heard) ** 2

    def tapped(owner: Any, name: str, after: Callable[[Any], None]) -> MethodTap:
        return MethodTap(owner, name, lambda result: [after(result) for _ in range(2)] and None)

    monkeypatch.setattr(module, "now", now)
    monkeypatch.setattr(module, "MethodTap", tapped)
    found = Seconds.measured(setting, setting.cases(["a"])[0])
    assert found == Seconds(STEPS, DENOISER + SCHEDULER, SCHEDULER, TEXT + DECODER, {}, setting.hardware)


@pytest.mark.parametrize(
    ("steps", "kinds", "timed", "first"),
    [
        (6, ["ff"], 2, 1),  # 2 kinds of steps three times each: 6 of 3 in a run
        (6, ["ff", "cross", "ff", "denoiser"], 3, 1),
        (7, ["a", "b", "c"], 4, 2),
        (50, ["a", "b", "c"], 2, 1),  # two runs at least
        (4, ["a", "b", "c", "d"], 8, 3),
    ],
)
def test_so_many_runs_time_each_kind_three_times(steps: int, kinds: list[str], timed: int, first: int) -> None:
    assert timed_runs(steps, kinds) == (timed, first)
    places, turns = (steps // 2) * timed, len({*kinds, "denoiser"})
    assert places >= 3 * turns and (steps // 2) * first >= turns


def test_a_speedup_counts_what_every_call_takes() -> None:
    seconds = Seconds(10, computed=1.0, skipped=0.25, rest=2.0)
    assert [seconds.of(count) for count in (0, 4, 10)] == [4.5, 7.5, 12.0]
    assert seconds.speedup(4) == 12.0 / 7.5 and seconds.computed_for(12.0 / 7.5) == 4

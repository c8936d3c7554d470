"""References are made once and never trusted blindly; measurements are of what was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastercache as fc
from fastercache import zoo
from fastercache.analysis import metrics
from fastercache.analysis.metrics import Metric
from fastercache.tuner import Evaluator, Setting, run
from fastercache.tuner.evaluate import Evaluation
from tests.tuner.conftest import CALL, SEARCH


def count_runs(monkeypatch: pytest.MonkeyPatch, evaluator: Evaluator) -> list[str]:
    """The prompts generated from now on."""
    made: list[str] = []
    original = Setting.generate
    monkeypatch.setattr(Setting, "generate", lambda self, case: (made.append(case.prompt), original(self, case))[1])
    return made


def test_references_are_made_once_and_survive_on_disk(
    evaluator: Evaluator, tiny_latte: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = evaluator.cases(SEARCH)[0]
    made = count_runs(monkeypatch, evaluator)
    first = evaluator.reference(case)
    assert torch.equal(evaluator.reference(case), first) and len(made) == 1
    again = Evaluator(tiny_latte, CALL, store=evaluator.references.store)
    assert count_runs(monkeypatch, again) == [] and torch.equal(again.reference(case), first)
    assert len(list(evaluator.references.store.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_reference_is_made_again(evaluator: Evaluator, damage: bytes | None) -> None:
    case = evaluator.cases(SEARCH)[0]
    first = evaluator.reference(case)
    (path,) = evaluator.references.store.iterdir()
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert torch.equal(evaluator.reference(case), first)
    assert torch.equal(evaluator.reference(case), first)


def test_a_reference_of_something_else_is_made_again(evaluator: Evaluator) -> None:
    """A file under the right name whose key is another one, as of a copied or a colliding file."""
    case = evaluator.cases(SEARCH)[0]
    first = evaluator.reference(case)
    (path,) = evaluator.references.store.iterdir()
    save_file({"video": torch.zeros(first.shape)}, path, metadata={"key": "another"})
    assert torch.equal(evaluator.reference(case), first)


def test_whatever_changes_the_output_changes_the_reference(evaluator: Evaluator, tiny_latte: Any) -> None:
    case = evaluator.cases(SEARCH)[0]
    evaluator.reference(case)

    def files(**changes: Any) -> int:
        other = Evaluator(tiny_latte, {**CALL, **changes}, store=evaluator.references.store)
        other.reference(case)
        return len(list(evaluator.references.store.iterdir()))

    assert files() == 1
    assert files(num_inference_steps=5) == 2
    assert files(guidance_scale=2.0) == 3
    with torch.no_grad():
        next(iter(tiny_latte.transformer.parameters())).add_(0.01)
    assert files() == 4


def test_no_cache_measures_as_perfect_and_free(evaluator: Evaluator) -> None:
    result = evaluator.evaluate(fc.NoCache(), evaluator.cases(SEARCH))
    assert result.values["psnr"] == [100.0, 100.0] and result.values["ssim"] == pytest.approx([1.0, 1.0])
    assert result.ratio == 1.0 and result.cached_bytes == 0 and result.stopped is None


def test_figures_are_those_of_the_trace_and_the_videos(evaluator: Evaluator) -> None:
    cases = evaluator.cases(SEARCH)
    policy = fc.FasterCache(start=0.2, cfg_start=0.2)
    result = evaluator.evaluate(policy, cases)
    for i, case in enumerate(cases):
        video, trace, _ = evaluator.run(policy, case)
        error = (video - evaluator.reference(case)).square().mean(dim=(1, 2, 3))
        assert result.values["psnr"][i] == pytest.approx(float((-10 * error.log10()).clamp(max=100).mean()), abs=1e-3)
        assert result.cached_bytes == trace.cached_bytes > 0
    assert result.ratio == pytest.approx(1 / trace.speedup_flops)


def test_stopping_ends_after_the_prompt_that_decided(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = evaluator.cases([*SEARCH, "a third"])
    for case in cases:
        evaluator.reference(case)
    made = count_runs(monkeypatch, evaluator)
    result = evaluator.evaluate(fc.FasterCache(), cases, lambda r: "enough" if len(r.values["psnr"]) == 2 else None)
    assert result.stopped == "enough" and made == SEARCH


def test_nobody_is_asked_to_stop_after_the_last_prompt(evaluator: Evaluator) -> None:
    asked: list[int] = []

    def stop(found: Evaluation) -> str | None:
        asked.append(len(found.values["psnr"]))
        return "enough" if len(found.values["psnr"]) == 2 else None

    assert evaluator.evaluate(fc.NoCache(), evaluator.cases(SEARCH), stop).stopped is None
    assert asked == [1]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_figure_that_is_no_number_is_refused_with_the_prompt_and_its_seed(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    found = {"psnr": torch.tensor([30.0]), "ssim": torch.tensor([value])}
    monkeypatch.setattr("fastercache.tuner.evaluate.measure", lambda *args, **more: found)
    case = evaluator.cases(SEARCH)[1]
    with pytest.raises(fc.NotFinite, match=rf"ssim of 'a blue two' \(seed 1\) is {value}"):
        evaluator.quality(evaluator.reference(case), case)


def test_what_was_not_run_costs_what_the_uncached_run_does() -> None:
    assert Evaluation({}).ratio == 1.0 and Evaluation({}, flops=1, flops_full=4).ratio == 0.25


def test_the_pipeline_is_bare_for_references_and_afterwards(evaluator: Evaluator, tiny_latte: Any) -> None:
    cases = evaluator.cases(SEARCH)
    before = evaluator.run_bare(cases[0])[0]
    measured, _ = evaluator.compare(fc.FasterCache(start=0.0, cfg_start=0.0), cases)
    assert torch.equal(evaluator.run_bare(cases[0])[0], before)
    assert not torch.equal(evaluator.run(fc.FasterCache(start=0.0, cfg_start=0.0), cases[0])[0], before)
    assert torch.equal(evaluator.run_bare(cases[0])[0], before)
    assert "forward" not in vars(tiny_latte.transformer)
    assert measured.prompts == 2 and measured.speedup_wall is not None and measured.speedup_flops > 1


def test_the_speedup_is_bare_over_cached_and_the_two_take_turns(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bare runs take 8, 30, 10 ... seconds here and cached ones 2, 9, 3 ...: medians, so 10 over 3."""
    bare, cached = iter((8.0, 30.0, 10.0) * 2), iter((2.0, 9.0, 3.0) * 2)
    run, run_bare, turns = Evaluator.run, Evaluator.run_bare, list[str]()

    def timed(self: Evaluator, policy: fc.Policy, case: Any) -> Any:
        turns.append("cached")
        return (*run(self, policy, case)[:2], next(cached))

    def timed_bare(self: Evaluator, case: Any) -> Any:
        turns.append("bare")
        return run_bare(self, case)[0], next(bare)

    monkeypatch.setattr(Evaluator, "run", timed)
    monkeypatch.setattr(Evaluator, "run_bare", timed_bare)
    policy = fc.StaticInterval(sites="denoiser", interval=2, start=0.0)  # half of the calls, so half of the FLOPs
    measured, result = evaluator.compare(policy, evaluator.cases([*SEARCH, "a third"]), repeats=2)
    assert measured.speedup_wall == pytest.approx(10 / 3) and measured.seconds == 3.0
    assert measured.speedup_flops == pytest.approx(2.0) and measured.prompts == 3
    assert len(result.values["psnr"]) == 3 and len(result.seconds) == 6
    assert turns == ["bare", "cached", "cached", "bare"] * 3


def test_the_cache_of_a_policy_is_its_largest_over_the_cases(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter((7, 30, 5))
    run = Evaluator.run

    def sized(self: Evaluator, policy: fc.Policy, case: Any) -> Any:
        video, trace, seconds = run(self, policy, case)
        trace.bytes_per_step = [0, next(sizes)]
        return video, trace, seconds

    monkeypatch.setattr(Evaluator, "run", sized)
    assert evaluator.evaluate(fc.NoCache(), evaluator.cases([*SEARCH, "a third"])).cached_bytes == 30


def test_each_case_has_noise_of_its_own(tiny_latte: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(tiny_latte, CALL, store=tmp_path, seed=7)
    assert [case.seed for case in evaluator.cases(SEARCH)] == [7, 8]


def test_counting_is_no_part_of_a_runs_seconds(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Setting.generate

    def slow_to_count(setting: Setting, case: Any) -> torch.Tensor:
        video = original(setting, case)
        assert evaluator._session is not None
        evaluator._session.last.counting_seconds = 1000.0
        return video

    monkeypatch.setattr(Setting, "generate", slow_to_count)
    assert evaluator.run(fc.NoCache(), evaluator.cases(SEARCH)[0])[2] < -900.0


def test_not_a_number_is_refused_with_the_prompt(evaluator: Evaluator, tiny_latte: Any) -> None:
    with torch.no_grad():
        next(iter(tiny_latte.transformer.parameters())).fill_(float("nan"))
    with pytest.raises(fc.NotFinite, match="a red seven"):
        evaluator.reference(evaluator.cases(SEARCH)[0])


def test_an_unwritable_store_leaves_no_half_file(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fastercache.policies.documents.os.replace", fail)
    with pytest.raises(fc.ConfigUnreadable, match="disk full"):
        evaluator.reference(evaluator.cases(SEARCH)[0])
    assert not list(evaluator.references.store.iterdir())


def test_nothing_in_a_setting_can_be_exchanged(evaluator: Evaluator) -> None:
    """Another call is another setting, with an identity and references of its own."""
    setting = evaluator.setting
    with pytest.raises(AttributeError):
        setting.call = {}  # type: ignore[misc]
    with pytest.raises(AttributeError):
        evaluator.pipe = None  # type: ignore[misc]
    shorter = setting.calling(num_inference_steps=3)
    assert setting.call["num_inference_steps"] == CALL["num_inference_steps"]
    assert shorter.identity["call"]["num_inference_steps"] == 3 and shorter.identity != setting.identity
    case = setting.cases(SEARCH)[0]
    video, trace, _ = run(shorter, fc.NoCache(), case)
    assert trace.run.count == 3 and torch.equal(video, shorter.generate(case))


def test_a_reference_free_metric_of_the_uncached_video_is_measured(tiny_latte: Any, tmp_path: Path) -> None:
    """A trial that reuses nothing equals the reference; without a reference that is no best value."""
    bright = Metric("bright", lambda v, r, p: v.mean(dim=(1, 2, 3, 4)), 0.0, 1.0, "higher", 0.01, "b", False, True)
    metrics._METRICS["bright"] = bright
    try:
        with Evaluator(tiny_latte, CALL, store=tmp_path, metrics=("psnr", "bright")) as evaluator:
            cases = evaluator.cases(SEARCH)
            expected = [float(evaluator.reference(case).mean()) for case in cases]
            found = evaluator.exact(cases)
            assert found["bright"] == pytest.approx(expected, rel=1e-5) and found["psnr"] == [100.0, 100.0]
            assert evaluator.evaluate(fc.NoCache(), cases).values["bright"] == pytest.approx(expected, rel=1e-5)
    finally:
        del metrics._METRICS["bright"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_workers_begin_with_the_reference_of_different_cases(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    prompts = ["one", "two", "three"]
    with Evaluator(tiny_latte, CALL, store=tmp_path, place=place) as evaluator:
        made = count_runs(monkeypatch, evaluator)
        evaluator.evaluate(fc.NoCache(), evaluator.cases(prompts))
    assert made[:3] == prompts[place:] + prompts[:place]


HALF = fc.StaticInterval(sites="denoiser", interval=2, start=0.0)


def test_a_reference_that_is_made_after_a_cached_run_is_uncached(evaluator: Evaluator) -> None:
    one, other = evaluator.cases(SEARCH)
    cached, _, _ = evaluator.run(HALF, one)
    bare = evaluator.setting.on(zoo.build("latte").pipe).generate(other)
    assert torch.equal(evaluator.reference(other), bare)
    again, _, _ = evaluator.run(HALF, one)
    assert torch.equal(again, cached) and not torch.equal(again, evaluator.reference(one))


def test_each_policy_is_run_as_itself_in_one_session(evaluator: Evaluator) -> None:
    case = evaluator.cases(SEARCH)[0]
    videos = [evaluator.run(policy, case)[0] for policy in (HALF, fc.NoCache(), HALF)]
    assert torch.equal(videos[1], evaluator.reference(case))
    assert torch.equal(videos[0], videos[2]) and not torch.equal(videos[0], videos[1])


def test_after_the_last_prompt_nothing_is_left_to_stop(evaluator: Evaluator) -> None:
    asked: list[int] = []

    def stop(result: Evaluation) -> str | None:
        asked.append(len(result.seconds))
        return "enough" if len(result.seconds) == 3 else None

    result = evaluator.evaluate(fc.NoCache(), evaluator.cases([*SEARCH, "a third"]), stop)
    assert asked == [1, 2] and result.stopped is None and len(result.values["ssim"]) == 3


def test_costs_are_counted_once(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = evaluator.cases(SEARCH)
    made = count_runs(monkeypatch, evaluator)
    assert evaluator.cost_model(one) is evaluator.cost_model(other) and made == [SEARCH[0]]


def test_what_computes_nothing_that_is_counted_saves_nothing() -> None:
    assert Evaluation({}, flops=3, flops_full=4).ratio == 0.75 and Evaluation({}).ratio == 1.0

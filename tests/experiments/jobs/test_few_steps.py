"""Laws of the few-step figures: their line-up, what is compared with what, and the page that tells of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.experiments.bench import lineup, standings
from fastercache.experiments.bench.entries import FewerSteps
from fastercache.experiments.bench.few_steps import FEW_STEPS
from fastercache.experiments.jobs import few_steps
from fastercache.experiments.jobs.few_steps import Models, Way, compare, gains, place, ways_of
from fastercache.experiments.pipelines import Subject
from fastercache.tuner.setting import Setting
from tests.experiments.pages import ROOT

CALL = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False}
PLAN = fc.Planned(steps=6, computed=(0, 1, 4))


def test_every_setting_of_the_line_up_can_be_made_for_8_steps() -> None:
    plans = {speedup: PLAN for method in FEW_STEPS for speedup in method.speedups}
    rows = lineup.lineup(FEW_STEPS, 8, None, "no constants", plans=plans, peers=False)
    assert len({row.name for row in rows}) == len(rows)
    assert {row.label for row in rows if row.refused} == {m.label for m in FEW_STEPS if m.calibrated}
    fewer = [row.entry.steps for row in rows if isinstance(row.entry, FewerSteps)]
    assert fewer == [7, 6, 5, 4, 3, 2]
    speedups = [speedup for method in FEW_STEPS for speedup in method.speedups]
    assert [max(n for n in fewer if 8 / n >= speedup) for speedup in speedups] == [7, 6, 5, 4]
    assert {method.label for method in FEW_STEPS} <= {method.label for method in lineup.METHODS}


@pytest.fixture
def ways(tiny_latte: Any) -> list[Way]:
    teacher = Subject("latte-digits", tiny_latte, {**CALL, "num_inference_steps": 6, "guidance_scale": 4.0}, True)
    student = Subject("latte-digits-8", tiny_latte, {**CALL, "num_inference_steps": 2, "guidance_scale": 1.0}, True)
    return ways_of(student, teacher, PLAN, 7)


def test_calls_of_the_denoiser_are_counted_with_guidance_and_without(ways: list[Way]) -> None:
    assert [way.calls for way in ways] == [12, 32, 4, 2, 2, 6, 2]
    assert ways[0].name == "latte-digits" and ways[-1].name == "latte-digits-8"


def test_each_way_is_measured_against_the_first_from_the_same_noise_and_made_once(
    ways: list[Way], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = Setting.generate

    def counting(self: Setting, case: Any) -> Any:
        made.append(case.seed)
        return original(self, case)

    monkeypatch.setattr(Setting, "generate", counting)
    monkeypatch.setattr(few_steps, "judged", lambda subject, videos, prompts: [prompts[0] == "one"])
    subject = Subject("latte-digits", ways[0].setting.pipe, {}, True)
    chosen = [ways[0], ways[3], Way("as it is", ways[0].setting, fc.Planned(steps=6, computed=tuple(range(6))))]
    found = compare(subject, chosen, ["one", "two"], tmp_path)
    assert made == [7, 7, 7, 8, 8, 8]
    assert found[0].psnr is None and found[1].psnr is not None and found[2].psnr is not None
    assert found[1].psnr.value < 60.0 < found[2].psnr.value
    assert [one.judge.value for one in found] == [0.5, 0.5, 0.5]
    again = compare(subject, chosen, ["one", "two"], tmp_path)
    assert made[6:] == [7, 8]  # the run with a policy alone
    assert [one.judge for one in again] == [one.judge for one in found]
    # A sum over a video read from a file may differ in the last bit: where it lies in memory decides the order.
    psnr = [(one.psnr.value, one.psnr.low, one.psnr.high) for one in found[1:] if one.psnr is not None]
    assert [(one.psnr.value, one.psnr.low, one.psnr.high) for one in again[1:] if one.psnr is not None] == [
        pytest.approx(figures, rel=1e-5) for figures in psnr
    ]

    table = Models(student="b", teacher="a", prompts=2, seed=7, ways=tuple(found)).markdown()
    assert "| latte-digits | 6 | 4 | 12 | 50.0 % |  |" in table and table.count(" ± ") == 3


def test_the_page_says_what_was_measured() -> None:
    page = (ROOT / "docs" / "few-steps.md").read_text(encoding="utf-8")
    folder = ROOT / "docs" / "bench" / "latte-digits-8"
    models = Models.model_validate_json((folder / few_steps.FILE).read_text(encoding="utf-8"))
    results = standings.Results.load(folder)
    assert min(models.prompts, results.prompts) >= 12 and models.seed == results.seed
    for what, text in (("models", models.markdown()), ("gains", gains(results))):
        start, end = place(results.pipeline, what)
        assert page.split(start)[1].split(end)[0].strip() == text.strip()
    # what the prose says of them
    planned = [line for line in results.ran if line.label == "planned"]
    assert [len(line.policy["computed"]) for line in planned] == [7, 6, 5, 4]
    assert all(line.beats_by_flops == "yes" for line in planned)
    by_name = {way.name: way for way in models.ways}
    student, plan = by_name["latte-digits-8"], next(way for name, way in by_name.items() if "planned" in name)
    assert student.calls == plan.calls and min(way.judge.value for way in models.ways[:4]) > 0.9
    assert student.psnr is not None and plan.psnr is not None and student.psnr.high is not None
    assert plan.psnr.low is not None and plan.psnr.low > student.psnr.high
    teacher = by_name["latte-digits, 8 steps"]
    assert teacher.calls == 2 * student.calls and teacher.psnr is not None and student.psnr.low is not None
    assert teacher.psnr.high is not None and student.psnr.low > teacher.psnr.high

"""The demo, small: every stage runs, what it writes is whole, and a second call repeats nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.experiments.bench.contest import UNCACHED, Contest
from fastercache.experiments.jobs import demo as story
from fastercache.experiments.jobs.searching import export_study
from fastercache.experiments.jobs.selecting import surely_no_worse
from fastercache.experiments.pipelines import Subject, open_pipeline
from fastercache.policies.documents import write_json
from fastercache.tuner import Evaluator

PLAN = story.Plan(recorded=1, search=2, selection=2, held_out=2, trials=4, tune_seconds=60.0, shown=1)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return open_pipeline("latte-digits", device="cpu", num_inference_steps=8)


@pytest.fixture(scope="module")
def result(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    yield out, story.demo(subject, out, PLAN, show=False)


def test_the_table_has_every_policy_with_every_figure(result: tuple[Path, dict[str, Any]]) -> None:
    out, payload = result
    written = json.loads((out / "demo.json").read_text())
    assert written["rows"] == payload["rows"]
    assert [row["name"] for row in written["rows"]] == [
        UNCACHED,
        story.FEWER,
        story.FEWEST,
        story.GENTLE,
        story.STATIC,
        story.PAPER,
        story.TUNED,
        story.ANY,
    ]
    keys = {"name", "speedup_flops", "speedup_wall", "psnr", "ssim", "judge", "cache_bytes", "prompts", "policy"}
    for row in written["rows"]:
        assert set(row) == keys
        assert row["prompts"] == PLAN.held_out and 0 <= row["judge"] <= 1 and 0 < row["psnr"] <= 100
    rows = {row["name"]: row for row in written["rows"]}
    assert (rows[UNCACHED]["speedup_flops"], rows[UNCACHED]["speedup_wall"], rows[UNCACHED]["psnr"]) == (1, 1, 100)
    assert rows[story.STATIC]["speedup_flops"] >= rows[story.PAPER]["speedup_flops"] > 1
    assert rows[story.PAPER]["policy"] == fc.dump(fc.FasterCache())
    for few, tuned in ((story.FEWER, story.TUNED), (story.FEWEST, story.ANY)):
        assert rows[few]["speedup_flops"] >= rows[tuned]["speedup_flops"] * (1 - 1e-9)
        assert rows[few]["speedup_flops"] == pytest.approx(8 / rows[few]["policy"]["num_inference_steps"])


def test_search_selection_recording_and_held_out_prompts_are_disjoint(subject: Subject, tmp_path: Path) -> None:
    job = story.Demo(subject, tmp_path, story.Plan())
    parts = [job.search_prompts, job.selection_prompts, job.recorded_prompts, job.held_out_prompts]
    together = [prompt for part in parts for prompt in part]
    assert len(together) == len(set(together))
    assert [len(part) for part in parts] == [
        story.Plan().search,
        story.Plan().selection,
        story.Plan().recorded,
        story.Plan().held_out,
    ]


def test_every_file_it_names_is_there(result: tuple[Path, dict[str, Any]]) -> None:
    _, payload = result
    expected = {"comparison", "overview", "timeline", "pareto", "tuned", "table", "tensorboard", "similarity_rel_l1"}
    assert expected <= set(payload["files"])
    for path in payload["files"].values():
        assert Path(path).exists(), path


def test_the_tuned_config_comes_back_from_its_file(result: tuple[Path, dict[str, Any]]) -> None:
    out, payload = result
    for name, search in story.SEARCHES.items():
        tuned = fc.load(out / search.file)
        assert fc.dump(tuned.policy) == next(row["policy"] for row in payload["rows"] if row["name"] == name)
        assert tuned.budget == payload["budget"] and tuned.steps == 8


def test_its_study_can_be_exported_again(result: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, payload = result
    found = export_study(out / "study", tmp_path / "tuned.json", trial=None, show=False)
    assert fc.load(tmp_path / "tuned.json").steps == 8
    assert found["budget"] == payload["budget"] and found["search"]["prompts"] == PLAN.search


def test_the_budget_is_what_fastercache_reaches_on_the_search_prompts(
    subject: Subject, result: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    evaluator = Evaluator(subject.pipe, subject.call, store=tmp_path)
    prompts = subject.captions("train")[: PLAN.search]
    with evaluator:
        values = evaluator.evaluate(fc.FasterCache(), evaluator.cases(prompts)).values["psnr"]
    assert float(result[1]["budget"].removeprefix("psnr>=")) == pytest.approx(sum(values) / len(values), abs=2e-4)


def test_a_second_call_generates_nothing_and_gives_the_same_table(
    subject: Subject, result: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, payload = result
    generated: list[object] = []
    original = Evaluator.generate

    def counting(self: Evaluator, case: Any) -> Any:
        generated.append(case)
        return original(self, case)

    monkeypatch.setattr(Evaluator, "generate", counting)
    again = story.demo(subject, out, PLAN, show=False)
    assert again["rows"] == payload["rows"]
    assert len(generated) <= 2  # one to count FLOPs of schedules from, one for the picture of the tuned run


def test_another_plan_forgets_what_does_not_fit(subject: Subject, tmp_path: Path) -> None:
    story.Demo(subject, tmp_path, PLAN)
    write_json(tmp_path / "budget.json", {"budget": "psnr>=1"}, "demo's budget")
    story.Demo(subject, tmp_path, PLAN)
    assert (tmp_path / "budget.json").exists()
    story.Demo(subject, tmp_path, story.Plan(search=3))
    assert not (tmp_path / "budget.json").exists()


def test_a_contest_cut_short_goes_on_where_it_stopped(subject: Subject, tmp_path: Path) -> None:
    prompts = subject.captions("held_out")[:2]
    entries = {"static": fc.StaticInterval()}
    ticks = 0

    def stop() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            raise KeyboardInterrupt

    first = Contest(subject, entries, prompts, tmp_path, seed=5)
    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    second = Contest(subject, entries, prompts, tmp_path, seed=5)
    assert (second.missing(0), second.missing(1)) == ([], [UNCACHED, "static"])
    second.run()
    whole = Contest(subject, entries, prompts, tmp_path / "other", seed=5)
    whole.run()
    for name in (UNCACHED, "static"):
        assert second.row(name).quality == whole.row(name).quality
        assert second.row(name).speedup_flops == whole.row(name).speedup_flops
    changed = Contest(subject, {"static": fc.StaticInterval(interval=3)}, prompts, tmp_path, seed=5)
    assert (changed.missing(0), changed.missing(1)) == (["static"], ["static"])


def test_selection_asks_for_a_gain_beyond_its_standard_error() -> None:
    assert surely_no_worse([30.0, 31.0, 32.0], [29.0, 30.0, 31.1])
    assert not surely_no_worse([30.0, 34.0, 29.0], [30.0, 30.0, 31.0])
    assert not surely_no_worse([29.0, 29.0], [30.0, 30.0])

"""The demo, small: every stage runs, what it writes is whole, and a second call repeats nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.experiments.bench.contest import UNCACHED, Contest
from fastercache.experiments.jobs import demo as story
from fastercache.experiments.pipelines import Subject, open_pipeline
from fastercache.policies.documents import write_json
from fastercache.tuner import Evaluator
from fastercache.tuner.evaluate import Evaluation
from fastercache.tuner.setting import Setting

STEPS = 14
PLAN = story.Plan(search=2, looked=1, held_out=2, effort=0, shown=1)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return open_pipeline("latte-digits", device="cpu", num_inference_steps=STEPS)


@pytest.fixture(scope="module")
def result(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    yield out, story.demo(subject, out, PLAN, show=False)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every generation, as it is made."""
    cases: list[Any] = []
    original = Setting.generate

    def counting(self: Setting, case: Any) -> Any:
        cases.append(case)
        return original(self, case)

    monkeypatch.setattr(Setting, "generate", counting)
    return cases


def test_the_table_has_every_policy_with_every_figure(result: tuple[Path, dict[str, Any]]) -> None:
    out, payload = result
    written = json.loads((out / "demo.json").read_text())
    assert written["rows"] == payload["rows"]
    rows = {row["name"]: row for row in written["rows"]}
    assert [name for name in rows if "no cache" not in name and name != story.BEST] == [
        UNCACHED,
        story.PAPER,
        story.PLANNED,
    ]
    keys = {"name", "speedup_flops", "speedup_wall", "psnr", "ssim", "judge", "cache_bytes", "prompts", "policy"}
    for row in rows.values():
        assert set(row) == keys
        assert row["prompts"] == PLAN.held_out and 0 <= row["judge"] <= 1 and 0 < row["psnr"] <= 100
    assert (rows[UNCACHED]["speedup_flops"], rows[UNCACHED]["speedup_wall"], rows[UNCACHED]["psnr"]) == (1, 1, 100)
    assert rows[story.PAPER]["policy"] == fc.dump(fc.FasterCache())
    computed = payload["computed_steps"]
    assert rows[story.PLANNED]["policy"]["computed"] == computed
    assert rows[story.PLANNED]["speedup_flops"] == pytest.approx(STEPS / len(computed))
    fewer = rows[f"{len(computed)} steps, no cache"]
    assert fewer["policy"]["num_inference_steps"] == len(computed)
    assert fewer["speedup_flops"] == pytest.approx(STEPS / len(computed))


def test_search_looked_and_held_out_prompts_are_disjoint(subject: Subject, tmp_path: Path) -> None:
    job = story.Demo(subject, tmp_path, story.Plan())
    together = [*job.search_prompts, *job.looked_prompts, *job.held_out_prompts]
    assert len(together) == len(set(together)) == 8 + 2 + 20


def test_every_file_it_names_is_there(result: tuple[Path, dict[str, Any]]) -> None:
    _, payload = result
    expected = {
        "comparison", "overview", "timeline", "pareto", "tuned", "table", "tensorboard", "similarity_rel_l1",
        "plan_front", "plan_steps",
    }  # fmt: skip
    assert expected <= set(payload["files"])
    for path in payload["files"].values():
        assert Path(path).exists(), path


def test_the_plan_comes_back_from_its_file_and_keeps_the_budget(result: tuple[Path, dict[str, Any]]) -> None:
    out, payload = result
    tuned = fc.load(out / "tuned.json")
    assert fc.dump(tuned.policy) == next(row["policy"] for row in payload["rows"] if row["name"] == story.PLANNED)
    assert tuned.budget == payload["budget"] and tuned.steps == STEPS
    assert tuned.measured.search is not None
    assert tuned.measured.search.quality["psnr"] >= float(payload["budget"].removeprefix("psnr>="))


def test_the_budget_is_what_fastercache_reaches_on_the_search_prompts(
    subject: Subject, result: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    evaluator = Evaluator(subject.pipe, subject.call, store=tmp_path)
    prompts = subject.captions("train")[: PLAN.search]
    with evaluator:
        values = evaluator.evaluate(fc.FasterCache(), evaluator.cases(prompts)).values["psnr"]
    assert float(result[1]["budget"].removeprefix("psnr>=")) == pytest.approx(sum(values) / len(values), abs=2e-4)


@pytest.mark.slow
def test_a_second_call_generates_nothing_and_gives_the_same_table(
    subject: Subject, result: tuple[Path, dict[str, Any]], generated: list[Any]
) -> None:
    out, payload = result
    again = story.demo(subject, out, PLAN, show=False)
    assert again["rows"] == payload["rows"]
    assert len(generated) <= 2  # one to count FLOPs of schedules from, one for the picture of the plan's run


def test_each_search_prompt_is_generated_uncached_once(subject: Subject, tmp_path: Path, generated: list[Any]) -> None:
    job = story.Demo(subject, tmp_path, PLAN)
    job.record()
    assert generated == job.cases
    story.Demo(subject, tmp_path, PLAN).record()
    assert all(job.evaluator.references.read(case) is not None for case in job.cases)
    assert generated == job.cases


QUALITY = {6: 40.0, 5: 44.9, 4: 48.0, 3: 50.0}


@pytest.mark.parametrize("least, interval", [(45.0, 4), (39.5, 6), (60.0, None)])
def test_the_best_published_method_has_the_longest_interval_that_keeps_the_budget(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, interval: int | None
) -> None:
    runs: list[fc.Policy] = []

    def measured(self: Evaluator, policy: Any, cases: Sequence[Any], stop: Any = None) -> Evaluation:
        runs.append(policy)
        return Evaluation({"psnr": [QUALITY[policy.interval]] * len(cases)})

    monkeypatch.setattr(Evaluator, "evaluate", measured)
    job = story.Demo(subject, tmp_path, PLAN)
    write_json(tmp_path / "budget.json", {"budget": f"psnr>={least}"}, "demo's budget")
    expected = None if interval is None else fc.HiCache(interval=interval, order=1)
    assert job.published == expected
    tried = len(runs)
    assert tried == (4 if interval is None else 7 - interval)
    assert story.Demo(subject, tmp_path, PLAN).published == expected and len(runs) == tried


def test_another_plan_forgets_what_does_not_fit(subject: Subject, tmp_path: Path) -> None:
    story.Demo(subject, tmp_path, PLAN)
    write_json(tmp_path / "budget.json", {"budget": "psnr>=1"}, "demo's budget")
    story.Demo(subject, tmp_path, PLAN)
    assert (tmp_path / "budget.json").exists()
    story.Demo(subject, tmp_path, story.Plan(search=3))
    assert not (tmp_path / "budget.json").exists()


@pytest.mark.slow
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

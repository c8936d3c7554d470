"""The command, from nothing to its files: all variants run, nothing runs twice, and what was printed can be again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastercache.experiments import pipelines
from fastercache.experiments.pipelines import Subject
from fastercache.experiments.reproduce import runner, why
from fastercache.experiments.reproduce.__main__ import app
from fastercache.experiments.reproduce.page import END, start
from fastercache.experiments.reproduce.results import Findings
from fastercache.experiments.reproduce.variants import entries
from fastercache.tuner import Setting

CALL = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False}
CAPTIONS = {"held_out": ["one", "two"], "train": ["three"]}


def test_captions_come_again_where_there_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "captions", lambda self, split: CAPTIONS[split])
    assert runner.prompts_for(Subject("tiny", None, {}, reference=False), 5) == ["one", "two", "one", "two", "one"]


def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["latte-digits", "--print-only", "--out", str(tmp_path)])
    assert shown.exit_code == 2 and "run without --print-only first" in " ".join(shown.output.split())


@pytest.mark.slow
def test_from_nothing_to_the_page(tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    generate = Setting.generate
    monkeypatch.setattr(Setting, "generate", lambda self, case: (ran.append(case), generate(self, case))[1])
    monkeypatch.setattr(Subject, "captions", lambda self, split: CAPTIONS[split])
    monkeypatch.setattr(why, "RECORDED", 1)
    opened = lambda name, **call: Subject(name, tiny_latte, {**CALL, **call}, reference=False)  # noqa: E731
    monkeypatch.setattr(pipelines, "open_pipeline", opened)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{start('tiny')}\n{END}\nafter\n", encoding="utf-8")
    words = ["tiny", "--count", "2", "--steps", "12", "--out", str(tmp_path), "--page", str(page)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    results = Findings.load(tmp_path / "findings.json")
    assert results.prompts == results.captions == 2 and results.why.prompts == 1
    assert [one.name for one in results.variants if one.refused is None] == ["uncached", *entries(12)]
    hold = results.variant("hold")
    assert hold.speedup_flops is not None and hold.speedup_flops > 1.0 and results.why.local["hold"] > 0.0
    assert (tmp_path / "findings.png").stat().st_size > 10_000
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "tiny, 12 steps, 2 held-out prompts" in text

    ran.clear()
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0 and ran == [], "all was kept"
    shown = CliRunner().invoke(app, [*words, "--print-only"])
    assert shown.exit_code == 0 and page.read_text(encoding="utf-8") == text

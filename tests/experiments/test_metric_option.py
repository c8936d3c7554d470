"""A metric of the user's own file goes through `tune`, `bench` and `export` by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.analysis import metrics
from fastercache.experiments.bench.standings import Results
from tests.analysis.test_metrics import CODE
from tests.experiments.test_third_party import answer, loaded_once, run

__all__ = ["loaded_once"]
PIPE = "latte-digits"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_metrics.py"
    path.write_text(CODE)
    return path


@pytest.mark.slow
def test_tune_and_export_judge_by_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red seven moving left\n")
    study, out = tmp_path / "study", tmp_path / "tuned.json"
    words = ["tune", PIPE, "--budget", "bright>=0.01,psnr>=1", "--metric", f"{file}:bright", "--metric", "tpsnr"]
    words += ["--prompts", str(prompts), "--held-out", str(tmp_path / "held.txt"), "--trials", "2", "--steps", "4"]
    (tmp_path / "held.txt").write_text("a blue two moving right\n")
    found: dict[str, Any] = answer(*words, "--study", str(study), "--out", str(out))
    assert {"bright", "tpsnr", "psnr", "ssim"} <= found.keys() and 0 < found["bright"] < 1
    measured = fc.load(out).measured
    assert measured.held_out is not None and measured.held_out.quality["bright"] == pytest.approx(found["bright"])
    assert json.loads((study / "job.json").read_text())["metrics"] == ["bright", "tpsnr"]
    metrics._METRICS.pop("bright")  # as in a new process
    again = ["export", str(study), "--out", str(tmp_path / "again.json")]
    assert "no quality metric is called 'bright'" in run(*again).stderr
    assert answer(*again, "--metric", str(file))["trial"] == found["trial"]


@pytest.mark.slow
def test_bench_has_a_column_for_it(file: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red seven moving left\na blue two moving right\n")
    words = [
        "bench",
        PIPE,
        "--policies",
        "fora",
        "--no-peers",
        "--prompts",
        str(prompts),
        "--count",
        "1",
        "--steps",
        "4",
    ]
    answer(*words, "--out", str(tmp_path / "bench"))
    found = answer(*words, "--metric", f"{file}:bright", "--out", str(tmp_path / "bench"))
    line = next(line for line in found["lines"] if line["label"] == "FORA" and line["refused"] is None)
    assert 0 < line["quality"]["bright"][0] < 1 and line["quality"]["psnr"]
    assert "brightness ↑" in (tmp_path / "bench" / "results.md").read_text()
    assert (tmp_path / "bench" / "pareto-bright.png").is_file()
    assert Results.load(tmp_path / "bench").metrics == ["psnr", "ssim", "bright"]

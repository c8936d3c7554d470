"""Default study folders never collide, what differs is said in few words, and a bad --out is found before the work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fastercache as fc
from fastercache.experiments import cli, pipelines
from fastercache.experiments.jobs.study_job import JOURNAL, Job, folder_for
from fastercache.policies.documents import check_writable


def job(**changes: Any) -> Job:
    return Job(**{"pipe": "latte-digits", "prompts": ("a", "b"), "budget": "psnr>=30", **changes})


def begun(folder: Path, one: Job) -> None:
    one.save(folder)
    (folder / JOURNAL).touch()


def test_each_job_has_a_folder_of_its_own_and_finds_it_again(tmp_path: Path) -> None:
    base = tmp_path / "tuning"
    jobs = [job(), job(budget="psnr>=40"), job(prompts=("a", "b", "c")), job(seed=1)]
    for number, one in enumerate(jobs, start=1):
        folder = folder_for(one, base)
        assert folder.name == ("tuning" if number == 1 else f"tuning-{number}")
        begun(folder, one)
    assert [folder_for(one, base).name for one in jobs] == ["tuning", "tuning-2", "tuning-3", "tuning-4"]


def test_a_folder_whose_job_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    begun(tmp_path / "tuning", job())
    (tmp_path / "tuning" / "job.json").write_text("{")
    assert folder_for(job(), tmp_path / "tuning").name == "tuning-2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": tuple("abcd")}, "was made with 2 prompts, this call has 4:"),
        ({"held_out": ("x",)}, "was made with 0 held-out prompts, this call has 1:"),
        ({"prompts": ("a", "z")}, 'was made with other prompts (place 2): "b", this call has "z":'),
        ({"budget": "psnr>=40"}, 'was made with budget "psnr>=30", this call has "psnr>=40":'),
        ({"objective": "time"}, 'was made with objective "flops", this call has "time":'),
    ],
)
def test_what_differs_in_a_folder_that_was_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    begun(tmp_path, job())
    with pytest.raises(fc.ConfigMismatch) as found:
        job(**changes).save(tmp_path)
    assert said in str(found.value)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "tuned.json", "tuned config")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tuned.json").write_text("kept")
    check_writable(tmp_path / "tuned.json", "tuned config")
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.json"]
    assert (tmp_path / "tuned.json").read_text() == "kept"


@pytest.mark.parametrize("command", [["tune"], ["plan", "--budget", "psnr>=30"]], ids=["tune", "plan"])
@pytest.mark.parametrize("place", ["folder", "file/tuned.json", "locked/tuned.json"])
def test_a_bad_out_is_found_before_anything_runs(
    command: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.startswith("locked") and os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("")
    Path("locked").mkdir(mode=0o500)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something ran")

    monkeypatch.setattr("fastercache.tuner.setting.Setting.generate", never)
    if command == ["tune"]:
        monkeypatch.setattr(pipelines, "_load", never)
    result = CliRunner().invoke(cli.app, [command[0], "latte-digits", *command[1:], "--out", place])
    assert result.exit_code == 2 and "cannot write the tuned config" in result.stderr, result.stderr
    assert not Path("tuning").exists() and not Path("planning").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["tune", "--budget", "psnr>=1", "--trials", "1", "--policy", "static_interval"],
        ["plan", "--speedup", "2", "--effort", "0"],
        ["plan", "--speedup", "2", "--speedup", "3", "--effort", "0"],
    ],
    ids=["tune", "plan", "dial"],
)
@pytest.mark.usefixtures("loaded_once")
def test_what_a_certification_left_in_a_file_outlives_a_new_schedule(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [command[0], "latte-digits", *command[1:], "--steps", "4", "--count", "1"]
    words += ["--out", "made.json"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.stderr
    certificate = {"budget": "psnr>=1", "prompts": 59, "violations": 0, "rate": 0.05, "confidence": 0.95}
    tried = {"0123456789abcdef": ["00112233445566ff"]}
    left = json.loads(Path("made.json").read_text())
    plans = left.get("plans", [left])
    plans[-1]["certificate"] = certificate
    Path("made.json").write_text(json.dumps(left | {"tried": tried}))
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.stderr
    again = json.loads(Path("made.json").read_text())
    plans = again.get("plans", [again])
    assert again["tried"] == tried and plans[-1]["certificate"] == {"method": "clopper-pearson", **certificate}
    assert all(plan["certificate"] is None for plan in plans[:-1])

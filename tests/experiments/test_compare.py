"""`compare`: two folders of `analyze` beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastercache.analysis.comparing import compare
from fastercache.analysis.profile import Profile
from fastercache.analysis.record import Recorder
from fastercache.experiments import cli
from tests.analysis.fakes import FakeSession, drifting


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for seed, name in enumerate(("base", "lora")):
        session = FakeSession(drifting(numel=200, seed=seed))
        recorder = Recorder(session, "spatial|denoiser", 2, 64, 64, 0, None, owned=False)
        session.go(6)
        recorder.profile().save(tmp_path / name / "profile")  # as `analyze --out` keeps it
    return tmp_path / "base", tmp_path / "lora"


def test_a_table_a_picture_and_the_same_as_json(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["compare", *map(str, folders), "--measure", "rel_l2", "--out", str(tmp_path / "both.png")]
    printed = CliRunner().invoke(cli.app, words)
    assert printed.exit_code == 0, printed.output
    assert "base" in printed.stdout and "lora" in printed.stdout and "0: alike" in printed.stdout
    assert (tmp_path / "both.png").stat().st_size > 10_000
    answer = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).stdout)
    found = compare(*(Profile.load(folder / "profile") for folder in folders), "rel_l2")
    assert answer["rows"] == found.rows() and answer["prompts"] == [1, 1] and answer["steps"] == 6
    spatial = next(row for row in answer["rows"] if (row["group"], row["branch"]) == ("spatial", "cond"))
    first = Profile.load(folders[0] / "profile").matrix("spatial", "rel_l2", "cond")
    assert spatial["first"] == pytest.approx(float(first.diagonal(-1).mean()))


def test_what_cannot_be_compared_is_one_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for words, says in (
        ([str(folders[0]), str(tmp_path)], "profile.json"),
        ([*map(str, folders), "--measure", "l3"], "there is no measure 'l3'"),
        ([*map(str, folders), "--out", str(folders[0])], "folder"),
    ):
        ended = CliRunner().invoke(cli.app, ["compare", *words])
        assert ended.exit_code == 2 and says in " ".join(ended.stderr.split()), ended.stderr

"""The command `export` with `--to`: files, what is lost, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fastercache as fc
from fastercache.experiments import cli


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


@pytest.fixture
def tuned(latte: Any, tmp_path: Path) -> Path:
    plan = fc.Planned(steps=6, computed=(0, 2, 5), stand_in=fc.AverageVelocity())
    config = fc.TunedConfig.describe(latte.pipe, plan, steps=6, guidance_scale=4.0, guidance="batched")
    return config.save(tmp_path / "tuned.json")


def test_a_file_and_what_it_does_otherwise(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "mask.yaml"
    result = run("export", str(tuned), "--to", "cache-dit", "--out", str(out), "--json")
    found = json.loads(result.stdout)
    assert found["files"] == [str(out)] and "[1, 0, 1, 0, 0, 1]" in out.read_text()
    assert "a Taylor series of order 1 stands in for the predictor average_velocity" in found["lost"]
    shown = run("export", str(tuned), "--to", "cache-dit", "--out", str(out))
    assert f"otherwise than in {tuned}: a Taylor series" in shown.stdout


def test_a_folder_for_the_hub(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    assert run("export", str(tuned), "--to", "hub", "--out", str(folder)).exit_code == 0
    assert {path.name for path in folder.iterdir()} == {"tuned.json", "cached.py", "README.md", "CITATION.bib"}
    assert fc.load(folder / "tuned.json") == fc.load(tuned)
    for name in ("README.md", "CITATION.bib"):
        assert "docs/" not in (folder / name).read_text(), "the folder has no docs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["FILE", "--to", "diffusers"], "diffusers has no cache like planned"),
        (["FILE"], "say what it is written for"),
        (["FOLDER", "--to", "python"], "takes a tuned config"),
        (["FILE", "--to", "pyton"], "there is no target 'pyton'"),
        (["FILE", "--to", "python", "--trial", "3"], "belong to a study"),
        (["MISSING", "--to", "python"], "there is no tuned config"),
    ],
)
def test_refusals_are_one_line(tuned: Path, words: list[str], said: str) -> None:
    places = {"FILE": str(tuned), "FOLDER": str(tuned.parent), "MISSING": str(tuned.parent / "none.json")}
    result = run("export", *(places.get(word, word) for word in words))
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "usual", "named", "use"),
    [
        ("cache-dit", "cache-dit.yaml", "mine.yaml", "cache_dit.load_configs('{}')"),
        ("sglang", "sglang.env", "mine.env", ". ./{};"),
        ("python", "cached.py", "mine.py", "from {} import attach"),
    ],
)
def test_the_lines_on_use_name_the_file_that_was_written(
    tuned: Path, tmp_path: Path, target: str, usual: str, named: str, use: str
) -> None:
    texts = []
    for name in (usual, named):
        result = run("export", str(tuned), "--to", target, "--out", str(tmp_path / name))
        assert result.exit_code == 0, result.stderr
        texts.append((tmp_path / name).read_text())
        assert use.format(name.removesuffix(".py")) in texts[-1]
    assert sum(a != b for a, b in zip(*map(str.splitlines, texts), strict=True)) == 1

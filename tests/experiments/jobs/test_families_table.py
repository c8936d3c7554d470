"""The families table: complete, of one source, and honest about what fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import typer

import fastercache.experiments.jobs.families as families
from fastercache import zoo
from fastercache.experiments.jobs.families import Cell, Row, digest, read, table
from fastercache.experiments.pages import filled
from fastercache.policies.errors import ConfigUnreadable

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs" / "families.json"


def test_the_page_and_the_readme_are_renderings_of_the_same_results() -> None:
    rows = read(RESULTS)
    assert list(rows) == [name for name in zoo.FAMILIES if name not in zoo.SWEPT], "every family was checked"
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == table(rows)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(readme, families.BEGIN, families.END, digest(rows)) == readme
    section = readme.partition(families.BEGIN)[2].partition(families.END)[0]
    assert all(f"`{name}`" in section for name in rows)


def test_no_shipped_cell_fails() -> None:
    assert {name: row.broken for name, row in read(RESULTS).items() if row.broken} == {}


def row(name: str, **cells: Cell) -> Row:
    every = dict.fromkeys(families.COLUMNS, Cell("yes")) | {k.replace("_", " "): v for k, v in cells.items()}
    return Row(name, "Net", "batched: cond, uncond", every, "0")


def test_a_failing_cell_is_shown_kept_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And `--resume` checks it again, but not what held."""
    checked: list[str] = []

    def check(name: str) -> Row:
        checked.append(name)
        return row(name, law_3=Cell("no", "left behind: forward")) if name == "dit" and len(checked) < 3 else row(name)

    monkeypatch.setattr(families, "check_family", check)
    out, readme = tmp_path / "families.json", tmp_path / "README.md"
    readme.write_text(f"before\n{families.BEGIN}\nstale\n{families.END}\nafter\n")
    with pytest.raises(typer.Exit) as stopped:
        families.main(out, ["wan", "dit"], False, readme)
    assert stopped.value.exit_code == 1
    assert "left behind: forward" in out.with_suffix(".md").read_text()
    assert "not 3" in readme.read_text() and "stale" not in readme.read_text()
    monkeypatch.setattr(zoo, "FAMILIES", {"dit": "", "wan": ""})
    families.main(out, None, True, readme)
    assert checked == ["wan", "dit", "dit"]
    text = readme.read_text()
    assert "not 3" not in text and text.startswith("before\n") and text.endswith("\nafter\n")


def test_families_that_differ_have_lines_of_their_own() -> None:
    same = {name: row(name) for name in ("a", "b")}
    other = {"c": dataclasses.replace(row("c", law_4=Cell("n/a", "one branch")), guidance="none: cond")}
    lines = digest(same | other).splitlines()
    assert lines[2:] == [
        "| `a`, `b` | batched | 1-9 | yes | yes | yes |",
        "| `c` | none | 1-3, 5-9 | yes | yes | yes |",
    ]


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ConfigUnreadable, match="families: begin"):
        filled("nothing here", families.BEGIN, families.END, "table")

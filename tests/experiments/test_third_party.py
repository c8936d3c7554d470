"""A policy of the user's own, in a file or an installed package, goes through every command by name."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fastercache.experiments import cli, pipelines
from fastercache.policies import files, registry

PIPE = "latte-digits"
CODE = '''
from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

import fastercache as fc


class Late(fc.SitePolicy, fc.StaticRule[None]):
    """Temporal attention is computed every `gap`-th step, from the step `after` on."""

    name: ClassVar[str] = "late"
    gap: Annotated[int, Field(ge=2, le=4)] = 2
    after: Annotated[int, Field(ge=1, le=3)] = 1

    @property
    def query(self) -> str:
        return "temporal"

    def reuse(self, state: None, step: fc.Step) -> bool:
        return step.index > self.after and step.index % self.gap != 0
'''
LEAKY = (
    CODE.replace('"late"', '"leaky"')
    .replace("class Late", "class Leaky")
    .replace(
        "        return step.index > self.after",
        "        Leaky.asked = getattr(Leaky, 'asked', 0) + 1  # what the laws are there for: memory beyond a run\n"
        "        return Leaky.asked % 7 > 2 and step.index > self.after",
    )
)


LOAD = functools.cache(pipelines._load)


@pytest.fixture(autouse=True)
def loaded_once(own_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of one's own, and a folder loaded once for all tests here."""
    monkeypatch.setattr(pipelines, "_load", LOAD)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


def answer(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def forget() -> None:
    """As in a new process, to which the file was not given."""
    registry._POLICIES.pop("late")
    files._run.cache_clear()


def test_generate_and_policies_take_a_file(mine: Path, tmp_path: Path) -> None:
    found = answer(
        "generate", PIPE, "a red seven moving left", "--steps", "4", "--out", str(tmp_path / "out"),
        "--policy", f"{mine}:Late", "--set", "gap=3",
    )  # fmt: skip
    assert found["policy"] == {"policy": "late", "gap": 3, "after": 1} and found["speedup_flops"] > 1
    (entry,) = answer("policies", str(mine))["policies"]
    assert entry["name"] == "late" and entry["fields"]["gap"]["allowed"] == "2 to 4 (integer)"
    refused = run("generate", PIPE, "x", "--policy", str(mine), "--set", "gap=9")
    assert refused.exit_code == 2 and "late.gap" in refused.stderr and "found 9" in refused.stderr


def test_it_is_tuned_through_its_bounds_and_its_config_loads_where_the_file_is_given(
    mine: Path, tmp_path: Path
) -> None:
    tuned, study = tmp_path / "tuned.json", tmp_path / "study"
    found = answer(
        "tune", PIPE, "--budget", "psnr>=10", "--steps", "5", "--count", "1", "--trials", "2", "--policy", str(mine),
        "--study", str(study), "--out", str(tuned),
    )  # fmt: skip
    assert found["policy"]["policy"] == "late" and 2 <= found["policy"]["gap"] <= 4 and found["speedup_flops"] > 1
    assert json.loads((study / "job.json").read_text())["policies"] == ["late"]
    forget()
    apply = (
        "generate",
        PIPE,
        "a red seven moving left",
        "--steps",
        "5",
        "--config",
        str(tuned),
        "--out",
        str(tmp_path),
    )
    refused = run(*apply)
    assert refused.exit_code == 2 and "no policy is called 'late'" in refused.stderr
    assert "--policy FILE.py" in refused.stderr and refused.stderr.count("\n") == 1
    refused = run("export", str(study), "--out", str(tmp_path / "again.json"))
    assert refused.exit_code == 2 and "'late'" in refused.stderr
    assert answer(*apply, "--policy", str(mine))["policy"] == found["policy"]
    again = answer("export", str(study), "--out", str(tmp_path / "again.json"), "--policy", str(mine))
    assert again["policy"] == found["policy"]


def test_check_policy_tells_law_by_law(mine: Path) -> None:
    found = answer("check-policy", str(mine), "--pipe", "latte", "--pipe", "wan")
    report, foreign = found["pipes"]
    assert found["passed"] and report["reused"] > 0.2
    assert [law["law"] for law in report["laws"]] == list(range(1, 10)) and all(law["passed"] for law in report["laws"])
    assert foreign["reused"] is None and {law["passed"] for law in foreign["laws"]} == {None}
    assert "site query 'temporal'" in foreign["laws"][0]["detail"]


def test_check_policy_exits_with_1_where_a_law_breaks_and_2_where_nothing_can_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "leaky.py"
    path.write_text(LEAKY, encoding="utf-8")
    broken = run("check-policy", str(path), "--pipe", "latte")
    assert broken.exit_code == 1
    assert "latte, law 2 is broken: " in broken.stdout and "decisions that were reuses" in broken.stdout
    for words in (("leakyy",), (str(path), "--pipe", "wan"), (str(path), "--pipe", "nope"), ("late", "--set", "gap=1")):
        refused = run("check-policy", *words)
        assert refused.exit_code == 2 and refused.stderr.startswith("error: "), words


@pytest.mark.slow
def test_check_policy_measures_the_constants_a_method_needs() -> None:
    found = answer("check-policy", "magcache", "--pipe", "latte", "--set", "threshold=1.0")
    assert found["passed"] and found["pipes"][0]["reused"] > 0


def test_check_policy_takes_constants_that_are_given() -> None:
    found = answer("check-policy", "magcache", "--set", 'ratios={"*":[1.0]}', "--pipe", "cogvideox")
    assert found["fields"] == {"ratios": {"*": [1.0]}}


def test_a_plug_in_goes_through_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.PLUGINS.group}]\nlate = plugged:Late\n")
    (tmp_path / "plugged.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "late" in {entry["name"] for entry in answer("policies")["policies"]}
    found = answer(
        "generate", PIPE, "a red seven moving left", "--steps", "4", "--policy", "late", "--out", str(tmp_path / "out")
    )
    assert found["policy"]["policy"] == "late"

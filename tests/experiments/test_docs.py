"""The Python in the documentation runs as it stands, with fewer steps."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.experiments import reference
from fastercache.experiments.bench import standings
from fastercache.experiments.jobs import checking

ROOT = Path(__file__).resolve().parents[2]


def blocks(name: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = reference.GENERATION["latte-digits"]
    monkeypatch.setitem(reference.GENERATION, "latte-digits", replace(usual, num_inference_steps=6))


def test_the_first_screen(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md")
    assert len(code.strip().splitlines()) <= 10
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("fastercache: 6 steps")


def test_the_quickstart() -> None:
    space: dict[str, Any] = {}
    ran = [block for block in blocks("docs/quickstart.md") if "tuned.json" not in block]
    for block in ran:
        exec(compile(block.replace("(50, 50)", "(6, 6)"), "quickstart.md", "exec"), space)
    assert len(ran) >= 2 and space["profile"].matrix("spatial", "rel_l1").shape == (6, 6)


@pytest.mark.usefixtures("own_registry")
def test_the_policy_of_the_walk_through(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    policy, use, stateful, watching, predictor, needy, *_ = blocks("docs/writing-a-policy.md")
    assert len(policy.strip().splitlines()) < 40
    module = ModuleType("my_policies")
    monkeypatch.setitem(sys.modules, "my_policies", module)
    exec(compile(policy, "writing-a-policy.md", "exec"), module.__dict__)
    exec(compile(use, "writing-a-policy.md", "exec"), {})
    assert capsys.readouterr().out.startswith("ends: 6 steps")
    with pytest.raises(fc.InvalidPolicy, match="did you mean 'interval'"):
        module.Ends(intervall=3)

    space: dict[str, Any] = dict(module.__dict__) | {"Tensor": torch.Tensor}
    s = zoo.build("wan")
    for code in (stateful, watching, needy):
        exec(compile(code, "writing-a-policy.md", "exec"), space)
    with_input = fc.StaticInterval(sites="denoiser", interval=2, stand_in=space["Moved"]())
    for example in (space["Rest"](), space["Still"](), with_input):
        with fc.attach(s.pipe, example) as session:
            s.generate()
            assert session.last.share() > 0, example.name
    exec(compile(predictor, "writing-a-policy.md", "exec"), space)
    policy_with_it = fc.StaticInterval(interval=3, stand_in=space["Damped"]())
    assert fc.load_policy(fc.dump(policy_with_it)) == policy_with_it


@pytest.mark.usefixtures("own_registry")
def test_the_walk_through_keeps_the_laws_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my_policies.py"
    path.write_text(blocks("docs/writing-a-policy.md")[0], encoding="utf-8")
    found = checking.check(f"{path}:Ends", [], ["latte"], steps=6, prompt="", show=False)
    assert found["passed"] and found["pipes"][0]["reused"] > 0


@pytest.mark.parametrize("name", reference.names())
def test_the_benchmark_tables_are_those_of_the_kept_results(name: str) -> None:
    results = standings.Results.load(ROOT / "docs" / "bench" / name)
    assert results.pipeline == name and results.prompts >= 12
    assert standings.markdown(results) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

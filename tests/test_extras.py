"""What a room imports is what its installation brings, and every version is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from fastercache.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OFFERED = PROJECT["optional-dependencies"]
CALLED = {"sklearn": "scikit-learn", "cosmic_ray": "cosmic-ray"}
"""Packages by the modules they install, where the names differ."""
BROUGHT = {
    "annotated_types": "pydantic", "pydantic_core": "pydantic", "PIL": "diffusers", "huggingface_hub": "diffusers",
    "sqlalchemy": "optuna",
}  # fmt: skip
"""Modules that come with a package of the lists, which could not do without them."""

LAB = ("lab",)
EXTRAS_OF: dict[str, tuple[str, ...]] = {
    "policies": (),
    "fastercache": (),
    "fastercache/zoo": LAB,
    "fastercache/testing": LAB,
    "analysis": LAB,
    "tuner": LAB,
    "experiments": LAB,
    "experiments/site": (*LAB, "docs"),
}
ASKED = {
    "analysis/quality.py": {"lpips"},
    "experiments/reference/data.py": {"sklearn"},
    "experiments/jobs/mutants.py": {"cosmic_ray"},
    "experiments/jobs/mutating.py": {"cosmic_ray"},
    "experiments/jobs/warm_tests.py": {"pytest"},
}
"""Files that say by themselves what else they need, where it is asked for."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", text)[0].lower() for text in requirements}


def imported(path: Path) -> set[str]:
    """The packages outside the standard library that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"fastercache"}


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT).as_posix()
    return max((part for part in EXTRAS_OF if relative.startswith(f"{part}/")), key=len)


FILES = [path for room in EXTRAS_OF if "/" not in room for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("part", EXTRAS_OF)
def test_a_part_imports_only_what_its_installation_brings(part: str) -> None:
    allowed = names(PROJECT["dependencies"]).union(*(names(OFFERED[extra]) for extra in EXTRAS_OF[part]))
    for path in FILES:
        if part_of(path) == part:
            asked = ASKED.get(path.relative_to(ROOT).as_posix(), set())
            needed = {BROUGHT.get(module, CALLED.get(module, module)) for module in imported(path) - asked}
            assert needed <= allowed, f"{path.relative_to(ROOT)} needs {needed - allowed}"


def test_every_extra_that_the_code_names_is_offered() -> None:
    for extra, modules in EXTRAS.items():
        assert {CALLED.get(module, module).lower() for module in modules} <= names(OFFERED[extra])


def test_what_the_lab_imports_is_missed_in_one_line() -> None:
    """A module of the extra that `need` does not look for would be a traceback where it is missing."""
    core = names(PROJECT["dependencies"])
    used = {m for path in FILES for m in imported(path) if EXTRAS_OF[part_of(path)] and m not in BROUGHT}
    looked_for = {module for modules in EXTRAS.values() for module in modules}
    assert {m for m in used if CALLED.get(m, m) not in core} - {"lpips"} <= looked_for


def test_the_versions_that_make_installs_are_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=]+", line) for line in lines if not line.startswith("#"))
    installed = [*PROJECT["dependencies"], *OFFERED["lab"], *OFFERED["train"], *OFFERED["dev"]]
    wanted = {name.replace("_", "-") for name in names(installed) - {"fastercache"}}
    assert wanted <= {name.replace("_", "-") for name in pinned}

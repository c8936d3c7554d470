"""The rooms import one way only: experiments -> tuner -> analysis -> fastercache -> policies."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("policies", "fastercache", "analysis", "tuner", "experiments")  # each may import what stands before it
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(source: str) -> set[str]:
    """Full names of every module a source imports, wherever in the file, relative ones with their dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def forbidden(room: str, source: str) -> set[str]:
    """Imports that `room` must not have: rooms to its left, and relative ones (they hide the room)."""
    later = ROOMS[ROOMS.index(room) + 1 :]
    return {name for name in imported(source) if name.startswith(".") or name.split(".")[0] in later}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_rooms_to_its_right(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert not forbidden(room, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(ROOT).parts[0] == "policies"], ids=lambda path: path.name
)
def test_policies_know_no_models(path: Path) -> None:
    heavy = {"diffusers", "transformers", "accelerate", "optuna"}
    assert not {name for name in imported(path.read_text(encoding="utf-8")) if name.split(".")[0] in heavy}


def test_the_rule_sees_violations() -> None:
    assert forbidden("policies", "def f():\n    from fastercache.hooks import Hook\n") == {"fastercache.hooks"}
    assert forbidden("analysis", "import tuner.study as study\n") == {"tuner.study"}
    assert forbidden("tuner", "from . import space\n") == {"."}
    assert not forbidden("experiments", "import tuner\nfrom policies.base import Policy\n")


def test_every_room_has_files() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ROOMS)

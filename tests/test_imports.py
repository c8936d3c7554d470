"""The rooms import one way only: experiments -> tuner -> analysis -> the runtime -> policies."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("policies", "fastercache", "analysis", "tuner", "experiments")  # each may import what stands before it
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]  # rglob follows no links
DOORS = {ROOT / "fastercache" / "__main__.py"}  # `python -m fastercache` opens the command line and does nothing else
LIGHT = ("optuna", "tensorboard", "matplotlib", "sklearn", "scipy", "transformers", "diffusers.pipelines")


def imported(source: str) -> set[str]:
    """Full names of every module a source imports, wherever in the file, relative ones with their dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "fastercache" else {module}
    return names


def room_of(module: str) -> str | None:
    """The room a full module name belongs to; the runtime is what stands directly in `fastercache`. None: not ours."""
    first, _, rest = module.partition(".")
    if first != "fastercache":
        return None
    return rest.split(".")[0] if rest.split(".")[0] in ROOMS else "fastercache"


def forbidden(room: str, source: str) -> set[str]:
    """Imports that `room` must not have: later rooms, relative ones, rooms by their folder's name."""
    later = ROOMS[ROOMS.index(room) + 1 :]
    folders = set(ROOMS) - {"fastercache"}
    return {
        name
        for name in imported(source)
        if name.startswith(".") or room_of(name) in later or name.split(".")[0] in folders
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_rooms_to_its_right(path: Path) -> None:
    room = "experiments" if path in DOORS else path.relative_to(ROOT).parts[0]
    assert not forbidden(room, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(ROOT).parts[0] == "policies"], ids=lambda path: path.name
)
def test_policies_know_no_models(path: Path) -> None:
    heavy = {"diffusers", "transformers", "accelerate", "optuna"}
    assert not {name for name in imported(path.read_text(encoding="utf-8")) if name.split(".")[0] in heavy}


def test_the_rule_sees_violations() -> None:
    hooks = "def f():\n    from fastercache.model.hooks import Hook\n"
    assert forbidden("policies", hooks) == {"fastercache.model.hooks"}
    assert forbidden("analysis", "import fastercache.tuner.study as study\n") == {"fastercache.tuner.study"}
    assert forbidden("analysis", "from fastercache import tuner\n") == {"fastercache.tuner"}
    assert forbidden("tuner", "from . import space\n") == {"."}
    assert forbidden("experiments", "import tuner\n") == {"tuner"}
    assert not forbidden("experiments", "from fastercache import tuner\nfrom fastercache.policies.base import Policy\n")


def test_every_room_has_files() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ROOMS)


def loaded(statement: str, *names: str) -> list[str]:
    """Which of the modules `names` a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_import_is_light_and_so_is_attach() -> None:
    assert loaded("import fastercache", "torch", "pydantic", *LIGHT) == []
    assert loaded("import fastercache as fc; fc.attach, fc.FasterCache", *LIGHT) == []


def test_only_public_names_are_offered() -> None:
    import fastercache as fc

    assert {"attach", "FasterCache", "Session", "TunedConfig", "Hold"} <= set(dir(fc))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        fc.nope  # noqa: B018


def test_no_public_name_is_hidden_by_a_module() -> None:
    """A module of the package replaces the lazily loaded name of the same spelling as soon as it is imported."""
    api = importlib.import_module("fastercache.api")
    public = {
        name for name, value in vars(api).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert not public & {path.stem for path in (ROOT / "fastercache").iterdir()}

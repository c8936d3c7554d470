"""A policy in a user's own file, or in an installed package, is known by its name; what is wrong is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from fastercache.policies import (
    ConfigUnreadable,
    InvalidPolicy,
    UnknownPolicy,
    dump,
    known_policies,
    load_policy,
    policy_class,
    policy_from_file,
    registry,
)
from fastercache.policies.files import names_file
from fastercache.policies.methods import StaticInterval
from fastercache.policies.registry import load_predictor

pytestmark = pytest.mark.usefixtures("own_registry")

HEAD = """
from __future__ import annotations
from typing import Annotated, ClassVar
from pydantic import Field
import fastercache as fc
"""
ODD = """
class Odd(fc.StaticInterval):
    name: ClassVar[str] = "odd"
    interval: Annotated[int, Field(ge=2, le=6)] = 2
"""
EVEN = """
class Even(fc.StaticInterval):
    name: ClassVar[str] = "even"
"""
HALF = """
class Half(fc.Predictor):
    name: ClassVar[str] = "half"
    def predict(self, past, now):
        return past[-1].value * 0.5
"""


def write(folder: Path, *parts: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(HEAD + "".join(parts), encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["a.py", "./dir/a.py", "/x/y.py:Policy", "C:/x/y.py:Policy"])
def test_what_is_a_file(text: str) -> None:
    assert names_file(text)
    assert not names_file("static_interval") and not names_file("pyramid.pyc") and not names_file("a.py:not-a-name")


def test_a_file_makes_its_policies_and_predictors_known(tmp_path: Path) -> None:
    path = write(tmp_path, ODD, EVEN, HALF)
    cls = policy_from_file(f"{path}:Odd")
    assert policy_class("odd") is cls and {"odd", "even"} <= set(known_policies())
    policy = cls(interval=3, stand_in={"predictor": "half"})
    assert load_policy(dump(policy)) == policy
    assert policy_from_file(f"{path}:Odd") is cls  # not run a second time
    with pytest.raises(InvalidPolicy, match="greater than or equal to 2"):
        cls(interval=1)


def test_the_only_policy_needs_no_name(tmp_path: Path) -> None:
    assert policy_from_file(str(write(tmp_path, ODD, HALF))).name == "odd"
    registry._POLICIES.pop("odd")
    with pytest.raises(InvalidPolicy, match=r"several policies \(Odd, Even\): say which, .*two\.py:Odd"):
        policy_from_file(str(write(tmp_path, ODD, EVEN, name="two.py")))


@pytest.mark.parametrize(
    ("code", "spec", "message"),
    [
        (ODD, ":Od", "defines no policy 'Od'; did you mean 'Odd'"),
        (HALF, "", "defines no policy: write a subclass of fastercache.Policy"),
        ("class Odd(fc.Policy):\n    pass\n", "", "needs a class attribute `name`"),
        (ODD.replace('"odd"', '"teacache"'), "", "the name 'teacache' is taken"),
        ("def f(:\n    pass\n", "", r"cannot be run \(line 7\): SyntaxError"),
        ("x = 1\ny = x / 0\n", "", r"cannot be run \(line 8\): ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, code: str, spec: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "\n" + code, encoding="utf-8")
    with pytest.raises(InvalidPolicy, match=message) as raised:
        policy_from_file(f"{path}{spec}")
    assert "mine.py" in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable, match=r"no policy file .*none\.py"):
        policy_from_file(str(tmp_path / "none.py"))


def test_reading_a_config_runs_no_code(tmp_path: Path) -> None:
    """A file's path in a JSON is a name nobody registered, and nothing else."""
    path = write(tmp_path, ODD, f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UnknownPolicy, match=r"give its file \(--policy FILE\.py"):
        load_policy({"policy": f"{path}:Odd"})
    assert not (tmp_path / "ran").exists()


def install(folder: Path, entry: str) -> None:
    """A package of one module with an entry point, as pip leaves it."""
    info = folder / "plug-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.PLUGINS.group}]\n{entry}\n")


def test_an_installed_package_offers_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "even = plug_even:Even")
    write(tmp_path, EVEN, name="plug_even.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert policy_class("even").__module__ == "plug_even"
    assert load_policy({"policy": "even", "interval": 4}).name == "even"


def test_an_installed_package_offers_predictors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to whoever asks for a predictor first."""
    install(tmp_path, "half = plug_half:Half")
    write(tmp_path, HALF, name="plug_half.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(load_predictor({"predictor": "half"})).__module__ == "plug_half"
    assert dump(StaticInterval(stand_in={"predictor": "half"}))["stand_in"] == {"predictor": "half"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("even = plug_gone:Even", r"'even' \(plug_gone:Even of plug\) cannot be loaded: ModuleNotFoundError"),
        ("path = pathlib:Path", r"'path' \(pathlib:Path of plug\) is no policy"),
        ("exits = plug_exits:Policy", r"'exits' \(plug_exits:Policy of plug\) cannot be loaded: SystemExit"),
    ],
)
def test_a_broken_plug_in_is_named_where_it_is_missed_and_blocks_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, message: str
) -> None:
    install(tmp_path, entry)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plug_exits.py").write_text("import sys; sys.exit(0)")
    assert policy_class("static_interval").name == "static_interval"
    with pytest.raises(UnknownPolicy, match=message):
        policy_class(entry.partition(" ")[0])


@pytest.mark.parametrize("name", ["../x", "7", "any", "a b", "Über", "", "x" * 65, "a/b", "a.b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    cls = type("Odd", (StaticInterval,), {"name": name, "__annotations__": {"name": ClassVar[str]}})
    with pytest.raises(InvalidPolicy, match="name"):
        registry.register(cls)
    assert name not in known_policies()


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit('bye')",
        "class B(BaseException): pass\nraise B('x')",
        "class E(Exception):\n    def __str__(self): raise ValueError('no')\nraise E()",
        "raise ValueError('a' * 10**7 + '\\x1b[2J')",
    ],
)
def test_a_file_that_ends_the_process_is_one_line(tmp_path: Path, code: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code, encoding="utf-8")
    with pytest.raises(InvalidPolicy, match="cannot be run") as caught:
        policy_from_file(str(path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2100

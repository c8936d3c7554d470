"""What is typed becomes the value that is meant, or one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastercache.experiments.arguments import assignments, choose, read_prompts
from fastercache.experiments.console import plain
from fastercache.policies import FasterCache, StaticInterval
from fastercache.policies.errors import ConfigUnreadable, InvalidPolicy, UnknownPolicy


def test_values_are_read_as_json_and_else_as_text() -> None:
    assert assignments(["a=3", "b=0.5", "c=null", "d=spatial[0:4]", "e=x=y", 'f={"predictor": "linear"}']) == {
        "a": 3,
        "b": 0.5,
        "c": None,
        "d": "spatial[0:4]",
        "e": "x=y",
        "f": {"predictor": "linear"},
    }


@pytest.mark.parametrize("pairs", [["interval"], ["=3"], ["a=1", "a=2"]])
def test_malformed_pairs_are_refused(pairs: list[str]) -> None:
    with pytest.raises(InvalidPolicy):
        assignments(pairs)


def test_fields_reach_the_policy_typed() -> None:
    policy = choose("static_interval", ["interval=3", "sites=temporal"], None)
    assert policy == StaticInterval(interval=3, sites="temporal")
    assert choose(None, [], None) == FasterCache()
    assert choose(None, ["weight=ramp"], None, preset="latte") == FasterCache(
        **(FasterCache.preset("latte").model_dump() | {"weight": "ramp"})
    )


def test_each_mistake_names_what_is_wrong() -> None:
    with pytest.raises(UnknownPolicy, match="did you mean 'static_interval'"):
        choose("static_intervall", [], None)
    with pytest.raises(InvalidPolicy, match="did you mean 'interval'"):
        choose("static_interval", ["intervall=3"], None)
    with pytest.raises(InvalidPolicy, match=r"interval.*found 99"):
        choose("static_interval", ["interval=99"], None)
    with pytest.raises(InvalidPolicy, match="--config"):
        choose("static_interval", [], Path("tuned.json"))
    with pytest.raises(InvalidPolicy, match="presets belong to fastercache"):
        choose("static_interval", [], None, preset="latte")


def test_prompt_files_hold_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# colours\n\na red seven\n  a blue two \n", encoding="utf-8")
    assert read_prompts(path) == ["a red seven", "a blue two"]


def test_unreadable_prompt_files_are_named(tmp_path: Path) -> None:
    binary, empty = tmp_path / "binary", tmp_path / "empty.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    empty.write_text("\n# nothing\n")
    for path in (binary, empty, tmp_path, tmp_path / "absent.txt"):
        with pytest.raises(ConfigUnreadable, match=path.name):
            read_prompts(path)


def test_json_never_holds_what_json_cannot() -> None:
    assert plain({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")}) == {
        "a": None,
        "b": [None, 1.5],
        "c": "x",
    }

"""Where an opened planner keeps what it makes, and what it is opened with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fastercache.bounds import read_limit
from fastercache.policies.errors import RecordingError
from fastercache.tuner.planning import opening as module
from fastercache.tuner.planning.opening import opened
from fastercache.tuner.setting import Setting

CALL = {"height": 32, "width": 32, "video_length": 4, "num_inference_steps": 2, "clean_caption": False}
PROMPTS = ["one", "two", "three"]


@pytest.fixture
def setting(tiny_latte: Any) -> Setting:
    return Setting(tiny_latte, CALL)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the parts were asked for: nothing is recorded, and no plan is made."""
    found: dict[str, Any] = {}

    def material(references: Any, cases: Any, **words: Any) -> str:
        if not cases:
            raise RecordingError("no prompt")
        found.update(store=references.store, cases=cases, **words)
        return "the recorded prompts"

    def history_within(setting: Any, case: Any, limit: Any) -> int:
        found.update(first=case, limit=limit)
        return 5 if limit is None else 2

    monkeypatch.setattr(module, "material", material)
    monkeypatch.setattr(module, "history_within", history_within)
    monkeypatch.setattr(module, "Planner", lambda setting, recorded, **words: {"recorded": recorded, **words})
    return found


def key(setting: Setting, effort: int, *history: int) -> str:
    """Made of everything that determines the plans, the keys of every object in alphabetical order."""
    identity = {name: setting.identity[name] for name in sorted(setting.identity)}
    identity["call"] = {name: identity["call"][name] for name in sorted(identity["call"])}
    inputs = [[prompt, seed] for seed, prompt in enumerate(PROMPTS)]
    text = json.dumps([identity, inputs, effort, *history, "variance"])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def test_everything_stands_in_the_folder(setting: Setting, asked: dict[str, Any], tmp_path: Path) -> None:
    told, priced = print, print
    planner: Any = opened(setting, PROMPTS, tmp_path, told=told, priced=priced)
    assert asked["store"] == tmp_path / "references" and asked["told"] is told and asked["priced"] is priced
    assert [case.prompt for case in asked["cases"]] == PROMPTS
    assert asked["first"].prompt == "one" and asked["limit"] is None
    assert planner["recorded"] == "the recorded prompts" and planner["told"] is told
    assert (planner["effort"], planner["metrics"], planner["history"]) == (1, ("psnr", "ssim"), 5)
    record = planner["judged"].__self__
    made_for = key(setting, 1)
    assert record.study.study_name == f"plans-{made_for[:8]}" and record.study.user_attrs["made_for"] == made_for
    assert (tmp_path / "plans.journal").exists() and record.history == 5 and planner["known"] == {}


def test_other_places_efforts_metrics_and_limits(setting: Setting, asked: dict[str, Any], tmp_path: Path) -> None:
    limit = read_limit("cache<=1GiB")
    place = tmp_path / "shared.journal"
    planner: Any = opened(
        setting, PROMPTS, tmp_path / "mine", effort=0, metrics=("lpips",), cache=limit, references=tmp_path / "shared",
        storage=str(place),
    )  # fmt: skip
    assert asked["store"] == tmp_path / "shared" and asked["limit"] is limit
    assert (planner["effort"], planner["metrics"], planner["history"]) == (0, ("psnr", "ssim", "lpips"), 2)
    record = planner["judged"].__self__
    made_for = key(setting, 0, 2)
    assert record.study.study_name == f"mine-{made_for[:8]}" and record.history == 2
    assert place.exists()
    assert record.study.user_attrs["made_for"] == made_for and not (tmp_path / "mine").exists()


def test_one_prompt_is_enough_and_none_is_too_few(setting: Setting, asked: dict[str, Any], tmp_path: Path) -> None:
    opened(setting, PROMPTS[:1], tmp_path)
    assert len(asked["cases"]) == 1
    with pytest.raises(RecordingError, match="no prompt"):
        opened(setting, [], tmp_path)

"""The search prompts' recordings: where they stand, what is made again, and what is told on the way."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastercache.policies.errors import RecordingError
from fastercache.tuner.planning.material import Material, material, recorded
from fastercache.tuner.setting import References, Setting

CALL = {"height": 32, "width": 32, "video_length": 4, "num_inference_steps": 2, "clean_caption": False}


@pytest.fixture
def setting(tiny_latte: Any) -> Setting:
    return Setting(tiny_latte, CALL)


def same(one: Material, other: Material) -> bool:
    """Whether all values of all runs are equal."""
    pairs = zip(one.runs, other.runs, strict=True)
    values = [(a.reference, b.reference) for a, b in pairs]
    return all(
        torch.equal(x, y)
        for a, b in values
        for x, y in zip([*a.latents, *a.outputs], [*b.latents, *b.outputs], strict=True)
    )


def test_the_price_is_what_the_first_recording_took(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still but while something is generated, which takes 3 s."""
    clock = [100.0]
    generate = Setting.generate

    def slowly(self: Setting, case: Any) -> Any:
        clock[0] += 3.0
        return generate(self, case)

    monkeypatch.setattr(Setting, "generate", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    priced: list[float] = []
    material(References(setting, tmp_path), setting.cases(["one", "two"]), priced=priced.append)
    assert priced == [3.0]


def test_each_prompt_is_recorded_once_told_and_read_again(setting: Setting, tmp_path: Path) -> None:
    references, cases = References(setting, tmp_path), setting.cases(["one", "two"])
    told: list[tuple[str, float]] = []
    priced: list[float] = []
    words: Any = {"told": lambda what, spent: told.append((what, spent)), "priced": priced.append}
    assert recorded(references, cases) == []
    found = material(references, cases, **words)
    assert told == [("recording prompt 1 of 2", 0.0), ("recording prompt 2 of 2", 1.0)]
    assert len(priced) == 1 and found.spent == 2.0 and found.cases == tuple(cases)
    assert recorded(references, cases) == cases and recorded(references, cases[1:]) == cases[1:]
    for place, case in enumerate(cases):
        bare = setting.generate(case)
        assert torch.equal(found.videos[place], bare)
        assert torch.equal(found.runs[place].generate(setting.pipe), bare)
        last = found.runs[place].reference.latents[-1].double()
        products = found.profile.trajectory.products[place]
        assert float(last.square().mean()) == pytest.approx(products[2, 2], rel=1e-5)
    assert found.sampler.steps == 2 and found.profile.trajectory.runs == 2

    setting_generate = Setting.generate
    made: list[str] = []

    def counting(self: Setting, case: Any) -> Any:
        made.append(case.prompt)
        return setting_generate(self, case)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Setting, "generate", counting)
        again = material(references, cases, **words)
        assert not made and len(priced) == 1 and same(again, found)
        key = json.dumps(dict(sorted({**setting.identity, **cases[1].identity}.items())))
        name = f"trajectory-{hashlib.sha256(sorted_json(key).encode()).hexdigest()[:32]}"
        values = tmp_path / f"{name}.values.safetensors"
        values.write_bytes(values.read_bytes()[:50])
        mended = material(references, cases, **words)
        assert made == ["two"] and len(priced) == 2 and same(mended, found)


def sorted_json(text: str) -> str:
    """JSON with the keys of every object in alphabetical order."""
    return json.dumps(json.loads(text, object_pairs_hook=lambda pairs: dict(sorted(pairs))))


def test_a_call_of_two_runs_or_none_cannot_be_planned_from(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecordingError, match="at least one search prompt"):
        material(References(setting, tmp_path), [])
    original = Setting.generate
    monkeypatch.setattr(Setting, "generate", lambda self, case: (original(self, case), original(self, case))[1])
    with pytest.raises(RecordingError, match=r"made 2 complete runs of its scheduler \(0 ended early\)"):
        material(References(setting, tmp_path), setting.cases(["one"]))
    monkeypatch.setattr(Setting, "generate", lambda self, case: torch.zeros(4, 3, 32, 32))
    with pytest.raises(RecordingError, match=r"made 0 complete runs of its scheduler \(0 ended early\)"):
        material(References(setting, tmp_path), setting.cases(["one"]))
    assert not list(tmp_path.iterdir())


def test_more_memory_than_allowed_is_refused(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="max_bytes"):
        material(References(setting, tmp_path), setting.cases(["one"]), max_bytes=1000)

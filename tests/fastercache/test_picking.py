"""What is written over a file of schedules keeps what certifications left in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.picking import Pick, carried, load, opened
from fastercache.tuned import Certificate, TunedConfig

STEPS = 6
CERTIFICATE = Certificate(budget="psnr>=40", prompts=59, violations=0, rate=0.05, confidence=0.95)
TRIED = {"0123456789abcdef": ("aa", "bb")}


def made(pipe: Any, computed: tuple[int, ...] = (0, 2, 4), **fields: Any) -> TunedConfig:
    given = {"steps": STEPS, "guidance_scale": 4.0, "guidance": "batched", "seen": ("cc",)} | fields
    return TunedConfig.describe(pipe, fc.Planned(steps=STEPS, computed=computed), **given)


@pytest.fixture
def path(tiny_latte: Any, tmp_path: Path) -> Path:
    return made(tiny_latte, tried=TRIED, certificate=CERTIFICATE).save(tmp_path / "tuned.json")


def test_the_same_schedule_keeps_its_certificate_and_the_prompts_looked_at(tiny_latte: Any, path: Path) -> None:
    new = carried(made(tiny_latte, budget="psnr>=30", tried={"other": ("dd",)}), path)
    assert new.certificate == CERTIFICATE and new.tried == TRIED | {"other": ("dd",)} and new.budget == "psnr>=30"
    own = CERTIFICATE.model_copy(update={"violations": 1})
    assert carried(made(tiny_latte, certificate=own), path).certificate == own, "its own comes first"


@pytest.mark.parametrize(
    "changed",
    [
        {"computed": (0, 2, 5)},
        {"guidance_scale": 5.0},
        {"guidance": "separate"},
        {"latent": (4, 4, 8, 8)},
        {"seen": ("cc", "bb")},  # made from a prompt that was looked at
    ],
)
def test_another_one_keeps_only_the_prompts_looked_at(tiny_latte: Any, path: Path, changed: dict[str, Any]) -> None:
    new = carried(made(tiny_latte, **changed), path)
    assert new.certificate is None and new.tried == TRIED


@pytest.mark.parametrize(
    "changed",
    [
        {"scheduler": None},
        {"model": fc.tuned.Model(pipeline="Other", denoiser=fc.tuned.Identity.of("Other", {}))},
        {"conditions": fc.tuned.Conditions(dtype="bfloat16")},
        {"policy": fc.Planned(steps=STEPS, computed=(0, 2, 4), stand_in=fc.Taylor(order=1))},
        {"steps": 7},
    ],
)
def test_a_certificate_is_kept_for_nothing_else(tiny_latte: Any, path: Path, changed: dict[str, Any]) -> None:
    new = carried(made(tiny_latte).model_copy(update=changed), path)
    assert new.certificate is None and new.tried == TRIED


def test_what_a_new_look_says_of_its_prompts_goes_before(tiny_latte: Any, path: Path) -> None:
    (key,) = TRIED
    assert carried(made(tiny_latte, tried={key: ("ee",)}), path).tried == {key: ("ee",)}


def test_a_file_is_opened_as_what_it_says_it_is(tiny_latte: Any, path: Path, tmp_path: Path) -> None:
    assert opened(path) == made(tiny_latte, tried=TRIED, certificate=CERTIFICATE) == load(path)
    for pick in ({"speedup": 0.0}, {"budget": ""}, {"quality": "high"}):
        with pytest.raises(fc.ConfigUnreadable, match="holds one schedule: leave them out"):
            load(path, **pick)
    assert not Pick() and Pick(speedup=0.0) and Pick(budget="") and Pick(quality="")
    for text in ("[]", "{}", "3"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(fc.ConfigUnreadable):
            opened(tmp_path / "other.json")


def test_plans_of_a_dial_are_found_again_in_either_direction(tiny_latte: Any, path: Path, tmp_path: Path) -> None:
    def measured(speedup: float) -> dict[str, Any]:
        values = {"prompts": 1, "speedup_flops": speedup, "seconds": 1.0, "cached_bytes": 0, "hardware": "test"}
        return {"measured": fc.tuned.Results(search=fc.tuned.Measured(**values))}

    configs = [made(tiny_latte, (0, 2, 4), **measured(2.0)), made(tiny_latte, (0, 3), **measured(3.0))]
    dial = fc.Dial.of(configs, [{}, {}], {})
    found = carried(dial, path)
    assert [plan.certificate for plan in found.plans] == [CERTIFICATE, None] and found.tried == TRIED
    found.save(tmp_path / "dial.json")
    assert carried(configs[0], tmp_path / "dial.json").certificate == CERTIFICATE
    assert carried(configs[1], tmp_path / "dial.json").certificate is None
    assert carried(dial, tmp_path / "dial.json") == found


def test_where_no_schedule_was_nothing_changes(tiny_latte: Any, tmp_path: Path) -> None:
    config = made(tiny_latte)
    assert carried(config, tmp_path / "none.json") is config
    (tmp_path / "torn.json").write_text("{")
    assert carried(config, tmp_path / "torn.json") is config
    (tmp_path / "front.json").write_text('{"format": "fastercache-front", "version": 1}')
    assert carried(config, tmp_path / "front.json") is config


def test_a_dial_bars_the_prompts_of_all_its_plans(tiny_latte: Any) -> None:
    values = {"prompts": 1, "seconds": 1.0, "cached_bytes": 0, "hardware": "test"}
    configs = [
        made(
            tiny_latte,
            computed,
            measured=fc.tuned.Results(search=fc.tuned.Measured(speedup_flops=6 / len(computed), **values)),
            tried=tried,
            seen=seen,
        )
        for computed, tried, seen in (((0, 2, 4), TRIED, ("aa",)), ((0, 3), {"other": ("dd",)}, ("bb",)))
    ]
    for order in (configs, configs[::-1]):
        dial = fc.Dial.of(order, [{}, {}], {})
        assert dial.tried == TRIED | {"other": ("dd",)} and dial.seen == ("aa", "bb")
        assert all(dial.config(plan).tried == dial.tried for plan in dial.plans)

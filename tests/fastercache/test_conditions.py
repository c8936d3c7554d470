"""A tuned config names resolution, frames, dtype and LoRA that it was made for, and warns where a run has others."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.tuned import Conditions, OtherConditions, TunedConfig
from fastercache.zoo.specimen import Specimen

STEPS = 3
LATENT = (4, 4, 8, 8)
"""Channels, frames, height and width of 4 frames of 64 x 64 or 32 x 32 pixels; see the fixture `latte`."""


def config(specimen: Specimen) -> TunedConfig:
    with fc.attach(specimen.pipe, fc.NoCache(sites="denoiser")) as session:
        specimen.generate(steps=STEPS)
        latent, guidance = session.last.latent, session.guidance
    policy = fc.StaticInterval(sites="denoiser")
    return TunedConfig.describe(
        specimen.pipe, policy, steps=STEPS, guidance_scale=None, guidance=guidance, latent=latent
    )


def warned(specimen: Specimen, made: TunedConfig, **call: Any) -> list[str]:
    """What two runs warn of."""
    with warnings.catch_warnings(record=True) as found, fc.attach(specimen.pipe, made):
        warnings.simplefilter("always")
        for _ in range(2):
            specimen.generate(steps=STEPS, **call)
    return [str(one.message) for one in found if issubclass(one.category, OtherConditions)]


def test_the_same_conditions_are_silent(latte: Specimen) -> None:
    made = config(latte)
    assert made.conditions == Conditions(latent=LATENT, dtype="float32", adapters=())
    assert warned(latte, made) == []
    assert warned(latte, made.model_copy(update={"conditions": None})) == []  # an older file


def test_another_resolution_is_said_once(latte: Specimen) -> None:
    (line,) = warned(latte, config(latte), **latte.resized)
    assert "made for a latent of 4 x 4 x 8 x 8, this run has one of 4 x 4 x 12 x 8" in line


def test_another_dtype(latte: Specimen) -> None:
    made = config(latte)
    (line,) = made.differences(latte.pipe.transformer.to(torch.bfloat16), LATENT)
    assert "made for float32, this run has bfloat16" in line
    (line,) = made.differences(latte.pipe.transformer.to(torch.float16), LATENT)
    assert "made for float32, this run has float16" in line


def test_an_adapter_that_comes_and_goes() -> None:
    wan = zoo.build("wan")  # Latte's transformer takes no adapters
    made = config(wan)
    transformer = wan.pipe.transformer
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    (line,) = warned(wan, made)
    assert "made for LoRA adapters: none, this run has style" in line
    styled = config(wan)
    assert styled.conditions is not None and styled.conditions.adapters == ("style",)
    transformer.disable_adapters()
    assert warned(wan, made) == []
    (line,) = warned(wan, styled)
    assert "made for LoRA adapters: style, this run has none" in line


@pytest.mark.parametrize("latent", [None, LATENT])
def test_it_survives_the_disk(latte: Specimen, tmp_path: Any, latent: Any) -> None:
    made = TunedConfig.describe(
        latte.pipe, fc.NoCache(), steps=STEPS, guidance_scale=None, guidance="batched", latent=latent
    )
    assert fc.load(made.save(tmp_path / "tuned.json")).conditions == made.conditions

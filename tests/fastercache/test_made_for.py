"""What a tuned config keeps of what it was made for, and which differences it notices, by the parts themselves."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import fastercache as fc
from fastercache.applied import Applied
from fastercache.tuned import (
    ADVICE,
    Certificate,
    Conditions,
    Identity,
    Measured,
    Model,
    TunedConfig,
    active_adapters,
    allowed,
    denoisers,
    guidance_scale_of,
    model_identity,
    package_versions,
    quality_gathered,
    scheduler_identity,
)


class Net(nn.Module):
    """A denoiser of one weight with a configuration."""

    def __init__(self, dtype: torch.dtype = torch.float32, **config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.config = config


class Solver:
    def __init__(self, **config: Any) -> None:
        self.config = config


class Pipe:
    def __init__(self, scheduler: Any = None, **parts: Any) -> None:
        self.scheduler = scheduler
        for name, part in parts.items():
            setattr(self, name, part)


class OtherPipe(Pipe):
    pass


def config(target: Any, **fields: Any) -> TunedConfig:
    given: dict[str, Any] = {"steps": 6, "guidance_scale": 4.0, "guidance": "batched"} | fields
    return TunedConfig.describe(target, fc.NoCache(), **given)


# -- identities ----------------------------------------------------------------------------------------------------
def test_an_identity_leaves_out_paths_and_the_order_of_settings() -> None:
    one = Identity.of("Net", {"b": (1, 2), "a": {"y": 1, "_x": 2}, "_name_or_path": "/here"})
    assert one.config == {"a": {"y": 1}, "b": [1, 2]} and list(one.config) == ["a", "b"]
    assert one == Identity.of("Net", {"a": {"y": 1}, "b": [1, 2]}) and len(one.fingerprint) == 64
    for other in ({"a": {"y": 2}, "b": [1, 2]}, {"a": {"y": 1}, "b": [2, 1]}, {"a": {"y": 1}}, {}):
        assert one != Identity.of("Net", other)
    assert one != Identity.of("Other", one.config) and one != "Net"


def test_settings_are_kept_as_json_has_them() -> None:
    kept = Identity.of(
        "Net", {"array": np.array([1.5, 2.0]), "number": np.float32(0.5), "type": torch.float16, "none": None}
    )
    assert kept.config == {"array": [1.5, 2.0], "none": None, "number": 0.5, "type": "torch.float16"}
    assert Identity.model_validate(json.loads(json.dumps(kept.model_dump()))) == kept


def test_a_difference_names_three_settings_and_counts_the_others() -> None:
    one = Identity.of("Net", dict.fromkeys("abcde", 1))
    assert one.difference(Identity.of("Net", dict.fromkeys("abcde", 1))) is None
    assert one.difference(Identity.of("Other", {})) == ("Net", "Other")
    assert one.difference(Identity.of("Net", dict.fromkeys("abcde", 2))) == (
        "Net with a=1, b=1, c=1 and 2 more",
        "a=2, b=2, c=2",
    )
    assert one.difference(Identity.of("Net", dict.fromkeys("abcd", 1))) == ("Net with e=1", "e=not set")
    assert one.difference(Identity.of("Net", dict.fromkeys("abcdef", 1))) == ("Net with f=not set", "f=1")
    four = one.difference(Identity.of("Net", {**dict.fromkeys("abcd", 2), "e": 1}))
    assert four == ("Net with a=1, b=1, c=1 and 1 more", "a=2, b=2, c=2")
    three = one.difference(Identity.of("Net", {"a": 2, "b": 2, "c": 2, "d": 1, "e": 1}))
    assert three == ("Net with a=1, b=1, c=1", "a=2, b=2, c=2")
    forged = one.model_copy(update={"fingerprint": "0" * 64})
    assert forged.difference(one) == ("Net with fingerprint 000000000000", f"fingerprint {one.fingerprint:.12}")


def test_a_model_is_its_pipeline_and_every_denoiser() -> None:
    first, second = Net(layers=2, _path="x"), Net(layers=3)
    alone, both = model_identity(Pipe(transformer=first)), model_identity(Pipe(transformer=first, transformer_2=second))
    assert alone == Model(pipeline="Pipe", denoiser=Identity.of("Net", {"layers": 2}))
    assert both.denoiser == Identity.of("Net", {"layers": 2, "transformer_2": {"layers": 3}})
    assert both != model_identity(Pipe(transformer=first, transformer_2=Net(layers=4)))
    assert model_identity(first) == Model(pipeline=None, denoiser=Identity.of("Net", {"layers": 2}))
    wrapped = Net(layers=2)
    wrapped.add_module("_orig_mod", nn.Identity())
    assert model_identity(wrapped).denoiser.kind == "Identity"
    assert denoisers(first) == {"denoiser": first} and list(denoisers(Pipe(unet=second, transformer="x"))) == ["unet"]
    with pytest.raises(fc.AttachError, match="Pipe has no denoiser"):
        denoisers(Pipe())


def test_a_scheduler_is_its_class_and_settings_and_may_be_missing() -> None:
    assert scheduler_identity(Pipe()) is None and scheduler_identity(Net()) is None
    assert scheduler_identity(Pipe(Solver(beta=1, _version="2"))) == Identity.of("Solver", {"beta": 1})
    assert scheduler_identity(Pipe(SimpleNamespace())) == Identity.of("SimpleNamespace", {})


# -- what is checked -----------------------------------------------------------------------------------------------
def test_a_pipeline_of_another_class_is_another_model_and_a_bare_denoiser_is_not() -> None:
    net, solver = Net(layers=2), Solver(beta=1)
    made = config(Pipe(solver, transformer=net))
    made.check(Pipe(solver, transformer=net))
    made.check(net)  # which has neither pipeline nor scheduler to compare
    made.check(Pipe(transformer=net))
    config(net).check(OtherPipe(solver, transformer=net))
    with pytest.raises(fc.ConfigMismatch, match="made for Pipe, this pipeline has OtherPipe"):
        made.check(OtherPipe(solver, transformer=net))
    made.check(OtherPipe(solver, transformer=net), allow={"model"})
    for other in (Pipe(Solver(beta=2), transformer=net), OtherPipe(Solver(beta=2), transformer=Net(layers=3))):
        with pytest.raises(fc.ConfigMismatch, match="beta=1"):
            made.check(other, allow={"model", "steps", "guidance"})
        made.check(other, allow={"model", "scheduler"})
    with pytest.raises(fc.ConfigMismatch, match="layers=2"):
        made.check(Net(layers=3), allow={"scheduler", "steps", "guidance"})


@pytest.mark.parametrize(
    ("run", "refused"),
    [
        ({"steps": 6, "guidance_scale": 4.0, "guidance": "batched"}, None),
        ({}, None),
        ({"steps": 7}, "steps"),
        ({"guidance": "none"}, "guidance"),
        ({"guidance_scale": 4.0 + 9e-7}, None),
        ({"guidance_scale": 4.0 - 1.1e-6}, "guidance"),
        ({"guidance_scale": 0.0}, "guidance"),
    ],
)
def test_a_run_of_another_kind_is_refused_and_may_be_allowed(run: dict[str, Any], refused: str | None) -> None:
    made = config(Net())
    for allow in ((), ("steps",), ("guidance",), ("model", "scheduler")):
        if refused is None or refused in allow:
            made.check_run(**run, allow=allow)
        else:
            with pytest.raises(fc.ConfigMismatch, match=f"allow={{'{refused}'}}"):
                made.check_run(**run, allow=allow)
    config(Net(), guidance_scale=None).check_run(guidance_scale=9.0)
    config(Net(), guidance_scale=0).check_run(guidance_scale=9e-7)


def test_permissions_are_names_of_parts() -> None:
    assert allowed("steps") == {"steps"} and allowed(["model", "guidance"]) == {"model", "guidance"} and not allowed(())
    for wrong in (5, None, {"model", "step"}, "models"):
        with pytest.raises(fc.ConfigMismatch):
            allowed(wrong)  # type: ignore[arg-type]


def test_other_conditions_are_told_each_and_only_where_they_are_known() -> None:
    made = config(Net(), latent=(4, 8, 8))
    assert made.conditions == Conditions(latent=(4, 8, 8), dtype="float32")
    assert made.differences(Net(), (4, 8, 8)) == []
    both = made.differences(Net(torch.bfloat16), (4, 8, 9))
    assert both == [
        "this tuned config was made for a latent of 4 x 8 x 8, this run has one of 4 x 8 x 9 (another resolution or "
        f"number of frames){ADVICE}",
        f"this tuned config was made for float32, this run has bfloat16{ADVICE}",
    ]
    assert (
        config(Net()).differences(Net(), (1, 2)) == []
        and config(Net(), latent=()).conditions == config(Net()).conditions
    )
    unknown = made.model_copy(update={"conditions": Conditions(adapters=("a", "b"))})
    assert unknown.differences(Net(torch.half), (1,)) == [
        f"this tuned config was made for LoRA adapters: a, b, this run has none{ADVICE}"
    ]
    assert made.model_copy(update={"conditions": None}).differences(Net(torch.half), (1,)) == []
    assert Conditions.of(nn.Identity()) == Conditions()


def test_adapters_are_those_that_are_on() -> None:
    net = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity())
    names: list[Any] = [["b", "a"], ("c", "a"), ["off"], lambda: ["method"]]
    for module, found in zip(net, names, strict=True):
        module.active_adapters = found
    net[2].disable_adapters = True  # type: ignore[assignment]
    assert active_adapters(net) == ("a", "b", "c")


# -- the guidance scale ----------------------------------------------------------------------------------------------
class Told:
    guidance_scale: Any = None

    def __call__(self, prompt: str = "", guidance_scale: float = 7.5) -> None: ...


@pytest.mark.parametrize(
    ("own", "call", "scale"),
    [
        (3, None, 3.0),
        (3.5, {"guidance_scale": 9.0}, 3.5),
        (torch.tensor([[1.0, 3.0, 2.0]]), None, 3.0),
        (torch.tensor([]), None, None),
        (None, None, None),
        (None, {}, 7.5),
        (None, {"guidance_scale": 2}, 2.0),
        (None, {"guidance_scale": None}, None),
        ("4", {}, None),
    ],
)
def test_the_guidance_scale_is_the_largest_that_is_told(own: Any, call: Any, scale: float | None) -> None:
    pipe = Told()
    pipe.guidance_scale = own
    assert guidance_scale_of(pipe, call) == scale
    assert guidance_scale_of(Wordless(), {}) is None and guidance_scale_of(None) is None


class Wordless:
    def __call__(self) -> None: ...


# -- files -----------------------------------------------------------------------------------------------------------
def test_figures_of_older_files_are_gathered_and_newer_ones_go_before() -> None:
    old = {"psnr": 30.0, "ssim": None, "lpips": 0.1, "prompts": 3}
    assert quality_gathered(old) == {"prompts": 3, "quality": {"psnr": 30.0, "lpips": 0.1}}
    assert quality_gathered({"psnr": 30.0, "quality": {"psnr": 31.0, "sharp": 1.0}}) == {
        "quality": {"psnr": 31.0, "sharp": 1.0}
    }
    assert quality_gathered({"psnr": 30.0, "quality": 3}) == {"quality": 3}
    for other in ({"quality": {"psnr": 1.0}}, 3, None):
        assert quality_gathered(other) == other


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": 0},
        {"violations": -1},
        {"rate": -0.01},
        {"rate": 1.01},
        {"confidence": 0.0},
        {"confidence": 1.0},
        {"method": "guess"},
        {"rate": float("nan")},
        {"extra": 1},
    ],
)
def test_a_certificate_of_impossible_figures_is_none(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"budget": "psnr>=30", "prompts": 1, "violations": 0, "rate": 0.0, "confidence": 0.5}
    assert Certificate(**fields).rate == 0.0 and Certificate(**fields | {"rate": 1.0}).rate == 1.0
    with pytest.raises(ValidationError):
        Certificate(**fields | changes)


def test_a_certificate_says_its_own_figures() -> None:
    one = Certificate(budget="psnr>=40", prompts=93, violations=1, rate=0.0501, confidence=0.9)
    assert one.words == "misses psnr>=40 on at most 5.01 % of prompts like these, 90 % sure; 93 prompts, 1 miss"
    assert one.model_copy(update={"violations": 2}).words.endswith("2 misses")


def test_figures_are_of_one_prompt_at_least() -> None:
    fields: dict[str, Any] = {"speedup_flops": 1.0, "seconds": 1.0, "cached_bytes": 0, "hardware": "test"}
    assert Measured(prompts=1, **fields).speedup_wall is None
    for changes in ({"prompts": 0}, {"prompts": 1, "seconds": float("inf")}):
        with pytest.raises(ValidationError):
            Measured(**fields | changes)


def test_versions_are_of_what_is_installed() -> None:
    assert package_versions(("torch", "no-such-package")) == {"torch": torch.__version__}
    assert set(package_versions()) == {"fastercache", "torch", "diffusers", "optuna"}


def test_figures_are_promised_only_where_no_difference_was_accepted() -> None:
    made = config(Net())
    assert Applied(made.policy, made).promised is made
    for part in ("model", "scheduler", "steps", "guidance"):
        assert Applied(made.policy, made, allow=frozenset({part})).promised is None
    assert Applied(made.policy).promised is None

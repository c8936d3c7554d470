"""LoRA put in, switched, fused, taken out, before and after attaching: the bits and FLOPs of a fresh session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.testing import check_policy
from fastercache.testing.probes import coarse, fine
from fastercache.testing.subject import counting
from fastercache.zoo.specimen import Specimen, seeded

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.2"]


@pytest.fixture
def wan() -> Specimen:
    return zoo.build("wan")


def adapter(pipe: Any, name: str = "one", rank: int = 4) -> None:
    """A LoRA with random weights on every attention and feed-forward."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=TARGETS)
    with seeded(rank):
        pipe.transformer.add_adapter(config, adapter_name=name)


def weights(rank: int) -> dict[str, Any]:
    """The state of such a LoRA as `load_lora_weights` takes it."""
    specimen = zoo.build("wan")
    adapter(specimen.pipe, rank=rank)
    state = peft.get_peft_model_state_dict(specimen.pipe.transformer, adapter_name="one")
    return {f"transformer.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("kind", ["fine", "coarse"])
def test_the_laws_hold_with_a_lora_on(wan: Specimen, kind: str) -> None:
    adapter(wan.pipe)
    policy = fine(wan) if kind == "fine" else coarse(wan)
    check_policy(policy, wan, laws=(1, 2, 3, 6, 8, 9)).raise_if_broken()


CHANGES: dict[str, Callable[[Any], None]] = {
    "loaded": lambda pipe: pipe.load_lora_weights(weights(4), adapter_name="one"),
    "disabled": lambda pipe: pipe.transformer.disable_adapters(),
    "enabled again": lambda pipe: pipe.transformer.enable_adapters(),
    "another beside it": lambda pipe: adapter(pipe, "two", rank=8),
    "the other one": lambda pipe: pipe.set_adapters("two"),
    "both": lambda pipe: pipe.set_adapters(["one", "two"], [0.5, 1.0]),
    "fused": lambda pipe: pipe.fuse_lora(),
    "unfused": lambda pipe: pipe.unfuse_lora(),
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
}


POLICIES = [fc.FasterCache(start=0.0, cfg_start=0.0), fc.StaticInterval(sites="block|denoiser", interval=3)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_every_change_between_runs_of_a_session_counts_anew_and_leaves_no_value_behind(
    wan: Specimen, policy: Any
) -> None:
    with fc.attach(wan.pipe, policy) as session:
        wan.generate(steps=4)
        plain = session.last.total_flops
        results = {}
        for name, change in CHANGES.items():
            change(wan.pipe)
            output, told = wan.generate(steps=4), session.last.total_flops
            with counting(wan) as counts:
                assert torch.equal(wan.generate(steps=4), output), name
            assert told == sum(counts), f"{name}: the trace says {told}, the counter {sum(counts)}"
            results[name] = (output, told)
    assert results["loaded"][1] > plain
    assert results["the other one"][1] > results["loaded"][1]
    for name in ("disabled", "fused", "unloaded"):
        assert results[name][1] == plain, name
    assert torch.equal(results["enabled again"][0], results["loaded"][0])
    again = zoo.build("wan")
    for name, change in CHANGES.items():
        change(again.pipe)
        with fc.attach(again.pipe, policy) as session:
            assert torch.equal(again.generate(steps=4), results[name][0]), (
                f"{name}: attached after it, the output differs"
            )
            assert session.last.total_flops == results[name][1], name


def test_a_lora_of_another_rank_under_the_same_name_is_counted_anew(wan: Specimen) -> None:
    with fc.attach(wan.pipe, fc.NoCache()) as session:
        adapter(wan.pipe, rank=4)
        wan.generate(steps=2)
        small = session.last.total_flops
        wan.pipe.delete_adapters("one")
        adapter(wan.pipe, rank=8)
        wan.generate(steps=2)
        assert session.last.total_flops > small

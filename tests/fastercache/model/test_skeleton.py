"""Counting FLOPs runs on a copy: neither diffusers' caches, nor users' hooks and processors, notice it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig

import fastercache as fc
from fastercache.model.skeleton import has_hooks, skeleton
from tests.fastercache.naive import faster_cache, specimen, theirs


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
@pytest.mark.parametrize("cache", ["pab", "fbc", "faster_cache"])
def test_no_cache_over_diffusers_own_cache_changes_nothing(name: str, cache: str) -> None:
    s = specimen(name)
    if (name, cache) == ("wan", "faster_cache"):
        pytest.skip("diffusers' FasterCache cannot run separate guidance")
    pab = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("blocks", "transformer_blocks"),
        current_timestep_callback=lambda: float(s.pipe.current_timestep),
    )
    config = {"pab": pab, "fbc": FirstBlockCacheConfig(threshold=0.2), "faster_cache": faster_cache(s.pipe)}[cache]
    with theirs(s, config):
        want = s.generate()
    with theirs(s, config), fc.attach(s.pipe, fc.NoCache()) as session:
        assert torch.equal(s.generate(), want)
        assert session.last.total_flops > 0


def test_hooks_and_processors_see_the_calls_that_are_made() -> None:
    s = specimen("wan")
    attention = s.pipe.transformer.blocks[0].attn1
    seen: list[str] = []

    class Counting(type(attention.processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            return super().__call__(*args, **kwargs)

    before, attention.processor = attention.processor, Counting()
    handles = [
        s.pipe.transformer.register_forward_pre_hook(lambda m, a: seen.append("denoiser")),
        attention.to_q.register_forward_hook(lambda m, a, o: seen.append("query")),
    ]
    with fc.attach(s.pipe, fc.NoCache(sites="all")):
        s.generate()
    for handle in handles:
        handle.remove()
    calls, attention.processor = attention.processor.calls, before
    assert calls == seen.count("query") == seen.count("denoiser") == 2 * s.steps


def test_a_hook_before_or_after_any_part_is_seen() -> None:
    whole: Any = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert not has_hooks(whole)
    for part in (whole, whole[0][0]):
        hooks: Any = (
            (part.register_forward_pre_hook, lambda module, args: None),
            (part.register_forward_hook, lambda module, args, output: None),
        )
        for register, hook in hooks:
            handle = register(hook)
            assert has_hooks(whole)
            handle.remove()
            assert not has_hooks(whole)


class Kept(torch.nn.Module):
    """Has a list, and a processor that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.again = self.linear
        self.seen: list[int] = []
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x: Any) -> Any:
        self.seen.append(1)
        self.scale = self.scale + 1
        return self.linear(x)


def test_a_skeleton_shares_weights_and_nothing_that_changes() -> None:
    model = Kept()
    model.register_forward_hook(lambda module, args, output: pytest.fail("hooks are left out"))
    bare: Any = skeleton(model)
    assert bare is not None and bare.linear.weight is model.linear.weight and bare.again is bare.linear
    assert bare.linear is not model.linear
    bare(torch.zeros(1, 2))
    assert model.seen == [] and model.scale.tolist() == [1.0, 1.0] and bare.seen == [1]


@pytest.mark.parametrize("name", ["group_offloading", "context_parallel_input", "layerwise_casting", "peft_autocast"])
def test_without_hooks_that_bring_weights_there_is_no_skeleton(name: str) -> None:
    model = Kept()
    registry = type("Registry", (), {"hooks": {}})()
    model.linear._diffusers_hook = registry
    assert skeleton(model) is not None
    registry.hooks = {name: object()}
    assert skeleton(model) is None


def test_with_accelerates_hook_or_a_forward_of_somebody_elses_there_is_no_skeleton() -> None:
    model = Kept()
    other = Kept()
    vars(model.linear)["forward"] = other.linear.forward
    assert skeleton(model) is None
    del vars(model.linear)["forward"]
    assert skeleton(model) is not None
    vars(model.linear)["_hf_hook"] = object()
    assert skeleton(model) is None

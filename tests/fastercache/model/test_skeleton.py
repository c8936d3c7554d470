"""Counting FLOPs runs on a copy: neither diffusers' caches, nor users' hooks and processors, notice it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig

import fastercache as fc
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

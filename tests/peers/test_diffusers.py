"""Each method equals diffusers 0.42.1's own: the same modules run at the same steps, and the same latents come out.

Where diffusers has a defect, the test names it and compares where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

import fastercache as fc

Agree = Callable[..., float]
ALL = list(range(12))


def test_pyramid_attention_broadcast(cogvideox: Any, agree: Agree) -> None:
    """Range 2 in (100, 800), its CogVideoX settings, and range 3.

    On Wan diffusers' PAB shares one cache between the branches, so it is compared with batched guidance only.
    """
    for interval in (2, 3):
        theirs = cogvideox.theirs(
            lambda pipe, n=interval: PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=n,
                spatial_attention_timestep_skip_range=(100, 800),
                current_timestep_callback=lambda: pipe.current_timestep,
            )
        )
        ours = cogvideox.ours(fc.PyramidAttentionBroadcast(spatial=interval, joint=interval, low=100, high=800))
        agree(ours, theirs)
        assert 2 < len(ours.steps("block1")) < 12


def test_first_block_cache_batched(cogvideox: Any, agree: Agree) -> None:
    """One decision for both halves of a batched call, as diffusers takes it."""
    reused = set()
    for threshold in (0.05, 0.2):
        theirs = cogvideox.theirs(FirstBlockCacheConfig(threshold=threshold))
        ours = cogvideox.ours(fc.FirstBlockCache(threshold=threshold))
        agree(ours, theirs)
        assert ours.steps("block0") == ALL
        reused.add(len(ours.steps("block1")))
    assert len(reused) > 1, "the thresholds must lead to different decisions"


def test_first_block_cache_separate(wan: Any, agree: Agree) -> None:
    """Each branch's calls decide for themselves where guidance is separate."""
    for threshold in (0.1, 0.3):
        agree(wan.ours(fc.FirstBlockCache(threshold=threshold)), wan.theirs(FirstBlockCacheConfig(threshold=threshold)))


RATIOS = [1.0, 1.2, 1.1, 1.05, 0.98, 1.02, 1.01, 0.99, 0.97, 0.95, 0.93, 0.9]


@pytest.mark.parametrize(("steps", "threshold", "limit"), [(12, 0.06, 3), (9, 0.3, 2)])
def test_magcache(cogvideox: Any, agree: Agree, steps: int, threshold: float, limit: int) -> None:
    """Also at a step count for which the ratios must be resampled. diffusers passes the text stream through unchanged,
    which the final per-token norm makes invisible here."""
    config = MagCacheConfig(
        threshold=threshold, max_skip_steps=limit, retention_ratio=0.2, num_inference_steps=steps, mag_ratios=RATIOS
    )
    policy = fc.MagCache(ratios={"*": tuple(RATIOS)}, threshold=threshold, max_skip=limit, retention=0.2)
    ours = cogvideox.ours(policy, steps)
    agree(ours, cogvideox.theirs(config, steps))
    assert len(ours.steps("block1")) < steps


def test_magcache_keeps_branches_apart(wan: Any, agree: Agree) -> None:
    """diffusers' blocks share one state between Wan's branches when no context reaches them; with the pipeline's
    contexts they are apart, and that is what is compared."""
    config = MagCacheConfig(threshold=0.1, num_inference_steps=12, mag_ratios=RATIOS)
    agree(wan.ours(fc.MagCache(ratios={"*": tuple(RATIOS)}, threshold=0.1)), wan.theirs(config))


@pytest.mark.parametrize(("interval", "order"), [(2, 1), (3, 2), (4, 0)])
def test_taylorseer(cogvideox: Any, agree: Agree, interval: int, order: int) -> None:
    """diffusers' default patterns match no module of CogVideoX, so its attentions are named; factors in float32.

    Its interval counts from the step after the warm-up, which `offset` expresses.
    """
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"transformer_blocks\.\d+\.attn1"],
    )
    policy = fc.TaylorSeer(sites="attention", interval=interval, start=3 / 11, offset=4, order=order)
    ours = cogvideox.ours(policy)
    agree(ours, cogvideox.theirs(config))
    assert len(ours.steps("block1")) < 10


@pytest.mark.parametrize(("threshold", "order"), [(0.3, 1), (0.8, 1), (0.8, 0)])
def test_seacache(wan: Any, agree: Agree, threshold: float, order: int) -> None:
    """On Wan, the pipeline that passes diffusers the step and sigma it needs."""
    stand_in = fc.Linear() if order else fc.Hold()
    policy = fc.SeaCache(threshold=threshold, scope=fc.Scope.BRANCH, stand_in=stand_in)
    ours = wan.ours(policy)
    agree(ours, wan.theirs(SeaCacheConfig(threshold=threshold, residual_order=order)))
    assert len(ours.steps("block1")) < 12


def cogvideox_settings(pipe: Any, **changes: Any) -> FasterCacheConfig:
    """The settings diffusers documents for CogVideoX."""
    fields = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 681),
        "unconditional_batch_skip_range": 5,
        "unconditional_batch_timestep_skip_range": (-1, 641),
        "low_frequency_weight_update_timestep_range": (99, 641),
        "high_frequency_weight_update_timestep_range": (-1, 301),
        "spatial_attention_block_identifiers": ("transformer_blocks",),
        "attention_weight_callback": lambda _: 0.3,
        "tensor_format": "BFCHW",
        "current_timestep_callback": lambda: pipe.current_timestep,
        **changes,
    }
    return FasterCacheConfig(**fields)


def timesteps(pipe: Any, steps: int) -> list[float]:
    pipe.scheduler.set_timesteps(steps)
    return [float(t) for t in pipe.scheduler.timesteps]


def first_below(pipe: Any, steps: int, bound: float) -> float:
    """Progress of the first step whose timestep is below a bound."""
    return next(i for i, t in enumerate(timesteps(pipe, steps)) if t < bound) / (steps - 1)


def test_fastercache_guidance_on_cogvideox(cogvideox: Any, agree: Agree) -> None:
    """CFG-Cache with the documented CogVideoX settings: a full step every 5, compounding weights in timestep windows.

    diffusers' low-frequency window also ends below 100, where no step of this run lies.
    """
    steps = 20
    theirs = cogvideox.theirs(
        lambda pipe: cogvideox_settings(pipe, spatial_attention_block_identifiers=("nothing",)), steps
    )
    pipe = cogvideox.pipe
    policy = fc.CFGCache(
        interval=5,
        offset=0,
        start=first_below(pipe, steps, 641),
        alpha_low=0.1,
        alpha_high=0.1,
        switch=first_below(pipe, steps, 99.5),
        switch_high=first_below(pipe, steps, 301),
        weighting="repo",
    )
    ours = cogvideox.ours(policy, steps)
    agree(ours, theirs)
    assert {rows for _, rows in ours.ran["block1"]} == {1, 2}


def test_fastercache_attention_held(cogvideox: Any, agree: Agree) -> None:
    """Attention reuse of both halves, held (weight 0), where diffusers treats the model as guidance-distilled.

    With guidance diffusers never reuses attention on a full step, and it keeps the conditional half only; ours reuses
    per branch, so the whole method is not compared.
    """

    def config(pipe: Any) -> FasterCacheConfig:
        return cogvideox_settings(pipe, is_guidance_distilled=True, attention_weight_callback=lambda _: 0.0)

    theirs = cogvideox.theirs(config)
    policy = fc.DynamicReuse(interval=2, weight=0.0, order=0, offset=0, start=first_below(cogvideox.pipe, 12, 681))
    ours = cogvideox.ours(policy)
    agree(ours, theirs)
    assert len(ours.steps("block1")) < 10


def test_fastercache_attention_extrapolated_once(cogvideox: Any, agree: Agree) -> None:
    """Equation 5 with weight 0.3, for one reuse. diffusers also pushes its own predictions into the pair it
    extrapolates from, so from the second reuse on it differs from the paper; the run has one."""
    steps = 12
    at = timesteps(cogvideox.pipe, steps)[7]

    def config(pipe: Any) -> FasterCacheConfig:
        return cogvideox_settings(
            pipe, is_guidance_distilled=True, spatial_attention_timestep_skip_range=(at - 1, at + 1)
        )

    theirs = cogvideox.theirs(config, steps)
    # diffusers' pair is that of two successive steps, so the differences are per one step here
    held = fc.StaticInterval(interval=12, offset=0, stand_in=fc.Difference(weight=0.3, gap=1))
    policy = fc.Window(inner=held, start=7 / 11, stop=8 / 11)
    ours = cogvideox.ours(policy, steps)
    agree(ours, theirs)
    assert ours.steps("block1") == [i for i in range(steps) if i != 7]

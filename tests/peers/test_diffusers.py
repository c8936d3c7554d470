"""Each method equals diffusers 0.42.1's own: the same modules run at the same steps, and the same latents come out.

Where diffusers has a defect, the test names it and compares where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

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
from torch import Tensor

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
    policy = guidance(cogvideox.pipe, steps, 5)
    ours = cogvideox.ours(policy, steps)
    agree(ours, theirs)
    assert {rows for _, _, rows in ours.ran["block1"]} == {1, 2}


def guidance(pipe: Any, steps: int, interval: int) -> fc.CFGCache:
    """CFG-Cache as the documented settings have it, with a full step every `interval`."""
    return fc.CFGCache(
        interval=interval,
        offset=0,
        start=first_below(pipe, steps, 641),
        alpha_low=0.1,
        alpha_high=0.1,
        switch=first_below(pipe, steps, 99.5),
        switch_high=first_below(pipe, steps, 301),
        weighting="repo",
    )


class TheirPair(fc.Predictor):
    """diffusers' pair: the last two values at all, its own predictions among them; F = F_a + 0.3 (F_a - F_b)."""

    name: ClassVar[str] = "their_pair"

    @property
    def depth(self) -> int:
        return 40

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        known = {one.step.index: one.value for one in past}
        older = newer = past[0].value
        for i in range(past[0].step.index + 1, now.step.index + 1):
            older, newer = newer, known[i] if i in known else newer + (newer - older) * 0.3
        return newer


class TheirAttention(fc.SitePolicy, fc.StaticRule[str]):
    """diffusers' rule: every second step of the window, but the conditional half alone and on no full step."""

    name: ClassVar[str] = "their_attention"
    start: float
    branch: fc.CFGCache

    @property
    def query(self) -> str:
        return "attention"

    def begin(self, site: fc.Site, branch: str, run: fc.Run) -> str:
        return branch

    def reuse(self, state: str, step: fc.Step) -> bool:
        full = not self.branch.reuse(None, step)
        return state == fc.COND and step.progress >= self.start and step.index % 2 != 0 and not full

    def predictor(self, site: fc.Site, run: fc.Run) -> fc.Predictor:
        return TheirPair()


def test_fastercache_whole_on_cogvideox_with_its_settings(cogvideox: Any, agree: Agree) -> None:
    """The whole method with the documented CogVideoX settings, attention and guidance together.

    diffusers never reuses attention on a full-guidance step, keeps the conditional half only, and extrapolates from a
    pair that its own predictions enter. Written out as a rule and a predictor, that gives its run; with our own rule
    and predictor the full steps reuse attention too, so the runs differ, and are compared where it has no defect below.
    """
    steps, pipe = 20, cogvideox.pipe
    theirs = cogvideox.theirs(cogvideox_settings, steps)
    branch = guidance(pipe, steps, 5)
    attention = TheirAttention(start=first_below(pipe, steps, 681), branch=branch)
    modelled = cogvideox.ours(fc.Compose([attention, branch]), steps)
    agree(modelled, theirs)
    full = [i for i in range(steps) if i < branch.start * (steps - 1) or i % 5 == 0]
    assert theirs.steps("block1", rows=2) == full  # the defect: no full step reuses attention, not even step 15
    assert 0 < len(theirs.steps("block1", rows=1)) < steps - len(full)
    paper = fc.FasterCache(
        start=attention.start, offset=0, weight=0.3, cfg_start=branch.start, cfg_offset=0, alpha_low=0.1,
        alpha_high=0.1, switch=branch.switch, switch_high=branch.switch_high, weighting="repo",
    )  # fmt: skip
    assert 15 not in cogvideox.ours(paper, steps).steps("block1", rows=2)


def test_fastercache_whole_on_cogvideox_where_there_is_no_defect(cogvideox: Any, agree: Agree) -> None:
    """Our own FasterCache: with a full step every 4 none falls on a step that would reuse attention, and attention that
    is held makes predictions equal to the values they enter the pair beside."""
    steps, pipe = 20, cogvideox.pipe
    theirs = cogvideox.theirs(
        lambda pipe: cogvideox_settings(
            pipe, unconditional_batch_skip_range=4, spatial_attention_timestep_skip_range=(-1, 641),
            attention_weight_callback=lambda _: 0.0,
        ),
        steps,
    )  # fmt: skip
    branch = guidance(pipe, steps, 4)
    policy = fc.FasterCache(
        interval=2, start=branch.start, offset=0, weight=0.0, order=0, cfg_interval=4, cfg_start=branch.start,
        cfg_offset=0, alpha_low=0.1, alpha_high=0.1, switch=branch.switch, switch_high=branch.switch_high,
        weighting="repo",
    )  # fmt: skip
    ours = cogvideox.ours(policy, steps)
    agree(ours, theirs)
    assert ours.steps("block1", rows=1) and len(ours.steps("block1")) < 16


def test_fastercache_attention_held(cogvideox: Any, agree: Agree) -> None:
    """Attention reuse of both halves, held (weight 0), where diffusers treats the model as guidance-distilled.

    With guidance diffusers never reuses attention on a full step, and it keeps the conditional half only.
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

"""DualBlockCache and its Taylor forecast equal cache-dit 1.5.3's, decision by decision and in the latents."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest

import fastercache as fc

cache_dit = pytest.importorskip("cache_dit", reason="the extra 'peers' installs it")
Agree = Callable[..., float]


@pytest.fixture(autouse=True)
def _silent() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("CACHE_DIT", "cache_dit")):
            logging.getLogger(name).setLevel(logging.ERROR)


def theirs(lab: Any, order: int | None = None, steps: int = 12, **fields: Any) -> Any:
    """One run of a copy of the pipeline under cache-dit."""
    pipe = copy.deepcopy(lab.pipe)
    watched = lab.watched(pipe)  # before cache-dit replaces the block list
    calibrator = None if order is None else cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**fields), calibrator_config=calibrator)
    return lab.run(steps, pipe, watched)


@pytest.mark.parametrize(("front", "back", "threshold"), [(1, 0, 0.05), (1, 0, 0.5), (1, 1, 0.2), (2, 1, 0.5)])
def test_dual_block_cache(cogvideox: Any, agree: Agree, threshold: float, front: int, back: int) -> None:
    """Batched guidance: cache-dit decides once for both halves, on the mean over the whole batch."""
    peer = theirs(
        cogvideox, Fn_compute_blocks=front, Bn_compute_blocks=back, residual_diff_threshold=threshold,
        max_warmup_steps=4, max_continuous_cached_steps=3,
    )  # fmt: skip
    ours = cogvideox.ours(fc.DualBlockCache(front=front, back=back, threshold=threshold, warm_up=4, max_consecutive=3))
    agree(ours, peer)
    assert ours.steps("block0") == list(range(12))
    if threshold == 0.5:
        assert 4 < len(ours.steps("block1" if front == 1 else "block2")) < 12


@pytest.mark.parametrize("order", [1, 2])
def test_dual_block_cache_with_taylor(cogvideox: Any, agree: Agree, order: int) -> None:
    """The rule and the predictor are separate parts here: one line of configuration."""
    peer = theirs(
        cogvideox, order, Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.3, max_warmup_steps=4,
        max_continuous_cached_steps=2,
    )  # fmt: skip
    policy = fc.DualBlockCache(front=1, threshold=0.3, warm_up=4, max_consecutive=2, stand_in=fc.Taylor(order=order))
    ours = cogvideox.ours(policy)
    agree(ours, peer)
    assert len(ours.steps("block1")) < 12


def test_dual_block_cache_separate_guidance(wan: Any, agree: Agree) -> None:
    """On Wan cache-dit tells the branches by the parity of a call counter; in an undisturbed run that is right."""
    peer = theirs(wan, Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.2, max_warmup_steps=3,
                  max_continuous_cached_steps=3)  # fmt: skip
    ours = wan.ours(fc.DualBlockCache(front=1, threshold=0.2, warm_up=3, max_consecutive=3))
    agree(ours, peer)
    assert len(ours.steps("block1")) < 12

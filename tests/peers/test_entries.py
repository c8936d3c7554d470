"""Peers as entries of a bench: their FLOPs are what really ran, and cache-dit is gone afterwards, class and all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache.attachment import denoisers_of
from fastercache.experiments.bench.lineup import DBCACHE, PEERS
from fastercache.experiments.bench.peers import Peer, class_kept, counted, reason, sets_contexts


def modules(pipe: Any) -> list[tuple[str, type, tuple[str, ...]]]:
    return [(n, type(m), tuple(sorted(vars(m)))) for n, m in denoisers_of(pipe)[0][1].named_modules()]


def attributes_of(pipe: Any) -> dict[str, Any]:
    """The class's attributes; `__slotnames__` is what Python itself notes when it copies an instance."""
    return {name: value for name, value in vars(type(pipe)).items() if name != "__slotnames__"}


def flops_of(lab: Any, peer: Peer, steps: int = 12) -> tuple[int, Any]:
    with peer.applied(lab.pipe, {"num_inference_steps": steps}) as pipe, counted(pipe) as calls:
        outcome = lab.run(steps, pipe, {})
    return sum(calls), outcome.latents


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_flops_of_a_peer_are_those_of_our_equal_policy(cogvideox: Any, threshold: float) -> None:
    """The latents are equal and the same modules ran (test_diffusers), so the counts must be equal too."""
    theirs, latents = flops_of(cogvideox, Peer("diffusers", "FirstBlockCache", {"threshold": threshold}))
    ours = cogvideox.ours(fc.FirstBlockCache(threshold=threshold))
    assert theirs == cogvideox.trace.total_flops
    assert theirs < sum(cogvideox.trace.flops_full) or threshold == 0.05
    torch.testing.assert_close(ours.latents, latents, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("order", [None, 1])
def test_cache_dit_counts_the_same_and_leaves_nothing(wan: Any, order: int | None) -> None:
    pytest.importorskip("cache_dit", reason="the extra 'peers' installs it")
    bare = wan.run(modules={}).latents
    before, attributes = modules(wan.pipe), attributes_of(wan.pipe)
    fields = {**DBCACHE[2], "residual_diff_threshold": 0.3}
    theirs, latents = flops_of(wan, Peer("cache-dit", "DBCache", fields, order))
    assert modules(wan.pipe) == before and attributes_of(wan.pipe) == attributes
    assert torch.equal(wan.run(modules={}).latents, bare)
    stand_in = fc.Hold() if order is None else fc.Taylor(order=order)
    ours = wan.ours(fc.DualBlockCache(threshold=0.3, warm_up=4, max_consecutive=4, stand_in=stand_in))
    assert theirs == wan.trace.total_flops and not torch.equal(latents, bare)
    torch.testing.assert_close(ours.latents, latents, rtol=2e-5, atol=2e-5)


def test_contexts_are_entered_only_where_the_pipeline_enters_none(cogvideox: Any, wan: Any, tiny_latte: Any) -> None:
    assert sets_contexts(cogvideox.pipe) and sets_contexts(wan.pipe) and not sets_contexts(tiny_latte)


def test_faster_cache_with_separate_calls_is_refused_in_one_line(wan: Any) -> None:
    fields = next(p.settings[0] for p in PEERS if p.method == "FasterCache")
    with pytest.raises(Exception) as found:
        flops_of(wan, Peer("diffusers", "FasterCache", fields))
    assert "\n" not in reason(found.value)


def test_what_is_set_on_a_class_is_taken_back() -> None:
    """cache-dit takes its own things back when asked; this holds also where it failed halfway."""

    class Pipeline:
        kept = 1

    with pytest.raises(RuntimeError), class_kept(Pipeline):
        Pipeline.kept, Pipeline.added = 2, 3  # type: ignore[attr-defined]
        raise RuntimeError
    assert Pipeline.kept == 1 and not hasattr(Pipeline, "added")

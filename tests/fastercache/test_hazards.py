"""Each trap that other cache implementations fell into: the naive way gives the wrong result here, ours the right one.

The naive way is diffusers' own cache where it has the defect, else a few lines in the test. Branches and clock are
here, hooks and values in `test_hazards_hooks.py`. Hazards whose test stands elsewhere, naive implementation included:

| hazard | test |
|---|---|
| keys without the branch break law 5 | test_families::test_naive_keys_break_law_5 |
| an unconditional call that comes first | test_families::test_an_unconditional_call_that_comes_first_is_predicted_... |
| a Fourier transform over packed tokens | test_grids::test_the_naive_transform_over_tokens_differs |
| image and text streams of one shape | test_finder::test_equal_streams_are_matched_by_the_familys_order |
| an extra pass of a step taken for a branch | test_branches::test_an_extra_pass_in_a_step_is_refused |
| a hook around diffusers' own offloading | test_offloading::test_a_hook_around_diffusers_own_would_compute_... |
| a decision by a tensor's value in a compiled block | test_deployment::test_a_dynamic_policy_inside_... |
| a reused value that the model changed in place | test_deployment::test_values_the_model_changes_in_place_are_copied |
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import HeunDiscreteScheduler, PyramidAttentionBroadcastConfig
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, UNCOND
from tests.fastercache.naive import Naive, faster_cache, outputs_of, replaced, specimen, theirs

HALF = fc.StaticInterval(sites="denoiser", interval=2, start=0.0)
"""Computed at steps 0, 2, 4; reused at 1, 3, 5."""


def test_one_cache_for_both_calls_makes_the_guidance_vanish() -> None:
    """Hazard: 'One cache shared by the conditional and unconditional calls mixes the branches silently (...) the
    guidance becomes exactly zero at some steps. Every cached value is keyed by branch.'"""
    s = specimen("wan")
    denoiser = s.pipe.transformer

    def guidance(seen: list[Tensor]) -> list[float]:
        return [float((a - b).abs().max()) for a, b in zip(seen[::2], seen[1::2], strict=True)]

    naive = Naive(denoiser, key=lambda call: None, reuse=lambda call: call // 2 % 2 == 1)
    with replaced(denoiser, naive), outputs_of(denoiser) as seen:
        s.generate()
    assert [g == 0.0 for g in guidance(seen)] == [False, True] * 3
    with outputs_of(denoiser) as seen, fc.attach(s.pipe, HALF):
        s.generate()
    assert all(g > 0.0 for g in guidance(seen))
    assert torch.equal(seen[2], seen[0]) and torch.equal(seen[3], seen[1])  # step 1: each branch its own value


@pytest.mark.parametrize("name", ["cogview4", "qwen-image"])
def test_branches_of_different_text_lengths(name: str) -> None:
    """Hazard: 'Branches with different text lengths are why a cache keyed without the branch crashes (PAB on CogView4,
    Qwen).'"""
    s = specimen(name)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: float(s.pipe.current_timestep),
    )
    with theirs(s, config), pytest.raises(RuntimeError, match="must match the size"):
        s.generate()
    with fc.attach(s.pipe, fc.StaticInterval(interval=2)) as session:
        s.generate()
        assert session.last.share() > 0.2


def test_attention_is_reused_on_full_steps_of_both_branches() -> None:
    """Hazard: '[D] never reuses attention on a full-guidance step and caches the conditional half only. Ours reuses
    per branch.'"""
    s = specimen("cogvideox")
    attention = s.pipe.transformer.transformer_blocks[0].attn1
    full = {"unconditional_batch_timestep_skip_range": (1001, 1002)}  # every step computes both branches
    with outputs_of(attention.to_q) as seen, theirs(s, faster_cache(s.pipe, **full)):
        s.generate()
    assert len(seen) == s.steps  # nothing was saved
    with outputs_of(attention.to_q) as seen, fc.attach(s.pipe, fc.DynamicReuse(interval=2, start=0.0)) as session:
        s.generate()
    assert len(seen) == s.steps // 2
    assert (session.last.codes[0, :, 1::2] == Code.REUSED).all()


def test_separate_calls_under_cfg_cache() -> None:
    """Hazard: '[D] FasterCache cannot run separate-call guidance (Wan: IndexError).'"""
    s = specimen("wan")
    with theirs(s, faster_cache(s.pipe, tensor_format="BCFHW")), pytest.raises(IndexError):
        s.generate()
    with fc.attach(s.pipe, fc.FasterCache(start=0.0, cfg_start=0.0)) as session:
        s.generate()
    assert UNCOND in session.last.run.branches and session.last.share() > 0.2


def test_token_latents_under_cfg_cache() -> None:
    """Hazard: '[D] FasterCache cannot run (...) token-layout latents (LTX: RuntimeError).'"""
    s = specimen("ltx")
    with theirs(s, faster_cache(s.pipe, tensor_format="BCFHW")), pytest.raises(RuntimeError, match="dimensions"):
        s.generate()
    with fc.attach(s.pipe, fc.FasterCache(start=0.0, cfg_start=0.0)) as session:
        s.generate()
    assert session.last.share() > 0.2


@pytest.mark.parametrize(("name", "naive_is_right"), [("latte", True), ("dit", False)])
def test_the_conditional_half_of_a_batched_call(name: str, naive_is_right: bool) -> None:
    """Hazard: 'The two halves of a batched call are [uncond, cond] in most diffusers pipelines, but DiT is [cond,
    uncond].'"""
    s = specimen(name)
    seen: dict[str, Tensor] = {}
    with outputs_of(s.pipe.transformer) as whole, fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        session.watch("denoiser", lambda o: seen.setdefault(o.branch, o.value.clone()))
        s.generate(steps=1)
    with outputs_of(s.pipe.transformer) as alone:
        s.generate(steps=1, **s.unguided)
    naive = whole[0].chunk(2)[1]
    assert torch.allclose(naive, alone[0], atol=1e-4) == naive_is_right
    assert torch.allclose(seen[COND], alone[0], atol=1e-4)


def test_the_first_of_two_calls_may_be_the_unconditional_one() -> None:
    """Hazard: 'Separate calls come cond first in diffusers, uncond first in Vchitect-2.0. The order is data.'"""
    order: dict[str, list[str]] = {}
    for name in ("wan", "vchitect-2.0"):
        s = specimen(name)
        told = order.setdefault(name, [])
        with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
            session.watch("denoiser", lambda o, told=told: told.append(o.branch))  # type: ignore[misc]
            s.generate(steps=2)
    naive = [COND, UNCOND] * 2
    assert order["wan"] == naive
    assert order["vchitect-2.0"] == [UNCOND, COND] * 2 != naive


def test_the_branch_is_not_the_parity_of_a_counter() -> None:
    """Hazard: 'cache-dit guesses the branch from the parity of a counter': a run without guidance turns it round."""
    s = specimen("wan")
    denoiser = s.pipe.transformer
    calls = 0

    def parity(*_: Any) -> None:
        nonlocal calls
        naive.append((COND, UNCOND)[calls % 2])
        calls += 1

    naive: list[str] = []
    ours: list[str] = []
    handle = denoiser.register_forward_pre_hook(parity)
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        session.watch("denoiser", lambda o: ours.append(o.branch))
        s.generate(steps=3, **s.unguided)
        s.generate(steps=2)
    handle.remove()
    assert ours == [COND] * 3 + [COND, UNCOND] * 2
    assert naive[3:] == [UNCOND, COND] * 2


def test_rows_are_not_branches() -> None:
    """Hazard: 'Latte: the leading dim is not the batch: spatial blocks see (B*F, tokens), temporal blocks (B*tokens,
    F).'"""
    s = specimen("latte")
    for site in ("transformer_blocks.0.attn1", "temporal_transformer_blocks.0.attn1"):
        seen: dict[str, Tensor] = {}
        with (
            outputs_of(s.pipe.transformer.get_submodule(site)) as whole,
            fc.attach(s.pipe, fc.NoCache(sites=site)) as a,
        ):
            a.watch(site, lambda o, seen=seen: seen.setdefault(o.branch, o.value.clone()))  # type: ignore[misc]
            s.generate(steps=1)
        naive = whole[0][1:2]  # "row 1 of two is the conditional one": a further frame or token of the unconditional
        assert torch.equal(naive, seen[UNCOND][1:2])
        assert torch.equal(seen[COND], whole[0][len(whole[0]) // 2 :])


def test_a_run_that_starts_inside_the_reuse_range() -> None:
    """Hazard: '[D] crashes when the first step already lies in the reuse range (image-to-image starts).'"""
    s = specimen("cogvideox-v2v")
    denoiser = s.pipe.transformer
    with replaced(denoiser, Naive(denoiser, key=lambda call: None, reuse=lambda call: True)), pytest.raises(KeyError):
        s.generate()
    always = fc.Schedule(rows=(fc.Row(sites="denoiser", steps="R" * 6),))
    with fc.attach(s.pipe, always) as session:
        s.generate()
    assert (session.last.codes[0, :, 0] == Code.COMPUTED).all() and (session.last.codes[0, :, 1:] == Code.REUSED).all()


def test_a_run_after_one_that_raised_or_that_starts_below_1000() -> None:
    """Hazard: 'counters that reset only when t == 1000': a start in the middle, or an exception, leaves the last run's
    values."""
    s = specimen("cogvideox-v2v")
    denoiser = s.pipe.transformer

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("the user's callback")

    with fc.attach(s.pipe, HALF):
        fresh = s.generate()
        with pytest.raises(KeyError):
            s.generate(seed=1, callback_on_step_end=stop)
        assert torch.equal(s.generate(), fresh)
    with replaced(denoiser, Naive(denoiser, key=lambda call: None, reuse=lambda call: call % 2 == 1)):
        assert torch.equal(s.generate(), fresh)
        with pytest.raises(KeyError):
            s.generate(seed=1, callback_on_step_end=stop)
        assert not torch.equal(s.generate(), fresh)


def test_values_of_another_resolution() -> None:
    """Hazard: 'A new run resets all state, also after (...) another resolution.'"""
    s = specimen("latte")
    denoiser = s.pipe.transformer
    other = s.generate(**s.resized).shape
    # Five steps end on a computed value's first reuse, so the next run begins by reusing it.
    with replaced(denoiser, Naive(denoiser, key=lambda call: None, reuse=lambda call: call % 2 == 1)):
        s.generate(steps=5)
        with pytest.raises(RuntimeError):
            s.generate(steps=5, **s.resized)
    with fc.attach(s.pipe, HALF):
        s.generate(steps=5)
        assert s.generate(steps=5, **s.resized).shape == other


def test_second_order_schedulers_call_twice_a_step() -> None:
    """Hazard: 'Heun makes 2n - 1 calls for n steps': a count of calls over n runs past the end of the run."""
    s = zoo.build("latte")
    s.pipe.scheduler = HeunDiscreteScheduler()
    with outputs_of(s.pipe.transformer) as calls, fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        s.generate(steps=4)
    naive = [call / (4 - 1) for call in range(len(calls))]
    assert max(naive) == 2.0
    steps = session.last.run.steps
    assert [step.progress for step in steps] == pytest.approx([i / 6 for i in range(7)]) and session.last.complete


@pytest.mark.parametrize("name", ["mochi", "flux"])
def test_a_timestep_is_no_clock(name: str) -> None:
    """Hazard: 'on Mochi (...) the timesteps ascend; Flux and Qwen hand the model t / 1000. So the clock comes from the
    scheduler.'"""
    s = specimen(name)
    given: list[float] = []
    hook: Any = lambda m, args, kwargs: given.append(float(kwargs["timestep"].flatten()[0]))  # noqa: E731
    handle = s.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    with fc.attach(s.pipe, fc.StaticInterval(sites="denoiser", interval=2, start=0.0)) as session:
        s.generate()
    handle.remove()
    if name == "mochi":
        assert all(b > a for a, b in pairwise(given))  # "t rose, so this is a new run": every step would be one
    else:
        assert not any(100.0 < t < 800.0 for t in given)  # a window of timesteps would never open
    assert len(session.traces) == 1 and session.last.complete
    assert session.last.codes[0, 0].tolist() == [Code.COMPUTED, Code.REUSED] * (s.steps // 2)


def test_a_stochastic_scheduler_needs_a_seeded_generator() -> None:
    """Hazard: 'Default schedulers of Allegro, HunyuanDiT and CogVideoX I2V are stochastic: comparisons need a seeded
    generator.'"""
    s = specimen("cogvideox-i2v")
    latents = torch.randn(s.generate(steps=2).shape, generator=torch.Generator().manual_seed(0))
    naive = [s.generate(steps=3, latents=latents.clone(), generator=None) for _ in range(2)]
    assert not torch.equal(*naive)
    assert torch.equal(s.generate(steps=3), s.generate(steps=3))

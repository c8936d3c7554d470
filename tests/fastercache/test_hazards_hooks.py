"""Traps of hooks and of values: see `test_hazards.py`."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.fft import fft2, fftshift, ifft2, ifftshift

import fastercache as fc
from fastercache import zoo
from fastercache.policies.predictors.frequency import split_bands
from tests.fastercache.naive import outputs_of, replaced, specimen, theirs

HALF = fc.StaticInterval(sites="denoiser", interval=2, start=0.0)


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
def test_attaching_to_nothing_is_an_error(name: str) -> None:
    """Hazard: 'TaylorSeer attaches to nothing on Wan, LTX, CogVideoX and Mochi and says so nowhere.'"""
    s = specimen(name)
    bare = s.generate()
    with theirs(s, TaylorSeerCacheConfig(cache_interval=2, max_order=1, disable_cache_before_step=1)):
        assert torch.equal(s.generate(), bare)
    with fc.attach(s.pipe, fc.TaylorSeer(interval=2, start=0.0)) as session:
        assert not torch.equal(s.generate(), bare) and session.last.share() > 0.2
    pattern = r"blocks\.\d+\.atn"  # misspelt
    assert not [n for n, _ in s.pipe.transformer.named_modules() if re.search(pattern, n)]  # and no more is said
    with pytest.raises(fc.NoSiteMatched, match="atn"):
        fc.attach(s.pipe, fc.StaticInterval(sites="blocks.*.atn"))


def test_a_pipeline_without_cache_contexts() -> None:
    """Hazard: 'three caches raise wherever a pipeline sets no cache context.'"""
    s = specimen("latte")
    with theirs(s, FirstBlockCacheConfig(threshold=0.5)), pytest.raises(ValueError, match="No cache context"):
        s.generate()
    with fc.attach(s.pipe, fc.FirstBlockCache(threshold=0.5)) as session:
        s.generate()
    assert session.last.share() > 0.1


class Replacing(ModelHook):
    """A hook as diffusers' caches use it: it stands in for the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.fn_ref.original_forward(*args, **kwargs)


def test_removing_one_hook_silences_no_other() -> None:
    """Hazard: '`remove_hook` of an earlier one silences later ones, and accelerate's re-hooking (...) drops hooks
    installed after it: one dispatcher hook per site, policies swapped inside it.'"""
    module, hooks = nn.Linear(2, 2), [Replacing(), Replacing()]
    registry = HookRegistry.check_if_exists_or_initialize(module)
    for name, hook in zip(("first", "second"), hooks, strict=True):
        registry.register_hook(hook, name)
    registry.remove_hook("first", recurse=False)
    module(torch.zeros(1, 2))
    assert [hook.calls for hook in hooks] == [0, 0]

    module = add_hook_to_module(nn.Linear(2, 2), AccelerateHook())
    original, calls = module.forward, list[str]()
    module.forward = lambda x: (calls.append("ours"), original(x))[1]
    remove_hook_from_module(module)
    add_hook_to_module(module, AccelerateHook())(torch.zeros(1, 2))
    assert not calls

    s, theirs, policy = zoo.build("latte"), Replacing(), fc.StaticInterval(sites="stack", interval=2, start=0.0)
    denoiser = s.pipe.transformer
    with fc.attach(s.pipe, HALF) as session:
        HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(theirs, "theirs")
        add_hook_to_module(denoiser, AccelerateHook())
        remove_hook_from_module(denoiser)
        add_hook_to_module(denoiser, AccelerateHook())
        session.use(policy)
        s.generate()
        assert session.last.share() > 0.4
    before = theirs.calls
    s.generate()
    assert theirs.calls == before + s.steps


def test_a_copy_runs_its_own_weights() -> None:
    """Hazard: '`deepcopy` of a hooked module runs the original's weights.'"""
    s = zoo.build("latte")
    bare = s.generate(steps=2)

    def emptied() -> Tensor:
        twin = copy.deepcopy(s)
        with torch.no_grad():
            for parameter in twin.pipe.transformer.parameters():
                parameter.zero_()
        return twin.generate(steps=2)

    original = s.pipe.transformer.forward
    with replaced(s.pipe.transformer, lambda *args, **kwargs: original(*args, **kwargs)):
        assert torch.equal(emptied(), bare)
    with fc.attach(s.pipe, HALF):
        assert not torch.equal(emptied(), bare)


def test_a_patched_class_reaches_every_pipeline_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: 'one copied model forward per model, assigned onto the class so every pipeline in the process shares
    it.'"""
    s, other = zoo.build("latte"), zoo.build("latte")
    bare = other.generate()
    with fc.attach(s.pipe, HALF):
        assert not torch.equal(s.generate(), bare) and torch.equal(other.generate(), bare)
    cls = type(s.pipe.transformer)
    original, cache = cls.forward, list[Any]()

    def held(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not cache:
            cache.append(original(self, *args, **kwargs))
        return cache[0]

    monkeypatch.setattr(cls, "forward", held)
    assert not torch.equal(other.generate(), bare)


def test_a_forward_hook_cannot_skip_the_body() -> None:
    """Hazard: 'Plain torch forward hooks cannot skip a body': the value is replaced, the work is done all the same."""
    s = specimen("latte")
    attention = s.pipe.transformer.transformer_blocks[0].attn1
    kept: list[Tensor] = []

    def hold(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if len(kept) % 2 == 0:
            kept.append(output)
            return output
        kept.append(kept[-1])
        return kept[-1]

    handle = attention.register_forward_hook(hold)
    with outputs_of(attention.to_q) as computed:
        s.generate()
    handle.remove()
    assert len(computed) == s.steps
    policy = fc.StaticInterval(sites="transformer_blocks.0.attn1", interval=2, start=0.0)
    with outputs_of(attention.to_q) as computed, fc.attach(s.pipe, policy):
        s.generate()
    assert len(computed) == s.steps // 2


def test_a_last_block_that_returns_no_text() -> None:
    """Hazard: 'SD3: (text, image); last block None for text': the image is not the first of a block's outputs, nor is
    each of them a tensor."""
    s = specimen("sd3")
    blocks = s.pipe.transformer.transformer_blocks
    outputs: list[Any] = []
    handles = [b.register_forward_hook(lambda m, a, out: outputs.append(out)) for b in (blocks[0], blocks[-1])]
    with fc.attach(s.pipe, fc.StaticInterval(sites="block", interval=2, start=0.0)) as session:
        s.generate(steps=4)
    for handle in handles:
        handle.remove()
    assert outputs[1][0] is None  # the residual `output[0] - hidden_states` is none
    assert session.last.share() > 0.2


def test_a_shift_without_axes_rolls_the_batch() -> None:
    """Hazard: 'fftshift with no `dim` also rolls batch and channel axes: give it the last two axes.'"""
    x = torch.stack([torch.full((1, 8, 8), float(i)) for i in range(3)])  # (B, C, H, W), row i is i everywhere
    y, z = torch.meshgrid(torch.arange(8) - 4, torch.arange(8) - 4, indexing="ij")
    disc = (y**2 + z**2) <= 1

    def low(**shift: Any) -> Tensor:
        return ifft2(ifftshift(fftshift(fft2(x), **shift) * disc, dim=(-2, -1))).real

    ours, _ = split_bands(x, 1)
    assert torch.allclose(ours, low(dim=(-2, -1)), atol=1e-5) and torch.allclose(ours, x, atol=1e-5)
    assert torch.allclose(low()[:, 0, 0, 0], torch.tensor([2.0, 0.0, 1.0]), atol=1e-5)


def test_a_forward_that_is_wrapped_while_a_session_is_attached() -> None:
    """A user's few lines around `forward` see each computed call once, and none is left that calls itself."""
    s = specimen("latte")
    denoiser = s.pipe.transformer
    bare = s.generate()
    seen: list[str] = []

    def wrapped(name: str) -> Any:
        inner = denoiser.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return inner(*args, **kwargs)

        return forward

    with fc.attach(s.pipe, HALF) as session:
        cached, steps = s.generate(), session.last.run.count
        computed = sum(flops > 0 for flops in session.last.flops)
        assert not torch.equal(cached, bare) and computed < steps
        for names in (["a"], ["b", "a"]):
            denoiser.forward = wrapped(names[0])
            for _ in range(2):
                seen.clear()
                assert torch.equal(s.generate(), cached)
                assert seen == names * computed
    seen.clear()
    assert torch.equal(s.generate(), bare) and seen == ["b", "a"] * steps
    del denoiser.forward
    assert torch.equal(s.generate(), bare)


def test_a_denoiser_that_was_exchanged_under_a_session_is_refused() -> None:
    """The pipeline would run uncached, and the session tell of the run before."""
    s = specimen("latte")
    own = s.pipe.transformer
    with fc.attach(s.pipe, HALF):
        cached = s.generate()
        s.pipe.transformer = copy.deepcopy(own)
        with pytest.raises(fc.AttachError, match=r"another denoiser now .* detach the session and attach again"):
            s.generate()
        s.pipe.transformer = own
        assert torch.equal(s.generate(), cached)


@pytest.mark.parametrize("guidance", ["batch", 3, ["none"]])
def test_a_style_of_guidance_that_there_is_not_is_refused(guidance: Any) -> None:
    with pytest.raises(fc.BranchUnknown, match='guidance must be "batched", "separate" or "none", found'):
        fc.attach(specimen("latte").pipe, fc.NoCache(), guidance=guidance)

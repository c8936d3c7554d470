"""The families that are swept: NoCache, a stack and CFG-Cache there, against values by hand."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.attachment import denoisers_of
from fastercache.model.finder import find_blocks
from fastercache.model.layout import leading_tensor, take_rows, tokens_of
from fastercache.policies.vocabulary import COND, UNCOND
from fastercache.testing import check_policy
from fastercache.tuned import guidance_scale_of
from fastercache.zoo import SWEPT as FURTHER
from fastercache.zoo.specimen import Specimen
from tests.fastercache.model.test_families import WHOLE_CALLS, first_cond_output

STACKS = ["auraflow", "bria", "easyanimate", "flux.2", "kandinsky5", "lumina2", "stable-audio", "wan-vace", "z-image"]
ONE_BRANCH = {"flux.2", "flux-kontext"}


@lru_cache(maxsize=1)
def specimen(name: str) -> Specimen:
    return zoo.build(name)


@pytest.mark.parametrize("name", sorted(FURTHER))
def test_nocache_is_bit_equal_and_the_run_complete(name: str) -> None:
    s = specimen(name)
    bare = s.generate(steps=3)
    with fc.attach(s.pipe, fc.NoCache()) as session:
        assert torch.equal(s.generate(steps=3), bare)
        assert session.last.complete
        branches = session.last.run.branches
    if name == "instruct-pix2pix":
        assert branches == (COND, "image", UNCOND)
    else:
        assert branches == ((COND,) if name in ONE_BRANCH else (COND, UNCOND))


@pytest.mark.parametrize("name", sorted(n for n in FURTHER - ONE_BRANCH if zoo.FAMILIES[n].unguided))
def test_the_conditional_branch_is_the_conditional_one(name: str) -> None:
    """The table's order of rows or calls: `cond` is what the model predicts where guidance is off."""
    if name == "z-image":
        pytest.skip("a list of samples is not told apart by branch")
    s = specimen(name)
    guided, alone = first_cond_output(s), first_cond_output(s, **s.unguided)
    assert torch.allclose(guided, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_held_as_by_hand(name: str) -> None:
    """Hold at step 1 of 2: the last block's output is its step-0 output plus the change of the first block's input."""
    s = specimen(name)
    blocks = [block.module for block in find_blocks(denoisers_of(s.pipe)[0][1])]
    inputs: list[list[Tensor]] = []
    outputs: list[list[Tensor]] = []

    def entering(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append([v.clone() for v in (*args, *kwargs.values()) if isinstance(v, Tensor)])

    def leaving(module: Any, args: tuple[Any, ...], output: Any) -> None:
        outputs.append([t.clone() for t in (output if isinstance(output, tuple) else (output,)) if t is not None])

    handles = [
        blocks[0].register_forward_pre_hook(entering, with_kwargs=True),
        blocks[-1].register_forward_hook(leaving),
    ]
    try:
        with fc.attach(s.pipe, fc.StaticInterval(sites="stack", interval=2)) as session:
            s.generate(steps=2)
            inputs.clear()  # of the counting pass too, which the first run alone has
            outputs.clear()
            s.generate(steps=2)
            assert session.last.share() == 0.5
    finally:
        for handle in handles:
            handle.remove()
    calls = len(inputs) // 2
    assert len(outputs) == len(inputs) == 2 * calls
    for first in range(calls):
        before, after = inputs[first][0], inputs[calls + first][0]
        image = [t for t in outputs[first] if t.shape[0] == before.shape[0]]
        again = [t for t in outputs[calls + first] if t.shape[0] == before.shape[0]]
        # The image's stream changes as the input does; where text is joined on, it is at the end of the tokens.
        count = before.shape[1]
        changes = [(b - a)[:, -count:] if b.ndim == 3 else b - a for a, b in zip(image, again, strict=True)]
        found = [c for c in changes if c.shape == before.shape]
        assert any(torch.allclose(c, after - before, atol=1e-4) for c in found)


@pytest.mark.parametrize(
    "name", ["auraflow", "bria", "hunyuan-image", "kandinsky5", "lumina2", "prx", "wan-vace", "svd"]
)
def test_the_unconditional_branch_is_predicted_as_by_hand(name: str) -> None:
    """CFG-Cache that holds: uncond at step 1 is cond there plus the difference at step 0."""
    s = specimen(name)
    seen: dict[tuple[str, int], Tensor] = {}
    policy = fc.CFGCache(interval=2, start=0.0, alpha_low=0.0, alpha_high=0.0)
    with fc.attach(s.pipe, policy) as session:
        session.watch("denoiser", lambda o: seen.update({(o.branch, o.step.index): o.value.clone()}))
        s.generate(steps=2)
    expected = seen[COND, 1] + seen[UNCOND, 0] - seen[COND, 0]
    assert torch.allclose(seen[UNCOND, 1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "prompts", "path", "shape"),
    [
        ("prx", 1, "blocks.0.attention", (2, 1, 64)),
        ("kandinsky5", 2, "visual_transformer_blocks.0.self_attention", (2, 32, 1)),
    ],
)
def test_a_position_embedding_that_is_given_for_each_row_is_cut_with_them(
    name: str, prompts: int, path: str, shape: tuple[int, ...]
) -> None:
    """PRX hands every attention (B, 1, N, ...), Kandinsky (B, N, 1, ...): one row is that row of a whole call."""
    s = specimen(name)
    attention = s.pipe.transformer.get_submodule(path)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = attention.register_forward_pre_hook(lambda _, *call: given.append(call), with_kwargs=True)
    s.generate(steps=2, prompts=prompts)
    handle.remove()
    args, kwargs = given[-1]
    assert {tuple(v.shape[:3]) for k, v in kwargs.items() if k in ("image_rotary_emb", "rotary_emb")} == {shape}
    tokens = tokens_of(leading_tensor(args, kwargs))
    with torch.no_grad():
        both = attention(*args, **kwargs)
        for part in (0, 1):
            own = attention(*take_rows(args, 2, [part], 2), **take_rows(kwargs, 2, [part], 2, tokens))
            assert torch.allclose(own, both[part : part + 1], atol=1e-6)


def test_one_branch_of_a_batched_call_gets_its_own_positions() -> None:
    """Kandinsky 5 in a loop that calls it with both branches, of which CFG-Cache and its attentions compute one."""
    s = specimen("kandinsky5")
    report = check_policy(fc.FasterCache(start=0.0, cfg_start=0.0, cfg_interval=2), s, steps=4, laws=(4,))
    assert report.raise_if_broken().verdict(4).passed


@pytest.mark.parametrize("name", ["prx", "pixart-sigma"])
def test_attention_and_a_branch_are_reused_together(name: str) -> None:
    """FasterCache computes one branch of a call at some steps, also inside its attentions."""
    s = specimen(name)
    with fc.attach(s.pipe, fc.FasterCache(start=0.1, cfg_start=0.2, cfg_interval=3)) as session:
        s.generate(steps=8)
    assert session.last.speedup_flops > 1.3


def test_guidance_that_differs_from_frame_to_frame_is_told_by_its_largest() -> None:
    s = specimen("svd")
    s.generate(steps=2)
    assert isinstance(s.pipe.guidance_scale, Tensor)
    assert guidance_scale_of(s.pipe) == float(s.pipe.guidance_scale.max()) > 1.0
    s.pipe._guidance_scale = 2
    assert guidance_scale_of(s.pipe) == 2.0
    assert guidance_scale_of(object()) is None


@pytest.mark.parametrize("name", sorted(WHOLE_CALLS))
def test_a_call_that_cannot_be_cut_is_refused_in_a_line(name: str) -> None:
    s = specimen(name)
    with fc.attach(s.pipe, fc.CFGCache(start=0.0)), pytest.raises(fc.FasterCacheError) as error:
        s.generate(steps=3)
    assert "\n" not in str(error.value) and ("left out" in str(error.value) or "list" in str(error.value))

"""Laws 1 to 9 on every family, run small through its real pipeline, and what differs between families."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.policies.schedule import Row
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Role
from fastercache.testing import LAWS, check_policy
from fastercache.testing.laws import Checker
from fastercache.testing.probes import coarse, fine
from fastercache.zoo.specimen import Specimen

# Slow, or the same code as a lighter one.
HEAVY = {"hunyuan-video-1.5", "cogvideox-v2v", "hunyuan-video-true-cfg", "sdxl-i2i", "sdxl-pag"}
PERTURBED = {"pixart-pag", "sdxl-pag"}  # branches told by their place in one call
DISTILLED = {"flux", "hunyuan-video", "flux.2", "flux-kontext"}
TEXT_LENGTHS = {
    "cogview4",
    "qwen-image",
    "hunyuan-video-1.5",
    "hunyuan-image",
    "qwen-image-edit",
}  # the branches' texts differ in length
WHOLE_CALLS = {"z-image", "hidream"}  # no call can be made for one branch alone
UNPACKED = {"ltx-condition", "stable-audio"}  # the call does not tell how tokens lie in a picture, as CFG-Cache asks
ONE_PROMPT = {
    "prx": "not with two prompts, where the pipeline itself raises RuntimeError",
    "wan-vace": "not with two prompts, where the pipeline itself raises ValueError",
}
SHAPES = {"latte", "wan", "wan-2.2", "sdxl", "flux", "sd3", "cogview4", "ltx-2"}
"""One family of each way in which blocks follow each other and are called: temporal blocks between spatial ones, one
call a branch, two denoisers, a UNet, two kinds of blocks, text beside image, text of two lengths, further passes."""
LIGHT = [name for name in zoo.FAMILIES if name not in HEAVY | zoo.SWEPT]
STANDING = (
    SHAPES | DISTILLED | TEXT_LENGTHS | PERTURBED | WHOLE_CALLS | UNPACKED | {"vchitect-2.0", "mochi", "pixart-sigma"}
)
KINDS = [
    # All families of a shape go through the same code: one stands for them by default, and those that differ in a law.
    pytest.param(
        name,
        kind,
        marks=[] if name in LIGHT and name in (STANDING if kind == "fine" else SHAPES) else [pytest.mark.slow],
    )
    for name in zoo.FAMILIES
    for kind in ("fine", "coarse")
]


@cache
def specimen(name: str) -> Specimen:
    return zoo.build(name)


def reasons(name: str, kind: str) -> dict[int, str]:
    """The laws that say nothing on this family, each with words of the reason."""
    if name in DISTILLED:
        return dict.fromkeys((4, 5), "the run has one branch")
    if name in TEXT_LENGTHS:
        return {4: "arguments differ in shape, so that they cannot share a call"}
    if name == "qwen-image-controlnet":  # whose residuals only the conditional call is given
        return {4: "the branches are called with other arguments"}
    if name in PERTURBED:
        return {4: "tells its branches by their place in one call"}
    if name == "vchitect-2.0" and kind == "fine":
        return {4: "the unconditional call comes first"}
    return {}


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_law_holds(name: str, kind: str) -> None:
    s = specimen(name)
    policy = fine(s) if kind == "fine" else coarse(s)
    if name not in DISTILLED:
        guides = any(site.kind is Kind.BRANCH for site in policy.claims(fc.find_sites(s.pipe)))
        assert guides == (kind == "fine" and name not in PERTURBED | WHOLE_CALLS | UNPACKED)
    report = check_policy(policy, s).raise_if_broken()
    found, expected = {v.law: v.detail for v in report.verdicts if v.passed is None}, reasons(name, kind)
    assert found.keys() == expected.keys()
    assert all(expected[law] in found[law] for law in found)
    assert report.verdict(2).detail == ONE_PROMPT.get(name, "")
    assert report.reused > 0.1
    assert {v.law for v in report.verdicts} == set(LAWS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in SHAPES else [pytest.mark.slow])
        for n in LIGHT
        if n not in DISTILLED | TEXT_LENGTHS | PERTURBED
    ],
)
def test_a_call_may_compute_one_branch_and_reuse_the_other(name: str) -> None:
    """Where branches reuse at different steps, a batched call is cut into rows inside its blocks: laws 4 and 5."""
    s = specimen(name)
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        s.generate()
        steps = session.last.run.count
    cond, uncond = ("CRCCRR" * 2)[:steps], ("CCRRCR" * 2)[:steps]
    rows = tuple(
        Row(sites=sites, branch=branch, steps=letters)
        for sites in ("attention[1:]", "block[:1]")
        for branch, letters in ((COND, cond), (UNCOND, uncond))
    )
    check_policy(fc.Schedule(rows=rows), s, steps=steps, laws=(4, 5, 9)).raise_if_broken()


def first_cond_output(s: Specimen, **overrides: Any) -> Tensor:
    seen: list[Tensor] = []
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        session.watch("denoiser", lambda o: seen.append(o.value.clone()) if o.branch == COND else None)
        s.generate(steps=4, **overrides)
    return seen[0]


@pytest.mark.parametrize("name", [n for n in LIGHT if n not in DISTILLED and n != "vchitect-2.0"])
def test_the_conditional_branch_is_the_conditional_one(name: str) -> None:
    """What the runtime calls `cond` is what the model predicts without guidance: the table's row and call order."""
    s = specimen(name)
    assert s.unguided
    guided, alone = first_cond_output(s), first_cond_output(s, **s.unguided)
    assert guided.shape == alone.shape
    assert torch.allclose(guided, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


@pytest.mark.parametrize("name", LIGHT)
def test_attention_and_feed_forwards_are_found_in_every_block(name: str) -> None:
    sites = fc.find_sites(specimen(name).pipe)
    blocks = [s for s in sites if s.kind is Kind.BLOCK]
    attended = {s.span for s in sites if s.role in {Role.SPATIAL, Role.TEMPORAL, Role.JOINT}}
    assert {s.span for s in blocks} - attended == ({(0, 1), (4, 5)} if name.startswith("sdxl") else set())
    joint = {"cogvideox", "cogvideox-i2v", "mochi", "sd3", "cogview4", "qwen-image", "flux", "flux-true-cfg", "chroma",
             "hunyuan-video", "vchitect-2.0"}  # fmt: skip
    found = {s.role for s in sites if s.role}
    assert (Role.JOINT in found) == (name in joint)
    assert (Role.CROSS in found) == (name not in joint | {"dit"})
    assert (Role.TEMPORAL in found) == (name in {"latte", "ltx-2"})
    assert Role.FF in found


def test_vchitect_calls_the_unconditional_branch_first() -> None:
    s = specimen("vchitect-2.0")
    order: list[str] = []
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        session.watch("denoiser", lambda o: order.append(o.branch))
        s.generate(steps=2)
    assert order == [UNCOND, COND] * 2


def test_an_unconditional_call_that_comes_first_is_predicted_from_the_step_before() -> None:
    """At a reused step uncond(t) = cond(t-1) + w (uncond - cond) of the last full step, here with w = 1."""
    s = specimen("vchitect-2.0")
    seen: dict[tuple[str, int], Tensor] = {}
    policy = fc.CFGCache(interval=2, start=0.0, alpha_low=0.0, alpha_high=0.0)
    with fc.attach(s.pipe, policy) as session:
        session.watch("denoiser", lambda o: seen.update({(o.branch, o.step.index): o.value.clone()}))
        s.generate(steps=4)
        assert session.last.bytes_per_step[0] > 0  # the conditional output that waits is counted
    delta = seen[UNCOND, 0] - seen[COND, 0]
    assert torch.allclose(seen[UNCOND, 1], seen[COND, 0] + delta, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "hunyuan-video"])
def test_distilled_guidance_has_nothing_for_cfg_cache(name: str) -> None:
    s = specimen(name)
    with fc.attach(s.pipe, fc.FasterCache(start=0.0, cfg_start=0.0)) as session:
        s.generate()
        assert session.last.run.branches == (COND,)
        assert not any(site.kind is Kind.BRANCH for site in session.last.sites)
    with fc.attach(s.pipe, fc.CFGCache()), pytest.raises(fc.NoSiteMatched, match="no second guidance branch"):
        s.generate()


@pytest.mark.parametrize("name", ["flux-true-cfg", "qwen-image", "wan"])
def test_guidance_is_told_anew_for_each_run(name: str) -> None:
    s = specimen(name)
    with fc.attach(s.pipe, fine(s)) as session:
        for overrides in ({}, s.unguided, {}):
            s.generate(**overrides)
            assert session.last.run.branches == ((COND,) if overrides else (COND, UNCOND))


def test_a_module_called_twice_in_a_call_keeps_both_values() -> None:
    """CogView4's feed-forward serves image and text: one held value would stand in for both."""
    s = specimen("cogview4")
    module = s.pipe.transformer.get_submodule("transformer_blocks.0.ff")
    shapes: list[tuple[int, ...]] = []
    handle = module.register_forward_hook(lambda m, args, output: shapes.append(tuple(output.shape)))
    with fc.attach(s.pipe, fc.StaticInterval(sites="transformer_blocks.0.ff", interval=2)) as session:
        output = s.generate(steps=2, **s.unguided)
        shapes.clear()
        assert torch.equal(s.generate(steps=2, **s.unguided), output)
        assert session.last.share() == 0.5
    handle.remove()
    assert shapes[:2] == shapes[2:] and shapes[0] != shapes[1], "image and text, computed and then held"


def test_two_transformers_share_one_clock() -> None:
    s = specimen("wan-2.2")
    with fc.attach(s.pipe, fc.StaticInterval(sites="denoiser", interval=2)) as session:
        s.generate()
        trace = session.last
    used = {site.name: (codes != 2).any(axis=0) for site, codes in zip(trace.sites, trace.codes, strict=True)}
    assert (used["transformer/denoiser"] ^ used["transformer_2/denoiser"]).all()  # each step belongs to exactly one
    assert used["transformer/denoiser"][0] and used["transformer_2/denoiser"][-1]


def test_naive_keys_break_law_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap of caches without the branch in their key: law 5 notices."""
    from fastercache.run.store import Entry, History

    s = specimen("wan")
    assert Checker(fc.StaticInterval(interval=2), s).law_5().passed
    monkeypatch.setattr(History, "has", lambda self, branch: bool(self.entries))

    def predict(self: History, step: Any, branches: tuple[str, ...], *rest: Any) -> list[Tensor | None]:
        newest: Entry = self.entries[-1]
        return list(newest.values)

    monkeypatch.setattr(History, "predict", predict)
    assert Checker(fc.StaticInterval(interval=2), s).law_5().passed is False

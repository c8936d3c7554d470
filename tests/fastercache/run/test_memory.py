"""Cached bytes are known before the run, bounded on request, and as the plan says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.run.memory import CacheTooLarge
from fastercache.zoo.specimen import Specimen

POLICIES = {
    "modules": fc.StaticInterval(interval=3),
    "blocks": fc.StaticInterval(sites="block[1:]", interval=2),
    "stack": fc.StaticInterval(sites="stack", interval=2),
    "denoiser": fc.StaticInterval(sites="denoiser", interval=2),
    "branch": fc.CFGCache(interval=3, start=0.0),
    "pair": fc.FasterCache(start=0.2, cfg_start=0.2, order=2, cfg_interval=2),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_static_plan_is_what_the_run_holds(latte: Specimen, name: str, dtype: torch.dtype | None) -> None:
    with fc.attach(latte.pipe, POLICIES[name], cache_dtype=dtype) as session:
        planned = session.plan(**latte.call(steps=12))
        assert not session.traces, "planning must not count as a run"
        latte.generate(steps=12)
        assert planned.exact
        assert planned.per_step == session.last.bytes_per_step
        assert planned.peak == session.last.cached_bytes > 0


@pytest.mark.parametrize("name", ["modules", "denoiser", "branch", "pair"])
def test_a_plan_knows_the_output_that_a_later_conditional_call_leaves_behind(name: str) -> None:
    """Vchitect-2.0 calls the unconditional branch first: only a policy that predicts it keeps the output of the step
    before, and only for a step that reads it."""
    s = zoo.build("vchitect-2.0")
    with fc.attach(s.pipe, POLICIES[name]) as session:
        planned = session.plan(**s.call(steps=12))
        s.generate(steps=12)
        trace = session.last
    assert planned.exact and planned.per_step == trace.bytes_per_step
    if name == "branch":  # two bands of a difference, and the conditional output of the step before a reuse
        reused = [*(trace.codes[0, trace.run.branches.index("uncond")] == fc.Code.REUSED), False]
        output = 4 * s.generate(steps=1).numel()
        assert planned.per_step == [3 * output * bool(reused[k + 1]) for k in range(12)]


def test_what_a_slice_was_cut_from_is_not_kept() -> None:
    """The last joint attention of SD3 returns the text's part as a slice of text and image together."""
    s = zoo.build("sd3")
    site = "transformer_blocks.2.attn"
    shapes: list[torch.Size] = []

    def seen(_: Any, args: Any, output: Any) -> None:
        shapes[:] = [part.shape for part in output]
        assert output[1].untyped_storage().nbytes() > output[1].nbytes

    handle = s.pipe.transformer.get_submodule(site).register_forward_hook(seen)
    s.generate(steps=1)
    handle.remove()
    with fc.attach(s.pipe, fc.StaticInterval(sites=site, interval=3)) as session:
        s.generate()
        assert session.last.cached_bytes == 4 * sum(shape.numel() for shape in shapes)


def test_a_block_that_returns_one_tensor_twice_keeps_it_once() -> None:
    """So the plan is a bound there, and says so. A UNet's down block returns its last state alone and among all."""
    s = zoo.build("sdxl")
    with fc.attach(s.pipe, fc.StaticInterval(sites="block", interval=2)) as session:
        s.generate()
        planned = session.plan()
    assert not planned.exact and planned.peak >= session.last.cached_bytes > 0


def test_a_site_that_is_never_reused_holds_nothing_and_needs_no_shapes() -> None:
    """Stable Audio's output (B, C, L) has no height and width, which the branches' difference would be stored by."""
    s = zoo.build("stable-audio")
    bare = s.generate()
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser|branch"), max_cache_bytes=0) as session:
        assert torch.equal(s.generate(), bare)
        assert session.plan().by_site == {"denoiser": 0, "branch": 0}
        session.use(fc.CFGCache(interval=2, start=0.0))
        with pytest.raises(fc.AttachError, match="does not tell their height and width: CFG-Cache needs them"):
            s.generate()


def test_half_precision_halves_the_cache(latte: Specimen) -> None:
    peaks = []
    for dtype in (None, torch.float16):
        with fc.attach(latte.pipe, fc.FasterCache(), cache_dtype=dtype) as session:
            latte.generate(steps=12)
            peaks.append(session.last.cached_bytes)
    assert peaks[1] * 2 == peaks[0]


def test_a_limit_is_an_error_before_the_run_and_names_the_biggest_site(latte: Specimen) -> None:
    with fc.attach(latte.pipe, fc.FasterCache(), max_cache_bytes=1000) as session:
        with pytest.raises(CacheTooLarge, match="branch"):
            latte.generate(steps=12)
        session.use(fc.NoCache())
        latte.generate(steps=4)  # the session is usable after the refusal


def test_nothing_is_held_after_the_last_step(latte: Specimen) -> None:
    with fc.attach(latte.pipe, fc.FasterCache(start=0.0, cfg_start=0.0)) as session:
        latte.generate(steps=8)
        assert session.last.cached_bytes > 0
        assert session.last.bytes_per_step[-1] == 0, "values are freed once no later step reads them"


def test_planning_needs_a_run_or_arguments(latte: Specimen) -> None:
    session = fc.attach(latte.pipe, fc.FasterCache())
    with pytest.raises(fc.FasterCacheError, match="no run has been made"):
        session.plan()
    session.detach()


def test_all_counting_of_a_session_s_first_run_is_known_and_left_out_of_its_seconds(
    latte: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a fresh session's timed run would be charged for counting FLOPs, most of which happens before step one."""
    import time

    from fastercache.model import flops

    count = flops._count

    def slow(*args: Any) -> flops.Cost:
        time.sleep(0.5)
        return count(*args)

    monkeypatch.setattr(flops, "_count", slow)
    with fc.attach(latte.pipe, fc.NoCache()) as session:
        latte.generate(steps=2)
        first = session.last
        latte.generate(steps=2)
        assert first.counting_seconds >= 0.5 > first.seconds > 0
        assert session.last.counting_seconds == 0

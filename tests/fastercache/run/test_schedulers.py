"""Schedulers, starts in the middle, guidance that ends part-way, interrupts: the clock stays right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

import fastercache as fc
from fastercache import zoo
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, UNCOND
from fastercache.testing import check_policy
from fastercache.zoo.specimen import Specimen

POLICY = fc.FasterCache(start=0.0, cfg_start=0.0, cfg_interval=3)
LAWS = (1, 2, 6, 7, 9)


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(DDIMScheduler(clip_sample=False), marks=pytest.mark.slow),  # the zoo's own: tests/.../test_laws.py
        DPMSolverMultistepScheduler(),  # looks back, as UniPC does
        pytest.param(UniPCMultistepScheduler(), marks=pytest.mark.slow),
        pytest.param(EulerDiscreteScheduler(), marks=pytest.mark.slow),  # the same on wan below, and sdxl's own
        HeunDiscreteScheduler(),  # calls twice a step
    ],
    ids=lambda s: type(s).__name__,
)
def test_laws_hold_for_every_scheduler(scheduler: Any, latte: Specimen) -> None:
    latte.pipe.scheduler = scheduler
    check_policy(POLICY, latte, laws=LAWS).raise_if_broken()


@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchHeunDiscreteScheduler()],
    ids=lambda s: type(s).__name__,
)
def test_laws_hold_for_flow_matching(scheduler: Any) -> None:
    s = zoo.build("wan")
    s.pipe.scheduler = scheduler
    check_policy(POLICY, s, laws=LAWS).raise_if_broken()


def test_heun_has_two_calls_a_step(latte: Specimen) -> None:
    latte.pipe.scheduler = HeunDiscreteScheduler()
    with fc.attach(latte.pipe, POLICY) as session:
        latte.generate(steps=4)
        assert session.last.run.count == 7 and session.last.complete


@pytest.mark.parametrize("name", ["cogvideox-v2v", "sdxl-i2i"])
def test_a_start_in_the_middle_is_the_first_step(name: str) -> None:
    """The run has only the steps that are taken, and its first is computed even where a policy would reuse it."""
    s = zoo.build(name)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    denoiser = getattr(s.pipe, "transformer", None) or s.pipe.unet
    handle = denoiser.register_forward_pre_hook(count)
    with fc.attach(s.pipe, fc.StaticInterval(sites="attention|denoiser", interval=3, offset=1)) as session:
        s.generate()
        trace = session.last
    handle.remove()
    assert trace.run.count == calls == 6
    assert trace.complete
    assert (trace.codes[0, :, 0] == Code.COMPUTED).all()
    assert trace.run.steps[0].timestep < 700


def test_guidance_that_ends_part_way(latte: Specimen) -> None:
    """A callback switches guidance off, the documented way: from then on there is one branch."""
    s = zoo.build("sdxl")

    def off(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            pipe._guidance_scale = 0.0
            return {name: value.chunk(2)[-1] for name, value in tensors.items() if name != "latents"}
        return {}

    call = {
        "callback_on_step_end": off,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds", "add_text_embeds", "add_time_ids"],
    }
    bare = s.generate(**call)
    with fc.attach(s.pipe, fc.NoCache(sites="all|denoiser|branch")):
        assert torch.equal(s.generate(**call), bare)
    with fc.attach(s.pipe, POLICY) as session:
        first = s.generate(**call)
        branches = dict(zip(session.last.run.branches, session.last.codes[-1], strict=True))
        assert torch.equal(s.generate(**call), first)
        full = s.generate()
    assert (branches[UNCOND][3:] == Code.UNREACHED).all() and (branches[COND] != Code.UNREACHED).all()
    with fc.attach(s.pipe, POLICY):
        assert torch.equal(s.generate(), full)


@pytest.mark.parametrize("last", [1, 3])
def test_separate_guidance_that_ends_part_way(last: int) -> None:
    """Wan stops its second call once a callback has lowered the scale: later calls stay the conditional ones."""
    s = zoo.build("wan")

    def off(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == last:
            pipe._guidance_scale = 1.0
        return {}

    bare = s.generate(callback_on_step_end=off)
    with fc.attach(s.pipe, fc.NoCache(sites="all|denoiser|branch")):
        assert torch.equal(s.generate(callback_on_step_end=off), bare)
    with fc.attach(s.pipe, POLICY) as session:
        first = s.generate(callback_on_step_end=off)
        assert session.last.complete and session.last.bytes_per_step[-1] == 0
        branches = dict(zip(session.last.run.branches, session.last.codes[-1], strict=True))
        assert torch.equal(s.generate(callback_on_step_end=off), first)
    assert (branches[UNCOND][last + 1 :] == Code.UNREACHED).all() and (branches[COND] != Code.UNREACHED).all()


def test_guidance_that_changes_from_step_to_step() -> None:
    s = zoo.build("cogvideox")
    bare = s.generate(use_dynamic_cfg=True)
    with fc.attach(s.pipe, fc.NoCache(sites="all|denoiser|branch")):
        assert torch.equal(s.generate(use_dynamic_cfg=True), bare)
    s = zoo.build("sdxl")
    with fc.attach(s.pipe, POLICY) as session:
        a = s.generate(guidance_rescale=0.7)
        assert torch.equal(s.generate(guidance_rescale=0.7), a) and session.last.share() > 0


def test_an_interrupted_run_leaves_nothing_to_the_next(latte: Specimen) -> None:
    def interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 2
        return {}

    with fc.attach(latte.pipe, POLICY) as session:
        whole = latte.generate()
        latte.generate(callback_on_step_end=interrupt)
        assert not session.last.complete
        assert np.array_equal(session.last.codes[:, :, 4:], np.full_like(session.last.codes[:, :, 4:], Code.UNREACHED))
        assert torch.equal(latte.generate(), whole)


def test_a_scheduler_swapped_between_runs_is_followed(latte: Specimen) -> None:
    with fc.attach(latte.pipe, POLICY) as session:
        latte.generate()
        old = latte.pipe.scheduler
        latte.pipe.scheduler = EulerDiscreteScheduler()
        latte.generate(steps=5)
        assert session.last.run.count == 5 and session.last.complete
    assert "step" not in vars(old) and "step" not in vars(latte.pipe.scheduler)

"""What holds on the CPU holds on a CUDA device, and a step there does not wait for it without need."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.attachment import find_sites
from fastercache.policies import InvalidPolicy, NoSiteMatched, Policy, compile_policy
from fastercache.run.trace import Trace
from fastercache.zoo import build
from fastercache.zoo.specimen import Call, Specimen
from tests.fastercache.run.test_finite import spoiled
from tests.policies.test_laws import POLICIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FAMILIES = ("latte", "wan")
ONCE = 2
"""Waits of a run: its timesteps and its sigmas are read, where the scheduler keeps them on the device."""
TOLERANCE = 2e-3
"""Of the largest latent: convolutions on the device are rounded to TF32, and random models amplify it."""


@pytest.fixture(scope="module")
def specimens() -> dict[str, tuple[Specimen, Specimen]]:
    """Each family on the CPU, and the same weights and inputs on the device."""
    return {name: (build(name), placed(build(name), "cuda")) for name in FAMILIES}


def placed(specimen: Specimen, device: str) -> Specimen:
    """A specimen whose pipeline and inputs are on a device."""

    def inputs(prompts: int) -> Call:
        call = specimen.inputs(prompts)
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in call.items()}

    specimen.pipe.to(device)
    return replace(specimen, inputs=inputs)


@contextmanager
def waits() -> Iterator[list[Any]]:
    """The warnings of torch at each place where the processor waits for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")
    caught[:] = [one for one in caught if "synchronizing" in str(one.message)]


def bare_waits(specimen: Specimen) -> int:
    specimen.generate()
    with waits() as bare:
        specimen.generate()
    return len(bare)


def fits(policy: Policy, specimen: Specimen) -> None:
    try:
        policy.claims(find_sites(specimen.pipe))
    except NoSiteMatched as reason:
        pytest.skip(str(reason))


def decisions(policy: Policy, trace: Trace) -> int:
    """How often values are looked at: never, where the steps alone decide."""
    try:
        compile_policy(policy, trace.run)
    except InvalidPolicy:
        return int(trace.codes.size)
    return 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", POLICIES)
def test_the_device_decides_and_computes_what_the_cpu_does(
    specimens: dict[str, tuple[Specimen, Specimen]], name: str, family: str
) -> None:
    here, there = specimens[family]
    fits(POLICIES[name], here)
    found = []
    for specimen in (here, there):
        with fc.attach(specimen.pipe, copy.deepcopy(POLICIES[name])) as session:
            latents = specimen.generate()
            found.append((latents.cpu().float(), session.last))
    (latents, trace), (on_device, told) = found
    assert trace.share() > 0
    assert (told.codes == trace.codes).all()
    assert told.flops == trace.flops
    assert (on_device - latents).abs().max() <= TOLERANCE * latents.abs().max()


@pytest.mark.parametrize("at", [1, 5])
def test_a_device_s_nan_is_told_with_its_step(specimens: dict[str, tuple[Specimen, Specimen]], at: int) -> None:
    there = specimens["latte"][1]
    with fc.attach(there.pipe, fc.NoCache(sites="denoiser")):
        want = there.generate()
        handle = spoiled(there.pipe.transformer.proj_out, at, math.nan)
        with pytest.raises(fc.NotFinite, match=f"step {at} of 6 "):
            there.generate()
        handle.remove()
        assert torch.equal(there.generate(), want)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", POLICIES)
def test_a_step_waits_only_for_what_a_decision_needs(
    specimens: dict[str, tuple[Specimen, Specimen]], name: str, family: str
) -> None:
    there = specimens[family][1]
    fits(POLICIES[name], there)
    bare = bare_waits(there)
    with fc.attach(there.pipe, POLICIES[name]) as session:
        there.generate()  # counts the FLOPs, once
        with waits() as found:
            there.generate()
    places = sorted({f"{one.filename}:{one.lineno}" for one in found})
    assert len(found) - bare <= ONCE + decisions(POLICIES[name], session.last), places

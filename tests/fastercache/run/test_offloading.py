"""Weights that come and go while the model runs: an offloaded run equals one without, whichever was put on first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.model.hooks import is_hooked
from fastercache.policies.base import Policy
from fastercache.testing.deployment import CPU, OFFLOADING
from fastercache.testing.probes import coarse
from fastercache.zoo.specimen import Specimen


def leaves(pipe: Any) -> None:
    pipe.enable_group_offload(CPU, offload_type="leaf_level")


def pairs(pipe: Any) -> None:
    pipe.enable_group_offload(CPU, num_blocks_per_group=2)


MODES: dict[str, Callable[[Any], None]] = {**OFFLOADING, "leaves": leaves, "pairs of blocks": pairs}
FIRST = fc.StaticInterval(sites="block[:1]", interval=2)
"""Reuses the block whose call brings the weights of its whole group."""


@pytest.fixture
def wan() -> Specimen:
    return zoo.build("wan")


def reference(specimen: Specimen, policy: Policy) -> Tensor:
    with fc.attach(specimen.pipe, policy):
        return specimen.generate()


@pytest.mark.parametrize("first", ["offloading", "session"])
@pytest.mark.parametrize("mode", MODES)
def test_offloading_changes_no_bit(wan: Specimen, mode: str, first: str) -> None:
    policy = coarse(wan)
    expected, enable = reference(wan, policy), MODES[mode]
    if first == "offloading":
        enable(wan.pipe)
    session = fc.attach(wan.pipe, policy)
    if first == "session":
        enable(wan.pipe)
    for _ in range(2):
        assert torch.equal(wan.generate(), expected)
    assert session.last.share() > 0.2
    with pytest.raises(fc.AttachError, match="attached already"):
        fc.attach(wan.pipe, policy)
    session.detach()
    wan.generate(steps=2)
    assert len(session.traces) == 2, "nothing of the session is left under the other library's hooks"
    assert not any(is_hooked(module) for module in wan.pipe.transformer.modules())


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Callable[[Any], None]]:
    """Groups of two blocks whose memory holds nothing meaningful while they are not in use."""

    def enable(pipe: Any) -> None:
        pipe.enable_group_offload(CPU, num_blocks_per_group=2, offload_to_disk_path=str(tmp_path))

    yield enable


@pytest.mark.parametrize("first", ["offloading", "session"])
def test_a_reused_block_still_brings_its_group_s_weights(
    wan: Specimen, on_disk: Callable[[Any], None], first: str
) -> None:
    """Weights read from disk lie elsewhere in memory, so that sums round differently; hence a tolerance."""
    expected = reference(wan, FIRST)
    if first == "offloading":
        on_disk(wan.pipe)
    with fc.attach(wan.pipe, FIRST) as session:
        if first == "session":
            on_disk(wan.pipe)
        for _ in range(2):
            assert torch.allclose(wan.generate(), expected, atol=1e-4)
        assert session.last.share() > 0.2


def test_a_hook_around_diffusers_own_would_compute_with_absent_weights(
    wan: Specimen, on_disk: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive place, around whatever is there, skips the hook that brings the weights of the block after it."""
    expected = reference(wan, FIRST)
    on_disk(wan.pipe)
    monkeypatch.setattr("fastercache.model.hooks.wrapped_by_diffusers", lambda module: [])
    with fc.attach(wan.pipe, FIRST):
        try:  # absent weights hold whatever the memory held: finite or not
            output = wan.generate()
        except fc.NotFinite:
            return
    assert not torch.allclose(output, expected, atol=1e-4)


def test_a_copy_under_diffusers_hooks_is_refused_because_it_would_run_the_original(wan: Specimen) -> None:
    HookRegistry.check_if_exists_or_initialize(wan.pipe.transformer).register_hook(ModelHook(), "nothing")
    bare = copy.deepcopy(wan)
    with torch.no_grad():
        for parameter in wan.pipe.transformer.parameters():
            parameter.zero_()
    assert torch.equal(bare.generate(), wan.generate()), "diffusers' own defect: once mended, allow the copy"
    with fc.attach(wan.pipe, FIRST), pytest.raises(fc.AttachError, match="copy the pipeline before"):
        copy.deepcopy(wan)


def test_a_copy_under_accelerate_s_hooks_offloads_its_own_weights(wan: Specimen) -> None:
    OFFLOADING["sequential"](wan.pipe)
    bare = wan.generate()
    with fc.attach(wan.pipe, FIRST) as session:
        copied = copy.deepcopy(wan)
        assert torch.equal(copied.generate(), bare)
        assert not session.traces, "the copy's runs are not the session's"

"""DeepCache on a U-Net: the deep levels are what was computed last, everything outside them runs at every step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastercache as fc
from fastercache.zoo import build
from fastercache.zoo.specimen import Specimen

DEEP = ("down_blocks.1", "mid_block", "up_blocks.0")
SHALLOW = ("down_blocks.0", "up_blocks.1", "conv_in", "conv_out")


@pytest.fixture(scope="module")
def sdxl() -> Specimen:
    return build("sdxl")


class Held(nn.Module):
    """A level whose output is computed at every `interval`-th call and repeated in between."""

    def __init__(self, level: nn.Module, interval: int) -> None:
        super().__init__()
        self.level, self.interval, self.calls, self.last = level, interval, 0, None
        self.resnets = getattr(level, "resnets", None)  # which the U-Net counts, to hand up blocks their skips
        self.has_cross_attention = getattr(level, "has_cross_attention", False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.calls % self.interval == 0:
            self.last = self.level(*args, **kwargs)
        self.calls += 1
        return self.last


def by_hand(specimen: Specimen, interval: int, steps: int) -> Tensor:
    """DeepCache without this project: the deep levels of a copy are wrapped by hand."""
    pipe = copy.deepcopy(specimen.pipe)
    unet = pipe.unet
    unet.down_blocks[1] = Held(unet.down_blocks[1], interval)
    unet.mid_block = Held(unet.mid_block, interval)
    unet.up_blocks[0] = Held(unet.up_blocks[0], interval)
    result: Tensor = pipe(**specimen.call(steps=steps))[0]
    return result


@pytest.mark.parametrize("interval", [2, 3])
def test_it_equals_holding_the_deep_levels_by_hand(sdxl: Specimen, interval: int) -> None:
    with fc.attach(sdxl.pipe, fc.DeepCache(interval=interval)):
        ours = sdxl.generate(steps=7)
    assert torch.equal(ours, by_hand(sdxl, interval, 7))
    assert not torch.equal(ours, sdxl.generate(steps=7))


def test_the_deep_levels_do_not_run(sdxl: Specimen) -> None:
    """FLOPs are saved because modules are not called, and the trace says how many."""
    ran = dict.fromkeys((*DEEP, *SHALLOW), 0)
    handles = []

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            ran[name] += 1

        return hook

    with fc.attach(sdxl.pipe, fc.DeepCache(interval=3)) as session:
        sdxl.generate(steps=6)  # the first run also counts FLOPs, with everything computed
        for name in ran:
            inner = "resnets.0" if "block" in name else ""  # a reused level's own forward is the runtime's
            module = sdxl.pipe.unet.get_submodule(f"{name}.{inner}".rstrip("."))
            handles.append(module.register_forward_pre_hook(count(name)))
        try:
            sdxl.generate(steps=6)
        finally:
            for handle in handles:
                handle.remove()
        trace = session.last
        deep = sum(session.flop_shares()[name] for name in DEEP) * trace.flops_full[0]
    assert {name: ran[name] for name in DEEP} == dict.fromkeys(DEEP, 2)
    assert {name: ran[name] for name in SHALLOW} == dict.fromkeys(SHALLOW, 6)
    assert trace.total_flops == sum(trace.flops_full) - 4 * round(deep)
    assert {site.name for site in trace.sites} == set(DEEP)

"""The loop that laws 4 and 5 run: it takes a call apart by branch and puts it together again, whatever it is given."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.attachment import denoisers_of
from fastercache.testing.laws import Checker
from fastercache.testing.loop import Arguments, Captured, Incompatible, joined_calls, main_input
from fastercache.testing.subject import capturing
from fastercache.zoo.specimen import Specimen

TOGETHER = ["latte", "z-image", "hidream", "animatediff", "ltx-condition", "stable-audio", "prx", "instruct-pix2pix"]
"""Batched families: rows first, lists of rows, rows second, a row for each frame, positions for each row or none."""


@cache
def specimen(name: str) -> Specimen:
    return zoo.build(name)


def first_call(s: Specimen) -> Arguments:
    with capturing(s) as calls:
        s.generate()
    return calls[0][1]


def captured(s: Specimen) -> Captured:
    found = Checker(fc.NoCache(sites="denoiser"), s).uncached.captured
    assert isinstance(found, Captured)
    return found


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (tuple, list)) else [value]


def tensor(result: Any) -> Tensor:
    first = result[0]
    return torch.stack(first) if isinstance(first, list) else first


@pytest.mark.parametrize("name", TOGETHER)
def test_the_branches_of_a_call_are_the_call(name: str) -> None:
    """Taken apart, each branch's own call gives its rows of the whole call's output; put together, it is that call."""
    s = specimen(name)
    whole, apart, denoiser = first_call(s), captured(s), denoisers_of(s.pipe)[0][1]
    again = joined_calls(denoiser.forward, [apart.calls[b] for b in apart.order])
    for a, b in zip(leaves(list(again)), leaves(list(whole)), strict=True):
        # What one row shared for all, as Stable Audio's timestep (1,), comes back once for each.
        assert torch.equal(a, b.expand_as(a)) if isinstance(a, Tensor) else a == b
    with torch.no_grad():
        rows = tensor(denoiser(*whole[0], **whole[1])).chunk(len(apart.order))
        for branch, row in zip(apart.order, rows, strict=True):
            args, kwargs = apart.calls[branch]
            own = tensor(denoiser(*args, **kwargs))
            assert float((own - row).abs().max()) < 1e-4 * float(row.abs().max())


def test_a_list_of_samples_is_what_the_loop_drives() -> None:
    """Z-Image is called with lists: its samples are moved from step to step, not its timesteps."""
    loop, seen = captured(specimen("z-image")), []
    handle = loop.denoiser.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
    with loop.attach(fc.NoCache(sites="denoiser")) as session:
        loop.run(session, style="batched", steps=3, shift={"uncond": 0.5})
    handle.remove()
    first = main_input(*loop.calls["cond"])
    assert torch.allclose(seen[0][0][0], first[0]) and torch.allclose(seen[0][0][1], first[0] + 0.5)
    assert not torch.equal(seen[1][0][0], seen[0][0][0])
    assert all(torch.equal(times, seen[0][1]) for _, times in seen)


def test_branches_that_differ_in_what_has_no_rows_cannot_share_a_call() -> None:
    def call(positions: Tensor) -> Arguments:
        return (), {"hidden_states": torch.zeros(1, 4, 8), "text_rope_pos": positions}

    joined = joined_calls(None, [call(torch.arange(4)), call(torch.arange(4))])
    assert joined[1]["hidden_states"].shape == (2, 4, 8) and joined[1]["text_rope_pos"].shape == (4,)
    with pytest.raises(Incompatible, match="differ in text_rope_pos, which has no rows"):
        joined_calls(None, [call(torch.arange(4)), call(torch.arange(4) + 1)])

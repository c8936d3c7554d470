"""Models with several lists of blocks: which of them are one chain, in which order, is seen in a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastercache as fc
from fastercache import zoo
from fastercache.model.finder import find_blocks, is_attention, is_unet
from fastercache.model.order import watch_chain
from fastercache.policies.vocabulary import Kind

CHAINS = {
    "lumina2": ["layers"],
    "z-image": ["layers"],
    "kandinsky5": ["visual_transformer_blocks"],
    "wan-vace": ["blocks"],
    "hidream": ["double_stream_blocks", "single_stream_blocks"],
    "auraflow": ["joint_transformer_blocks", "single_transformer_blocks"],
    "flux.2": ["transformer_blocks", "single_transformer_blocks"],
    "flux": ["transformer_blocks", "single_transformer_blocks"],
}
ADDED_BETWEEN = {"hidream"}  # texts are joined on before each block, so a call does not show the whole chain


class Attention(nn.Module):
    """Mixes the tokens by their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.tanh(self.to_q(hidden_states.mean(1, keepdim=True)))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = Attention(width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.attn(hidden_states)


class Backwards(nn.Module):
    """Its lists are defined in the reverse of the order in which they run; `control` feeds the second of them."""

    def __init__(self, alternate: bool = False) -> None:
        super().__init__()
        self.alternate = alternate
        self.last = nn.ModuleList(Layer(8) for _ in range(2))
        self.control = nn.ModuleList(Layer(8) for _ in range(2))
        self.first = nn.ModuleList(Layer(8) for _ in range(2 if alternate else 3))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        side = hidden_states.flip(1)
        for block in self.control:
            side = block(side)
        x = hidden_states * timestep.reshape(-1, 1, 1) / 1000
        if self.alternate:  # nothing goes on from anything else as it is
            for block, other in zip(self.first, self.last, strict=True):
                x = other(block(x).flip(2)).flip(1)
            return x
        for block in self.first:
            x = block(x)
        for block in self.last:
            x = block(x + side)
        return x


def loop(model: nn.Module, session: fc.Session | None = None, steps: int = 4) -> Tensor:
    times = torch.linspace(900, 100, steps)
    if session is not None:
        session.start(times)
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in times:
            x = x - 0.1 * model(x, t.expand(1))
    return x


@pytest.fixture(scope="module")
def model() -> Backwards:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backwards().eval()


def blocks_of(sites: tuple[Any, ...]) -> list[str]:
    return [s.name for s in sites if s.kind is Kind.BLOCK]


def test_blocks_stand_in_the_order_in_which_they_run(model: Backwards) -> None:
    """Between the lists something is added, so the chain ends there; the blocks of `control` are no members."""
    with fc.attach(model, fc.NoCache(), guidance="none") as session:
        loop(model, session)
        assert blocks_of(session.sites) == ["first.0", "first.1", "first.2"]
        assert [s.span for s in session.sites if s.kind is Kind.STACK] == [(0, 3)]
    assert "forward" not in vars(model.control[0])


def test_a_stack_of_an_unlisted_model_is_reused_as_by_hand(model: Backwards) -> None:
    """At every second step the three blocks of `first` are left out and what they added before is added instead."""
    kept: list[Tensor] = []
    entered: list[Tensor] = []

    def by_hand(x: Tensor, t: Tensor, step: int) -> Tensor:
        side = x.flip(1)
        for block in model.control:
            side = block(side)
        x = entry = x * t.reshape(-1, 1, 1) / 1000
        if step % 2 == 0:
            for block in model.first:
                x = block(x)
            kept[:] = [x - entry]
        else:
            x = entry + kept[0]
        entered.append(entry)
        for block in model.last:
            x = block(x + side)
        return x

    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step, t in enumerate(torch.linspace(900, 100, 4)):
            x = x - 0.1 * by_hand(x, t.expand(1), step)
    with fc.attach(model, fc.StaticInterval(sites="stack", interval=2), guidance="none") as session:
        got = loop(model, session)
        assert session.last.share() == 0.5
    assert torch.allclose(got, x, atol=1e-6) and not torch.allclose(got, loop(model), atol=1e-4)


def test_nocache_is_bit_equal_after_the_sites_were_found_anew(model: Backwards) -> None:
    bare = loop(model)
    with fc.attach(model, fc.NoCache(), guidance="none") as session:
        assert torch.equal(loop(model, session), bare)
        assert torch.equal(loop(model, session), bare)


def test_where_no_block_goes_on_from_another_there_is_no_stack() -> None:
    model = Backwards(alternate=True).eval()
    del model.control
    model.control = nn.ModuleList()
    with fc.attach(model, fc.StaticInterval(sites="block", interval=2), guidance="none") as session:
        loop(model, session)
        assert not any(s.kind is Kind.STACK for s in session.sites)
        assert session.last.share() > 0.3
    with (
        fc.attach(model, fc.StaticInterval(sites="stack", interval=2), guidance="none") as session,
        pytest.raises(fc.NoSiteMatched, match="stack"),
    ):
        loop(model, session)


@pytest.mark.parametrize("name", CHAINS)
def test_a_familys_chain_is_the_one_a_call_shows(name: str) -> None:
    """The families' data are checked by watching: one denoiser call of each family with several lists of blocks."""
    s = zoo.build(name)
    denoiser = s.pipe.transformer
    assert not is_unet(denoiser)
    listed = find_blocks(denoiser)
    assert list(dict.fromkeys(b.family_list for b in listed)) == CHAINS[name]
    if name in ADDED_BETWEEN:
        return
    seen: list[list[str]] = []
    every = [
        type(listed[0])(f"{group}.{i}", block, group)
        for group, child in denoiser.named_children()
        if isinstance(child, nn.ModuleList) and any(is_attention(m) for m in child.modules())
        for i, block in enumerate(child)
    ]
    forward = denoiser.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not seen:
            seen.append([b.path for b in watch_chain(every, forward, args, kwargs)])
        return forward(*args, **kwargs)

    denoiser.forward = watched
    s.generate(steps=1)
    assert seen[0] == [b.path for b in listed]

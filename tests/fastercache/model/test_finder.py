"""Sites of transformers that no family lists, found by structure; and what is not recognised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastercache as fc
from fastercache.inventory import take_inventory
from fastercache.model.layout import BlockIO, flatten_output, rebuild_output, strip, take_rows
from fastercache.policies.vocabulary import Kind, Role


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        other = x if context is None else context
        return nn.functional.scaled_dot_product_attention(self.to_q(x), self.to_k(other), self.to_v(other))


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.self_attn, self.temporal_attn, self.cross_attn = Attention(dim), Attention(dim), Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU())

    def forward(self, tokens: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        tokens = tokens + self.self_attn(tokens) + self.temporal_attn(tokens)
        tokens = tokens + self.cross_attn(tokens, encoder_hidden_states)
        return tokens + self.mlp(tokens)


class Homemade(nn.Module):
    """A transformer that no family lists: its blocks' main stream has a name of its own."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim) for _ in range(3))
        self.refiner = nn.Linear(dim, 40 * dim)
        self.out = nn.Linear(40 * dim, dim)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        x = hidden_states + timestep.reshape(-1, 1, 1) / 1000
        for layer in self.layers:
            x = layer(x, encoder_hidden_states=encoder_hidden_states)
        return self.out(self.refiner(x))


def test_an_unknown_transformer_is_found_by_structure() -> None:
    sites = fc.find_sites(Homemade())
    roles = {s.name: s.role for s in sites if s.depth == 0 and s.kind is Kind.MODULE}
    assert roles == {
        "layers.0.self_attn": Role.SPATIAL,
        "layers.0.temporal_attn": Role.TEMPORAL,
        "layers.0.cross_attn": Role.CROSS,
        "layers.0.mlp": Role.FF,
    }
    assert [s.name for s in sites if s.kind is Kind.BLOCK] == ["layers.0", "layers.1", "layers.2"]


def test_the_inventory_adds_up_and_names_what_was_not_recognised() -> None:
    """Module sites and the rest hold every FLOP of a call, counted by hand; without a call parameters tell the rest."""
    model, dim, tokens, text = Homemade(), 8, 5, 3
    x, t, c = torch.zeros(1, tokens, dim), torch.zeros(1), torch.zeros(1, text, dim)
    (found,) = take_inventory(model, lambda: model(x, t, encoder_hidden_states=c))
    assert not found.known and found.denoiser == "Homemade"
    itself = 3 * 2 * tokens * dim**2 + 4 * tokens**2 * dim
    crossing = 2 * (tokens + 2 * text) * dim**2 + 4 * tokens * text * dim
    assert found.site_flops["layers.1.self_attn"] == found.site_flops["layers.1.temporal_attn"] == itself
    assert found.site_flops["layers.1.cross_attn"] == crossing
    assert [(p.pattern, p.flops) for p in found.rest] == [
        ("refiner", 80 * tokens * dim**2),
        ("out", 80 * tokens * dim**2),
    ]
    modules = sum(n for name, n in found.site_flops.items() if name.count(".") == 2)
    assert modules + sum(p.flops for p in found.rest) == found.flops == found.site_flops["denoiser"]
    assert found.site_flops["stack"] == sum(found.site_flops[f"layers.{i}"] for i in range(3))
    (unrun,) = take_inventory(model)
    assert unrun.flops is None and [p.pattern for p in unrun.rest] == ["refiner", "out"]
    with pytest.raises(fc.FasterCacheError, match="called no denoiser"):
        take_inventory(model, lambda: None)


@pytest.mark.parametrize("sites", ["attention", "block", "stack[1:]", "denoiser"])
def test_an_unknown_transformer_runs_under_a_policy(sites: str) -> None:
    torch.manual_seed(0)
    model = Homemade()
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 8)

    def loop(session: fc.Session | None) -> Tensor:
        now = x
        if session is not None:
            session.start([900.0, 600.0, 300.0, 100.0])
        with torch.no_grad():
            for time in (900.0, 600.0, 300.0, 100.0):
                now = now - 0.1 * model(now, torch.tensor([time, time]), encoder_hidden_states=text)
        return now

    bare = loop(None)
    with fc.attach(model, fc.NoCache(sites=sites), guidance="batched") as session:
        assert torch.equal(loop(session), bare)
        session.use(fc.StaticInterval(sites=sites, interval=2))
        first = loop(session)
        assert torch.equal(loop(session), first) and not torch.equal(first, bare)
        assert session.last.complete and session.last.share() == 0.5


def test_a_tuple_of_nested_outputs_survives_a_round_trip() -> None:
    a, b, c = torch.ones(2), torch.zeros(3), torch.ones(1)
    output = (a, (b, None, c))
    tensors = flatten_output(output)
    assert [t is None for t in tensors] == [False, False, True, False]
    rebuilt = rebuild_output(strip(output), tensors)
    assert rebuilt[0] is a and rebuilt[1][0] is b and rebuilt[1][1] is None and rebuilt[1][2] is c


def test_rows_are_cut_where_the_batch_leads_and_nowhere_else() -> None:
    """Position embeddings whose length happens to be the batch size stay whole; those given per row do not."""
    call: dict[str, Any] = {
        "hidden_states": torch.arange(8.0).reshape(2, 4, 1),
        "image_rotary_emb": (torch.zeros(2, 6), torch.zeros(2, 6)),
        "temb": torch.arange(2.0).reshape(2, 1),
    }
    cut = take_rows(call, 2, [1], 2)
    assert cut["hidden_states"].tolist() == [[[4.0], [5.0], [6.0], [7.0]]]
    assert cut["image_rotary_emb"][0].shape == (2, 6) and cut["temb"].tolist() == [[1.0]]
    call["image_rotary_emb"] = (torch.zeros(2, 4, 6), torch.zeros(2, 4, 6))
    assert take_rows(call, 2, [1], 2)["image_rotary_emb"][0].shape == (1, 4, 6)
    frames = {"hidden_states": torch.zeros(6, 4, 1), "temb": torch.arange(2.0)}
    assert take_rows(frames, (6, 2), [0], 2)["temb"].tolist() == [0.0]


def test_equal_streams_are_matched_by_the_familys_order() -> None:
    io = BlockIO.of(Layer(8))
    image, text = torch.zeros(1, 4, 8), torch.ones(1, 4, 8)
    assert io.match([text, image], [image, text], text_first=True) == [1, 0]
    assert io.match([image, text], [image, text], text_first=False) == [0, 1]
    with pytest.raises(fc.FasterCacheError, match="residual is undefined"):
        io.match([torch.zeros(1, 9, 8)], [image, text], text_first=False)

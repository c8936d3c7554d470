"""FLOPs are counted, and counted whole."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import flex_attention as flex

import fastercache as fc
from fastercache.model.flops import flex_as_dense, flop_counter
from fastercache.zoo.specimen import Specimen


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_products_of_attention_are_counted(device: str, masked: bool) -> None:
    """Scores and their product with the values, 2 * 2 N^2 D a head: torch's own counter sees none of it on a CPU."""
    q = torch.zeros(1, 2, 64, 16, device=device)
    mask = torch.zeros(1, 1, 64, 64, device=device) if masked else None
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert counter.get_total_flops() == 2 * 2 * 64**2 * 16 * 2


def test_a_sites_flops_hold_its_attention(latte: Specimen) -> None:
    """Latte's spatial attention, 2 rows of 4 frames, 16 tokens of 16 channels: four projections and two products."""
    with fc.attach(latte.pipe, fc.NoCache()) as session:
        latte.generate(steps=1)
        flops = session.flop_shares()["transformer_blocks.0.attn1"] * session.last.flops_full[0]
    rows, tokens, dim = 2 * 4, 16, 16
    assert round(flops) == rows * (4 * 2 * tokens * dim * dim + 2 * 2 * tokens * tokens * dim)


def test_flex_attention_is_counted_as_attention_without_a_mask() -> None:
    """Torch's counter refuses it, so a model that uses it (AnyFlow) died. It is itself again afterwards."""
    own = flex.flex_attention
    q = torch.zeros(1, 2, 64, 16)
    with flex_as_dense(), flop_counter() as counter:
        assert flex.flex_attention(q, q, q).shape == q.shape
    assert counter.get_total_flops() == 2 * 2 * 64**2 * 16 * 2
    assert flex.flex_attention is own

"""Attention reuse holds no more than diffusers' FasterCache does, and saves no less."""

from __future__ import annotations

import pytest
import torch

from fastercache.experiments.jobs.memory import MIB, Held, Shape, compare, markdown

SMALL = Shape(layers=1, heads=2, head_size=8, frames=3, height=8, width=8, text_tokens=4, text_size=8, steps=14)


@pytest.fixture(scope="module")
def rows() -> list[Held]:
    return compare(SMALL)


def test_ours_holds_no_more_than_theirs_with_the_same_settings_or_others(rows: list[Held]) -> None:
    theirs, same, *others = rows
    assert 0 < same.peak <= theirs.values <= theirs.peak
    assert same.speedup >= theirs.speedup > 1.3
    assert all(0 < row.peak <= theirs.peak for row in others)


def test_the_bytes_are_those_of_two_values_of_one_branch_and_the_guidance_bands(rows: list[Held]) -> None:
    same = rows[1]
    tokens = SMALL.frames * SMALL.height // 2 * SMALL.width // 2 + SMALL.text_tokens
    value = tokens * SMALL.heads * SMALL.head_size * torch.float16.itemsize
    assert 0 <= same.peak - 2 * value * SMALL.layers <= 2 * 4 * SMALL.frames * 16 * SMALL.height * SMALL.width


def test_the_table_names_each_cache_with_its_share(rows: list[Held]) -> None:
    text = markdown(rows)
    assert text.count("\n") == 2 + len(rows)
    assert all(row.name in text and f"{row.peak / MIB:,.0f}" in text for row in rows)
    assert "100%" in text


def test_the_default_shape_is_the_published_one() -> None:
    """THUDM/CogVideoX-2b: 30 layers of 30 heads of 64, 1.69 billion parameters; 17,550 video and 226 text tokens."""
    model = Shape(layers=1).transformer()
    block = sum(p.numel() for p in model.transformer_blocks[0].parameters())
    whole = sum(p.numel() for p in model.parameters()) + 29 * block
    assert 1.6e9 < whole < 1.8e9
    assert Shape().frames * Shape().height // 2 * Shape().width // 2 == 17_550
    assert {p.device.type for p in model.parameters()} == {"meta"}
    timesteps = Shape().timesteps()
    assert (len(timesteps), timesteps[0], timesteps[-1]) == (50, 999, 19)

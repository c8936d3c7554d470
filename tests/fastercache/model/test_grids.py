"""Packed tokens are unpacked as their pipelines do it, before any Fourier transform, and packed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.model.families import family_of
from fastercache.model.grids import grid_of, patch_grid
from fastercache.testing.subject import capturing
from fastercache.zoo.specimen import Specimen


def first_call(s: Specimen) -> tuple[dict[str, Any], Tensor]:
    """Keywords of the first denoiser call, and tokens of its output's shape counted up."""
    with capturing(s) as calls:
        s.generate(steps=1)
    kwargs = calls[0][1][1]
    hidden = kwargs["hidden_states"]
    return kwargs, torch.arange(hidden.numel(), dtype=torch.float32).reshape(hidden.shape)


@pytest.mark.parametrize("name", ["ltx", "flux", "chroma", "qwen-image"])
def test_tokens_become_the_pipelines_own_grid(name: str) -> None:
    s = zoo.build(name)
    kwargs, tokens = first_call(s)
    grid = grid_of(family_of(s.pipe.transformer), kwargs, tokens)
    unpacked = grid.to(tokens)
    if name == "ltx":
        expected = s.pipe._unpack_latents(tokens, kwargs["num_frames"], kwargs["height"], kwargs["width"])
    else:
        expected = s.pipe._unpack_latents(tokens, 64, 64, s.pipe.vae_scale_factor)
    assert torch.equal(unpacked.reshape(expected.shape), expected)
    assert torch.equal(grid.back(unpacked), tokens)


def test_flux_2_has_ids_of_four_columns() -> None:
    """Its pipeline puts tokens in their places by these ids, and then unpacks 2 x 2 latents from the channels."""
    s = zoo.build("flux.2-klein")
    kwargs, tokens = first_call(s)
    grid = grid_of(family_of(s.pipe.transformer), kwargs, tokens)
    placed = s.pipe._unpack_latents_with_ids(tokens, kwargs["img_ids"])
    expected = s.pipe._unpatchify_latents(placed)
    assert torch.equal(grid.to(tokens).reshape(expected.shape), expected)
    assert torch.equal(grid.back(grid.to(tokens)), tokens)


@pytest.mark.parametrize("columns", [3, 4])
def test_ids_in_another_order_are_refused(columns: int) -> None:
    """Tokens column by column, or ids of other meaning, would give a scrambled picture."""
    ids = torch.tensor([[0, h, w, 0][:columns] for w in range(3) for h in range(2)])
    with pytest.raises(fc.AttachError, match="packed tokens"):
        grid_of(family_of("FluxTransformer2DModel"), {"img_ids": ids}, torch.zeros(1, 6, 8))
    with pytest.raises(fc.AttachError, match="packed tokens"):
        grid_of(family_of("FluxTransformer2DModel"), {"img_ids": torch.zeros(6, 5)}, torch.zeros(1, 6, 8))


def test_patch_grid_is_inverse_for_odd_sizes() -> None:
    grid = patch_grid(3, 5, 2, 2)
    x = torch.randn(2, 30, 8)
    assert grid.to(x).shape == (2, 2, 3, 10, 4)
    assert torch.equal(grid.back(grid.to(x)), x)


def test_the_naive_transform_over_tokens_differs() -> None:
    """Filtering tokens as if they were rows and columns is not the same: the trap of caches that do not unpack."""
    s = zoo.build("ltx")
    kwargs, tokens = first_call(s)
    tokens = torch.randn_like(tokens)
    grid = grid_of(family_of("LTXVideoTransformer3DModel"), kwargs, tokens)
    from fastercache.policies.predictors.frequency import split_bands

    low, _ = split_bands(grid.to(tokens), 1)
    naive, _ = split_bands(tokens, 1)
    assert not torch.allclose(grid.back(low), naive, atol=1e-3)


def test_unknown_packing_is_refused() -> None:
    with pytest.raises(fc.FasterCacheError, match="packed tokens"):
        grid_of(None, {}, torch.zeros(1, 6, 4))


IDS = [[i, h, w] for i, (rows, columns) in enumerate([(2, 3), (3, 4)]) for h in range(rows) for w in range(columns)]
EDITS: dict[str, dict[str, Any]] = {
    "QwenImageTransformer2DModel": {"img_shapes": [[(1, 2, 3), (1, 3, 4)]]},
    "FluxTransformer2DModel": {"img_ids": torch.tensor(IDS, dtype=torch.float32)},
}


@pytest.mark.parametrize("name", list(EDITS))
def test_only_the_generated_images_tokens_are_of_the_grid(name: str) -> None:
    """6 tokens of the image, then 12 of the reference: what comes back holds zeros for these."""
    tokens = torch.randn(2, 18, 8)
    grid = grid_of(family_of(name), EDITS[name], tokens)
    assert torch.equal(grid.to(tokens), patch_grid(1, 2, 3, 2).to(tokens[:, :6]))
    back = grid.back(grid.to(tokens))
    assert torch.equal(back[:, :6], tokens[:, :6]) and not back[:, 6:].any()


@pytest.mark.parametrize("name", list(EDITS))
def test_another_number_of_tokens_is_refused(name: str) -> None:
    with pytest.raises(fc.AttachError, match="packed tokens"):
        grid_of(family_of(name), EDITS[name], torch.zeros(1, 12, 8))


def test_layers_of_which_several_are_generated_are_refused() -> None:
    call = {"img_shapes": [[(1, 2, 3), (1, 2, 3)]], "additional_t_cond": torch.zeros(1)}
    with pytest.raises(fc.AttachError, match="packed tokens"):
        grid_of(family_of("QwenImageTransformer2DModel"), call, torch.zeros(1, 12, 8))

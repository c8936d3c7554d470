"""The stand-in for Vchitect-2.0 computes what is published, and at the real size has its parameters and FLOPs."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from fastercache import zoo
from fastercache.model.flops import FlopTotal
from fastercache.zoo.vchitect import (
    PUBLISHED,
    PUBLISHED_CALL,
    PUBLISHED_TEXT,
    ThreePathAttention,
    VchitectXLTransformerModel,
    rotary,
)

LATENT = (PUBLISHED_CALL["frames"], 16, 54, 96)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def published() -> VchitectXLTransformerModel:
    with torch.device("meta"):
        return VchitectXLTransformerModel(**PUBLISHED).to(torch.bfloat16)


def test_the_published_size_is_stable_diffusion_3_and_seven_more_projections_a_block(
    published: VchitectXLTransformerModel,
) -> None:
    """The checkpoint is called 2B. It goes on from Stable Diffusion 3 medium and adds q_cross, q, k, v_temp and the
    outputs of the temporal path, of its text and of the cross path to each block."""
    with torch.device("meta"):
        medium = SD3Transformer2DModel(num_attention_heads=24, num_layers=24, caption_projection_dim=1536)
    assert count(published) == count(medium) + 24 * 7 * (1536 + 1) * 1536 == 2_424_947_776
    ours, theirs = ({n for n, _ in m.named_parameters()} for m in (published, medium))
    assert theirs <= ours


def test_a_call_of_the_published_size_has_its_shape_and_flops(published: VchitectXLTransformerModel) -> None:
    frames, width, text = LATENT[0], 1536, PUBLISHED_TEXT
    arguments = {"dtype": torch.bfloat16, "device": "meta"}
    with torch.no_grad(), FlopTotal() as counter:
        output = published(
            hidden_states=torch.empty(1, *LATENT, **arguments),
            encoder_hidden_states=torch.empty(1, text, 4096, **arguments),
            pooled_projections=torch.empty(1, 2048, **arguments),
            timestep=torch.empty(1, device="meta"),
        )
    assert (output.shape, output.dtype, output.device.type) == (LATENT, torch.bfloat16, "meta")
    image = 54 * 96 // 4
    both = image + text
    projections = (10 + 8) * image + (6 + 8) * text  # those of the attention, and 8 in width of a feed-forward
    attention = both * both + both * frames + both * text  # query-key products of each path, a frame
    block = 2 * frames * width * (width * projections + 2 * attention)
    without = 2 * frames * width * width * 9 * text  # the last has no feed-forward and one output less for its text
    assert counter.total == pytest.approx(24 * block - without, rel=1e-3)


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention spelt out; (..., tokens, D)."""
    q, k, v = (heads_of(x, heads) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (scores @ v).transpose(-3, -2).flatten(-2)


def turned(x: Tensor, heads: int, frame: int) -> Tensor:
    """One token (D,) turned by its frame's angles: neighbours are the plane's coordinates."""
    out = torch.empty_like(x).unflatten(0, (heads, -1))
    for head, values in enumerate(x.unflatten(0, (heads, -1))):
        for pair in range(len(values) // 2):
            angle = torch.tensor(frame * 1e6 ** (-2 * pair / len(values)))
            a, b = values[2 * pair], values[2 * pair + 1]
            out[head, 2 * pair] = a * angle.cos() - b * angle.sin()
            out[head, 2 * pair + 1] = a * angle.sin() + b * angle.cos()
    return out.flatten()


@torch.no_grad()
def test_the_three_paths_are_those_published() -> None:
    torch.manual_seed(0)
    batch, frames, places, length, dim, heads = 2, 3, 4, 2, 8, 2
    attn = ThreePathAttention(dim, heads, context_pre_only=False)
    image, text = torch.randn(batch * frames, places, dim), torch.randn(batch * frames, length, dim)
    got_image, got_text = attn(image, text, rotary(dim // heads, frames, image.device), batch * frames, frames)

    added = [attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)]
    spatial_in = [torch.cat([p(image), a], 1) for p, a in zip((attn.to_q, attn.to_k, attn.to_v), added, strict=True)]
    temporal_in = [
        torch.cat([p(image), a], 1)
        for p, a in zip((attn.to_q_temp, attn.to_k_temp, attn.to_v_temp), added, strict=True)
    ]
    for sample in range(batch):
        rows = range(sample * frames, (sample + 1) * frames)
        temporal = torch.empty(frames, places + length, dim)
        for place in range(places + length):
            q, k = (
                torch.stack([turned(x[row, place], heads, frame) for frame, row in enumerate(rows)])
                for x in temporal_in[:2]
            )
            temporal[:, place] = attended(q, k, temporal_in[2][rows, place], heads)
        for frame, row in enumerate(rows):
            first = rows[0]
            query = torch.cat([attn.to_q_cross(image[row]), added[0][row]])
            cross = attn.to_out_context(attended(query, added[1][first], added[2][first], heads))
            joint = 1.1 * attended(*(x[row] for x in spatial_in), heads) + cross
            wanted_image = attn.to_out[0](joint[:places]) + attn.to_out_temporal(temporal[frame, :places])
            wanted_text = attn.to_add_out(joint[places:]) + attn.to_add_out_temporal(temporal[frame, places:])
            assert torch.allclose(got_image[row], wanted_image, atol=1e-5)
            assert torch.allclose(got_text[row], wanted_text, atol=1e-5)


@torch.no_grad()
def test_without_its_new_paths_it_is_stable_diffusion_3_on_every_frame() -> None:
    torch.manual_seed(0)
    medium = zoo.build("sd3").pipe.transformer
    model = VchitectXLTransformerModel(**{field: medium.config[field] for field in PUBLISHED}).eval()
    model.load_state_dict(medium.state_dict(), strict=False)
    for block in model.transformer_blocks:
        for new in (block.attn.to_out_temporal, block.attn.to_add_out_temporal, block.attn.to_out_context):
            new.weight.zero_()
            new.bias.zero_()
        for old in (block.attn.to_out[0], block.attn.to_add_out):
            if old is not None:
                old.weight.div_(1.1)
    channels, *widths = (medium.config[of] for of in ("in_channels", "joint_attention_dim", "pooled_projection_dim"))
    video, text, pooled = torch.randn(2, 3, channels, 6, 8), torch.randn(2, 5, widths[0]), torch.randn(2, widths[1])
    time = torch.tensor([900.0, 100.0])
    output = model(video, text, pooled, time).unflatten(0, (2, 3))
    for frame in range(3):
        assert torch.allclose(output[:, frame], medium(video[:, frame], text, pooled, time).sample, atol=1e-5)


def test_a_prompt_gets_the_same_alone_and_beside_another() -> None:
    model = zoo.build("vchitect-2.0").pipe.transformer
    torch.manual_seed(0)
    arguments = [torch.randn(2, 3, 4, 6, 8), torch.randn(2, 5, 12), torch.randn(2, 10), torch.tensor([900.0, 100.0])]
    with torch.no_grad():
        both = model(*arguments)
        alone = torch.cat([model(*(x[i : i + 1] for x in arguments)) for i in range(2)])
    assert torch.allclose(both, alone, atol=1e-5)


def test_the_loop_runs_in_the_type_of_the_transformer() -> None:
    s = zoo.build("vchitect-2.0")
    s.pipe.transformer.to(torch.bfloat16)
    latents = s.generate(steps=2)
    assert (latents.shape, latents.dtype) == ((1, 3, 4, 8, 8), torch.bfloat16)
    assert latents.isfinite().all()

"""Video families with batched guidance."""

from __future__ import annotations

import torch

from fastercache.zoo.rows import (
    DDIM,
    FLOW,
    Row,
    masks,
    noisy,
    part,
    pixels,
    rows,
    size,
    texts,
)

_TEXT = {**texts(12), "guidance_scale": 4.0}


def latte(layers: int = 2) -> Row:
    """Latte with this many pairs of blocks: 32x32 pixels on an 8x8 latent, 4 frames."""
    return Row(
        "Latte: interleaved spatial and temporal blocks; the family of the FasterCache paper's own experiments.",
        "LattePipeline",
        {
            "transformer": noisy(
                "LatteTransformer3DModel",
                num_attention_heads=2,
                attention_head_dim=8,
                in_channels=4,
                out_channels=8,
                num_layers=layers,
                cross_attention_dim=16,
                attention_bias=True,
                sample_size=8,
                patch_size=2,
                activation_fn="gelu-approximate",
                num_embeds_ada_norm=1000,
                norm_type="ada_norm_single",
                norm_elementwise_affine=False,
                norm_eps=1e-6,
                caption_channels=12,
                video_length=4,
            ),
            "vae": part(
                "AutoencoderKL",
                block_out_channels=(8, 8, 8),
                norm_num_groups=4,
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
            ),
            "tokenizer": part("fastercache.zoo.text:tokenizer"),
            "text_encoder": part("fastercache.zoo.text:encoder", width=12),
            "scheduler": DDIM,
        },
        {
            **_TEXT,
            "negative_prompt": None,
            "mask_feature": False,
            "clean_caption": False,
            **size(32, video_length=4),
        },
        resized={"height": 48},
        doubled={"num_images_per_prompt": 2},
        videos=True,
    )


def _cogvideox(channels: int) -> dict[str, object]:
    return {
        "transformer": noisy(
            "CogVideoXTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=channels,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=12,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            patch_size=2,
            max_text_seq_length=5,
            use_rotary_positional_embeddings=channels != 4,
        ),
        "vae": part(
            "AutoencoderKLCogVideoX",
            in_channels=3,
            out_channels=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ),
        "scheduler": part("CogVideoXDDIMScheduler"),
    }


COGVIDEOX = Row(
    "CogVideoX text-to-video.",
    "CogVideoXPipeline",
    _cogvideox(4),
    {**_TEXT, "max_sequence_length": 5, **size(32, num_frames=9)},
    resized={"height": 48, "num_frames": 5},
    videos=True,
)

COGVIDEOX_I2V = COGVIDEOX.but(
    "CogVideoX image-to-video: the image's latents are extra input channels.",
    inputs={"image": pixels(32, 32)},
    pipeline="CogVideoXImageToVideoPipeline",
    parts=_cogvideox(8),
    resized={"num_frames": 5},
)

COGVIDEOX_V2V = COGVIDEOX.but(
    "CogVideoX video-to-video: the run starts in the middle of the scheduler's timesteps.",
    without=("num_frames",),
    inputs={"latents": rows(3, 4, 4, 4), "video": None, "strength": 0.6},
    pipeline="CogVideoXVideoToVideoPipeline",
    steps=10,
    resized={},
)

MOCHI = Row(
    "Mochi text-to-video.",
    "MochiPipeline",
    {
        "transformer": noisy(
            "MochiTransformer3DModel",
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=4,
            qk_norm="rms_norm",
            text_embed_dim=16,
            time_embed_dim=4,
            activation_fn="swiglu",
            max_sequence_length=5,
        ),
        "scheduler": part("FlowMatchEulerDiscreteScheduler", invert_sigmas=True),
    },
    {
        **texts(16),
        **masks(dtype=torch.bool),
        "guidance_scale": 4.0,
        "max_sequence_length": 5,
        **size(32, num_frames=7),
    },
    resized={"height": 48, "num_frames": 13},
    videos=True,
)

LTX = Row(
    "LTX-Video: latents are packed tokens, in and out.",
    "LTXPipeline",
    {
        "transformer": noisy(
            "LTXVideoTransformer3DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=12,
        ),
        "scheduler": FLOW,
    },
    {**_TEXT, **masks(dtype=torch.bool), "max_sequence_length": 5, **size(160, 192, num_frames=17)},
    resized={"height": 192, "num_frames": 9},
    videos=True,
)

ALLEGRO = Row(
    "Allegro text-to-video.",
    "AllegroPipeline",
    {
        "transformer": noisy(
            "AllegroTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=48,
            sample_width=4,
            sample_height=4,
            sample_frames=4,
            caption_channels=12,
        ),
        "vae": part(
            "AutoencoderKLAllegro",
            down_block_types=("AllegroDownBlock3D",) * 4,
            up_block_types=("AllegroUpBlock3D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "scheduler": DDIM,
    },
    {**_TEXT, **masks(), "negative_prompt": None, "clean_caption": False, **size(32, num_frames=8)},
    resized={"height": 48, "num_frames": 4},
    videos=True,
)

ROWS = {
    "latte": latte(),
    "cogvideox": COGVIDEOX,
    "cogvideox-i2v": COGVIDEOX_I2V,
    "cogvideox-v2v": COGVIDEOX_V2V,
    "mochi": MOCHI,
    "ltx": LTX,
    "allegro": ALLEGRO,
}

"""HunyuanVideo in its three forms, and HunyuanImage."""

from __future__ import annotations

from typing import Any

from fastercache.zoo.rows import FLOW, Row, masks, noisy, ones, part, pooled, rows, size, texts

_GUIDER = part("diffusers.guiders:ClassifierFreeGuidance", guidance_scale=4.0)

HUNYUAN_VIDEO = Row(
    "HunyuanVideo, guidance-distilled: one branch.",
    "HunyuanVideoPipeline",
    {
        "transformer": noisy(
            "HunyuanVideoTransformer3DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=12,
            pooled_projection_dim=10,
            rope_axes_dim=(4, 4, 4),
        ),
        "scheduler": FLOW,
    },
    {
        "prompt_embeds": rows(5, 12),
        "pooled_prompt_embeds": rows(10),
        "prompt_attention_mask": ones(5),
        **size(64, num_frames=9),
    },
    resized={"height": 96, "num_frames": 5},
    unguided={},
    doubled={"num_videos_per_prompt": 2},
    videos=True,
)

HUNYUAN_VIDEO_TRUE_CFG = HUNYUAN_VIDEO.but(
    "HunyuanVideo with `true_cfg_scale`: one call per branch.",
    inputs={**texts(12), **pooled(10), **masks(), "true_cfg_scale": 4.0},
    unguided={"true_cfg_scale": 1.0},
)


def _two_texts(first: int, second: int) -> dict[str, Any]:
    """Two encoders' embeddings of these widths; the branches' first texts differ in length."""
    return {
        **texts(first, 7, 4),
        **masks(7, 4, name="prompt_embeds_mask"),
        "prompt_embeds_2": rows(3, second),
        "prompt_embeds_mask_2": ones(3),
        "negative_prompt_embeds_2": rows(3, second, seed=9),
        "negative_prompt_embeds_mask_2": ones(3),
    }


HUNYUAN_VIDEO_15 = Row(
    "HunyuanVideo 1.5: guided by a guider component, texts of different lengths.",
    "HunyuanVideo15Pipeline",
    {
        "transformer": noisy(
            "HunyuanVideo15Transformer3DModel",
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_refiner_layers=1,
            text_embed_dim=12,
            text_embed_2_dim=10,
            image_embed_dim=8,
            rope_axes_dim=(4, 6, 6),
            target_size=64,
            task_type="t2v",
        ),
        "vae": part(
            "AutoencoderKLHunyuanVideo15",
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4, 4),
            layers_per_block=1,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ),
        "scheduler": FLOW,
        "guider": _GUIDER,
    },
    {**_two_texts(12, 10), **size(64, num_frames=9)},
    resized={"height": 96, "num_frames": 5},
    unguided={},
    videos=True,
)

HUNYUAN_IMAGE = Row(
    "HunyuanImage: guided by one of two guider components, texts of different lengths.",
    "HunyuanImagePipeline",
    {
        "transformer": noisy(
            "HunyuanImageTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=(1, 1),
            guidance_embeds=False,
            text_embed_dim=12,
            text_embed_2_dim=12,
            rope_axes_dim=(4, 4),
        ),
        "vae": part(
            "AutoencoderKLHunyuanImage",
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            scaling_factor=0.47,
            spatial_compression_ratio=8,
            sample_size=128,
        ),
        "scheduler": part("FlowMatchEulerDiscreteScheduler", shift=7.0),
        "guider": _GUIDER,
        "ocr_guider": _GUIDER,
    },
    {**_two_texts(12, 12), **size(64)},
    resized={"height": 96},
    unguided={},
)

ROWS = {
    "hunyuan-video": HUNYUAN_VIDEO,
    "hunyuan-video-true-cfg": HUNYUAN_VIDEO_TRUE_CFG,
    "hunyuan-video-1.5": HUNYUAN_VIDEO_15,
    "hunyuan-image": HUNYUAN_IMAGE,
}

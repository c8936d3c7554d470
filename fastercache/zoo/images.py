"""Image families whose pipelines call a transformer."""

from __future__ import annotations

import torch

from fastercache.zoo.rows import (
    DDIM,
    FLOW,
    SHIFTED,
    Row,
    autoencoder,
    masks,
    noisy,
    ones,
    part,
    pooled,
    rows,
    size,
    texts,
)

_CLEAN = {"negative_prompt": None, "clean_caption": False, "use_resolution_binning": False}
_TEXT = {**texts(12), "guidance_scale": 4.0, **size(32)}
_EACH_TWICE = {"num_images_per_prompt": 2}

PIXART = Row(
    "PixArt-Sigma; the denoiser predicts twice the latent's channels.",
    "PixArtSigmaPipeline",
    {
        "transformer": noisy(
            "PixArtTransformer2DModel",
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=12,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
        ),
        "vae": autoencoder(),
        "scheduler": DDIM,
    },
    {**_TEXT, **masks(), **_CLEAN},
    resized={"height": 48},
    doubled=_EACH_TWICE,
)

PIXART_PAG = PIXART.but(
    "PixArt-Sigma with perturbed-attention guidance: three branches in one call, told by their place in it.",
    pipeline="PixArtSigmaPAGPipeline",
    parts={**PIXART.parts, "pag_applied_layers": "blocks.1"},
    unguided={"guidance_scale": 1.0, "pag_scale": 0.0},
)

SD3 = Row(
    "Stable Diffusion 3: (text, image) blocks, the last of which drops the text.",
    "StableDiffusion3Pipeline",
    {
        "transformer": noisy(
            "SD3Transformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            out_channels=4,
        ),
        "vae": autoencoder(),
        "scheduler": FLOW,
    },
    {**_TEXT, **pooled(10)},
    resized={"height": 48},
)

DIT = Row(
    "DiT: class labels, the conditional rows first, and the doubled batch passed to the scheduler.",
    "DiTPipeline",
    {
        "transformer": noisy(
            "DiTTransformer2DModel",
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        ),
        "vae": autoencoder(),
        "scheduler": DDIM,
    },
    {"class_labels": lambda count: [3 + i for i in range(count)], "guidance_scale": 4.0, "output_type": "np"},
)

HUNYUAN_DIT = Row(
    "HunyuanDiT: two text encoders, later blocks take a skip from the earlier ones.",
    "HunyuanDiTPipeline",
    {
        "transformer": noisy(
            "HunyuanDiT2DModel",
            sample_size=8,
            num_layers=4,
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            cross_attention_dim=12,
            cross_attention_dim_t5=16,
            pooled_projection_dim=8,
            hidden_size=16,
            text_len=5,
            text_len_t5=5,
            activation_fn="gelu-approximate",
        ),
        "vae": autoencoder(4),
        "scheduler": DDIM,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
    {
        **_TEXT,
        **masks(),
        "prompt_embeds_2": rows(5, 16, seed=10),
        "negative_prompt_embeds_2": rows(5, 16, seed=11),
        "prompt_attention_mask_2": ones(5),
        "negative_prompt_attention_mask_2": ones(5),
        "use_resolution_binning": False,
        **size(64),
    },
    resized={"height": 96},
)

SANA = Row(
    "Sana: linear attention.",
    "SanaPipeline",
    {
        "transformer": noisy(
            "SanaTransformer2DModel",
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=8,
        ),
        "scheduler": FLOW,
    },
    {**_TEXT, **masks(), **_CLEAN, **size(256)},
    resized={"height": 320},
    doubled=_EACH_TWICE,
)

COGVIEW4 = Row(
    "CogView4: one call per branch, and the branches' texts have different lengths.",
    "CogView4Pipeline",
    {
        "transformer": noisy(
            "CogView4Transformer2DModel",
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=12,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(8, 8),
        ),
        "scheduler": part(
            "FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75
        ),
    },
    {**texts(12, 7, 4), "guidance_scale": 4.0, "original_size": (64, 64), **size(64)},
    resized={"height": 96},
    doubled=_EACH_TWICE,
)

QWEN_IMAGE = Row(
    "QwenImage: packed tokens, texts of different lengths, guidance by `true_cfg_scale`.",
    "QwenImagePipeline",
    {
        "transformer": noisy(
            "QwenImageTransformer2DModel",
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(8, 4, 4),
        ),
        "scheduler": SHIFTED,
    },
    {
        **texts(12, 7, 4),
        **masks(7, 4, torch.long, "prompt_embeds_mask"),
        "true_cfg_scale": 4.0,
        **size(64),
    },
    resized={"height": 96},
    unguided={"true_cfg_scale": 1.0},
    doubled=_EACH_TWICE,
)

FLUX = Row(
    "Flux, guidance-distilled: one branch; packed tokens; two kinds of block.",
    "FluxPipeline",
    {
        "transformer": noisy(
            "FluxTransformer2DModel",
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": SHIFTED,
    },
    {
        "prompt_embeds": rows(5, 12),
        "pooled_prompt_embeds": rows(10),
        "guidance_scale": 3.5,
        **size(64),
    },
    resized={"height": 96},
    unguided={},
    doubled=_EACH_TWICE,
)

FLUX_TRUE_CFG = FLUX.but(
    "Flux with `true_cfg_scale`: one call per branch.",
    inputs={**texts(12), **pooled(10), "true_cfg_scale": 4.0},
    unguided={"true_cfg_scale": 1.0},
)

CHROMA = Row(
    "Chroma: Flux's shape with true guidance.",
    "ChromaPipeline",
    {
        "transformer": noisy(
            "ChromaTransformer2DModel",
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=16,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        "scheduler": FLOW,
    },
    {**texts(12), **masks(), "guidance_scale": 4.0, **size(64)},
    resized={"height": 96},
)

ROWS = {
    "pixart-sigma": PIXART,
    "pixart-pag": PIXART_PAG,
    "sd3": SD3,
    "dit": DIT,
    "hunyuan-dit": HUNYUAN_DIT,
    "sana": SANA,
    "cogview4": COGVIEW4,
    "qwen-image": QWEN_IMAGE,
    "flux": FLUX,
    "flux-true-cfg": FLUX_TRUE_CFG,
    "chroma": CHROMA,
}

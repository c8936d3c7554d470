"""Image families with several lists of blocks, or with a call of their own."""

from __future__ import annotations

import torch

from fastercache.zoo.rows import FLOW, Row, autoencoder, masks, noisy, part, pooled, rows, size, texts
from fastercache.zoo.stand_ins import filled_padding, small_default

_TEXT = {**texts(12, 7), "guidance_scale": 4.0, **size(64)}
_TALLER = {"height": 96}

AURAFLOW = Row(
    "AuraFlow: joint blocks, then single ones; register tokens before the text.",
    "AuraFlowPipeline",
    {
        "transformer": noisy(
            "AuraFlowTransformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=12,
            out_channels=4,
            pos_embed_max_size=64,
        ),
        "vae": autoencoder(4),
        "scheduler": FLOW,
    },
    {**_TEXT, **masks(7)},
    resized=_TALLER,
)

LUMINA2 = Row(
    "Lumina Image 2: blocks that refine image and text apart run before the main ones.",
    "Lumina2Pipeline",
    {
        "transformer": noisy(
            "Lumina2Transformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=3,
            num_refiner_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=[4, 2, 2],
            axes_lens=[300, 64, 64],
            cap_feat_dim=12,
        ),
        "vae": autoencoder(4),
        "scheduler": FLOW,
    },
    {**_TEXT, **masks(7, dtype=torch.bool)},
    resized=_TALLER,
)

Z_IMAGE = Row(
    "Z-Image: samples and texts come as lists, and refining blocks run before the main ones.",
    "ZImagePipeline",
    {
        "transformer": noisy(
            "ZImageTransformer2DModel",
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=16,
            dim=32,
            n_layers=3,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            norm_eps=1e-5,
            qk_norm=True,
            cap_feat_dim=16,
            rope_theta=256.0,
            t_scale=1000.0,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        "vae": autoencoder(4, latent_channels=16),
        "scheduler": FLOW,
    },
    {
        "prompt_embeds": lambda count: list(rows(7, 16)(count)),
        "negative_prompt_embeds": lambda count: list(rows(7, 16, seed=8)(count)),
        "guidance_scale": 3.0,
        **size(64),
    },
    resized=_TALLER,
    unguided={"guidance_scale": 0.0},
    finish=filled_padding,
)

HIDREAM = Row(
    "HiDream: every block is given texts of its own; experts instead of some feed-forwards.",
    "HiDreamImagePipeline",
    {
        "transformer": noisy(
            "HiDreamImageTransformer2DModel",
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[32, 16],
            text_emb_dim=10,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1, 1, 0),
        ),
        "vae": autoencoder(4),
        "scheduler": FLOW,
    },
    {
        "prompt_embeds_t5": rows(7, 32),
        "negative_prompt_embeds_t5": rows(7, 32, seed=8),
        "prompt_embeds_llama3": lambda count: rows(2, 7, 16)(count).transpose(0, 1),
        "negative_prompt_embeds_llama3": lambda count: rows(2, 7, 16, seed=8)(count).transpose(0, 1),
        **pooled(10),
        "guidance_scale": 4.0,
        **size(64),
    },
    finish=small_default,
)

PRX = Row(
    "PRX: hands its denoiser t / 1000.",
    "PRXPipeline",
    {
        "transformer": noisy(
            "PRXTransformer2DModel",
            patch_size=1,
            in_channels=4,
            context_in_dim=12,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=3,
            axes_dim=[4, 4],
        ),
        "vae": autoencoder(4),
        "scheduler": FLOW,
    },
    {**_TEXT, **masks(7, dtype=torch.bool), "negative_prompt": None, "use_resolution_binning": False},
    resized=_TALLER,
)

BRIA = Row(
    "Bria: Flux's shape with both branches in one call.",
    "BriaPipeline",
    {
        "transformer": noisy(
            "BriaTransformer2DModel",
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        "vae": autoencoder(4, shift_factor=0.0),
        "scheduler": FLOW,
        "image_encoder": None,
        "feature_extractor": None,
    },
    _TEXT,
    resized=_TALLER,
)

_FLUX2_VAE = part(
    "AutoencoderKLFlux2",
    sample_size=32,
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(4,) * 4,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=1,
    use_quant_conv=False,
    use_post_quant_conv=False,
)

FLUX2 = Row(
    "Flux.2, guidance-distilled: one branch; joint blocks, then single ones.",
    "Flux2Pipeline",
    {
        "transformer": noisy(
            "Flux2Transformer2DModel",
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            timestep_guidance_channels=32,
            axes_dims_rope=[4, 4, 4, 4],
        ),
        "vae": _FLUX2_VAE,
        "scheduler": FLOW,
    },
    {"prompt_embeds": rows(7, 12), "guidance_scale": 4.0, **size(64)},
    resized=_TALLER,
    unguided={},
)

FLUX2_KLEIN = FLUX2.but(
    "Flux.2 Klein: one call per branch.",
    inputs=texts(12, 7),
    pipeline="Flux2KleinPipeline",
    unguided={"guidance_scale": 1.0},
)

ROWS = {
    "auraflow": AURAFLOW,
    "lumina2": LUMINA2,
    "z-image": Z_IMAGE,
    "hidream": HIDREAM,
    "prx": PRX,
    "bria": BRIA,
    "flux.2": FLUX2,
    "flux.2-klein": FLUX2_KLEIN,
}

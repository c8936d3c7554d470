"""Families whose pipelines call a UNet."""

from __future__ import annotations

from fastercache.zoo.rows import DDIM, EULER, Row, autoencoder, noisy, part, pixels, pooled, size, texts

_UNGUIDED_PAG = {"guidance_scale": 1.0, "pag_scale": 0.0}

SDXL = Row(
    "Stable Diffusion XL: a UNet whose blocks hand skips to each other.",
    "StableDiffusionXLPipeline",
    {
        "unet": noisy(
            "UNet2DConditionModel",
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=6 * 4 + 10,
            cross_attention_dim=12,
            norm_num_groups=2,
        ),
        "vae": autoencoder(),
        "scheduler": EULER,
    },
    {**texts(12), **pooled(10), "guidance_scale": 4.0, **size(32)},
    resized={"height": 48},
    doubled={"num_images_per_prompt": 2},
)

SDXL_PAG = SDXL.but(
    "SDXL with perturbed-attention guidance in its middle block.",
    pipeline="StableDiffusionXLPAGPipeline",
    parts={**SDXL.parts, "pag_applied_layers": "mid"},
    unguided=_UNGUIDED_PAG,
)

SDXL_I2I = SDXL.but(
    "SDXL image-to-image: the run starts in the middle of the scheduler's timesteps.",
    without=("height", "width"),
    inputs={"image": pixels(32, 32), "strength": 0.6},
    pipeline="StableDiffusionXLImg2ImgPipeline",
    steps=10,
    resized={},
    doubled={},
)

SVD = Row(
    "Stable Video Diffusion: no text; the picture's embedding is what the unconditional rows lack.",
    "StableVideoDiffusionPipeline",
    {
        "unet": noisy(
            "UNetSpatioTemporalConditionModel",
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=8,
            in_channels=8,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=12,
            num_attention_heads=2,
            projection_class_embeddings_input_dim=3 * 8,
            addition_time_embed_dim=8,
        ),
        "image_encoder": part(
            "transformers:CLIPVisionModelWithProjection",
            config=part(
                "transformers:CLIPVisionConfig",
                hidden_size=12,
                projection_dim=12,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                intermediate_size=16,
                patch_size=16,
            ),
        ),
        "feature_extractor": part("transformers:CLIPImageProcessor", crop_size=32, size=32),
        "vae": part(
            "AutoencoderKLTemporalDecoder",
            block_out_channels=[32, 32],
            down_block_types=["DownEncoderBlock2D"] * 2,
            latent_channels=4,
        ),
        "scheduler": part("EulerDiscreteScheduler", prediction_type="v_prediction", use_karras_sigmas=True),
    },
    {"image": pixels(32, 32), "min_guidance_scale": 1.5, "max_guidance_scale": 3.0, **size(32, num_frames=2)},
    resized={"num_frames": 3},
    unguided={"min_guidance_scale": 1.0, "max_guidance_scale": 1.0},
    videos=True,
)

ANIMATEDIFF = Row(
    "AnimateDiff: a UNet with motion modules, whose texts have a row for every frame.",
    "AnimateDiffPipeline",
    {
        "unet": noisy(
            "UNet2DConditionModel",
            block_out_channels=(8, 8),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=12,
            norm_num_groups=2,
        ),
        "motion_adapter": noisy(
            "MotionAdapter",
            block_out_channels=(8, 8),
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
        ),
        "vae": autoencoder(),
        "scheduler": DDIM,
    },
    {**texts(12), "guidance_scale": 4.0, **size(32, num_frames=4)},
    resized={"height": 48},
    videos=True,
)

ROWS = {"sdxl": SDXL, "sdxl-i2i": SDXL_I2I, "sdxl-pag": SDXL_PAG, "svd": SVD, "animatediff": ANIMATEDIFF}

"""Image families with batched guidance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from fastercache.zoo.specimen import Call, Specimen, assembled, noise, randomised, seeded


def autoencoder(blocks: int = 3) -> AutoencoderKL:
    """A random image autoencoder that shrinks by 2 ** (blocks - 1)."""
    return AutoencoderKL(
        block_out_channels=(4,) * blocks,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    ).eval()


def _text(count: int, width: int = 12) -> Call:
    return {
        "prompt_embeds": noise(count, 5, width),
        "negative_prompt_embeds": noise(count, 5, width, seed=8),
        "guidance_scale": 4.0,
        "height": 32,
        "width": 32,
        "output_type": "latent",
    }


def _masks(count: int) -> Call:
    return {"prompt_attention_mask": torch.ones(count, 5), "negative_prompt_attention_mask": torch.ones(count, 5)}


def _pixart(pipeline: Any, **more: Any) -> Any:
    with seeded():
        transformer = PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=12,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
        )
        return assembled(
            pipeline,
            transformer=randomised(transformer),
            vae=autoencoder(),
            scheduler=DDIMScheduler(clip_sample=False),
            **more,
        )


def _pixart_inputs(count: int) -> Call:
    extra = {"negative_prompt": None, "clean_caption": False, "use_resolution_binning": False}
    return {**_text(count), **_masks(count), **extra}


def pixart() -> Specimen:
    """PixArt-Sigma; the denoiser predicts twice the latent's channels."""
    return Specimen(
        "pixart-sigma",
        _pixart(PixArtSigmaPipeline),
        _pixart_inputs,
        resized={"height": 48},
        unguided={"guidance_scale": 1.0},
        doubled={"num_images_per_prompt": 2},
    )


def pixart_pag() -> Specimen:
    """PixArt-Sigma with perturbed-attention guidance: three branches in one call, told by their place in it."""
    return Specimen(
        "pixart-pag",
        _pixart(PixArtSigmaPAGPipeline, pag_applied_layers="blocks.1"),
        _pixart_inputs,
        resized={"height": 48},
        unguided={"guidance_scale": 1.0, "pag_scale": 0.0},
        doubled={"num_images_per_prompt": 2},
    )


def sd3() -> Specimen:
    """Stable Diffusion 3: (text, image) blocks, the last of which drops the text."""
    with seeded():
        transformer = SD3Transformer2DModel(
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
        )
        pipe = assembled(
            StableDiffusion3Pipeline,
            transformer=randomised(transformer),
            vae=autoencoder(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )

    def inputs(count: int) -> Call:
        pooled = {
            "pooled_prompt_embeds": noise(count, 10),
            "negative_pooled_prompt_embeds": noise(count, 10, seed=9),
        }
        return {**_text(count), **pooled}

    return Specimen(
        "sd3",
        pipe,
        inputs,
        resized={"height": 48},
        unguided={"guidance_scale": 1.0},
    )


def _unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
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
    )
    return randomised(unet)


def _sdxl_inputs(count: int) -> Call:
    pooled = {"pooled_prompt_embeds": noise(count, 10), "negative_pooled_prompt_embeds": noise(count, 10, seed=9)}
    return {**_text(count), **pooled}


def sdxl() -> Specimen:
    """Stable Diffusion XL: a UNet whose blocks hand skips to each other."""
    with seeded():
        parts: dict[str, Any] = {"unet": _unet(), "vae": autoencoder(), "scheduler": EulerDiscreteScheduler()}
        pipe = assembled(StableDiffusionXLPipeline, **parts)
    return Specimen(
        "sdxl",
        pipe,
        _sdxl_inputs,
        resized={"height": 48},
        unguided={"guidance_scale": 1.0},
        doubled={"num_images_per_prompt": 2},
    )


def sdxl_pag() -> Specimen:
    """SDXL with perturbed-attention guidance in its middle block."""
    with seeded():
        parts: dict[str, Any] = {"unet": _unet(), "vae": autoencoder(), "scheduler": EulerDiscreteScheduler()}
        pipe = assembled(StableDiffusionXLPAGPipeline, **parts, pag_applied_layers="mid")
    return Specimen(
        "sdxl-pag",
        pipe,
        _sdxl_inputs,
        resized={"height": 48},
        unguided={"guidance_scale": 1.0, "pag_scale": 0.0},
        doubled={"num_images_per_prompt": 2},
    )


def sdxl_i2i() -> Specimen:
    """SDXL image-to-image: the run starts in the middle of the scheduler's timesteps."""
    with seeded():
        parts: dict[str, Any] = {"unet": _unet(), "vae": autoencoder(), "scheduler": EulerDiscreteScheduler()}
        pipe = assembled(StableDiffusionXLImg2ImgPipeline, **parts)

    def inputs(count: int) -> Call:
        call = _sdxl_inputs(count)
        del call["height"], call["width"]
        return {**call, "image": noise(count, 3, 32, 32).clamp(0, 1), "strength": 0.6}

    return Specimen("sdxl-i2i", pipe, inputs, steps=10, unguided={"guidance_scale": 1.0})


def dit() -> Specimen:
    """DiT: class labels, the conditional rows first, and the doubled batch passed to the scheduler."""
    with seeded():
        transformer = DiTTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        )
        pipe = assembled(
            DiTPipeline,
            transformer=randomised(transformer),
            vae=autoencoder(),
            scheduler=DDIMScheduler(clip_sample=False),
        )

    def inputs(count: int) -> Call:
        return {"class_labels": [3 + i for i in range(count)], "guidance_scale": 4.0, "output_type": "np"}

    return Specimen("dit", pipe, inputs, unguided={"guidance_scale": 1.0})


def hunyuan_dit() -> Specimen:
    """HunyuanDiT: two text encoders, later blocks take a skip from the earlier ones."""
    with seeded():
        transformer = HunyuanDiT2DModel(
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
        )
        pipe = assembled(
            HunyuanDiTPipeline,
            transformer=randomised(transformer),
            vae=autoencoder(4),
            scheduler=DDIMScheduler(clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def inputs(count: int) -> Call:
        second = {
            "prompt_embeds_2": noise(count, 5, 16, seed=10),
            "negative_prompt_embeds_2": noise(count, 5, 16, seed=11),
            "prompt_attention_mask_2": torch.ones(count, 5),
            "negative_prompt_attention_mask_2": torch.ones(count, 5),
        }
        return {**_text(count), **_masks(count), **second, "use_resolution_binning": False, "height": 64, "width": 64}

    return Specimen(
        "hunyuan-dit",
        pipe,
        inputs,
        resized={"height": 96},
        unguided={"guidance_scale": 1.0},
    )


def sana() -> Specimen:
    """Sana: linear attention."""
    with seeded():
        transformer = SanaTransformer2DModel(
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
        )
        pipe = assembled(SanaPipeline, transformer=randomised(transformer), scheduler=FlowMatchEulerDiscreteScheduler())

    def inputs(count: int) -> Call:
        extra = {"negative_prompt": None, "clean_caption": False, "use_resolution_binning": False}
        return {**_text(count), **_masks(count), **extra, "height": 256, "width": 256}

    return Specimen(
        "sana",
        pipe,
        inputs,
        resized={"height": 320},
        unguided={"guidance_scale": 1.0},
        doubled={"num_images_per_prompt": 2},
    )

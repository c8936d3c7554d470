"""Latte: batched guidance, interleaved spatial and temporal blocks; the family of the paper's own experiments."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel

from fastercache.zoo.specimen import Call, Specimen, noise, randomised, seeded
from fastercache.zoo.text import encoder, tokenizer


def pipeline(layers: int = 2, text: int = 12) -> Any:
    """A random LattePipeline: 32x32 pixels on an 8x8 latent, 4 frames, prompts in words or as embeddings."""
    transformer = LatteTransformer3DModel(
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
        caption_channels=text,
        video_length=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    pipe = LattePipeline(
        tokenizer=tokenizer(),
        text_encoder=encoder(text),
        vae=vae.eval(),
        transformer=randomised(transformer),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latte() -> Specimen:
    """Latte text-to-video."""
    with seeded():
        pipe = pipeline()

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 5, 12),
            "negative_prompt_embeds": noise(count, 5, 12, seed=8),
            "negative_prompt": None,
            "mask_feature": False,
            "clean_caption": False,
            "guidance_scale": 4.0,
            "height": 32,
            "width": 32,
            "video_length": 4,
            "output_type": "latent",
        }

    return Specimen(
        "latte",
        pipe,
        inputs,
        resized={"height": 48},
        unguided={"guidance_scale": 1.0},
        doubled={"num_images_per_prompt": 2},
        videos=True,
    )

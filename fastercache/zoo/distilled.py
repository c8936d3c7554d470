"""Guidance-distilled families, and the same with true classifier-free guidance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from fastercache.zoo.specimen import Call, Specimen, assembled, noise, randomised, seeded


def _flux_pipe() -> Any:
    with seeded():
        transformer = FluxTransformer2DModel(
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
        )
        return assembled(
            FluxPipeline,
            transformer=randomised(transformer),
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )


def _flux_inputs(count: int) -> Call:
    return {
        "prompt_embeds": noise(count, 5, 12),
        "pooled_prompt_embeds": noise(count, 10),
        "guidance_scale": 3.5,
        "height": 64,
        "width": 64,
        "output_type": "latent",
    }


def flux() -> Specimen:
    """Flux, guidance-distilled: one branch; packed tokens; two kinds of block."""
    return Specimen("flux", _flux_pipe(), _flux_inputs, resized={"height": 96}, doubled={"num_images_per_prompt": 2})


def flux_cfg() -> Specimen:
    """Flux with `true_cfg_scale`: one call per branch."""

    def inputs(count: int) -> Call:
        negative = {
            "negative_prompt_embeds": noise(count, 5, 12, seed=8),
            "negative_pooled_prompt_embeds": noise(count, 10, seed=9),
            "true_cfg_scale": 4.0,
        }
        return {**_flux_inputs(count), **negative}

    return Specimen(
        "flux-true-cfg",
        _flux_pipe(),
        inputs,
        resized={"height": 96},
        unguided={"true_cfg_scale": 1.0},
        doubled={"num_images_per_prompt": 2},
    )


def chroma() -> Specimen:
    """Chroma: Flux's shape with true guidance."""
    with seeded():
        transformer = ChromaTransformer2DModel(
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
        )
        pipe = assembled(
            ChromaPipeline, transformer=randomised(transformer), vae=None, scheduler=FlowMatchEulerDiscreteScheduler()
        )

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 5, 12),
            "prompt_attention_mask": torch.ones(count, 5),
            "negative_prompt_embeds": noise(count, 5, 12, seed=8),
            "negative_prompt_attention_mask": torch.ones(count, 5),
            "guidance_scale": 4.0,
            "height": 64,
            "width": 64,
            "output_type": "latent",
        }

    return Specimen("chroma", pipe, inputs, resized={"height": 96}, unguided={"guidance_scale": 1.0})


def _hunyuan_pipe() -> Any:
    with seeded():
        transformer = HunyuanVideoTransformer3DModel(
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
        )
        return assembled(
            HunyuanVideoPipeline,
            transformer=randomised(transformer),
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )


def _hunyuan_inputs(count: int) -> Call:
    return {
        "prompt_embeds": noise(count, 5, 12),
        "pooled_prompt_embeds": noise(count, 10),
        "prompt_attention_mask": torch.ones(count, 5),
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "output_type": "latent",
    }


def hunyuan_video() -> Specimen:
    """HunyuanVideo, guidance-distilled: one branch."""
    return Specimen(
        "hunyuan-video",
        _hunyuan_pipe(),
        _hunyuan_inputs,
        resized={"height": 96, "num_frames": 5},
        doubled={"num_videos_per_prompt": 2},
        videos=True,
    )


def hunyuan_video_cfg() -> Specimen:
    """HunyuanVideo with `true_cfg_scale`: one call per branch."""

    def inputs(count: int) -> Call:
        negative = {
            "negative_prompt_embeds": noise(count, 5, 12, seed=8),
            "negative_pooled_prompt_embeds": noise(count, 10, seed=9),
            "negative_prompt_attention_mask": torch.ones(count, 5),
            "true_cfg_scale": 4.0,
        }
        return {**_hunyuan_inputs(count), **negative}

    return Specimen(
        "hunyuan-video-true-cfg",
        _hunyuan_pipe(),
        inputs,
        resized={"height": 96, "num_frames": 5},
        unguided={"true_cfg_scale": 1.0},
        doubled={"num_videos_per_prompt": 2},
        videos=True,
    )

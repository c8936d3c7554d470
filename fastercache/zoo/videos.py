"""Video families with batched guidance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)

from fastercache.zoo.specimen import Call, Specimen, assembled, noise, randomised, seeded


def _cogvideox_parts(channels: int) -> dict[str, Any]:
    transformer = CogVideoXTransformer3DModel(
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
    )
    vae = AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return {"transformer": randomised(transformer), "vae": vae.eval(), "scheduler": CogVideoXDDIMScheduler()}


def _cogvideox_inputs(count: int) -> Call:
    return {
        "prompt_embeds": noise(count, 5, 12),
        "negative_prompt_embeds": noise(count, 5, 12, seed=8),
        "guidance_scale": 4.0,
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "max_sequence_length": 5,
        "output_type": "latent",
    }


def cogvideox() -> Specimen:
    """CogVideoX text-to-video."""
    with seeded():
        pipe = assembled(CogVideoXPipeline, **_cogvideox_parts(4))
    return Specimen(
        "cogvideox",
        pipe,
        _cogvideox_inputs,
        resized={"height": 48, "num_frames": 5},
        unguided={"guidance_scale": 1.0},
        videos=True,
    )


def cogvideox_i2v() -> Specimen:
    """CogVideoX image-to-video: the image's latents are extra input channels."""
    with seeded():
        pipe = assembled(CogVideoXImageToVideoPipeline, **_cogvideox_parts(8))

    def inputs(count: int) -> Call:
        return {**_cogvideox_inputs(count), "image": noise(count, 3, 32, 32).clamp(0, 1)}

    return Specimen(
        "cogvideox-i2v", pipe, inputs, resized={"num_frames": 5}, unguided={"guidance_scale": 1.0}, videos=True
    )


def cogvideox_v2v() -> Specimen:
    """CogVideoX video-to-video: the run starts in the middle of the scheduler's timesteps."""
    with seeded():
        pipe = assembled(CogVideoXVideoToVideoPipeline, **_cogvideox_parts(4))

    def inputs(count: int) -> Call:
        call = _cogvideox_inputs(count)
        del call["num_frames"]
        return {**call, "latents": noise(count, 3, 4, 4, 4), "video": None, "strength": 0.6}

    return Specimen("cogvideox-v2v", pipe, inputs, steps=10, unguided={"guidance_scale": 1.0}, videos=True)


def mochi() -> Specimen:
    """Mochi text-to-video."""
    with seeded():
        transformer = MochiTransformer3DModel(
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
        )
        scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        pipe = assembled(MochiPipeline, transformer=randomised(transformer), scheduler=scheduler)

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 5, 16),
            "negative_prompt_embeds": noise(count, 5, 16, seed=8),
            "prompt_attention_mask": torch.ones(count, 5, dtype=torch.bool),
            "negative_prompt_attention_mask": torch.ones(count, 5, dtype=torch.bool),
            "guidance_scale": 4.0,
            "height": 32,
            "width": 32,
            "num_frames": 7,
            "max_sequence_length": 5,
            "output_type": "latent",
        }

    return Specimen(
        "mochi",
        pipe,
        inputs,
        resized={"height": 48, "num_frames": 13},
        unguided={"guidance_scale": 1.0},
        videos=True,
    )


def ltx() -> Specimen:
    """LTX-Video: latents are packed tokens, in and out."""
    with seeded():
        transformer = LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=12,
        )
        pipe = assembled(LTXPipeline, transformer=randomised(transformer), scheduler=FlowMatchEulerDiscreteScheduler())

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 5, 12),
            "negative_prompt_embeds": noise(count, 5, 12, seed=8),
            "prompt_attention_mask": torch.ones(count, 5, dtype=torch.bool),
            "negative_prompt_attention_mask": torch.ones(count, 5, dtype=torch.bool),
            "guidance_scale": 4.0,
            "height": 160,
            "width": 192,
            "num_frames": 17,
            "max_sequence_length": 5,
            "output_type": "latent",
        }

    return Specimen(
        "ltx",
        pipe,
        inputs,
        resized={"height": 192, "num_frames": 9},
        unguided={"guidance_scale": 1.0},
        videos=True,
    )


def allegro() -> Specimen:
    """Allegro text-to-video."""
    with seeded():
        transformer = AllegroTransformer3DModel(
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
        )
        vae = AutoencoderKLAllegro(
            down_block_types=("AllegroDownBlock3D",) * 4,
            up_block_types=("AllegroUpBlock3D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        )
        pipe = assembled(
            AllegroPipeline,
            transformer=randomised(transformer),
            vae=vae.eval(),
            scheduler=DDIMScheduler(clip_sample=False),
        )

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 5, 12),
            "negative_prompt_embeds": noise(count, 5, 12, seed=8),
            "prompt_attention_mask": torch.ones(count, 5),
            "negative_prompt_attention_mask": torch.ones(count, 5),
            "negative_prompt": None,
            "clean_caption": False,
            "guidance_scale": 4.0,
            "height": 32,
            "width": 32,
            "num_frames": 8,
            "output_type": "latent",
        }

    return Specimen(
        "allegro",
        pipe,
        inputs,
        resized={"height": 48, "num_frames": 4},
        unguided={"guidance_scale": 1.0},
        videos=True,
    )

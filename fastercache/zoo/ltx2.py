"""LTX-2: video and audio in one transformer, and up to two further passes a step beside the guided pair."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from fastercache.zoo.specimen import Call, Specimen, assembled, noise, randomised, seeded


def _transformer() -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=8,
        rope_type="split",
        perturbed_attn=True,
    )


def _connectors() -> LTX2TextConnectors:
    sizes = {
        f"{modality}_connector_{name}": value
        for modality in ("video", "audio")
        for name, value in {
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_layers": 1,
            "num_learnable_registers": None,
        }.items()
    }
    return LTX2TextConnectors(caption_channels=8, text_proj_in_factor=3, rope_type="split", **sizes)


def _video_autoencoder() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        timestep_conditioning=False,
        patch_size=4,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )


def _audio_autoencoder() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
        sample_rate=16000,
        mel_hop_length=160,
    )


def ltx2() -> Specimen:
    """LTX-2 text-to-video: a batched pair, then a perturbed pass and one with the modalities apart."""
    with seeded():
        pipe = assembled(
            LTX2Pipeline,
            transformer=randomised(_transformer()),
            connectors=randomised(_connectors()),
            vae=_video_autoencoder().eval(),
            audio_vae=_audio_autoencoder().eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 5, 24),
            "negative_prompt_embeds": noise(count, 5, 24, seed=8),
            "prompt_attention_mask": torch.ones(count, 5),
            "negative_prompt_attention_mask": torch.ones(count, 5),
            "spatio_temporal_guidance_blocks": [1],
            "height": 64,
            "width": 64,
            "num_frames": 5,
            "frame_rate": 8.0,
            "output_type": "latent",
        }

    off = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0}
    return Specimen(
        "ltx-2",
        pipe,
        inputs,
        resized={"height": 96, "num_frames": 3},
        unguided={**off, **{f"audio_{name}": value for name, value in off.items()}},
        videos=True,
    )

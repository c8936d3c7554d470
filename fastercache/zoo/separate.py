"""Families that call the denoiser once per branch."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo15,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance

from fastercache.zoo.specimen import Call, Specimen, assembled, noise, randomised, seeded


def _wan_transformer(kind: Any = WanTransformer3DModel, **fields: Any) -> Any:
    transformer = kind(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
        **fields,
    )
    return randomised(transformer)


def _wan_scheduler() -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _wan_inputs(count: int) -> Call:
    return {
        "prompt_embeds": noise(count, 5, 12),
        "negative_prompt_embeds": noise(count, 5, 12, seed=8),
        "guidance_scale": 4.0,
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "output_type": "latent",
    }


def wan() -> Specimen:
    """Wan 2.1 text-to-video: cond first, then uncond, each in its cache context."""
    with seeded():
        pipe = assembled(WanPipeline, transformer=_wan_transformer(), scheduler=_wan_scheduler())
    return Specimen(
        "wan",
        pipe,
        _wan_inputs,
        resized={"height": 96, "num_frames": 5},
        unguided={"guidance_scale": 1.0},
        doubled={"num_videos_per_prompt": 2},
        videos=True,
    )


def wan22() -> Specimen:
    """Wan 2.2: two transformers share the steps of one run."""
    with seeded():
        pipe = assembled(
            WanPipeline,
            transformer=_wan_transformer(),
            transformer_2=_wan_transformer(),
            boundary_ratio=0.8,
            scheduler=_wan_scheduler(),
        )
    return Specimen(
        "wan-2.2",
        pipe,
        _wan_inputs,
        steps=8,
        resized={"height": 96, "num_frames": 5},
        unguided={"guidance_scale": 1.0},
        doubled={"num_videos_per_prompt": 2},
        videos=True,
    )


def skyreels() -> Specimen:
    """SkyReels-V2 text-to-video."""
    with seeded():
        pipe = assembled(
            SkyReelsV2Pipeline, transformer=_wan_transformer(SkyReelsV2Transformer3DModel), scheduler=_wan_scheduler()
        )
    return Specimen(
        "skyreels-v2",
        pipe,
        _wan_inputs,
        resized={"height": 96, "num_frames": 5},
        unguided={"guidance_scale": 1.0},
        doubled={"num_videos_per_prompt": 2},
        videos=True,
    )


def cogview4() -> Specimen:
    """CogView4: the branches' texts have different lengths."""
    with seeded():
        transformer = CogView4Transformer2DModel(
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
        )
        pipe = assembled(
            CogView4Pipeline,
            transformer=randomised(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
        )

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 7, 12),
            "negative_prompt_embeds": noise(count, 4, 12, seed=8),
            "guidance_scale": 4.0,
            "height": 64,
            "width": 64,
            "original_size": (64, 64),
            "output_type": "latent",
        }

    return Specimen(
        "cogview4",
        pipe,
        inputs,
        resized={"height": 96},
        unguided={"guidance_scale": 1.0},
        doubled={"num_images_per_prompt": 2},
    )


def qwen_image() -> Specimen:
    """QwenImage: packed tokens, texts of different lengths, guidance by `true_cfg_scale`."""
    with seeded():
        transformer = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(8, 4, 4),
        )
        pipe = assembled(
            QwenImagePipeline,
            transformer=randomised(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 7, 12),
            "prompt_embeds_mask": torch.ones(count, 7, dtype=torch.long),
            "negative_prompt_embeds": noise(count, 4, 12, seed=8),
            "negative_prompt_embeds_mask": torch.ones(count, 4, dtype=torch.long),
            "true_cfg_scale": 4.0,
            "height": 64,
            "width": 64,
            "output_type": "latent",
        }

    return Specimen(
        "qwen-image",
        pipe,
        inputs,
        resized={"height": 96},
        unguided={"true_cfg_scale": 1.0},
        doubled={"num_images_per_prompt": 2},
    )


def hunyuan_video_15() -> Specimen:
    """HunyuanVideo 1.5: guided by a guider component, texts of different lengths."""
    with seeded():
        transformer = HunyuanVideo15Transformer3DModel(
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
        )
        vae = AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4, 4),
            layers_per_block=1,
            downsample_match_channel=False,
            upsample_match_channel=False,
        )
        pipe = assembled(
            HunyuanVideo15Pipeline,
            transformer=randomised(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae.eval(),
            guider=ClassifierFreeGuidance(guidance_scale=4.0),
        )

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 7, 12),
            "prompt_embeds_mask": torch.ones(count, 7),
            "negative_prompt_embeds": noise(count, 4, 12, seed=8),
            "negative_prompt_embeds_mask": torch.ones(count, 4),
            "prompt_embeds_2": noise(count, 3, 10),
            "prompt_embeds_mask_2": torch.ones(count, 3),
            "negative_prompt_embeds_2": noise(count, 3, 10, seed=9),
            "negative_prompt_embeds_mask_2": torch.ones(count, 3),
            "height": 64,
            "width": 64,
            "num_frames": 9,
            "output_type": "latent",
        }

    return Specimen(
        "hunyuan-video-1.5",
        pipe,
        inputs,
        resized={"height": 96, "num_frames": 5},
        videos=True,
    )


class _Permissive(torch.nn.Module):
    """Stands in for the safety checker, which needs downloaded weights."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: Any) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos() -> Specimen:
    """Cosmos text-to-world."""
    with seeded():
        transformer = CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2,
            text_embed_dim=12,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            rope_scale=(2.0, 1.0, 1.0),
            concat_padding_mask=False,
            extra_pos_embed_type="learnable",
        )
        vae = AutoencoderKLCosmos(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            encoder_block_out_channels=(8, 8, 8, 8),
            decode_block_out_channels=(8, 8, 8, 8),
            attention_resolutions=(8,),
            resolution=64,
            num_layers=1,
            patch_size=4,
            patch_type="haar",
            scaling_factor=1.0,
            spatial_compression_ratio=8,
            temporal_compression_ratio=8,
        )
        pipe = assembled(
            CosmosTextToWorldPipeline,
            transformer=randomised(transformer),
            vae=vae.eval(),
            scheduler=EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras",
                                        prediction_type="epsilon", final_sigmas_type="sigma_min"),
            safety_checker=_Permissive(),
        )  # fmt: skip

    def inputs(count: int) -> Call:
        return {
            "prompt_embeds": noise(count, 5, 12),
            "negative_prompt_embeds": noise(count, 5, 12, seed=8),
            "guidance_scale": 4.0,
            "height": 64,
            "width": 64,
            "num_frames": 9,
            "output_type": "latent",
        }

    return Specimen(
        "cosmos",
        pipe,
        inputs,
        resized={"height": 96},
        unguided={"guidance_scale": 1.0},
        doubled={"num_videos_per_prompt": 2},
        videos=True,
    )

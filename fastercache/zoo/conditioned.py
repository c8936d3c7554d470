"""Families that are given a picture beside the text: edits, ControlNets and image prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from fastercache.zoo.images import FLUX, FLUX_TRUE_CFG, QWEN_IMAGE, SD3
from fastercache.zoo.rows import FLOW, Part, Row, autoencoder, noisy, part, pixels, size, texts
from fastercache.zoo.specimen import noise
from fastercache.zoo.stand_ins import image_prompt_for_sd3, image_prompt_for_unet
from fastercache.zoo.unets import SDXL


def picture(height: int, width: int) -> Image.Image:
    """A fixed picture of noise."""
    return Image.fromarray(np.random.RandomState(3).randint(0, 255, (height, width, 3), dtype=np.uint8))


def _like(name: str, row: Row, kind: str, without: tuple[str, ...] = ("out_channels",), **fields: Any) -> Part:
    """A ControlNet with the sizes of the row's denoiser."""
    given: Part = row.parts[name]
    kept = {k: v for k, v in given.fields.items() if k not in without}
    return noisy(kind, **{**kept, **fields})


_KONTEXT: dict[str, Any] = {"image": picture(64, 64), "_auto_resize": False, "max_area": 64 * 64}
_KONTEXT_PARTS = {**FLUX.parts, "vae": autoencoder(4, shift_factor=0.0, scaling_factor=1.0), "scheduler": FLOW}

FLUX_KONTEXT = FLUX.but(
    "Flux Kontext: the picture's tokens follow the generated image's; one branch.",
    inputs=_KONTEXT,
    pipeline="FluxKontextPipeline",
    parts=_KONTEXT_PARTS,
    resized={},
    doubled={},
)

FLUX_KONTEXT_TRUE_CFG = FLUX_TRUE_CFG.but(
    "Flux Kontext with `true_cfg_scale`: one call per branch.",
    inputs=_KONTEXT,
    pipeline="FluxKontextPipeline",
    parts=_KONTEXT_PARTS,
    resized={},
    doubled={},
)

QWEN_IMAGE_EDIT = QWEN_IMAGE.but(
    "QwenImage-Edit: the picture's tokens follow the generated image's.",
    inputs={**size(1024), "image": picture(64, 64)},
    pipeline="QwenImageEditPipeline",
    parts={**QWEN_IMAGE.parts, "vae": part("fastercache.zoo.stand_ins:Pooling", square=128)},
    resized={"height": 1280},
    doubled={},
)

QWEN_CONTROLNET = QWEN_IMAGE.but(
    "QwenImage with a ControlNet.",
    inputs={"control_image": pixels(64, 64), "controlnet_conditioning_scale": 0.5},
    pipeline="QwenImageControlNetPipeline",
    parts={
        **QWEN_IMAGE.parts,
        "controlnet": _like("transformer", QWEN_IMAGE, "QwenImageControlNetModel", out_channels=4),
        "vae": part(
            "AutoencoderKLQwenImage",
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
    },
    resized={},
    doubled={},
)

SD3_CONTROLNET = SD3.but(
    "Stable Diffusion 3 with a ControlNet.",
    inputs={"control_image": pixels(32, 32), "controlnet_conditioning_scale": 0.5},
    pipeline="StableDiffusion3ControlNetPipeline",
    parts={
        **SD3.parts,
        "controlnet": _like("transformer", SD3, "SD3ControlNetModel"),
        "vae": part("fastercache.zoo.stand_ins:Pooling", square=4),
    },
    resized={},
)

SD3_IP_ADAPTER = SD3.but(
    "Stable Diffusion 3 with an image prompt: its tokens come in `joint_attention_kwargs`.",
    inputs={"ip_adapter_image_embeds": noise(2, 3, 10, seed=12)},
    finish=image_prompt_for_sd3,
    unguided={},
)

SDXL_CONTROLNET = SDXL.but(
    "SDXL with a ControlNet.",
    inputs={"image": pixels(32, 32), "controlnet_conditioning_scale": 0.5},
    pipeline="StableDiffusionXLControlNetPipeline",
    parts={
        **SDXL.parts,
        "controlnet": _like(
            "unet",
            SDXL,
            "ControlNetModel",
            without=("out_channels", "up_block_types", "sample_size"),
            conditioning_embedding_out_channels=(4, 8, 8),
        ),
    },
    resized={},
    doubled={},
)

SDXL_IP_ADAPTER = SDXL.but(
    "SDXL with an image prompt.",
    inputs={"ip_adapter_image_embeds": [noise(2, 1, 10, seed=12)]},
    finish=image_prompt_for_unet,
    unguided={},
    doubled={},
)

INSTRUCT_PIX2PIX = Row(
    "InstructPix2Pix: three branches in one call, the second of which sees the picture and no text.",
    "StableDiffusionInstructPix2PixPipeline",
    {
        "unet": noisy(
            "UNet2DConditionModel",
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=8,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 2),
            cross_attention_dim=12,
            norm_num_groups=2,
        ),
        "vae": autoencoder(),
        "scheduler": part("DDIMScheduler", clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    },
    {
        **texts(12),
        "image": pixels(32, 32),
        "guidance_scale": 4.0,
        "image_guidance_scale": 1.5,
        "output_type": "latent",
    },
)

ROWS = {
    "flux-kontext": FLUX_KONTEXT,
    "flux-kontext-true-cfg": FLUX_KONTEXT_TRUE_CFG,
    "qwen-image-edit": QWEN_IMAGE_EDIT,
    "qwen-image-controlnet": QWEN_CONTROLNET,
    "sd3-controlnet": SD3_CONTROLNET,
    "sd3-ip-adapter": SD3_IP_ADAPTER,
    "sdxl-controlnet": SDXL_CONTROLNET,
    "sdxl-ip-adapter": SDXL_IP_ADAPTER,
    "instruct-pix2pix": INSTRUCT_PIX2PIX,
}

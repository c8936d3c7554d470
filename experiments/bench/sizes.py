"""Published video models at the size that people run, with random weights: seconds and bytes do not depend on them.

Each is a row as the zoo has them (`fastercache.zoo.rows`), with the published configuration, and the call that its
model card or the FasterCache paper gives. No text encoder and no autoencoder is built: a call takes random embeddings
and returns latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastercache as fc
from fastercache.zoo.rows import Row, masks, part, pooled, size, texts
from fastercache.zoo.specimen import Specimen
from fastercache.zoo.vchitect import PUBLISHED, PUBLISHED_CALL, PUBLISHED_TEXT

WIDTH = 4096
"""Of the text embeddings: all of these models read T5."""


@dataclass(frozen=True)
class Size:
    """One model at its size.

    Attributes:
        label: its name in print. row: how it is built and called. steps: of the published call.
        preset: FasterCache's settings for it, by `FasterCache.preset`; None for the paper's defaults.
        paper: FasterCache's speedup as its paper states it, on one A100; None where it has none.
    """

    label: str
    row: Row
    steps: int
    preset: str | None = None
    paper: float | None = None

    def build(self, device: torch.device, dtype: torch.dtype) -> Specimen:
        """The pipeline on a device, with random weights of a type; what diffusers keeps in float32 stays so."""
        with torch.device(device):
            specimen = self.row.build(self.label)
        denoiser = specimen.pipe.transformer
        with torch.no_grad():
            for parameter in denoiser.parameters():
                if not parameter.any():  # layers that start at zero would make every output alike
                    parameter.normal_(std=0.02)
        nn.Module.to(denoiser, dtype)
        kept = tuple(getattr(denoiser, "_keep_in_fp32_modules", None) or ())
        for name, module in denoiser.named_modules():
            if any(part in kept for part in name.split(".")):
                module.float()
        return specimen

    def call(self, specimen: Specimen, device: torch.device, dtype: torch.dtype, steps: int) -> dict[str, Any]:
        """Keyword arguments of a call for one prompt."""

        def placed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        call = specimen.call(steps=steps, generator=torch.Generator(device).manual_seed(0))
        return {key: placed(value) for key, value in call.items()}

    def faster_cache(self) -> fc.Policy:
        """FasterCache as published for this model, or with the paper's defaults."""
        return fc.FasterCache() if self.preset is None else fc.FasterCache.preset(self.preset)


def _transformer(kind: str, fields: Mapping[str, Any], scheduler: Any) -> dict[str, Any]:
    return {"transformer": part(kind, **fields), "scheduler": scheduler}


LATTE = Size(
    "Latte-1, 16 x 512 x 512",
    Row(
        "Latte-1.",
        "LattePipeline",
        _transformer(
            "LatteTransformer3DModel",
            {
                "num_attention_heads": 16,
                "attention_head_dim": 72,
                "in_channels": 4,
                "out_channels": 8,
                "num_layers": 28,
                "cross_attention_dim": 1152,
                "attention_bias": True,
                "sample_size": 64,
                "patch_size": 2,
                "activation_fn": "gelu-approximate",
                "num_embeds_ada_norm": 1000,
                "norm_type": "ada_norm_single",
                "norm_elementwise_affine": False,
                "norm_eps": 1e-6,
                "caption_channels": WIDTH,
                "video_length": 16,
            },
            part("DDIMScheduler", clip_sample=False),
        ),
        {
            **texts(WIDTH, length=120),
            "negative_prompt": None,
            "mask_feature": False,
            "clean_caption": False,
            "guidance_scale": 7.5,
            **size(512, video_length=16),
        },
    ),
    steps=50,
    preset="latte",
    paper=1.54,
)

COGVIDEOX = Size(
    "CogVideoX-2B, 49 x 480 x 720",
    Row(
        "CogVideoX-2B: the class's own defaults.",
        "CogVideoXPipeline",
        _transformer("CogVideoXTransformer3DModel", {}, part("CogVideoXDDIMScheduler", timestep_spacing="trailing")),
        {**texts(WIDTH, length=226), "guidance_scale": 6.0, **size(480, 720, num_frames=49)},
    ),
    steps=50,
    preset="cogvideox",
    paper=1.62,
)

MOCHI = Size(
    "Mochi 1, 84 x 480 x 848",
    Row(
        "Mochi 1: the class's own defaults.",
        "MochiPipeline",
        _transformer("MochiTransformer3DModel", {}, part("FlowMatchEulerDiscreteScheduler", invert_sigmas=True)),
        {
            **texts(WIDTH, length=256),
            **masks(256, dtype=torch.bool),
            "guidance_scale": 4.5,
            **size(480, 848, num_frames=84),
        },
    ),
    steps=64,
    preset="mochi",
    paper=1.74,
)

WAN = Size(
    "Wan 2.1 1.3B, 81 x 480 x 832",
    Row(
        "Wan 2.1 1.3B.",
        "WanPipeline",
        _transformer(
            "WanTransformer3DModel",
            {
                "patch_size": (1, 2, 2),
                "num_attention_heads": 12,
                "attention_head_dim": 128,
                "in_channels": 16,
                "out_channels": 16,
                "text_dim": WIDTH,
                "freq_dim": 256,
                "ffn_dim": 8960,
                "num_layers": 30,
                "cross_attn_norm": True,
                "qk_norm": "rms_norm_across_heads",
                "eps": 1e-6,
            },
            part("UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        ),
        {**texts(WIDTH, length=512), "guidance_scale": 5.0, **size(480, 832, num_frames=81)},
    ),
    steps=50,
)

VCHITECT = Size(
    "Vchitect-2.0, 40 x 432 x 768",
    Row(
        "Vchitect-2.0: the project's own rebuilding of the published transformer, in the published loop.",
        "fastercache.zoo.vchitect:VchitectPipeline",
        {"transformer": part("fastercache.zoo.vchitect:VchitectXLTransformerModel", **PUBLISHED)},
        {
            **texts(WIDTH, length=PUBLISHED_TEXT),
            **pooled(PUBLISHED["pooled_projection_dim"]),
            **{key: value for key, value in PUBLISHED_CALL.items() if key != "num_inference_steps"},
        },
    ),
    steps=PUBLISHED_CALL["num_inference_steps"],
    preset="vchitect",
    paper=1.67,
)

SIZES: dict[str, Size] = {
    "latte-1": LATTE,
    "cogvideox-2b": COGVIDEOX,
    "vchitect-2.0": VCHITECT,
    "wan-2.1-1.3b": WAN,
    "mochi-1": MOCHI,
}

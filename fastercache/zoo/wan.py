"""Wan and what is built on it: one call per branch, the conditional one first, each in its cache context."""

from __future__ import annotations

from typing import Any

from fastercache.zoo.rows import UNIPC, Part, Row, noisy, size, texts, wan_autoencoder
from fastercache.zoo.specimen import noise


def _transformer(kind: str = "WanTransformer3DModel", **fields: Any) -> Part:
    usual = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }
    return noisy(kind, **{**usual, **fields})


WAN = Row(
    "Wan 2.1 text-to-video.",
    "WanPipeline",
    {"transformer": _transformer(), "scheduler": UNIPC},
    {**texts(12), "guidance_scale": 4.0, **size(64, num_frames=9)},
    resized={"height": 96, "num_frames": 5},
    doubled={"num_videos_per_prompt": 2},
    videos=True,
)

WAN_22 = WAN.but(
    "Wan 2.2: two transformers share the steps of one run.",
    parts={
        "transformer": _transformer(),
        "transformer_2": _transformer(),
        "boundary_ratio": 0.8,
        "scheduler": UNIPC,
    },
    steps=8,
)

WAN_5B = WAN.but(
    "Wan 2.2's 5B model: a timestep for every token.",
    parts={
        "transformer": _transformer(),
        "vae": wan_autoencoder(),
        "scheduler": UNIPC,
        "expand_timesteps": True,
    },
    inputs=size(64, num_frames=9),
)

WAN_I2V = WAN.but(
    "Wan 2.2 image-to-video: the image's latents are extra input channels.",
    pipeline="WanImageToVideoPipeline",
    parts={"transformer": _transformer(in_channels=12), "vae": wan_autoencoder(), "scheduler": UNIPC},
    inputs={"image": noise(1, 3, 64, 64).clamp(0, 1)},
    resized={"num_frames": 5},
)

WAN_VACE = WAN.but(
    "Wan VACE: blocks beside the main ones run first and feed them.",
    pipeline="WanVACEPipeline",
    parts={
        "transformer": _transformer(
            "WanVACETransformer3DModel", num_layers=3, vace_layers=[0, 2], vace_in_channels=2 * 4 + 64
        ),
        "vae": wan_autoencoder(),
        "scheduler": UNIPC,
    },
    resized={"num_frames": 5},
    doubled={},
)

SKYREELS = WAN.but(
    "SkyReels-V2 text-to-video.",
    parts={"transformer": _transformer("SkyReelsV2Transformer3DModel"), "scheduler": UNIPC},
    pipeline="SkyReelsV2Pipeline",
)

ROWS = {
    "wan": WAN,
    "wan-2.2": WAN_22,
    "wan-2.2-5b": WAN_5B,
    "wan-i2v": WAN_I2V,
    "wan-vace": WAN_VACE,
    "skyreels-v2": SKYREELS,
}

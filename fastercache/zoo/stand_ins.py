"""What a row of data cannot say: stand-ins for parts that need downloaded weights, adapters, and final touches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastercache.zoo.specimen import randomised


class Permissive(nn.Module):
    """Cosmos' safety checker, finding nothing."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: Any) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


class Pooling(nn.Module):
    """An autoencoder that only encodes: means over squares of pixels, with a fourth channel of zeros.

    Without the random draw of a real one, which some pipelines make from the global generator. QwenImage-Edit scales
    its picture to 1024 x 1024 pixels whatever its size, so a small model needs few latents of many pixels.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, square: int) -> None:
        super().__init__()
        halvings = square.bit_length() - 1
        self.square, self.temperal_downsample = square, (False,) * halvings
        self.config = SimpleNamespace(
            z_dim=4,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            block_out_channels=(4,) * (halvings + 1),
            latent_channels=4,
            shift_factor=0.0,
            scaling_factor=1.0,
        )

    def encode(self, x: Tensor) -> SimpleNamespace:
        """(B, 3, [1,] H, W) to latents (B, 4, [1,] H / square, W / square)."""
        pooled = x.unflatten(-1, (-1, self.square)).mean(-1).unflatten(-2, (-1, self.square)).mean(-2)
        latents = torch.cat([pooled, torch.zeros_like(pooled[:, :1])], dim=1)
        return SimpleNamespace(
            latents=latents, latent_dist=SimpleNamespace(sample=lambda: latents, mode=lambda: latents)
        )


def image_prompt_for_unet(pipe: Any) -> None:
    """Put an IP-Adapter with one image token of width 12 into a pipeline's UNet, as loading its weights does."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    unet = pipe.unet
    processors: dict[str, Any] = {}
    for name, processor in unet.attn_processors.items():
        crossing = name.endswith("attn2.processor")
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        processors[name] = IPAdapterAttnProcessor2_0(width, 12, (1,)) if crossing else processor
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(10, 12, 1)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    randomised(unet)


def image_prompt_for_sd3(pipe: Any) -> None:
    """Put an IP-Adapter for image features of width 10 into a Stable Diffusion 3 transformer."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    transformer = pipe.transformer
    heads, width = transformer.config.num_attention_heads, transformer.config.attention_head_dim
    transformer.set_attn_processor(
        {
            name: SD3IPAdapterJointAttnProcessor2_0(heads * width, 12, width, timesteps_emb_dim=16)
            for name in transformer.attn_processors
        }
    )
    transformer.image_proj = IPAdapterTimeImageProjection(
        embed_dim=10, output_dim=12, hidden_dim=16, depth=1, dim_head=8, heads=2, num_queries=2, timestep_in_dim=8
    )
    randomised(transformer)


def filled_padding(pipe: Any) -> None:
    """Z-Image's padding tokens are made without values, to be loaded: give them some."""
    for token in (pipe.transformer.x_pad_token, pipe.transformer.cap_pad_token):
        nn.init.ones_(token)


def small_default(pipe: Any) -> None:
    """HiDream scales every picture up to a size that it takes from here."""
    pipe.default_sample_size = 8

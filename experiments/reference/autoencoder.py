"""The image autoencoder of ``latte-digits``: 32x32 RGB frames to 8x8 latents with four channels, and its training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor

from fastercache.experiments.reference.data import Sampler

KL_WEIGHT = 1e-4
LATENT_NOISE = 0.05

# an ``AutoencoderKL``; Any because diffusers' model base classes are untyped
Autoencoder: TypeAlias = Any


def build(latent_channels: int = 4) -> Autoencoder:
    """A small ``AutoencoderKL`` (0.4 M parameters) that divides height and width by four."""
    levels = (16, 32, 64)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        block_out_channels=levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def frames_of(video: Tensor) -> Tensor:
    """``(B, C, F, H, W)`` to ``(B*F, C, H, W)``, frames of a video next to each other."""
    return video.transpose(1, 2).flatten(0, 1)


def train(
    autoencoder: Autoencoder, *, steps: int, batch: int, seed: int, device: torch.device, videos: int = 3000
) -> Iterator[tuple[int, float]]:
    """Fit in place by L1 + 5 MSE, a tiny KL term and a little noise on the latent; yields (step, loss)."""
    sampler = Sampler(split="all", strokes="train", seed=seed)
    pool = torch.cat(
        [frames_of(sampler.batch(100).video[:, :, ::2]).mul(127.5).add(127.5).byte() for _ in range(videos // 100)]
    )
    generator = torch.Generator().manual_seed(seed + 1)
    autoencoder.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(autoencoder.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=1e-4)
    for step in range(steps):
        rate = 2e-3 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6
        optimiser.param_groups[0]["lr"] = rate
        picks = torch.randint(len(pool), (batch,), generator=generator)
        image = pool[picks].to(device).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        posterior = autoencoder.encode(image).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        scale = posterior.std + LATENT_NOISE * posterior.mean.detach().std()
        output = autoencoder.decode(posterior.mean + scale * noise).sample
        error = output - image
        loss = (
            error.abs().mean()
            + 5 * error.square().mean()
            + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimiser.step()
        yield step, float(loss.detach())
    autoencoder.eval()
    with torch.no_grad():
        latents = torch.cat(
            [
                autoencoder.encode(pool[i : i + 200].to(device).float() / 127.5 - 1).latent_dist.mean
                for i in range(0, 2000, 200)
            ]
        )
    autoencoder.register_to_config(scaling_factor=1.0 / float(latents.std()))


@torch.no_grad()
def encode(autoencoder: Autoencoder, video: Tensor) -> Tensor:
    """Videos ``(B, 3, F, 32, 32)`` in [-1, 1] to unit-variance latents ``(B, 4, F, 8, 8)``."""
    latent = autoencoder.encode(frames_of(video)).latent_dist.mean * autoencoder.config["scaling_factor"]
    stacked: Tensor = latent.unflatten(0, (len(video), -1)).transpose(1, 2)
    return stacked


@torch.no_grad()
def decode(autoencoder: Autoencoder, latent: Tensor) -> Tensor:
    """Inverse of ``encode``: ``(B, 4, F, 8, 8)`` to videos ``(B, 3, F, 32, 32)`` in [-1, 1]."""
    frames = autoencoder.decode(frames_of(latent) / autoencoder.config["scaling_factor"]).sample
    video: Tensor = frames.unflatten(0, (len(latent), -1)).transpose(1, 2).clamp(-1, 1)
    return video


@torch.no_grad()
def psnr(autoencoder: Autoencoder, *, videos: int = 100, seed: int = 77) -> float:
    """Peak signal-to-noise ratio in dB over reconstructed test videos (pixels in [0, 1], error pooled over all)."""
    video = Sampler(split="all", strokes="test", seed=seed).batch(videos).video
    error = functional.mse_loss(decode(autoencoder, encode(autoencoder, video)) / 2, video / 2)
    return -10 * math.log10(float(error))

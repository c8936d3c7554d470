"""The causal video autoencoder of ``wan-digits``: 9 frames of 32x32 RGB to five 8x8 latent frames, and its training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKLWan
from torch import Tensor

from fastercache.experiments.reference.data import Sampler

KL_WEIGHT = 1e-4
LATENT_NOISE = 0.05

# an ``AutoencoderKLWan``; Any because diffusers' model base classes are untyped
Autoencoder: TypeAlias = Any


def build(latent_channels: int = 8) -> Autoencoder:
    """A small ``AutoencoderKLWan``: height and width divided by four (half of it by folding pixels), time by two."""
    return AutoencoderKLWan(
        base_dim=24,
        z_dim=latent_channels,
        dim_mult=[1, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True],
        latents_mean=[0.0] * latent_channels,
        latents_std=[1.0] * latent_channels,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )


def train(
    autoencoder: Autoencoder,
    *,
    steps: int,
    decoder_steps: int,
    batch: int,
    seed: int,
    device: torch.device,
    frames: int,
) -> Iterator[tuple[int, float]]:
    """Fit in place, first all of it (``steps``), then the decoder alone (``decoder_steps``); yields (step, loss).

    The loss is L1 + 5 MSE, with a tiny KL term and a little noise on the latent. The latent space, and with it every
    transformer trained on it, depends on the first part only.
    """
    sampler = Sampler(split="all", strokes="train", seed=seed, frames=frames)
    pool = torch.cat([sampler.batch(100).video.mul(127.5).add(127.5).byte() for _ in range(20)])
    generator = torch.Generator().manual_seed(seed + 1)
    autoencoder.to(device).train()
    yield from _fit(autoencoder, pool, generator, steps=steps, batch=batch, device=device, decoder_only=False)
    autoencoder.eval()
    chunks = pool[:400].split(50)
    with torch.no_grad():
        parts = [autoencoder.encode(chunk.to(device).float() / 127.5 - 1).latent_dist.mean.cpu() for chunk in chunks]
    latents = torch.cat(parts).transpose(0, 1).flatten(1)
    autoencoder.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())
    for step, loss in _fit(
        autoencoder, pool, generator, steps=decoder_steps, batch=batch, device=device, decoder_only=True
    ):
        yield steps + step, loss


def _fit(
    autoencoder: Autoencoder,
    pool: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
    device: torch.device,
    decoder_only: bool,
) -> Iterator[tuple[int, float]]:
    frozen = ("encoder.", "quant_conv.") if decoder_only else ()
    peak = 1e-3 if decoder_only else 2e-3
    parameters = [value for name, value in autoencoder.named_parameters() if not name.startswith(frozen)]
    optimiser = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=1e-4)
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6
        optimiser.param_groups[0]["lr"] = rate
        video = pool[torch.randint(len(pool), (batch,), generator=generator)].to(device).float().div(127.5).sub(1)
        with torch.set_grad_enabled(not decoder_only):
            posterior = autoencoder.encode(video).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        scale = posterior.std + LATENT_NOISE * posterior.mean.detach().std()
        error = autoencoder.decode(posterior.mean + scale * noise).sample - video
        distance = error.abs().mean() + 5 * error.square().mean()
        loss = distance + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        yield step, float(loss.detach())
    autoencoder.eval()


def _moments(autoencoder: Autoencoder, like: Tensor) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(autoencoder.config["latents_mean"]).to(like).view(1, -1, 1, 1, 1)
    return mean, torch.tensor(autoencoder.config["latents_std"]).to(like).view(1, -1, 1, 1, 1)


@torch.no_grad()
def encode(autoencoder: Autoencoder, video: Tensor) -> Tensor:
    """Videos ``(B, 3, F, 32, 32)`` in [-1, 1] to latents ``(B, C, (F + 1) / 2, 8, 8)``, each channel normalised."""
    latent = autoencoder.encode(video).latent_dist.mean
    mean, std = _moments(autoencoder, latent)
    normalised: Tensor = (latent - mean) / std
    return normalised


@torch.no_grad()
def decode(autoencoder: Autoencoder, latent: Tensor) -> Tensor:
    """Inverse of ``encode``, in [-1, 1]."""
    mean, std = _moments(autoencoder, latent)
    video: Tensor = autoencoder.decode(latent * std + mean).sample
    return video.clamp(-1, 1)


@torch.no_grad()
def psnr(autoencoder: Autoencoder, *, frames: int, videos: int = 60, seed: int = 77) -> float:
    """Peak signal-to-noise ratio in dB over reconstructed test videos (pixels in [0, 1], error pooled over all)."""
    video = Sampler(split="all", strokes="test", seed=seed, frames=frames).batch(videos).video
    error = functional.mse_loss(decode(autoencoder, encode(autoencoder, video)) / 2, video / 2)
    return -10 * math.log10(float(error))

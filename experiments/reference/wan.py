"""``wan-digits``: builds WanPipeline's parts and states its training loss (flow matching)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from fastercache.experiments.reference import video_autoencoder as clips
from fastercache.experiments.reference.families import silent, stratified
from fastercache.experiments.reference.spec import Spec
from fastercache.experiments.reference.text import CaptionTable, settings

SHIFT = 2.0
# a ``AutoencoderKLWan`` and a ``WanTransformer3DModel``; Any because diffusers' model base classes are untyped
Autoencoder: TypeAlias = Any
Transformer: TypeAlias = Any

pipeline = WanPipeline
encode = clips.encode


def build_autoencoder(spec: Spec) -> Autoencoder:
    """An untrained video autoencoder."""
    return clips.build(spec.latent_channels)


def train_autoencoder(autoencoder: Autoencoder, spec: Spec, device: torch.device) -> Iterator[tuple[int, float]]:
    """Fit it in place, yielding (step, loss)."""
    return clips.train(
        autoencoder,
        steps=spec.autoencoder_steps,
        decoder_steps=spec.decoder_steps,
        batch=8,
        seed=spec.seed,
        device=device,
        frames=spec.generation.frames,
    )


def load_autoencoder(path: Path) -> Autoencoder:
    """Read a trained one."""
    return AutoencoderKLWan.from_pretrained(path)


def reconstruction_psnr(autoencoder: Autoencoder, spec: Spec) -> float:
    """Reconstruction quality on test videos in dB."""
    return clips.psnr(autoencoder, frames=spec.generation.frames)


def build_text_encoder(spec: Spec) -> UMT5EncoderModel:
    """An untrained UMT5 encoder of two layers, no dropout."""
    return UMT5EncoderModel(UMT5Config(**settings(spec.text_width)))


def build_transformer(spec: Spec) -> Transformer:
    """An untrained transformer; its output layer starts at zero."""
    width = 32 * spec.heads
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=spec.heads,
        attention_head_dim=32,
        in_channels=spec.latent_channels,
        out_channels=spec.latent_channels,
        text_dim=spec.text_width,
        freq_dim=128,
        ffn_dim=4 * width,
        num_layers=spec.layers,
        rope_max_seq_len=32,
    )
    return silent(transformer)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths, the steps shifted towards noise."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def caption_embeddings(
    text_encoder: nn.Module,
    table: CaptionTable,
    attributes: Tensor,
    spec: Spec,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Caption embeddings ``(B, L, D)`` made as ``WanPipeline`` makes them, a share of them dropped.

    The pipeline sets everything after the end token to zero and pads to ``max_sequence_length`` (L: 24 by default
    for this model, 512 for the pipeline); the negative prompt is "", one end token and zeros.
    """
    count = len(attributes)
    template = torch.randint(len(table.lengths), (count,), generator=generator)
    draw = float(torch.rand((), generator=generator))
    length = 24 if draw < 0.85 else 64 if draw < 0.97 else 512
    dropped = torch.rand(count, generator=generator) < spec.caption_drop
    ids, mask = table(attributes, template)
    ids[dropped], mask[dropped] = 0, 0
    ids[dropped, 0], mask[dropped, 0] = 1, 1
    ids, mask = ids.to(device), mask.to(device)
    embeddings = text_encoder(input_ids=ids, attention_mask=mask)[0] * mask[..., None]
    return nn.functional.pad(embeddings, (0, 0, 0, length - ids.shape[1]))


class Objective(nn.Module):
    """The training loss, one compilable forward: the velocity noise - x of straight paths (Lipman et al. 2023)."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, latents: Tensor, noise: Tensor, sigmas: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, twice (it is its own plain loss), for latents ``(B, C, F, 8, 8)`` and sigmas ``(B,)`` in (0, 1)."""
        sigma = sigmas.view(-1, 1, 1, 1, 1)
        noisy = (1 - sigma) * latents + sigma * noise
        output = self.transformer(noisy, 1000 * sigmas, embeddings, return_dict=False)[0]
        loss = (output.float() - (noise - latents)).square().mean()
        return loss, loss


def build_objective(transformer: Transformer) -> Objective:
    """The training loss around a transformer."""
    return Objective(transformer)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Stratified noise levels ``(B,)`` in (0, 1), shifted towards noise as the scheduler's steps are."""
    uniform = stratified(count, generator)
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)

"""``latte-digits``: builds LattePipeline's parts and states its training loss (v-prediction, DDIM)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from fastercache.experiments.reference import autoencoder as images
from fastercache.experiments.reference.families import silent, stratified
from fastercache.experiments.reference.spec import Spec
from fastercache.experiments.reference.text import MAX_TOKENS, CaptionTable, build_encoder, null_sequence

# a ``AutoencoderKL`` and a ``LatteTransformer3DModel``; Any because diffusers' model base classes are untyped
Autoencoder: TypeAlias = Any
Transformer: TypeAlias = Any

pipeline = LattePipeline
encode = images.encode


def build_autoencoder(spec: Spec) -> Autoencoder:
    """An untrained image autoencoder."""
    return images.build(spec.latent_channels)


def train_autoencoder(autoencoder: Autoencoder, spec: Spec, device: torch.device) -> Iterator[tuple[int, float]]:
    """Fit it in place, yielding (step, loss)."""
    return images.train(autoencoder, steps=spec.autoencoder_steps, batch=32, seed=spec.seed, device=device)


def load_autoencoder(path: Path) -> Autoencoder:
    """Read a trained one."""
    return AutoencoderKL.from_pretrained(path)


def reconstruction_psnr(autoencoder: Autoencoder, spec: Spec) -> float:
    """Reconstruction quality on test videos in dB."""
    return images.psnr(autoencoder)


def build_text_encoder(spec: Spec) -> T5EncoderModel:
    """An untrained T5 encoder."""
    return build_encoder(spec.text_width)


def build_transformer(spec: Spec) -> Transformer:
    """An untrained transformer; its output layer starts at zero."""
    transformer = LatteTransformer3DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=32,
        in_channels=spec.latent_channels,
        out_channels=2 * spec.latent_channels,
        num_layers=spec.layers,
        cross_attention_dim=32 * spec.heads,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=spec.text_width,
        video_length=spec.generation.frames,
    )
    return silent(transformer)


def build_scheduler() -> DDIMScheduler:
    """Cosine betas with zero terminal signal, v-prediction, trailing steps."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def caption_embeddings(
    text_encoder: nn.Module,
    table: CaptionTable,
    attributes: Tensor,
    spec: Spec,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Caption embeddings ``(B, L, D)`` made as ``LattePipeline.encode_prompt`` makes them, a share of them dropped.

    For one prompt the pipeline cuts the embeddings to the real tokens; for several it sets padded ones to zero and
    keeps 120. Both happen here: six batches in ten have captions of one length (L = 5 to 8), most others are padded a
    little, one in twenty to 120. A dropped caption is the encoding of "" cut to the same L, which is the pipeline's
    negative prompt.
    """
    count = len(attributes)
    draw = float(torch.rand((), generator=generator))
    template = torch.randint(len(table.lengths), (count,), generator=generator)
    if draw < 0.6:
        same = torch.nonzero(table.lengths == table.lengths[template[0]]).flatten()
        template = same[template % len(same)]
        length = int(table.lengths[template[0]])
    elif draw < 0.95:
        length = (8, 12, 24)[int(torch.randint(3, (), generator=generator))]
    else:
        length = MAX_TOKENS
    dropped = (torch.rand(count, generator=generator) < spec.caption_drop).to(device)
    embeddings = encode_captions(text_encoder, table, attributes, template, length, device)
    return torch.where(dropped[:, None, None], null_sequence(text_encoder, length, device), embeddings)


def encode_captions(
    text_encoder: nn.Module,
    table: CaptionTable,
    attributes: Tensor,
    template: Tensor,
    length: int,
    device: torch.device,
) -> Tensor:
    """Embeddings ``(B, length, D)`` of captions: ``(B, 3)`` attributes in ``(B,)`` templates, zero past the end.

    ``length`` is at least the longest caption's number of tokens.
    """
    ids, mask = (x.to(device) for x in table(attributes, template))
    longest = int(mask.sum(-1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    embeddings = text_encoder(input_ids=ids, attention_mask=mask)[0] * mask[..., None]
    return nn.functional.pad(embeddings, (0, 0, 0, length - longest))


class Objective(nn.Module):
    """The training loss, one compilable forward.

    The first half of the output channels predicts v = sqrt(a) noise - sqrt(1 - a) x (Salimans & Ho 2022). The second
    half, which the pipeline discards as the learned variance, predicts the size of the first half's error.
    """

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        alphas: Tensor = vars(build_scheduler())["alphas_cumprod"].clone()
        self.transformer = transformer
        self.register_buffer("alphas", alphas, persistent=False)
        self.alphas: Tensor

    def forward(self, latents: Tensor, noise: Tensor, timesteps: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Loss to minimise and the plain v-loss (both scalars) for latents ``(B, C, F, 8, 8)``."""
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        output = self.transformer(noisy, timestep=timesteps, encoder_hidden_states=embeddings, return_dict=False)[0]
        velocity, spread = output.float().chunk(2, dim=1)
        error = velocity - target
        v_loss = error.square().mean()
        return v_loss + 0.05 * (spread - error.detach().abs()).square().mean(), v_loss


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Stratified timesteps ``(B,)``, a little denser where the noise is strong and content is decided."""
    uniform = stratified(count, generator)
    return (1000 * uniform**0.8).long().clamp(max=999)


def build_objective(transformer: Transformer) -> Objective:
    """The training loss around a transformer."""
    return Objective(transformer)

"""One trainer for all reference models: seeded, resumable, the same on CPU and GPU.

A run's folder holds ``autoencoder/``, ``pool.safetensors`` (encoded videos) and ``checkpoint.pt`` (weights, averaged
weights, optimisers, step, random state; read with ``weights_only=True``). Each part is written to a temporary name and
renamed, so an interrupted run resumes from its last whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastercache.experiments.reference.data import Sampler
from fastercache.experiments.reference.families import Family, family_of
from fastercache.experiments.reference.spec import Spec
from fastercache.experiments.reference.text import CaptionTable, build_tokenizer, pretrain
from fastercache.experiments.reference.training import Training
from fastercache.policies.documents import replacing


@dataclass
class Pool:
    """Encoded videos ``(N, C, F, h, w)`` and their attributes ``(N, 3)``."""

    latents: Tensor
    attributes: Tensor


def build_pool(family: Family, autoencoder: nn.Module, spec: Spec, device: torch.device) -> Iterator[Pool]:
    """Render and encode the training videos, yielding batches of 64."""
    sampler = Sampler(split="train", strokes="train", seed=spec.seed + 1000, frames=spec.generation.frames)
    for _ in range(spec.pool // 64):
        video, attributes, _ = sampler.batch(64)
        yield Pool(family.encode(autoencoder, video.to(device)).cpu(), attributes)


def save_pool(pool: Pool, path: Path) -> None:
    """Write a pool as safetensors."""
    tensors = {"latents": pool.latents.contiguous(), "attributes": pool.attributes}
    with replacing(path, "pool of latents") as temporary:
        save_file(tensors, temporary)


def load_pool(path: Path) -> Pool:
    """Read a pool written by ``save_pool``."""
    tensors = load_file(path)
    return Pool(tensors["latents"], tensors["attributes"])


class Trainer(Training):
    """Trains a spec's transformer and text encoder together on a pool."""

    def __init__(self, spec: Spec, pool: Pool, device: torch.device, *, compiled: bool = False) -> None:
        torch.manual_seed(spec.seed)
        self.spec, self.pool = spec, pool
        self.family = family_of(spec)
        self.tokenizer = build_tokenizer()
        self.table = CaptionTable(self.tokenizer)
        self.text_encoder: nn.Module = self.family.build_text_encoder(spec).to(device)
        pretrain(
            self.text_encoder, self.table, width=spec.text_width, steps=spec.text_steps, seed=spec.seed, device=device
        )
        self.transformer: nn.Module = self.family.build_transformer(spec).to(device)
        self.objective = self.family.build_objective(self.transformer).to(device)
        self.compiled = compiled
        if compiled:
            self.objective.compile()
        named = {f"transformer.{k}": v for k, v in self.transformer.named_parameters()}
        named |= {f"text_encoder.{k}": v for k, v in self.text_encoder.named_parameters()}
        matrices = [
            v
            for k, v in named.items()
            if v.ndim == 2 and "blocks." in k and k.startswith("transformer") and "table" not in k
        ]
        text = [v for k, v in named.items() if k.startswith("text_encoder")]
        taken = {id(value) for value in (*matrices, *text)}
        rest = [value for value in named.values() if id(value) not in taken]
        optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=spec.matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": rest, "lr": spec.rate}, {"params": text, "lr": spec.rate / 4}],
                betas=(0.9, 0.98),
                weight_decay=0.01,
            ),
        ]
        super().__init__(
            named,
            optimisers,
            torch.Generator().manual_seed(spec.seed + 2),
            steps=spec.steps,
            warm_up=spec.warm_up,
            ema=spec.ema,
            device=device,
        )

    def losses(self) -> tuple[Tensor, Tensor]:
        spec, generator = self.spec, self.generator
        picks = torch.randint(len(self.pool.latents), (spec.batch,), generator=generator)
        latents = self.pool.latents[picks].to(self.device)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        times = self.family.draw_times(spec.batch, generator).to(self.device)
        # the fused attention kernel's backward is twice as slow as plain matrix products on sequences this short
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(self.device.type, torch.bfloat16):
            embeddings = self.family.caption_embeddings(
                self.text_encoder, self.table, self.pool.attributes[picks], spec, generator, self.device
            )
            if self.compiled:
                torch._dynamo.mark_dynamic(embeddings, 1)
            loss, plain = self.objective(latents, noise, times, embeddings)
        return loss, plain

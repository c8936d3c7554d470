"""One trainer for all reference models: seeded, resumable, the same on CPU and GPU.

A run's folder holds ``autoencoder/``, ``pool.safetensors`` (encoded videos) and ``checkpoint.pt`` (weights, averaged
weights, optimisers, step, random state; read with ``weights_only=True``). Each part is written to a temporary name and
renamed, so an interrupted run resumes from its last whole checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastercache.experiments.reference.data import Sampler
from fastercache.experiments.reference.families import Family, family_of
from fastercache.experiments.reference.spec import Spec
from fastercache.experiments.reference.text import CaptionTable, build_tokenizer, pretrain
from fastercache.policies.documents import replacing


class Progress(NamedTuple):
    """One training step: its index, the smoothed plain loss and the learning-rate factor."""

    step: int
    loss: float
    factor: float


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


def cosine_factor(step: int, warm_up: int, steps: int) -> float:
    """Of the learning rate: linear warm-up, then cosine decay to one per cent."""
    warm = min(1.0, (step + 1) / warm_up)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


class Trainer:
    """Trains a spec's transformer and text encoder together on a pool.

    ``run(until)`` yields ``Progress`` for each step; ``state`` / ``load_state`` carry everything that the next step
    depends on, so training that was stopped and resumed equals training that was not.
    """

    def __init__(self, spec: Spec, pool: Pool, device: torch.device, *, compiled: bool = False) -> None:
        torch.manual_seed(spec.seed)
        self.spec, self.pool, self.device = spec, pool, device
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
        self.generator = torch.Generator().manual_seed(spec.seed + 2)
        self.step = 0
        self.loss = float("nan")
        self.seconds = 0.0

        named = {f"transformer.{k}": v for k, v in self.transformer.named_parameters()}
        named |= {f"text_encoder.{k}": v for k, v in self.text_encoder.named_parameters()}
        self.parameters = named
        self.average = {name: value.detach().clone() for name, value in named.items()}
        matrices = [
            v
            for k, v in named.items()
            if v.ndim == 2 and "blocks." in k and k.startswith("transformer") and "table" not in k
        ]
        text = [v for k, v in named.items() if k.startswith("text_encoder")]
        taken = {id(value) for value in (*matrices, *text)}
        rest = [value for value in named.values() if id(value) not in taken]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=spec.matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": rest, "lr": spec.rate}, {"params": text, "lr": spec.rate / 4}],
                betas=(0.9, 0.98),
                weight_decay=0.01,
            ),
        ]
        self.peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]

    def run(self, until: int) -> Iterator[Progress]:
        """Train up to step ``until`` (exclusive) of the spec's schedule."""
        while self.step < until:
            factor, started = cosine_factor(self.step, self.spec.warm_up, self.spec.steps), time.monotonic()
            loss = self._update(factor)
            self.seconds += time.monotonic() - started
            self.loss = loss if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * loss
            self.step += 1
            yield Progress(self.step, self.loss, factor)

    def _update(self, factor: float) -> float:
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
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            optimiser.zero_grad(set_to_none=True)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(spec.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        return float(plain.detach())

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain values and tensors."""
        return {
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "weights": {name: value.detach() for name, value in self.parameters.items()},
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        with replacing(path, "checkpoint") as temporary:
            torch.save(self.state(), temporary)

    def load(self, path: Path) -> None:
        """Read a checkpoint."""
        self.load_state(torch.load(path, weights_only=True, map_location=self.device))

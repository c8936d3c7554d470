"""The contract that a model family fills in, so that one trainer serves all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastercache.experiments.reference.spec import Spec
from fastercache.experiments.reference.text import CaptionTable


class Family(Protocol):
    """A module that builds, encodes for, and states the loss of one kind of pipeline."""

    def build_autoencoder(self, spec: Spec) -> Any:
        """An untrained autoencoder."""

    def train_autoencoder(self, autoencoder: Any, spec: Spec, device: torch.device) -> Any:
        """Iterate (step, loss) while fitting it in place."""

    def load_autoencoder(self, path: Path) -> Any:
        """Read a trained autoencoder."""

    def encode(self, autoencoder: Any, video: Tensor) -> Tensor:
        """Videos in [-1, 1] to normalised latents."""

    def reconstruction_psnr(self, autoencoder: Any, spec: Spec) -> float:
        """Reconstruction quality on test videos in dB."""

    def build_text_encoder(self, spec: Spec) -> Any:
        """An untrained text encoder."""

    def build_transformer(self, spec: Spec) -> Any:
        """An untrained denoiser."""

    def build_objective(self, transformer: Any) -> nn.Module:
        """Module mapping (latents, noise, times, embeddings) to (loss, plain loss)."""

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of a batch."""

    def caption_embeddings(
        self,
        text_encoder: Any,
        table: CaptionTable,
        attributes: Tensor,
        spec: Spec,
        generator: torch.Generator,
        device: torch.device,
    ) -> Tensor:
        """Caption embeddings as the family's pipeline makes them, some dropped."""

    def build_scheduler(self) -> Any:
        """The scheduler of the family's pipeline."""

    @property
    def pipeline(self) -> Any:
        """The class of the diffusers pipeline."""


def build_pipeline(family: Family, transformer: Any, text_encoder: Any, tokenizer: Any, autoencoder: Any) -> Any:
    """A family's parts as the diffusers pipeline that users load."""
    return family.pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoder,
        transformer=transformer,
        scheduler=family.build_scheduler(),
    )


def silent(transformer: Any) -> Any:
    """The transformer itself, its output layer set to zero: training then starts from a prediction of nothing."""
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """Random numbers ``(count,)`` in [0, 1) in random order, one in each of as many equal intervals."""
    return (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count


def family_of(spec: Spec) -> Family:
    """The module of a spec's family."""
    if spec.generation.family == "latte":
        from fastercache.experiments.reference import latte

        return latte
    from fastercache.experiments.reference import wan

    return wan

"""Turn a training run into the diffusers folder that is shipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from experiments.reference.trainer import Trainer


def export(trainer: Trainer, autoencoder: nn.Module, path: Path) -> None:
    """Write the averaged weights as an ordinary pipeline folder (float32 safetensors), replacing ``path``."""
    spec, family = trainer.spec, trainer.family
    transformer, text_encoder = family.build_transformer(spec), family.build_text_encoder(spec)
    modules = {"transformer": transformer, "text_encoder": text_encoder}
    with torch.no_grad():
        for name, value in trainer.average.items():
            part, key = name.split(".", 1)
            modules[part].get_parameter(key).copy_(value.cpu())
    pipeline = family.build_pipeline(transformer.eval(), text_encoder.eval(), trainer.tokenizer, autoencoder)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)

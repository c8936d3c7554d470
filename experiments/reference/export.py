"""Turn a training run into the diffusers folder that is shipped."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastercache.experiments.reference.families import build_pipeline
from fastercache.experiments.reference.trainer import Trainer
from fastercache.policies.documents import replacing


def store_in_half(folder: Path) -> None:
    """Rewrite a folder's safetensors in float16; the configurations still say float32, so loading gives float32."""
    for file in sorted(folder.glob("*/*.safetensors")):
        halves = {name: value.half() for name, value in load_file(file).items()}
        with replacing(file, "weights") as partial:
            save_file(halves, partial, metadata={"format": "pt"})


def forget_origin(folder: Path) -> None:
    """Take the paths that parts were once loaded from out of a folder's configurations."""
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def machine(device: torch.device) -> str:
    """What trained a model, for its card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def export(trainer: Trainer, autoencoder: nn.Module, path: Path) -> None:
    """Write the averaged weights as an ordinary pipeline folder (float16 safetensors), replacing ``path``.

    ``training.json`` beside them says how long the training took, where, and how it ended.
    """
    spec, family = trainer.spec, trainer.family
    transformer, text_encoder = family.build_transformer(spec), family.build_text_encoder(spec)
    modules = {"transformer": transformer, "text_encoder": text_encoder}
    with torch.no_grad():
        for name, value in trainer.average.items():
            part, key = name.split(".", 1)
            modules[part].get_parameter(key).copy_(value.cpu())
    pipeline = build_pipeline(family, transformer.eval(), text_encoder.eval(), trainer.tokenizer, autoencoder)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    store_in_half(partial)
    forget_origin(partial)
    training = {
        "steps": trainer.step,
        "loss": trainer.loss,
        "minutes": trainer.seconds / 60,
        "machine": machine(trainer.device),
        "autoencoder_psnr": family.reconstruction_psnr(autoencoder, spec),
    }
    (partial / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)

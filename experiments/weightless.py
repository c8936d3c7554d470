"""A pipeline of which only the configuration is there: no weights are read, and calls go through all the same.

Denoiser, text encoders and autoencoder are built on the `meta` device, where tensors have shapes and no content. A call
of one of them runs there, which tells the shapes of what it returns, and returns random numbers of those shapes on the
CPU. So pipeline, scheduler and session do what they always do, and FLOPs, calls and bytes are counted, not estimated;
only the pictures are noise.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fastercache.experiments import reference
from fastercache.experiments.pipelines import check_place
from fastercache.experiments.reference.spec import MODELS, Distilled
from fastercache.model.families import known_families
from fastercache.policies.errors import PipelineUnreadable
from fastercache.policies.wording import first_line

CONFIGURATION = ["model_index.json", "*/*config*.json", "*/tokenizer*", "*/*.model", "*/vocab*", "*/merges.txt"]
"""What is fetched of a hub id; no weights are among it."""
CPU, META = torch.device("cpu"), torch.device("meta")
UNSAID = 512
"""Tokens of a text where neither pipeline nor configuration says how many."""


def load(name: str, dtype: torch.dtype) -> Any:
    """The pipeline of a short name, a folder or a hub id, from its configuration files.

    Raises:
        PipelineUnreadable: if there is none, or a component cannot be built without weights.
    """
    folder = _folder(name)
    known_families()  # imports the denoisers of installed packages
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        named = {part: one for part, one in index.items() if isinstance(one, list) and one[0] is not None}
        parts = {part: made for part, one in named.items() if (made := _part(folder, part, one, dtype)) is not None}
        texts = {part: None for part, made in parts.items() if isinstance(made, Tokens)}  # of no class that fits
        pipe: Any = DiffusionPipeline.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, **{**parts, **texts}
        )
        for part in texts:
            setattr(pipe, part, parts[part])
    except Exception as error:  # whatever a broken configuration makes the loaders raise
        reason = first_line(error)
        raise PipelineUnreadable(f"{name} cannot be built from its configuration: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _folder(name: str) -> Path:
    """Where the configuration files are; those of a hub id are fetched."""
    if name in reference.names():
        spec = MODELS[name]  # a distilled model has the architecture of its teacher
        return reference.path(spec.teacher if isinstance(spec, Distilled) else name)
    path = Path(name).expanduser()
    check_place(name, path)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=CONFIGURATION))
    except Exception as error:  # no network, no such model, no permission
        reason = first_line(error)
        raise PipelineUnreadable(f"the configuration of {name} could not be fetched: {reason}") from error


def _part(folder: Path, part: str, named: list[str], dtype: torch.dtype) -> Any:
    """A component without its weights; None for one that its own configuration makes whole."""
    library, kind = named
    if part.startswith("tokenizer"):
        here = any(file.stem.startswith(("tokenizer", "vocab", "spiece")) for file in _files(folder / part))
        return None if here else Tokens(_text_length(folder / part.replace("tokenizer", "text_encoder")))
    module = {"diffusers": diffusers, "transformers": transformers}.get(library) or import_module(library)
    found = getattr(module, kind)
    if not issubclass(found, nn.Module):
        return None
    with META:
        if hasattr(found, "load_config"):
            made = found.from_config(found.load_config(folder / part))
        else:
            made = found(found.config_class.from_pretrained(folder / part))
    return standing_in(made, dtype)


def _files(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if f.name != "tokenizer_config.json"] if folder.is_dir() else []


def standing_in(module: Any, dtype: torch.dtype) -> Any:
    """A module as one without weights, whose calls return random numbers of the right shapes."""
    kept = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    nn.Module.to(module, META)
    nn.Module.to(module, dtype)
    for name, part in module.named_modules():
        if any(one in kept for one in name.split(".")):
            part.float()
    cls = type(module)
    shapes: dict[Any, Any] = {}
    generator = torch.Generator().manual_seed(0)

    reads_text = cls.__module__.startswith("transformers.")

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Where the toolkit counts, on a copy, everything runs; else once for each signature."""
        key = None if self is not module else _signature((args, kwargs))
        output = shapes.get(key)
        if output is None:
            if reads_text:  # of a mask these models want to know values, for shapes the tokens suffice
                args, kwargs = _tokens_only(args, kwargs)
            with torch.no_grad():
                output = cls.forward(self, *_placed(args), **_placed(kwargs))
            if key is not None:
                shapes[key] = output
        return _filled(output, generator)

    members = {"forward": forward, "device": property(lambda self: CPU), "__module__": cls.__module__}
    module.__class__ = type(cls.__name__, (cls,), members)
    return module.eval()


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return tuple((key, _signature(one)) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return value if isinstance(value, (bool, str, type(None))) else type(value).__name__


def _tokens_only(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a text encoder without masks."""
    return args[:1], {key: value for key, value in kwargs.items() if "mask" not in key}


def _placed(value: Any) -> Any:
    """The same arguments without content."""
    if isinstance(value, Tensor):
        return value.to(META)
    if isinstance(value, dict):
        return {key: _placed(one) for key, one in value.items()}
    return type(value)(map(_placed, value)) if isinstance(value, (list, tuple)) else value


def _filled(value: Any, generator: torch.Generator) -> Any:
    """Random numbers of the shapes of an output."""
    if isinstance(value, Tensor):
        made = torch.randn(value.shape, generator=generator)
        return made.to(value.dtype) if value.is_floating_point() else torch.ones(value.shape, dtype=value.dtype)
    if isinstance(value, Mapping):
        return type(value)(**{str(key): _filled(one, generator) for key, one in value.items()})
    return type(value)(_filled(one, generator) for one in value) if isinstance(value, (list, tuple)) else value


class Tokens:
    """Stands in for a tokenizer whose files are not there: every text has as many tokens as the pipeline allows.

    Where a call does not say how many, which pipelines do to tell what was cut off, they are as many as before.
    """

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length
        self.pad_token_id = 0
        self._length = model_max_length

    def __call__(self, text: str | list[str], *args: Any, max_length: int | None = None, **kwargs: Any) -> Any:
        self._length = max_length or self._length
        shape = (1 if isinstance(text, str) else len(text), self._length)
        ids, mask = torch.ones(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)
        return SimpleNamespace(input_ids=ids, attention_mask=mask)

    def batch_decode(self, ids: Tensor, **kwargs: Any) -> list[str]:
        """No words."""
        return [""] * len(ids)


def _text_length(folder: Path) -> int:
    """The longest text that an encoder reads, by its configuration."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except OSError:
        return UNSAID
    return int(found) if found else UNSAID

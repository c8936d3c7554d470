"""Small trained text-to-video models that ship with the project, their data, training and judges.

>>> from fastercache.experiments.reference import GENERATION, load
>>> pipe = load("latte-digits")
>>> video = pipe("a red seven moving left", **GENERATION["latte-digits"].kwargs(), output_type="pt").frames
>>> video.shape
torch.Size([1, 8, 3, 32, 32])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastercache.experiments.reference.spec import MODELS, Distilled, Generation

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

__all__ = ["GENERATION", "Generation", "load", "names", "path"]

FOLDER = Path(__file__).parent
OWN = "transformer.safetensors"
"""In a distilled model's folder: the tensors of the transformer that are not its teacher's, float16."""


def names() -> list[str]:
    """Short names of the models that are shipped."""
    files = {name: OWN if isinstance(spec, Distilled) else "model_index.json" for name, spec in MODELS.items()}
    return sorted(name for name, file in files.items() if (FOLDER / name / file).exists())


# how each shipped model is called by default
GENERATION: dict[str, Generation] = {name: MODELS[name].generation for name in names()}


def path(name: str = "latte-digits") -> Path:
    """The folder behind a short name, from a checkout or an installed wheel.

    It is an ordinary diffusers folder, or for a distilled model the folder of what it does not share with its teacher;
    ``load(name).save_pretrained(folder)`` makes an ordinary one of that.

    Raises ``ValueError`` if no such model is shipped.
    """
    if name not in names():
        raise ValueError(f"no reference model {name!r}; shipped are: {', '.join(names()) or 'none'}")
    return FOLDER / name


def load(
    name: str = "latte-digits",
    *,
    folder: Path | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> DiffusionPipeline:
    """Load a reference model as an ordinary diffusers pipeline.

    A distilled model is its teacher's pipeline with the student's own tensors put in.

    Args:
        name: a short name from ``names()``.
        folder: another folder of the same kind, as training wrote it, instead of the shipped one.
        dtype: of the weights; float32 by default.
        progress: show the pipeline's own progress bar, and those of loading.

    Raises:
        ValueError: if no such model is shipped, or a folder's tensors are not the model's.
    """
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    spec, where = MODELS.get(name), folder or path(name)
    origin = path(spec.teacher) if isinstance(spec, Distilled) else where
    bars = [part for part in (diffusers_logging, transformers_logging) if part.is_progress_bar_enabled()]
    try:
        for part in () if progress else bars:
            part.disable_progress_bar()
        pipeline: Any = DiffusionPipeline.from_pretrained(origin, dtype=dtype or torch.float32)
    finally:
        for part in bars:
            part.enable_progress_bar()
    if isinstance(spec, Distilled):
        put_in(pipeline.transformer, where / OWN, spec)
    pipeline.set_progress_bar_config(disable=not progress)
    loaded: DiffusionPipeline = pipeline
    return loaded


def put_in(transformer: Any, file: Path, spec: Distilled) -> None:
    """Replace the tensors that were trained by those of a file. Raises ValueError where they are not the same ones."""
    import torch
    from safetensors.torch import load_file

    own = load_file(file)
    there = {name: value for name, value in transformer.named_parameters() if spec.frozen not in name}
    for name in sorted(own.keys() | there.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (own, there)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{file} is not of {spec.name}: {name} is {shapes[0]}, expected {shapes[1]}")
    with torch.no_grad():
        for name, value in own.items():
            there[name].copy_(value)

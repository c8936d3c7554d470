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

from fastercache.experiments.reference.spec import SPECS, Generation

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["GENERATION", "Generation", "load", "names", "path"]

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Short names of the models that are shipped."""
    return sorted(name for name in SPECS if (FOLDER / name / "model_index.json").exists())


# how each shipped model is called by default
GENERATION: dict[str, Generation] = {name: SPECS[name].generation for name in names()}


def path(name: str = "latte-digits") -> Path:
    """The diffusers folder behind a short name, from a checkout or an installed wheel.

    Raises ``ValueError`` if no such model is shipped.
    """
    if name not in names():
        raise ValueError(f"no reference model {name!r}; shipped are: {', '.join(names()) or 'none'}")
    return FOLDER / name


def load(name: str = "latte-digits", *, progress: bool = False) -> DiffusionPipeline:
    """Load a reference model as an ordinary diffusers pipeline in float32.

    Args:
        name: a short name from ``names()``.
        progress: show the pipeline's own progress bar, and those of loading.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    bars = [part for part in (diffusers_logging, transformers_logging) if part.is_progress_bar_enabled()]
    try:
        for part in () if progress else bars:
            part.disable_progress_bar()
        pipeline: Any = DiffusionPipeline.from_pretrained(path(name))
    finally:
        for part in bars:
            part.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=not progress)
    loaded: DiffusionPipeline = pipeline
    return loaded

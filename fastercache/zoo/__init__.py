"""Small random pipelines of every supported family, for tests and for `check_policy` on a machine without weights.

A family is a row of data (`rows.Row`) in the table of its module; `build` makes a pipeline of it.
"""

from __future__ import annotations

from fastercache.extras import need

need("lab", "fastercache.zoo")  # text encoders and images for them

from importlib import import_module

from fastercache.policies.errors import PipelineUnreadable, suggest
from fastercache.zoo.rows import Row
from fastercache.zoo.specimen import Specimen

TABLES = (
    "images",
    "further_images",
    "conditioned",
    "unets",
    "videos",
    "wan",
    "hunyuan",
    "further_videos",
)


def _rows() -> dict[str, Row]:
    tables: list[dict[str, Row]] = [import_module(f"fastercache.zoo.{table}").ROWS for table in TABLES]
    return {name: row for table in tables for name, row in table.items()}


FAMILIES: dict[str, Row] = _rows()
"""Family -> its row; each builds and runs in well under a second."""

SWEPT = frozenset(
    {
        *("auraflow", "lumina2", "z-image", "hidream", "prx", "bria", "flux.2", "flux.2-klein"),
        *("flux-kontext", "flux-kontext-true-cfg", "qwen-image-edit", "qwen-image-controlnet"),
        *("sd3-controlnet", "sd3-ip-adapter", "sdxl-controlnet", "sdxl-ip-adapter", "instruct-pix2pix"),
        *("svd", "animatediff", "wan-2.2-5b", "wan-i2v", "wan-vace", "hunyuan-image", "ltx-condition"),
        *("sana-video", "kandinsky5", "easyanimate", "stable-audio"),
    }
)
"""Families that `experiments.jobs.sweep` tries under five policies; the table of the laws has the others."""


def build(name: str) -> Specimen:
    """A fresh random pipeline of a family. Raises PipelineUnreadable, naming the families there are."""
    if name not in FAMILIES:
        raise PipelineUnreadable(f"the zoo has no family '{name}'{suggest(name, FAMILIES)}")
    return FAMILIES[name].build(name)


__all__ = ["FAMILIES", "SWEPT", "Row", "Specimen", "build"]

"""Small random pipelines of every supported family, for tests and for `check_policy` on a machine without weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from fastercache.policies.errors import PipelineUnreadable, suggest
from fastercache.zoo.specimen import Specimen

FAMILIES: dict[str, str] = {
    "latte": "latte:latte",
    "cogvideox": "videos:cogvideox",
    "cogvideox-i2v": "videos:cogvideox_i2v",
    "cogvideox-v2v": "videos:cogvideox_v2v",
    "mochi": "videos:mochi",
    "ltx": "videos:ltx",
    "ltx-2": "ltx2:ltx2",
    "allegro": "videos:allegro",
    "pixart-sigma": "images:pixart",
    "pixart-pag": "images:pixart_pag",
    "sd3": "images:sd3",
    "sdxl": "images:sdxl",
    "sdxl-i2i": "images:sdxl_i2i",
    "sdxl-pag": "images:sdxl_pag",
    "dit": "images:dit",
    "hunyuan-dit": "images:hunyuan_dit",
    "sana": "images:sana",
    "wan": "separate:wan",
    "wan-2.2": "separate:wan22",
    "skyreels-v2": "separate:skyreels",
    "cogview4": "separate:cogview4",
    "qwen-image": "separate:qwen_image",
    "hunyuan-video-1.5": "separate:hunyuan_video_15",
    "cosmos": "separate:cosmos",
    "flux": "distilled:flux",
    "flux-true-cfg": "distilled:flux_cfg",
    "chroma": "distilled:chroma",
    "hunyuan-video": "distilled:hunyuan_video",
    "hunyuan-video-true-cfg": "distilled:hunyuan_video_cfg",
    "vchitect-2.0": "vchitect:vchitect",
}
"""Family -> where its builder is; each builds and runs in well under a second."""


def build(name: str) -> Specimen:
    """A fresh random pipeline of a family. Raises PipelineUnreadable, naming the families there are."""
    if name not in FAMILIES:
        raise PipelineUnreadable(f"the zoo has no family '{name}'{suggest(name, FAMILIES)}")
    module, function = FAMILIES[name].split(":")
    builder: Callable[[], Specimen] = getattr(import_module(f"fastercache.zoo.{module}"), function)
    return builder()


__all__ = ["FAMILIES", "Specimen", "build"]

"""A family of the zoo as data: a row names a pipeline's classes, their small sizes and the call; `build` makes it.

Classes are given by name and looked up when a row is built, so that listing the zoo imports no pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fastercache.zoo.specimen import Call, Specimen, assembled, noise, randomised, seeded

Given = Callable[[int], Any]
"""An argument that depends on the number of prompts."""


@dataclass(frozen=True)
class Part:
    """A component: its class and the fields it is built with.

    Attributes:
        kind: a class that diffusers exports, or `module:name` for any other.
        fields: its keyword arguments; those that are Parts are built first.
        noisy: put noise on every weight, so that layers that start at zero do something. For what predicts.
    """

    kind: str
    fields: Mapping[str, Any]
    noisy: bool = False

    def build(self) -> Any:
        """The component, in evaluation mode."""
        fields = {k: v.build() if isinstance(v, Part) else v for k, v in self.fields.items()}
        made = found(self.kind)(**fields)
        if not isinstance(made, nn.Module):
            return made
        return randomised(made) if self.noisy else made.eval()


@dataclass(frozen=True)
class Row:
    """One family of the zoo.

    Attributes:
        about: what sets it apart, in a line.
        pipeline: the pipeline's class, as `Part.kind`.
        parts: the pipeline's components, built in this order; what is no Part is passed as it is.
        inputs: the arguments of a call; a function among them is given the number of prompts.
        steps, resized, unguided, doubled, videos: as in `Specimen`.
        finish: what remains to be done to the built pipeline.
    """

    about: str
    pipeline: str
    parts: Mapping[str, Any]
    inputs: Mapping[str, Any]
    steps: int = 6
    resized: Call = field(default_factory=dict)
    unguided: Call = field(default_factory=lambda: {"guidance_scale": 1.0})
    doubled: Call = field(default_factory=dict)
    videos: bool = False
    finish: Callable[[Any], None] | None = None

    def build(self, name: str) -> Specimen:
        """A fresh random pipeline; the same weights every time."""
        with seeded():
            parts = {key: part.build() if isinstance(part, Part) else part for key, part in self.parts.items()}
            pipe = assembled(found(self.pipeline), **parts)
            if self.finish is not None:
                self.finish(pipe)

        def inputs(count: int) -> Call:
            return {key: value(count) if callable(value) else value for key, value in self.inputs.items()}

        return Specimen(name, pipe, inputs, self.steps, self.resized, self.unguided, self.doubled, self.videos)

    def but(self, about: str, *, without: tuple[str, ...] = (), inputs: Call | None = None, **changes: Any) -> Row:
        """This row with further or other inputs, less those in `without`, and other changed attributes."""
        kept = {key: value for key, value in {**self.inputs, **(inputs or {})}.items() if key not in without}
        return replace(self, about=about, inputs=kept, **changes)


def found(kind: str) -> Any:
    """The class of this name."""
    module, _, name = kind.rpartition(":")
    return getattr(import_module(module or "diffusers"), name)


def part(kind: str, **fields: Any) -> Part:
    """A component with the weights it is built with."""
    return Part(kind, fields)


def noisy(kind: str, **fields: Any) -> Part:
    """A component with noise on every weight."""
    return Part(kind, fields, noisy=True)


def rows(*shape: int, seed: int = 7) -> Given:
    """Fixed random embeddings, one of this shape for each prompt."""
    return lambda count: noise(count, *shape, seed=seed)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Given:
    """A mask of ones for each prompt."""
    return lambda count: torch.ones(count, *shape, dtype=dtype)


def pixels(height: int, width: int, frames: int = 0) -> Given:
    """An image (3, height, width), or a video, for each prompt."""
    shape = (frames, 3, height, width) if frames else (3, height, width)
    return lambda count: noise(count, *shape).clamp(0, 1)


def texts(width: int, length: int = 5, negative: int | None = None) -> Call:
    """Embeddings of prompts and negative prompts; these may have another length."""
    return {
        "prompt_embeds": rows(length, width),
        "negative_prompt_embeds": rows(negative or length, width, seed=8),
    }


def pooled(width: int) -> Call:
    """One embedding for each whole prompt and negative prompt."""
    return {"pooled_prompt_embeds": rows(width), "negative_pooled_prompt_embeds": rows(width, seed=9)}


def masks(
    length: int = 5,
    negative: int | None = None,
    dtype: torch.dtype = torch.float32,
    name: str = "prompt_attention_mask",
) -> Call:
    """Masks of ones over prompts and negative prompts."""
    return {name: ones(length, dtype=dtype), f"negative_{name}": ones(negative or length, dtype=dtype)}


def size(height: int, width: int | None = None, **more: Any) -> Call:
    """The size of the pictures; latents as output."""
    return {"height": height, "width": height if width is None else width, **more, "output_type": "latent"}


def autoencoder(blocks: int = 3, width: int = 4, **fields: Any) -> Part:
    """A random image autoencoder that shrinks by 2 ** (blocks - 1)."""
    return part(
        "AutoencoderKL",
        block_out_channels=(width,) * blocks,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        **fields,
    )


def wan_autoencoder(channels: int = 4) -> Part:
    """Wan's autoencoder, shrinking by 4 in time and 8 in space."""
    return part(
        "AutoencoderKLWan",
        base_dim=3,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )


FLOW = part("FlowMatchEulerDiscreteScheduler")
SHIFTED = part("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
DDIM = part("DDIMScheduler", clip_sample=False)
EULER = part("EulerDiscreteScheduler")
UNIPC = part("UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)

"""Bytes that attention reuse holds at CogVideoX-2B's size, beside diffusers' FasterCache.

The transformer has its published configuration but no weights: it runs on the `meta` device, where every tensor has its
shape, type and storage and no content. Both sides run the whole sampling loop, and what they hold after each step is
summed over distinct storages. `python -m fastercache.experiments.jobs.memory --out docs/memory.md` writes the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel, FasterCacheConfig
from diffusers.hooks import apply_faster_cache
from rich.console import Console
from torch import nn

from fastercache.attachment import attach
from fastercache.model.flops import flop_counter
from fastercache.policies.base import Policy
from fastercache.policies.documents import write_atomic
from fastercache.policies.methods.dynamic_reuse import DynamicReuse
from fastercache.policies.methods.faster_cache import FasterCache
from fastercache.run.store import storages, tensors_in

META = torch.device("meta")
MIB = 2**20
ATTENTION_BELOW, GUIDANCE_BELOW = 681, 641  # timesteps from which diffusers' settings reuse


@dataclass(frozen=True)
class Shape:
    """A CogVideoX text-to-video run. The defaults are CogVideoX-2B's: 49 frames of 480 x 720 pixels, 50 steps."""

    layers: int = 30
    heads: int = 30
    head_size: int = 64
    frames: int = 13  # of the latent, as are height and width
    height: int = 60
    width: int = 90
    text_tokens: int = 226
    text_size: int = 4096
    channels: int = 16
    steps: int = 50
    dtype: torch.dtype = torch.float16

    def transformer(self) -> CogVideoXTransformer3DModel:
        with META:
            model = CogVideoXTransformer3DModel(
                num_layers=self.layers,
                num_attention_heads=self.heads,
                attention_head_dim=self.head_size,
                in_channels=self.channels,
                out_channels=self.channels,
                sample_frames=4 * self.frames - 3,
                sample_height=self.height,
                sample_width=self.width,
                max_text_seq_length=self.text_tokens,
                text_embed_dim=self.text_size,
            )
        return nn.Module.to(model, self.dtype).eval()

    def timesteps(self) -> list[int]:
        """Those of CogVideoX-2B's scheduler."""
        scheduler = CogVideoXDDIMScheduler(timestep_spacing="trailing")
        scheduler.set_timesteps(self.steps)
        return [int(t) for t in scheduler.timesteps]

    def loop(self, model: CogVideoXTransformer3DModel, each: Callable[[int], None]) -> None:
        """Call the transformer as the pipeline does, both halves at once; before each call `each` gets its timestep."""
        latents = torch.empty(2, self.frames, self.channels, self.height, self.width, dtype=self.dtype, device=META)
        text = torch.empty(2, self.text_tokens, self.text_size, dtype=self.dtype, device=META)
        with torch.no_grad():
            for t in self.timesteps():
                each(t)
                timestep = torch.empty(2, dtype=torch.int64, device=META)
                model(hidden_states=latents, encoder_hidden_states=text, timestep=timestep, return_dict=False)


@dataclass(frozen=True)
class Held:
    """What one cache holds, in bytes, and what it saves.

    Attributes:
        name: which cache.
        peak: the most that the distinct storages behind its values held at the end of a step.
        values: the most that its values alone need, where some of them are parts of larger storages.
        speedup: FLOPs of the uncached loop over those computed.
    """

    name: str
    peak: int
    values: int
    speedup: float


def ours(name: str, policy: Policy, shape: Shape) -> Held:
    """What a session holds."""
    model = shape.transformer()
    with attach(model, policy, guidance="batched") as session:
        session.start([float(t) for t in shape.timesteps()])
        shape.loop(model, lambda t: None)
        trace = session.last
    return Held(name, trace.cached_bytes, trace.cached_bytes, trace.speedup_flops)


def theirs(shape: Shape) -> Held:
    """What diffusers' FasterCache holds, with the settings that its documentation gives for CogVideoX."""
    model = shape.transformer()
    full = _flops(model, shape, 1) * shape.steps
    now = 0
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, ATTENTION_BELOW),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(-1, GUIDANCE_BELOW),
        low_frequency_weight_update_timestep_range=(99, 641),
        high_frequency_weight_update_timestep_range=(-1, 301),
        spatial_attention_block_identifiers=("transformer_blocks",),
        attention_weight_callback=lambda _: 0.3,
        tensor_format="BFCHW",
        current_timestep_callback=lambda: now,
    )
    apply_faster_cache(model, config)
    hooks = [h for m in model.modules() if hasattr(m, "_diffusers_hook") for h in m._diffusers_hook.hooks.values()]
    peaks, values = [0], [0]

    def each(t: int) -> None:
        nonlocal now
        now = t
        held = [list(vars(hook.state).values()) for hook in hooks]
        peaks.append(sum(storages(held).values()))
        values.append(sum(t.nbytes for t in tensors_in(held)))

    with flop_counter() as counter:
        shape.loop(model, each)
    each(0)
    return Held("diffusers' FasterCache", max(peaks), max(values), full / counter.get_total_flops())


def _flops(model: CogVideoXTransformer3DModel, shape: Shape, steps: int) -> int:
    with flop_counter() as counter:
        replace(shape, steps=steps).loop(model, lambda t: None)
    return int(counter.get_total_flops())


def same_settings(shape: Shape) -> FasterCache:
    """Our policy with the steps at which diffusers' computes and reuses with those settings.

    diffusers' reuses attention only in calls without the unconditional half, so both begin with the guidance.
    """
    begin = next(i for i, t in enumerate(shape.timesteps()) if t < GUIDANCE_BELOW) / (shape.steps - 1)
    return FasterCache(interval=2, offset=0, start=begin, weight=0.3, cfg_interval=5, cfg_offset=0, cfg_start=begin)


def compare(shape: Shape, report: Callable[[Held], None] = lambda held: None) -> list[Held]:
    """diffusers' FasterCache first, then ours with its settings, the paper's, the published code's, and without
    CFG-Cache, where both branches' attention is kept."""
    found = []
    policies: dict[str, Policy] = {
        "FasterCache, diffusers' settings": same_settings(shape),
        "FasterCache, the paper's": FasterCache(),
        "FasterCache, the published code's": FasterCache.preset("cogvideox"),
        "dynamic reuse alone": DynamicReuse(),
    }
    runs: list[Callable[[], Held]] = [partial(theirs, shape)]
    runs += [partial(ours, name, policy, shape) for name, policy in policies.items()]
    for run in runs:
        held = run()
        report(held)
        found.append(held)
    return found


def markdown(rows: Sequence[Held]) -> str:
    """The comparison as a Markdown table; the first row is the one compared with."""
    first = rows[0]
    lines = [
        "| cache | held at most, MiB | of diffusers' | values alone, MiB | FLOPs speedup |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (f"{row.peak / MIB:,.0f}", f"{row.peak / first.peak:.0%}", f"{row.values / MIB:,.0f}")
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.speedup:.2f}x |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
    layers: Annotated[
        int, typer.Option(min=1, help="Transformer blocks; the model has 30, and bytes grow with it.")
    ] = 30,
) -> None:
    """Print what attention reuse holds at CogVideoX-2B's size, ours and diffusers'."""
    console = Console()
    rows = compare(Shape(layers=layers), lambda held: console.print(f"{held.name}: {held.peak / MIB:,.0f} MiB"))
    text = markdown(rows)
    if out is None:
        console.print(text, soft_wrap=True)
    else:
        write_atomic(out, text, "table")


if __name__ == "__main__":
    typer.run(main)

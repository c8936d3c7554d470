"""Tiny random pipelines built from diffusers' classes, and a spy that sees which modules really ran at which step."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn

import fastercache as fc

LAYERS = 4
Ran = dict[str, list[tuple[int, int, int]]]
"""By module, what really ran: step, which denoiser call of the step (the branch, where guidance is separate), rows."""


def randomised(module: nn.Module) -> Any:
    """Noise on every parameter, so that gates and biases that start at zero do something."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def assemble(cls: Any, **parts: Any) -> Any:
    wanted = inspect.signature(cls.__init__).parameters
    missing = {n: None for n, p in wanted.items() if n not in ("self", *parts) and p.default is inspect.Parameter.empty}
    pipe = cls(**missing, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_cogvideox() -> Any:
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=12, num_layers=LAYERS, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
        max_text_seq_length=5,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    parts = {"transformer": randomised(transformer), "vae": vae.eval(), "scheduler": CogVideoXDDIMScheduler()}
    return assemble(CogVideoXPipeline, **parts)


def make_wan() -> Any:
    torch.manual_seed(1)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=16, ffn_dim=32, num_layers=LAYERS, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return assemble(WanPipeline, transformer=randomised(transformer), vae=vae.eval(), scheduler=scheduler)


def generate(pipe: Any, steps: int = 12, seed: int = 0) -> Tensor:
    """Latents of one guided call."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(2, 1, 5, 12, generator=torch.Generator().manual_seed(7))
    extra = {"max_sequence_length": 5} if isinstance(pipe, CogVideoXPipeline) else {}
    size = 32 if isinstance(pipe, CogVideoXPipeline) else 64
    result: Tensor = pipe(
        prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], guidance_scale=4.0, height=size, width=size,
        num_frames=9, num_inference_steps=steps, generator=generator, output_type="latent", return_dict=False, **extra,
    )[0]  # fmt: skip
    return result


@contextmanager
def spying(pipe: Any, **modules: nn.Module) -> Iterator[Ran]:
    """Per module the (step, denoiser call within it, rows) of every call that really reached it."""
    seen: Ran = {name: [] for name in modules}
    now, call = [0], [0]
    had = "step" in vars(pipe.scheduler)
    original = pipe.scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        now[0] += 1
        call[0] = 0
        return original(*args, **kwargs)

    def called(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call[0] += 1

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[name].append((now[0], call[0], args[0].shape[0]))

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    handles.append(pipe.transformer.register_forward_hook(called))
    pipe.scheduler.step = step
    try:
        yield seen
    finally:
        if had:
            pipe.scheduler.step = original
        else:
            del pipe.scheduler.step
        for handle in handles:
            handle.remove()


def watched(pipe: Any) -> dict[str, nn.Module]:
    """A projection inside each block: it runs exactly when its block's attention does."""
    if isinstance(pipe, CogVideoXPipeline):
        return {f"block{i}": pipe.transformer.transformer_blocks[i].attn1.to_q for i in range(LAYERS)}
    return {f"block{i}": pipe.transformer.blocks[i].attn1.to_q for i in range(LAYERS)}


@dataclass
class Outcome:
    """What one call gave: its latents, and per watched module the calls that reached it."""

    latents: Tensor
    ran: Ran

    def steps(self, name: str, rows: int | None = None) -> list[int]:
        """At which steps a module ran, with so many rows if that is asked."""
        return sorted({step for step, _, had in self.ran[name] if rows in (None, had)})


class Lab:
    """Runs a pipeline once with a peer's cache and once with ours, and compares."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    watched = staticmethod(watched)

    def run(self, steps: int = 12, pipe: Any = None, modules: dict[str, nn.Module] | None = None) -> Outcome:
        pipe = pipe or self.pipe
        with torch.no_grad(), spying(pipe, **(modules or watched(pipe))) as seen:
            return Outcome(generate(pipe, steps), seen)

    def ours(self, policy: fc.Policy, steps: int = 12) -> Outcome:
        with fc.attach(self.pipe, policy) as session:
            self.run(steps)  # the first run also counts FLOPs, with everything computed
            outcome = self.run(steps)
            self.trace = session.last
        return outcome

    def theirs(self, config: Any, steps: int = 12) -> Outcome:
        """A cache of diffusers, on a copy of the pipeline."""
        pipe = copy.deepcopy(self.pipe)
        if callable(config):
            config = config(pipe)
        pipe.transformer.enable_cache(config)
        outcome = self.run(steps, pipe)
        pipe.transformer.disable_cache()
        return outcome


def agree(ours: Outcome, theirs: Outcome, tolerance: float = 2e-5) -> float:
    """Same calls of the same modules; the largest difference of the latents, which must be within tolerance."""
    assert ours.ran == theirs.ran
    far = float((ours.latents - theirs.latents).abs().max())
    assert far <= tolerance * max(1.0, float(theirs.latents.abs().max())), f"latents differ by {far:.1e}"
    return far


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.set_num_threads(1)
    logging.getLogger("diffusers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def _pipes() -> dict[str, Any]:
    return {"cogvideox": make_cogvideox(), "wan": make_wan()}


@pytest.fixture
def cogvideox(_pipes: dict[str, Any]) -> Lab:
    return Lab(_pipes["cogvideox"])


@pytest.fixture
def wan(_pipes: dict[str, Any]) -> Lab:
    return Lab(_pipes["wan"])


@pytest.fixture(name="agree")
def _agree() -> Callable[..., float]:
    return agree

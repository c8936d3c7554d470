"""A pipeline with its call, frozen: what is run, the uncached references of it, and one run under a policy."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import fastercache as fc
from fastercache.policies.documents import write_atomic
from fastercache.policies.errors import NotFinite, PipelineUnreadable
from fastercache.policies.wording import counted
from fastercache.tuned import model_identity, scheduler_identity


@dataclass(frozen=True)
class Case:
    """One generation: a prompt and the seed of its noise."""

    prompt: str
    seed: int


def as_video(output: Any) -> Tensor:
    """The first video of a diffusers output as (F, 3, H, W) float32 on the CPU; an image is a video of one frame."""
    value = output[0] if isinstance(output, tuple) else getattr(output, "frames", getattr(output, "images", output))
    tensor = torch.as_tensor(value).detach().float().cpu()
    return tensor[0] if tensor.ndim == 5 else tensor[:1] if tensor.ndim == 4 else tensor[None]


def lacking(pipe: Any, error: Exception) -> str | None:
    """What to say where a call of a pipeline used a part that it was saved without; None for any other error."""
    if "NoneType" not in str(error):
        return None
    absent = [name for name, part in getattr(pipe, "components", {}).items() if part is None]
    read_text = [name for name in absent if name.startswith(("text_encoder", "tokenizer"))]
    if not read_text:
        return None
    named = " and no ".join(read_text)
    return f"this {type(pipe).__name__} has no {named}, so it cannot read prompts: load all its parts"


@dataclass(frozen=True)
class Setting:
    """A pipeline and how it is called. Nothing in it is exchanged: another call or pipeline is another setting.

    Attributes:
        pipe: a diffusers pipeline.
        call: keyword arguments of each call beside prompt, generator and output type.
        seed: case i of a list of prompts is generated with seed + i.
        video: turns the pipeline's output into a video (F, 3, H, W) in [0, 1].
    """

    pipe: Any
    call: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    video: Callable[[Any], Tensor] = as_video

    def calling(self, **changes: Any) -> Setting:
        """The same pipeline with other arguments."""
        return replace(self, call={**self.call, **changes})

    def on(self, pipe: Any) -> Setting:
        """The same call of another pipeline."""
        return replace(self, pipe=pipe)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines the output, beside prompt and seed: a figure from other ones cannot be compared."""
        scheduler = scheduler_identity(self.pipe)
        denoiser = model_identity(self.pipe).denoiser
        modules = {n: m for n, m in getattr(self.pipe, "components", {}).items() if isinstance(m, nn.Module)}
        first = next((p for m in modules.values() for p in m.parameters()), torch.empty(0))
        return {
            "pipeline": type(self.pipe).__name__,
            "model": f"{denoiser.kind} {denoiser.fingerprint[:16]}",
            "weights": weights_digest(modules),
            "scheduler": None if scheduler is None else f"{scheduler.kind} {scheduler.fingerprint[:16]}",
            "call": {k: v if v is None or isinstance(v, (int, float, str)) else repr(v) for k, v in self.call.items()},
            "dtype": str(first.dtype),
            "device": first.device.type,
        }

    @property
    def hardware(self) -> str:
        """The machine that it runs on, in words."""
        return hardware(str(self.identity["device"]))

    def cases(self, prompts: Sequence[str]) -> list[Case]:
        """The cases of a list of prompts."""
        return [Case(prompt, self.seed + i) for i, prompt in enumerate(prompts)]

    def generate(self, case: Case) -> Tensor:
        """One video (F, 3, H, W) on the CPU, under whatever is attached. Raises NotFinite, PipelineUnreadable."""
        generator = torch.Generator("cpu").manual_seed(case.seed)
        try:
            with torch.inference_mode():
                output = self.pipe(
                    prompt=case.prompt, generator=generator, output_type="pt", return_dict=False, **self.call
                )
        except (AttributeError, TypeError) as error:
            if said := lacking(self.pipe, error):
                raise PipelineUnreadable(said) from error
            raise
        video = self.video(output)
        if not bool(torch.isfinite(video).all()):
            raise NotFinite(f"the video of '{case.prompt:.60}' (seed {case.seed}) contains NaN or infinity")
        return video.clamp(0.0, 1.0)


def run_bare(setting: Setting, case: Case) -> tuple[Tensor, float]:
    """One run of the pipeline as it stands, nothing attached: video and seconds."""
    started = time.perf_counter()
    video = setting.generate(case)
    return video, time.perf_counter() - started


def run_under(session: fc.Session, setting: Setting, case: Case) -> tuple[Tensor, fc.Trace, float]:
    """One run under a session: video, trace, and seconds of the whole call without FLOP counting."""
    session.traces.clear()
    started = time.perf_counter()
    video = setting.generate(case)
    trace = session.last
    return video, trace, time.perf_counter() - started - trace.counting_seconds


def run(
    setting: Setting, policy: fc.Policy | fc.TunedConfig, case: Case, allow: frozenset[str] = frozenset()
) -> tuple[Tensor, fc.Trace, float]:
    """One run under a policy, attached for it alone; see `run_under`.

    `allow`: which differences to what a tuned config was made for are accepted.
    """
    with fc.attach(setting.pipe, policy, allow=allow) as session:
        return run_under(session, setting, case)


@dataclass(frozen=True)
class References:
    """The uncached videos of a setting, made once and kept on disk.

    Each stands under a key of everything that determines it: weights, configuration, scheduler, call arguments, prompt,
    seed, dtype and device. A file that cannot be read is made again.
    """

    setting: Setting
    store: Path

    def read(self, case: Case) -> Tensor | None:
        """The stored video (F, 3, H, W); None if there is none, or it is damaged or of another key."""
        path, key = self._place(case)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                video: Tensor = file.get_tensor("video")
                return video
        except (OSError, SafetensorError):
            return None

    def write(self, case: Case, video: Tensor) -> None:
        """Keep an uncached video. Raises ConfigUnreadable if it cannot be written."""
        path, key = self._place(case)
        write_atomic(path, to_bytes({"video": video.contiguous()}, metadata={"key": key}), "reference")

    def _place(self, case: Case) -> tuple[Path, str]:
        key = json.dumps({**self.setting.identity, "prompt": case.prompt, "seed": case.seed}, sort_keys=True)
        return self.store / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors", key


def weights_digest(modules: Mapping[str, nn.Module], samples: int = 64) -> str:
    """A digest of the weights from every tensor's name, shape, dtype and `samples` evenly spaced elements.

    Retraining changes every tensor, so this notices it at a cost that does not grow with the model's size.
    """
    digest = hashlib.sha256()
    for component, module in sorted(modules.items()):
        for name, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            where = torch.linspace(0, max(flat.numel() - 1, 0), min(samples, flat.numel())).long()
            chosen = flat[where.to(flat.device)]
            digest.update(f"{component}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(chosen.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def hardware(device: str) -> str:
    """The machine in words: the GPU's name, or the processor and the number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {counted(threads, 'thread')}"

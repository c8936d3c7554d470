"""Runs a pipeline on prompts, cached and uncached, and measures what came out and what it cost."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import fastercache as fc
from fastercache.analysis.quality import measure
from fastercache.policies.errors import NotFinite
from fastercache.tuned import Measured, model_identity, scheduler_identity
from fastercache.tuner.simulate import CostModel

Stop = Callable[[Mapping[str, Sequence[float]]], str | None]
"""Told the values so far, per metric; a reason ends the evaluation early."""


@dataclass(frozen=True)
class Case:
    """One generation: a prompt and the seed of its noise."""

    prompt: str
    seed: int


@dataclass
class Evaluation:
    """One policy on some cases.

    Attributes:
        values: per metric one value per case that was run.
        flops, flops_full: computed and uncached FLOPs of the denoiser, summed over those cases.
        seconds: wall time of each cached pipeline call, FLOP counting excluded.
        cached_bytes: the peak over all runs.
        stopped: why not all cases were run; None if they were.
    """

    values: dict[str, list[float]]
    flops: int = 0
    flops_full: int = 0
    seconds: list[float] = field(default_factory=list)
    cached_bytes: int = 0
    stopped: str | None = None

    @property
    def ratio(self) -> float:
        """Computed over uncached FLOPs."""
        return self.flops / self.flops_full if self.flops_full else 1.0


class Evaluator:
    """A pipeline with its call arguments, and the uncached references it is judged against.

    References are made once and kept on disk under a key of everything that determines them: weights, configuration,
    scheduler, call arguments, prompt, seed, dtype and device. A file that cannot be read is made again.

    Args:
        pipe: a diffusers pipeline.
        call: keyword arguments of each call beside prompt, generator and output type.
        store: folder of the references.
        seed: case i of a list of prompts is generated with seed + i.
        video: turns the pipeline's output into a video (F, 3, H, W) in [0, 1]; by default diffusers' own layouts.
    """

    def __init__(
        self,
        pipe: Any,
        call: Mapping[str, Any] | None = None,
        *,
        store: str | Path,
        metrics: Sequence[str] = ("psnr", "ssim"),
        seed: int = 0,
        video: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.pipe = pipe
        self.call = dict(call or {})
        self.store = Path(store)
        self.metrics = tuple(metrics)
        self.seed = seed
        self._video = video or as_video
        self._identity = self._describe()
        self._cost: CostModel | None = None
        self._session: fc.Session | None = None

    # -- identity ----------------------------------------------------------------------------------------------------
    def _describe(self) -> dict[str, Any]:
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
    def identity(self) -> dict[str, Any]:
        """What determines the references, beside prompt and seed: a figure from other ones cannot be compared."""
        return dict(self._identity)

    def cases(self, prompts: Sequence[str]) -> list[Case]:
        """The cases of a list of prompts."""
        return [Case(prompt, self.seed + i) for i, prompt in enumerate(prompts)]

    # -- running -----------------------------------------------------------------------------------------------------
    def generate(self, case: Case) -> Tensor:
        """One video (F, 3, H, W) on the CPU, under whatever is attached. Raises NotFinite."""
        generator = torch.Generator("cpu").manual_seed(case.seed)
        with torch.inference_mode():
            output = self.pipe(
                prompt=case.prompt, generator=generator, output_type="pt", return_dict=False, **self.call
            )
        video = self._video(output)
        if not bool(torch.isfinite(video).all()):
            raise NotFinite(f"the video of '{case.prompt:.60}' (seed {case.seed}) contains NaN or infinity")
        return video.clamp(0.0, 1.0)

    def close(self) -> None:
        """Detach from the pipeline, if attached."""
        if self._session is not None:
            self._session.detach()
            self._session = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attached(self, policy: fc.Policy) -> fc.Session:
        if self._session is None:
            self._session = fc.attach(self.pipe, policy)
        else:
            self._session.use(policy)
        return self._session

    def run(self, policy: fc.Policy, case: Case) -> tuple[Tensor, fc.Trace, float]:
        """One cached run: video, trace, and seconds of the whole call without FLOP counting."""
        session = self._attached(policy)
        session.traces.clear()
        started = time.perf_counter()
        video = self.generate(case)
        trace = session.last
        return video, trace, time.perf_counter() - started - trace.counting_seconds

    def run_bare(self, case: Case) -> tuple[Tensor, float]:
        """One run of the bare pipeline, nothing attached: video and seconds."""
        self.close()
        started = time.perf_counter()
        video = self.generate(case)
        return video, time.perf_counter() - started

    def cost_model(self, case: Case) -> CostModel:
        """FLOPs of any static policy, from one counted run; made once."""
        if self._cost is None:
            self.run(fc.NoCache(), case)
            assert self._session is not None
            self._cost = CostModel.of(self._session)
        return self._cost

    # -- references --------------------------------------------------------------------------------------------------
    def reference(self, case: Case) -> Tensor:
        """The uncached video of a case, (F, 3, H, W), from disk if it was made before."""
        path, key = self._place(case)
        video = _read(path, key)
        if video is None:
            video, _ = self.run_bare(case)
            _write(path, key, video)
        return video

    def _keep(self, case: Case, video: Tensor) -> None:
        """Store an uncached video made for another purpose, if its reference is missing."""
        path, key = self._place(case)
        if _read(path, key) is None:
            _write(path, key, video)

    def _place(self, case: Case) -> tuple[Path, str]:
        key = json.dumps({**self._identity, "prompt": case.prompt, "seed": case.seed}, sort_keys=True)
        return self.store / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors", key

    # -- measuring ---------------------------------------------------------------------------------------------------
    def quality(self, video: Tensor, case: Case) -> dict[str, float]:
        """Each metric of a video against the case's reference. Raises NotFinite."""
        found = measure(video[None], self.reference(case)[None], metrics=self.metrics)
        values = {name: float(found[name][0]) for name in self.metrics}
        for name, value in values.items():
            if not value == value or value in (float("inf"), float("-inf")):
                raise NotFinite(f"{name} of '{case.prompt:.60}' (seed {case.seed}) is {value}")
        return values

    def evaluate(self, policy: fc.Policy, cases: Sequence[Case], stop: Stop | None = None) -> Evaluation:
        """Run the cases one by one; `stop` is asked after each but the last. Raises NotFinite."""
        result = Evaluation({name: [] for name in self.metrics})
        for case in cases:
            self.reference(case)  # all at once, so that the session need not be detached for each
        for i, case in enumerate(cases):
            self._add(result, case, self.run(policy, case))
            if stop is not None and i + 1 < len(cases):
                result.stopped = stop(result.values)
                if result.stopped is not None:
                    break
        return result

    def _add(self, result: Evaluation, case: Case, outcome: tuple[Tensor, fc.Trace, float]) -> None:
        video, trace, seconds = outcome
        for name, value in self.quality(video, case).items():
            result.values[name].append(value)
        result.flops += trace.total_flops
        result.flops_full += sum(trace.flops_full)
        result.seconds.append(seconds)
        result.cached_bytes = max(result.cached_bytes, trace.cached_bytes)

    def compare(self, policy: fc.Policy, cases: Sequence[Case], repeats: int = 1) -> tuple[Measured, Evaluation]:
        """Measure a policy fully; cached and bare runs alternate, so that the speedup is fair to both.

        `speedup_wall` is the ratio of their median seconds over all cases and repeats. Raises NotFinite.
        """
        result = Evaluation({name: [] for name in self.metrics})
        bare: list[float] = []
        for turn in range(repeats):
            for i, case in enumerate(cases):
                outcome = None
                for cached in (True, False) if (turn + i) % 2 else (False, True):
                    if cached:
                        outcome = self.run(policy, case)
                    else:
                        video, seconds = self.run_bare(case)
                        bare.append(seconds)
                        self._keep(case, video)
                assert outcome is not None
                if turn == 0:
                    self._add(result, case, outcome)
                else:
                    result.seconds.append(outcome[2])
        self.close()
        means = {name: statistics.fmean(values) for name, values in result.values.items()}
        measured = Measured(
            prompts=len(cases),
            psnr=means.get("psnr"),
            ssim=means.get("ssim"),
            lpips=means.get("lpips"),
            speedup_flops=1.0 / result.ratio,
            speedup_wall=statistics.median(bare) / statistics.median(result.seconds),
            seconds=statistics.median(result.seconds),
            cached_bytes=result.cached_bytes,
            hardware=hardware(self._identity["device"]),
        )
        return measured, result


def as_video(output: Any) -> Tensor:
    """The first video of a diffusers output as (F, 3, H, W) float32 on the CPU; an image is a video of one frame."""
    value = output[0] if isinstance(output, tuple) else getattr(output, "frames", getattr(output, "images", output))
    tensor = torch.as_tensor(value).detach().float().cpu()
    return tensor[0] if tensor.ndim == 5 else tensor[:1] if tensor.ndim == 4 else tensor[None]


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
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads != 1)}"


def _read(path: Path, key: str) -> Tensor | None:
    """A stored reference; None if there is none, or it is damaged or of another key."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            video: Tensor = file.get_tensor("video")
            return video
    except (OSError, SafetensorError):
        return None


def _write(path: Path, key: str, video: Tensor) -> None:
    """Write whole or not at all, so that an interrupted run leaves no half file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    os.close(handle)
    try:
        save_file({"video": video.contiguous()}, temporary, metadata={"key": key})
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

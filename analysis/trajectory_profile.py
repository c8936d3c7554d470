"""The recording of a sampler's runs as a file: Gram matrices, response, and what they were recorded on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from fastercache.analysis.predictability import INTERVALS, Predictability, predictability
from fastercache.analysis.response import Kind, Response, probe
from fastercache.analysis.sampling import Recording, Relations, RunValues
from fastercache.analysis.trajectory import Floats, Trajectory
from fastercache.policies.documents import read_model, write_atomic, write_json
from fastercache.policies.errors import ConfigUnreadable, RecordingError
from fastercache.policies.notebook import Shown
from fastercache.policies.vocabulary import Step
from fastercache.tuned import Identity, Model, guidance_scale_of, model_identity, package_versions, scheduler_identity

WHAT = "trajectory profile"


class TrajectoryInfo(BaseModel):
    """What a trajectory profile was recorded on.

    Attributes:
        model, scheduler: class and configuration. guidance_scale: of the runs, where the pipeline tells.
        kind, reach, stochastic, residual: of the sampler's response; see `Response`.
        guided, steady, starts, calls, why: how the denoiser's calls relate to the sampler; see `Relations`.
        runs: complete runs. discarded: runs that did not end. prompts: their captions, where known.
        packages: versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["fastercache-trajectory"] = "fastercache-trajectory"
    version: Literal[1] = 1
    model: Model
    scheduler: Identity | None = None
    guidance_scale: float | None = None
    kind: Kind
    reach: int
    stochastic: bool
    residual: float
    guided: bool
    steady: bool
    starts: tuple[int, ...]
    calls: int
    why: str = ""
    runs: int = Field(ge=1)
    discarded: int = 0
    packages: dict[str, str] = Field(default_factory=package_versions)


@dataclass(frozen=True, repr=False)
class TrajectoryProfile(Shown):
    """Everything that planning needs of a pipeline: its runs' inner products and its sampler's response."""

    trajectory: Trajectory
    response: Response
    relations: Relations
    info: TrajectoryInfo

    def _facts(self) -> dict[str, object]:
        return {
            "pipeline": self.info.model.pipeline,
            "denoiser": self.info.model.denoiser.kind,
            "scheduler": self.info.scheduler.kind if self.info.scheduler else None,
            "steps": self.trajectory.steps,
            "runs": self.trajectory.runs,
            "sampler": self.info.kind,
        }

    @classmethod
    def of(
        cls, recordings: Sequence[Recording], pipe: Any, discarded: int = 0, call: Mapping[str, Any] | None = None
    ) -> TrajectoryProfile:
        """The profile of recorded runs. Raises RecordingError if there are none, or they differ in their setting.

        `call`: arguments of the pipeline's calls, for pipelines that do not tell their guidance scale.
        """
        if not recordings:
            raise RecordingError("no complete run was recorded: call the pipeline inside the recording")
        first = recordings[0].response
        for other in recordings[1:]:
            if other.response.matrix.shape != first.matrix.shape or not np.allclose(
                other.response.matrix, first.matrix, rtol=1e-4, atol=1e-6
            ):
                raise RecordingError("the runs differ in their sampler (steps or timesteps): record them apart")
        relations = reduce(Relations.merged, (recording.relations for recording in recordings))
        trajectory = Trajectory.merged([recording.trajectory for recording in recordings])
        info = TrajectoryInfo(
            model=model_identity(pipe),
            scheduler=scheduler_identity(pipe),
            guidance_scale=guidance_scale_of(pipe, call),
            kind=first.kind,
            reach=first.reach,
            stochastic=first.stochastic,
            residual=first.residual,
            guided=relations.guided,
            steady=relations.steady,
            starts=relations.starts,
            calls=relations.calls,
            why=relations.why,
            runs=trajectory.runs,
            discarded=discarded,
        )
        return cls(trajectory, first, relations, info)

    @classmethod
    def merged(cls, parts: Sequence[TrajectoryProfile]) -> TrajectoryProfile:
        """The profile of several recordings of one pipeline, e.g. of two machines. Raises RecordingError."""
        first = parts[0]
        for other in parts[1:]:
            for name in ("model", "scheduler", "guidance_scale", "starts", "calls"):
                if getattr(other.info, name) != getattr(first.info, name):
                    raise RecordingError(f"the profiles differ in their {name.replace('_', ' ')} and cannot be merged")
        trajectory = Trajectory.merged([part.trajectory for part in parts])
        relations = reduce(Relations.merged, (part.relations for part in parts))
        counts = {"runs": trajectory.runs, "discarded": sum(part.info.discarded for part in parts)}
        return cls(trajectory, first.response, relations, first.info.model_copy(update=counts))

    def with_steps(self, scheduler: Any, steps: int, **settings: Any) -> TrajectoryProfile:
        """The profile that another number of steps would have, by interpolation and without a run.

        Args:
            scheduler: the pipeline's, left as it is. settings: further arguments of its `set_timesteps`.
        """
        response = probe(scheduler, steps, timesteps=settings)
        relations = self.relations
        if len(relations.starts) > 1:
            raise RecordingError("several denoisers share the steps: record the other number of steps itself")
        if relations.input is not None:
            relations = replace(relations, input=response.input_scale)
        trajectory = self.trajectory.resampled(response.times, response.matrix)
        info = self.info.model_copy(
            update={"kind": response.kind, "reach": response.reach, "residual": response.residual}
        )
        return TrajectoryProfile(trajectory, response, relations, info)

    def predictability(self, intervals: Sequence[int] = INTERVALS) -> Predictability:
        """The errors that predictors would have made of the denoiser's outputs, where every so many-th is computed."""
        n, times = self.trajectory.steps, self.trajectory.times
        grams = self.trajectory.products[:, n + 1 :, n + 1 :]
        steps = [Step(k, n, float(t)) for k, t in enumerate(times)]
        return predictability(grams, steps, intervals=intervals, starts=self.relations.starts)

    # -- files -------------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write `PATH.json` and `PATH.safetensors`, each whole or not at all."""
        path = Path(path)
        write_atomic(path.with_suffix(".safetensors"), to_bytes(_arrays(self)), WHAT)
        return write_json(path.with_suffix(".json"), self.info.model_dump(mode="json"), WHAT)

    @classmethod
    def load(cls, path: str | Path) -> TrajectoryProfile:
        """Read what `save` wrote. Raises ConfigUnreadable."""
        path = Path(path)
        info = read_model(path.with_suffix(".json"), TrajectoryInfo, WHAT)
        arrays = path.with_suffix(".safetensors")
        try:
            found = {name: tensor.numpy() for name, tensor in load_file(arrays).items()}
            _check(found, info)
            trajectory = Trajectory(found["products"], found["times"], found["by_branch"])
            response = Response(
                kind=info.kind,
                times=found["times"],
                matrix=found["matrix"],
                scale=found["scale"],
                gain=found["gain"],
                reach=info.reach,
                input_scale=found["input_scale"],
                stochastic=info.stochastic,
                residual=info.residual,
            )
        except (OSError, SafetensorError, KeyError, RecordingError) as error:
            raise ConfigUnreadable(f"{arrays} is no {WHAT}: {error}; record it again") from None
        relations = Relations(found.get("input"), info.why, info.guided, info.steady, info.starts, info.calls)
        return cls(trajectory, response, relations, info)


def save_values(path: Path, values: RunValues) -> None:
    """Write one run's latents and outputs as safetensors, whole or not at all."""
    tensors = {"latents": torch.stack(values.latents), "outputs": torch.stack(values.outputs)}
    write_atomic(path, to_bytes(tensors), "run's values")


def load_values(path: Path) -> RunValues:
    """Read what `save_values` wrote. Raises ConfigUnreadable."""
    try:
        tensors = load_file(path)
        values = RunValues(list(tensors["latents"]), list(tensors["outputs"]))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ConfigUnreadable(f"{path} holds no run's values: {error}") from None
    shapes = tuple(tensors["latents"].shape), tuple(tensors["outputs"].shape)
    if len(values.latents) != values.steps + 1 or shapes[0][1:] != shapes[1][1:]:
        raise ConfigUnreadable(
            f"{path} holds no run's values: n + 1 latents and n outputs of one shape were expected, found {shapes[0]} "
            f"and {shapes[1]}"
        )
    return values


def _check(found: dict[str, Floats], info: TrajectoryInfo) -> None:
    """Shapes of what does not check itself, and that all is finite. Raises RecordingError, or KeyError."""
    n = len(found["times"])
    shapes = {"matrix": (n + 1, n + 1), "scale": (n,), "gain": (n,), "input_scale": (n,), "input": (n,)}
    for name, shape in shapes.items():
        if (name != "input" or name in found) and found[name].shape != shape:
            raise RecordingError(f"'{name}' has the shape {found[name].shape}, {n} steps have {shape}")
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise RecordingError(f"'{name}' holds NaN or infinity")
    if len(found["products"]) != info.runs or not info.starts or info.starts[0] != 0 or info.starts[-1] >= n:
        raise RecordingError(
            f"{len(found['products'])} runs of {n} steps do not go with {info.runs} runs and denoisers that start at "
            f"{info.starts}"
        )


def _arrays(profile: TrajectoryProfile) -> dict[str, torch.Tensor]:
    arrays = {
        "products": profile.trajectory.products,
        "by_branch": profile.trajectory.by_branch,
        "times": profile.trajectory.times,
        **{name: getattr(profile.response, name) for name in ("matrix", "scale", "gain", "input_scale")},
    }
    if profile.relations.input is not None:
        arrays["input"] = profile.relations.input
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

"""What all training here shares: updates with averaged weights, resumable to the bit, and its checkpoints on disk."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import typer
from torch import Tensor

from fastercache.experiments.reference.progress import tracked
from fastercache.policies.documents import replacing


class Progress(NamedTuple):
    """One training step: its index, the smoothed plain loss and the learning-rate factor."""

    step: int
    loss: float
    factor: float


def cosine_factor(step: int, warm_up: int, steps: int) -> float:
    """Of the learning rate: linear warm-up, then cosine decay to one per cent."""
    warm = min(1.0, (step + 1) / warm_up)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


class Training(ABC):
    """Updates parameters and keeps their running average.

    ``run(until)`` yields ``Progress`` for each step; ``state`` / ``load_state`` carry everything that the next step
    depends on, so training that was stopped and resumed equals training that was not.

    Args:
        parameters: what is trained, by name. optimisers: of all of them, with their peak learning rates.
        generator: the only source of chance. steps, warm_up: of the schedule, see ``cosine_factor``.
        ema: how much of the average is kept at each step, at the most.
        device: where the parameters are.
    """

    smoothing: ClassVar[float] = 0.99
    """How much of the reported loss is kept at each step."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimisers: Sequence[torch.optim.Optimizer],
        generator: torch.Generator,
        *,
        steps: int,
        warm_up: int,
        ema: float,
        device: torch.device,
    ) -> None:
        self.parameters, self.optimisers, self.generator = dict(parameters), list(optimisers), generator
        self.steps, self.warm_up, self.ema, self.device = steps, warm_up, ema, device
        self.average = {name: value.detach().clone() for name, value in parameters.items()}
        self.peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
        self.step = 0
        self.loss = float("nan")
        self.seconds = 0.0

    @abstractmethod
    def losses(self) -> tuple[Tensor, Tensor]:
        """Of the next batch: the loss to minimise, and the one to report."""

    def run(self, until: int) -> Iterator[Progress]:
        """Train up to step ``until`` (exclusive) of the schedule."""
        while self.step < until:
            factor, started = cosine_factor(self.step, self.warm_up, self.steps), time.monotonic()
            loss = self._update(factor)
            self.seconds += time.monotonic() - started
            kept = self.smoothing
            self.loss = loss if math.isnan(self.loss) else kept * self.loss + (1.0 - kept) * loss
            self.step += 1
            yield Progress(self.step, self.loss, factor)

    def _update(self, factor: float) -> float:
        loss, plain = self.losses()
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            optimiser.zero_grad(set_to_none=True)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(self.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        return float(plain.detach())

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain values and tensors."""
        return {
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "weights": {name: value.detach() for name, value in self.parameters.items()},
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        with replacing(path, "checkpoint") as temporary:
            torch.save(self.state(), temporary)

    def load(self, path: Path) -> None:
        """Read a checkpoint."""
        self.load_state(torch.load(path, weights_only=True, map_location=self.device))


def begun(name: str, known: Collection[str], out: Path | None, resume: bool, device: str) -> tuple[Path, torch.device]:
    """The folder of a command's run, made where it is missing, and its device.

    Raises:
        typer.BadParameter: for an unknown model, or a folder with a checkpoint that is not to be resumed.
    """
    out = out or Path("runs") / name
    if name not in known:
        raise typer.BadParameter(f"unknown model {name!r}, expected one of: {', '.join(known)}")
    checkpoint = checkpoint_of(out)
    if checkpoint.exists() and not resume:
        raise typer.BadParameter(f"{checkpoint} exists: pass --resume to continue it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    return out, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def finished(training: Training, title: str, folder: Path, minutes: float) -> None:
    """Continue from the folder's checkpoint, if there is one, to the end, with a checkpoint every so many minutes."""
    checkpoint = checkpoint_of(folder)
    if checkpoint.exists():
        training.load(checkpoint)
    saved = time.monotonic()
    total = training.steps
    for _ in tracked(training.run(total), total, title, training.step, lambda p: f"loss {p.loss:.4f}"):
        if time.monotonic() - saved > 60 * minutes:
            training.save(checkpoint)
            saved = time.monotonic()
    training.save(checkpoint)


def checkpoint_of(folder: Path) -> Path:
    """Where a run's checkpoint stands."""
    return folder / "checkpoint.pt"

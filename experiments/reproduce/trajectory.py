"""A run that is put back on the uncached trajectory after every step, so that each step's error is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from fastercache.experiments.jobs.by_hand import replaced


class Trajectory:
    """What the solver was given and returned at each step of an uncached run."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.samples: list[Tensor] = []


@contextmanager
def _stepping(pipe: Any, made: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, the solver's result is what `made` makes of (guided output, result)."""
    scheduler = pipe.scheduler
    before = scheduler.step

    def step(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = before(model_output, *args, **kwargs)
        first = found[0] if isinstance(found, tuple) else found.prev_sample
        return (made(model_output, first), *(found[1:] if isinstance(found, tuple) else ()))

    with replaced(scheduler, "step", step):
        yield


def uncached(pipe: Any, generate: Callable[[], object]) -> Trajectory:
    """The trajectory of the run that `generate` makes."""
    path = Trajectory()

    def noted(output: Tensor, sample: Tensor) -> Tensor:
        path.outputs.append(output.detach().clone())
        path.samples.append(sample.detach().clone())
        return sample

    with _stepping(pipe, noted):
        generate()
    return path


def on_path(pipe: Any, path: Trajectory, generate: Callable[[], object]) -> list[Tensor]:
    """The guided outputs of a run that is put back on `path` after every step."""
    outputs: list[Tensor] = []

    def back(output: Tensor, sample: Tensor) -> Tensor:
        outputs.append(output.detach().clone())
        return path.samples[len(outputs) - 1]

    with _stepping(pipe, back):
        generate()
    return outputs


def relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Relative L2 error over all (stand-in, value): sqrt(sum ||a - b||^2 / sum ||b||^2); 0 for no pairs."""
    error = sum(float((a - b).double().square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    return float(np.sqrt(error / size)) if pairs else 0.0

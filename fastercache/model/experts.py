"""Which of a pipeline's several denoisers runs at which step, where that is known before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastercache.policies.vocabulary import Step


def with_denoisers(pipe: Any, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of a run of a pipeline of two transformers, each with the name of the one that it calls.

    Wan 2.2 and its kin give the timesteps from `boundary_ratio` of the training steps on to `transformer`, those below
    to `transformer_2`; without a ratio `transformer` takes them all. Steps of other pipelines are returned as they are.
    """
    config = getattr(pipe, "config", None)
    trained = getattr(getattr(getattr(pipe, "scheduler", None), "config", None), "num_train_timesteps", None)
    if config is None or "boundary_ratio" not in config or trained is None:
        return tuple(steps)
    ratio = config["boundary_ratio"]
    low = -float("inf") if ratio is None else ratio * trained
    return tuple(replace(step, denoiser="transformer" if step.timestep >= low else "transformer_2") for step in steps)

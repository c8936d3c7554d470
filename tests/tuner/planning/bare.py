"""A pipeline of a few lines with a denoiser that is a formula, and its sampling loop in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]
Answer = Literal["plain", "variance", "joined"]
STEPS, SHAPE = 8, (1, 3, 4, 4)


def formula(x: Any, t: float, library: Any = torch) -> Any:
    """F(x, t): smooth in both, not linear."""
    return library.tanh(x * (0.4 + 0.001 * t)) + library.sin(x + 0.004 * t)


class Denoiser(nn.Module):
    """The formula as a module with a parameter, so that it has a device.

    Its answer is as `Answer` says: of the latent's shape, with a learned variance behind, or with both leading axes in
    one.
    """

    def __init__(self, answer: Answer = "plain") -> None:
        super().__init__()
        self.one, self.answer = nn.Parameter(torch.ones(())), answer

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        output = formula(hidden_states, float(timestep)) * self.one
        if self.answer == "variance":
            output = torch.cat([output, output.square() + 7.0], 1)
        return (output.flatten(0, 1) if self.answer == "joined" else output,)


class Pipe:
    """Call it with a seed: the last latent. The sampler uses what stands before a learned variance."""

    def __init__(self, scheduler: Any = None, answer: Answer = "plain") -> None:
        self.transformer = Denoiser(answer)
        self.scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0)

    def __call__(self, seed: int, steps: int = STEPS) -> Tensor:
        x = noise(seed)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            source = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            with torch.no_grad():
                output = self.transformer(source, timestep=t, return_dict=False)[0]
            used = output[:, : x.shape[1]] if self.transformer.answer == "variance" else output
            x = self.scheduler.step(used, t, x, return_dict=False)[0]
        return x


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


Rule = Callable[[int, "Loops"], "Floats | None"]


@dataclass
class Loops:
    """Flow-matching Euler for several seeds at once, in float64: x_{k+1} = x_k + (sigma_{k+1} - sigma_k) F_k.

    Attributes:
        sigmas: (n + 1,). latents: n + 1 of (P, d). outputs: n of (P, d).
    """

    sigmas: Floats
    latents: list[Floats]
    outputs: list[Floats]

    @classmethod
    def run(cls, seeds: Sequence[int], rule: Rule | None = None, steps: int = STEPS) -> Loops:
        """All outputs computed, or what `rule(k, loops so far)` gives; None from it means compute."""
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas.double().numpy()
        times = scheduler.timesteps.tolist()
        loops = cls(sigmas, [np.stack([noise(s).double().numpy().ravel() for s in seeds])], [])
        for k in range(steps):
            x = loops.latents[-1]
            given = None if rule is None else rule(k, loops)
            loops.outputs.append(formula(x, times[k], np) if given is None else given)
            loops.latents.append(x + (sigmas[k + 1] - sigmas[k]) * loops.outputs[-1])
        return loops

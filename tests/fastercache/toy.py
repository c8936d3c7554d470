"""A denoiser of two blocks, small enough to work out by hand, and a loop and pipelines around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

TIMES = [900.0, 700.0, 500.0, 300.0]


class Attention(nn.Module):
    """Gives `gain` times the square of its input."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.to_q = nn.Linear(1, 1, bias=False)  # the only product: two FLOPs a row
        nn.init.ones_(self.to_q.weight)
        self.gain, self.calls, self.rows = gain, 0, 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + hidden_states.shape[0]
        found: Tensor = self.gain * self.to_q(hidden_states) ** 2
        return found


class Layer(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.attn = Attention(gain)

    def forward(self, hidden_states: Tensor) -> Tensor:
        found: Tensor = hidden_states + self.attn(hidden_states)
        return found


class Toy(nn.Module):
    """Rows (B, 1, 1, 1) go through the blocks one after the other; `shift` is added before."""

    def __init__(self, gains: Sequence[float] = (0.25, -0.5), shift: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer(gain) for gain in gains)
        self.shift, self.calls = shift, 0

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        self.calls += 1
        x: Tensor = hidden_states + timestep.reshape(-1, 1, 1, 1) / 1000 + self.shift
        for block in self.blocks:
            x = block(x)
        return x


def rows(*values: float) -> Tensor:
    """One number a row."""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def given(step: int, branch: str) -> float:
    """What a branch's row is at a step of the loops here."""
    return {"cond": 0.5, "uncond": -0.25, "perturbed": 0.125}[branch] * (1 + step)


def call(model: nn.Module, step: int, branches: Sequence[str], times: Sequence[float] = TIMES) -> list[float]:
    """One call of a loop of one's own; a number for each branch."""
    time = torch.full((len(branches),), times[step])
    with torch.no_grad():
        output: Tensor = model(rows(*(given(step, b) for b in branches)), time)
    found: list[float] = output.flatten().tolist()
    return found


def loop(
    model: nn.Module, session: Any, groups: Sequence[Sequence[str]], times: Sequence[float] = TIMES
) -> list[dict[str, float]]:
    """A run: each step's outputs by branch. `groups`: the branches of each call of a step."""
    session.start(times)
    found: list[dict[str, float]] = []
    for step in range(len(times)):
        found.append({})
        for branches in groups:
            found[-1].update(zip(branches, call(model, step, branches, times), strict=True))
    return found


def near(found: list[dict[str, float]], expected: list[dict[str, float]], within: float = 1e-6) -> None:
    """Two runs give the same at each step and branch."""
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, abs=within)


class Scheduler:
    """Lists its timesteps, and is told that a step ends."""

    def __init__(self, times: Sequence[float] = TIMES) -> None:
        self.timesteps = torch.tensor(times)

    def set_timesteps(self) -> None: ...

    def step(self) -> None: ...


class Pipe:
    """Calls its denoisers as a list says: for each step the name of one and the branches of each call."""

    do_classifier_free_guidance = True

    def __init__(
        self, plan: list[tuple[str, list[list[str]]]], times: Sequence[float] = TIMES, **denoisers: Any
    ) -> None:
        vars(self).update(denoisers)
        self.plan, self.scheduler = plan, Scheduler(times)
        self.between: Callable[[int], None] = lambda step: None

    def __call__(self) -> list[dict[str, float]]:
        self.scheduler.set_timesteps()
        found: list[dict[str, float]] = []
        for step, (name, groups) in enumerate(self.plan):
            found.append({})
            for branches in groups:
                output = call(getattr(self, name), step, branches, self.scheduler.timesteps.tolist())
                found[-1].update(zip(branches, output, strict=True))
            self.between(step)
            self.scheduler.step()
        return found

"""Small denoisers of diffusers that no pipeline of the zoo has, each in a sampling loop of its own, for the sweep.

`denoisers.json` holds for each class the fields of a small model and the inputs of a call, as diffusers' own tests have
them (Apache-2.0): a tensor by its shape and, where they matter, its values; every other one is noise from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from fastercache.attachment import attach
from fastercache.model.layout import flatten_output
from fastercache.policies.base import Policy
from fastercache.policies.documents import read_json
from fastercache.policies.vocabulary import COND, UNCOND
from fastercache.session import Session
from fastercache.zoo.specimen import randomised, seeded

_FILE = Path(__file__).with_name("denoisers.json")
_MAIN = ("hidden_states", "sample")
_TEXTS = ("encoder_hidden_states", "text_bth", "global_hidden_states", "pooled_projections")


@lru_cache
def _table() -> dict[str, Any]:
    return dict(read_json(_FILE, "table of small denoisers"))


def names() -> list[str]:
    """The classes of the table that the installed diffusers exports."""
    return [name for name in _table() if hasattr(diffusers, name)]


class Stepped:
    """Stands for a scheduler: its `step` ends a step."""

    def step(self) -> None:
        """Do nothing."""


class Loop:
    """A denoiser and a loop that calls it twice a step: with a text, and with a weaker one as the unconditional.

    The sample of a step does not depend on earlier outputs, so an error shows where it is made.

    Attributes:
        name, module: the denoiser. scheduler: counts the steps.
    """

    def __init__(self, name: str) -> None:
        row = _table()[name]
        self.name, self.scheduler = name, Stepped()
        with seeded():
            self.module: nn.Module = randomised(getattr(diffusers, name)(**row["init"]))
            self._inputs = {key: _made(value) for key, value in row["inputs"].items()}
            self._main = next(key for key in _MAIN if key in self._inputs)
            self._other = torch.randn_like(self._inputs[self._main])
        self._session: Session | None = None

    @property
    def denoisers(self) -> list[nn.Module]:
        return [self.module]

    @contextmanager
    def attached(self, policy: Policy) -> Iterator[Session]:
        """A session of this loop."""
        with attach(self.module, policy, guidance="separate") as session:
            self._session = session
            try:
                yield session
            finally:
                self._session = None

    def run(self, steps: int) -> Tensor:
        """Every output of every step, as one vector."""
        given = self._inputs["timestep"]
        times = [1.0 - i / (2 * steps) for i in range(steps)]
        if self._session is not None:
            self._session.start([float(given.float().max()) * time for time in times])
        found = []
        with torch.no_grad():
            for time in times:
                for branch, weight in ((COND, 1.0), (UNCOND, 0.5)):
                    inputs = {**self._inputs, **{k: _scaled(self._inputs[k], weight) for k in self._texts}}
                    inputs[self._main] = inputs[self._main] + 0.3 * (1 - time) * self._other
                    inputs["timestep"] = (given * time).to(given.dtype)
                    found += flatten_output(self._called(branch, inputs))
                self.scheduler.step()
        return torch.cat([value.float().flatten() for value in found if value is not None])

    @property
    def _texts(self) -> list[str]:
        return [key for key in _TEXTS if key in self._inputs]

    def _called(self, branch: str, inputs: dict[str, Any]) -> Any:
        if self._session is None:
            return self.module(**inputs)
        with self._session.branch(branch):
            return self.module(**inputs)


def _made(value: Any) -> Any:
    """An input from its description."""
    if not isinstance(value, dict):
        return value
    if "list" in value:
        return [_made(item) for item in value["list"]]
    if "tuple" in value:
        return tuple(_made(item) for item in value["tuple"])
    if "dict" in value:  # of numbered rows
        return {int(key): _made(item) for key, item in value["dict"].items()}
    dtype = getattr(torch, value.get("dtype", "float32"))
    if "values" in value:
        return torch.tensor(value["values"], dtype=dtype)
    if "fill" in value:
        return torch.full(value["shape"], value["fill"], dtype=dtype)
    return torch.randn(value["shape"]).to(dtype)


def _scaled(value: Any, weight: float) -> Any:
    return [_scaled(item, weight) for item in value] if isinstance(value, list) else value * weight

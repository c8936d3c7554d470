"""What a builder of the zoo returns: a small random pipeline and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[str, Any]


@dataclass(frozen=True)
class Specimen:
    """A small random pipeline of one family.

    Attributes:
        name: the family's name in the zoo.
        pipe: the diffusers pipeline.
        inputs: `inputs(n)` gives the keyword arguments of a call for `n` prompts, step count and seed excepted.
        steps: denoising steps of a usual call.
        resized: overrides that give another resolution, or another number of frames.
        unguided: overrides that switch guidance off; empty where the family has none.
        doubled: overrides that make two samples of each prompt; empty where the pipeline cannot.
        videos: whether the latents have frames.
    """

    name: str
    pipe: Any
    inputs: Callable[[int], Call]
    steps: int = 6
    resized: Call = field(default_factory=dict)
    unguided: Call = field(default_factory=dict)
    doubled: Call = field(default_factory=dict)
    videos: bool = False

    def call(self, *, steps: int | None = None, seed: int = 0, prompts: int = 1, **overrides: Any) -> Call:
        """Keyword arguments of one pipeline call."""
        return {
            **self.inputs(prompts),
            "num_inference_steps": self.steps if steps is None else steps,
            "generator": torch.Generator().manual_seed(seed),
            "return_dict": False,
            **overrides,
        }

    def generate(self, **arguments: Any) -> Tensor:
        """The latents of one pipeline call, arguments as for `call`; the same arguments give the same latents."""
        result = self.pipe(**self.call(**arguments))[0]
        return result if isinstance(result, Tensor) else torch.as_tensor(result)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Run a builder with its own random state, leaving the caller's alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomised(module: nn.Module, scale: float = 0.05) -> nn.Module:
    """`module` in evaluation mode with noise on every parameter: layers that start at zero then do something."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.eval()


def assembled(pipeline: Any, **parts: Any) -> Any:
    """A pipeline of these parts, every other one (text encoders, tokenizers) None, silent."""
    wanted = inspect.signature(pipeline.__init__).parameters
    empty = {
        name: None
        for name, parameter in wanted.items()
        if name not in ("self", *parts) and parameter.default is inspect.Parameter.empty
    }
    pipe = pipeline(**empty, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(count: int, *shape: int, seed: int = 7) -> Tensor:
    """Fixed random embeddings (count, *shape): row i is the same for every count."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + 100 * i)) for i in range(count)]
    return torch.stack(rows)

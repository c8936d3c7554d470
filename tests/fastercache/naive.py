"""Naive cache implementations, for the tests of hazards: what they get wrong is what those tests are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from diffusers import FasterCacheConfig
from torch import Tensor, nn

from fastercache import zoo
from fastercache.zoo.specimen import Specimen


@lru_cache(maxsize=3)
def specimen(name: str) -> Specimen:
    return zoo.build(name)


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module with another forward, as naive caches install it."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class Naive:
    """A cache of one module's output as a closure: `key(call)` names the entry, `reuse(call)` decides, by call number.

    Nothing resets it, and nothing but the count tells it where it is.
    """

    def __init__(self, module: nn.Module, key: Callable[[int], Any], reuse: Callable[[int], bool]) -> None:
        self.original, self.key, self.reuse = module.forward, key, reuse
        self.calls, self.values = 0, dict[Any, Any]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        if not self.reuse(call):
            self.values[self.key(call)] = self.original(*args, **kwargs)
        return self.values[self.key(call)]


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first tensor of each call's output."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out if isinstance(out, Tensor) else out[0]))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def theirs(s: Specimen, config: Any) -> Iterator[None]:
    """diffusers' own cache on a specimen."""
    s.pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        s.pipe.transformer.disable_cache()


def faster_cache(pipe: Any, **changes: Any) -> FasterCacheConfig:
    """diffusers' FasterCache: every second step, at all timesteps."""
    fields: dict[str, Any] = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 1001),
        "spatial_attention_block_identifiers": ("blocks", "transformer_blocks"),
        "unconditional_batch_skip_range": 2,
        "unconditional_batch_timestep_skip_range": (-1, 1001),
        "attention_weight_callback": lambda _: 0.3,
        "tensor_format": "BFCHW",
        "current_timestep_callback": lambda: float(pipe.current_timestep),
    }
    return FasterCacheConfig(**{**fields, **changes})

"""Computed FLOPs, counted by torch's own flop counter, never estimated.

Each input signature of the denoiser is counted once: one extra call with everything computed, whose output is thrown
away, gives the total and the inclusive share of every hooked module. A later call's FLOPs are that total less what it
skipped, which is exact because skipped modules are simply not called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastercache.hooks import Handler, Inner, SiteForward

Signature = tuple[Any, ...]


@dataclass(frozen=True)
class Cost:
    """FLOPs of one full denoiser call and of each hooked module inside it, by module path."""

    total: int
    inclusive: dict[str, int]

    def computed(self, skipped: list[tuple[str, float]]) -> int:
        """FLOPs of a call that skipped these shares of these modules' rows."""
        return self.total - round(sum(self.inclusive[path] * share for path, share in skipped))


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    """What determines a call's FLOPs: the shapes of its tensors, and the plain flags beside them."""
    return tuple(_sign(value) for value in args), tuple((k, _sign(v)) for k, v in kwargs.items())


def _sign(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(_sign(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _sign(v)) for k, v in value.items())
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


@contextmanager
def _eager(modules: list[nn.Module]) -> Iterator[None]:
    """Inside compiled regions the counter sees nothing, so counting runs them eagerly."""
    if any(getattr(m, "_compiled_call_impl", None) is not None for m in modules):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


class FlopBook:
    """Costs by denoiser and input signature."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, Signature], Cost] = {}
        self.seconds = 0.0
        """Time spent counting since the value was last set to zero."""

    def shares(self, prefix: str) -> dict[str, float]:
        """Share of a whole call's FLOPs spent inside each hooked module, by path; empty before the first call."""
        counted = [cost for (owner, _), cost in self._costs.items() if owner == prefix]
        if not counted:
            return {}
        whole = max(counted, key=lambda cost: cost.total)
        return {path: flops / max(whole.total, 1) for path, flops in whole.inclusive.items()}

    def cost(
        self,
        prefix: str,
        hooks: dict[str, SiteForward],
        inner: Inner,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Cost:
        """The cost of a full call with these arguments, counted on its first use."""
        key = (prefix, signature(args, kwargs))
        if key not in self._costs:
            started = time.perf_counter()
            self._costs[key] = self._count(hooks, inner, args, kwargs)
            self.seconds += time.perf_counter() - started
        return self._costs[key]

    def _count(
        self, hooks: dict[str, SiteForward], inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Cost:
        counter = FlopCounterMode(display=False)
        inclusive: dict[str, int] = {}
        previous = {path: (hook.handler, hook.hits) for path, hook in hooks.items()}
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            for path, hook in hooks.items():
                hook.handler = _counting(path, counter, inclusive)
            with torch.random.fork_rng(devices), torch.no_grad(), _eager([h.module for h in hooks.values()]), counter:
                inner(*args, **kwargs)
        finally:
            for path, (handler, hits) in previous.items():
                hooks[path].handler, hooks[path].hits = handler, hits
        return Cost(counter.get_total_flops(), {path: inclusive.get(path, 0) for path in hooks})


def _counting(path: str, counter: FlopCounterMode, inclusive: dict[str, int]) -> Handler:
    def handle(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = counter.get_total_flops()
        output = inner(*args, **kwargs)
        inclusive[path] = inclusive.get(path, 0) + counter.get_total_flops() - before
        return output

    return handle

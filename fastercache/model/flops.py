"""What a full denoiser call costs and leaves behind, counted by the formulas of torch's flop counter, never estimated.

Each input signature of a denoiser is counted once in a process, whatever is attached to it and how often: one extra
call with everything computed, on a copy that shares the weights only and whose output is thrown away, gives the total
and the inclusive share of every hooked module. A later call's FLOPs are that total less what it skipped, which is exact
because skipped modules are simply not called. The same pass notes the shapes of every site's value, so that memory is
known before the run, and whether the model changes a value in place after returning it.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fastercache.model.hooks import Handler, Inner, SiteForward
from fastercache.model.layout import flatten_output
from fastercache.model.skeleton import skeleton

Signature = tuple[Any, ...]
Dimensions = tuple[int, ...]
Shape = tuple[Dimensions, torch.dtype]


def flop_counter() -> FlopCounterMode:
    """torch's counter, with its formula for attention also for the CPU's kernel, which torch 2.13 leaves out."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: _attention_flops})


def _attention_flops(query: Dimensions, key: Dimensions, value: Dimensions, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


class FlopTotal(TorchDispatchMode):
    """The FLOPs of everything that runs inside, by the formulas of torch's counter.

    torch's own counter sums by module too, and asks of every operation anew whether it is made of others: on small
    models most of the time is its own.
    """

    supports_higher_order_operators = True
    _single: ClassVar[set[Any]] = {torch.ops.prim.device.default}  # operations that are not made of others

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._formulas = flop_counter().flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # these run functions of their own, which torch's counter follows
            with flop_counter() as counter:
                output = func(*args, **kwargs)
            self.total += counter.get_total_flops()
            return output
        if func not in self._single:
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
            self._single.add(func)
        output = func(*args, **kwargs)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=output)
        return output


@dataclass(frozen=True)
class Cost:
    """One full denoiser call.

    Attributes:
        total: its FLOPs.
        inclusive: FLOPs inside each hooked module, by module path.
        outputs: shape and dtype of each tensor a hooked module returned; the denoiser's own under `""`.
        changed: modules whose returned tensors the model later changed in place.
        turns: how often the call called each hooked module.
        repeated: modules that returned one tensor in two places, as a UNet's block does with its last one.
    """

    total: int
    inclusive: dict[str, int]
    outputs: dict[str, list[Shape]]
    changed: frozenset[str]
    turns: dict[str, int]
    repeated: frozenset[str]

    def computed(self, skipped: list[tuple[str, float]]) -> int:
        """FLOPs of a call that skipped these shares of these modules' rows."""
        return self.total - round(sum(self.inclusive[path] * share for path, share in skipped))


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    """What determines a call's FLOPs and values' sizes: its tensors' shapes and types, and the flags beside them."""
    return tuple(_sign(value) for value in args), tuple((k, _sign(v)) for k, v in kwargs.items())


def _sign(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(_sign(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _sign(v)) for k, v in value.items())
    # Numbers differ from step to step (a timestep, say) without changing the FLOPs, so only their type counts.
    return value if isinstance(value, (bool, str, type(None))) else type(value).__name__


def make_of(module: nn.Module) -> int:
    """A number that changes when layers are put in, taken out or switched, as adapters (LoRA) are.

    Read are every submodule's class, the shapes and types of its parameters, its plain flags and numbers, the class of
    its attention processor, and of a layer that wraps another one, as peft's do, which adapters are in use.
    """
    found: list[Any] = []
    seen: set[int] = set()
    ahead: list[nn.Module | None] = [module]
    while ahead:  # `modules()` with a tuple for each takes seven times as long, at every run
        part = ahead.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        own, children = part.__dict__, part._modules
        found.append(type(part))
        for parameter in part._parameters.values():
            if parameter is not None:
                found += parameter.shape, parameter.dtype
        for name, value in own.items():
            if isinstance(value, (int, float, str)):
                found += name, value
        found.append(type(own.get("processor")))
        if "base_layer" in children and hasattr(part, "active_adapters"):
            found.append((str(part.active_adapters), bool(part.merged), bool(part.disable_adapters)))
        ahead += children.values()
    return hash(tuple(found))


@contextmanager
def _eager(modules: list[nn.Module]) -> Iterator[None]:
    """Inside compiled regions the counter sees nothing, so counting runs them eagerly."""
    if any(getattr(m, "_compiled_call_impl", None) is not None for m in modules):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


_COUNTED: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Cost]] = WeakKeyDictionary()
"""What has been counted of each denoiser that is still in use, by its make, its hooked modules and the signature."""


class FlopBook:
    """Costs by denoiser and input signature, of one session."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, Signature], Cost] = {}
        self._makes: dict[str, int] = {}
        self.seconds = 0.0
        """Time spent counting since the value was last set to zero."""

    def renew(self, prefix: str, module: nn.Module) -> None:
        """Forget what was counted of a denoiser if its layers have changed since, as loading a LoRA does."""
        make = make_of(module)
        if self._makes.setdefault(prefix, make) != make:
            self._makes[prefix] = make
            self._costs = {key: cost for key, cost in self._costs.items() if key[0] != prefix}

    def largest(self, prefix: str) -> Cost | None:
        """The cost of the largest call counted so far."""
        counted = [cost for (owner, _), cost in self._costs.items() if owner == prefix]
        return max(counted, key=lambda cost: cost.total) if counted else None

    def shares(self, prefix: str) -> dict[str, float]:
        """Share of a whole call's FLOPs spent inside each hooked module, by path; empty before the first call."""
        whole = self.largest(prefix)
        if whole is None:
            return {}
        return {path: flops / max(whole.total, 1) for path, flops in whole.inclusive.items()}

    def cost(
        self,
        prefix: str,
        module: nn.Module,
        hooks: dict[str, SiteForward],
        inner: Inner,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Cost:
        """The cost of a full call with these arguments, counted on its first use in this session or an earlier one."""
        key = (prefix, signature(args, kwargs))
        if key not in self._costs:
            counted = _COUNTED.setdefault(module, {})
            known = (self._makes.setdefault(prefix, make_of(module)), frozenset(hooks), key[1])
            if known not in counted:
                started = time.perf_counter()
                counted[known] = _count(module, hooks, inner, args, kwargs)
                self.seconds += time.perf_counter() - started
            self._costs[key] = counted[known]
        return self._costs[key]


def _count(
    module: nn.Module, hooks: dict[str, SiteForward], inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Cost:
    """One call on a copy that shares the weights only, so that no cache and no hook of others notices it.

    Where hooks bring the weights or split the tokens, the call goes through the model itself.
    """
    counter = FlopTotal()
    notes = _Notes(counter)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    bare = skeleton(module)
    # Inference tensors carry no version counter, so the pass makes ordinary ones.
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.no_grad():
        if bare is not None:
            for path in hooks:
                part = bare.get_submodule(path)
                part.forward = functools.partial(_noted, notes.handler(path), part.forward)
            with flex_as_dense(), counter:
                output = bare(*args, **kwargs)
        else:
            with _noting(hooks, notes), _eager([hook.module for hook in hooks.values()]), flex_as_dense(), counter:
                output = inner(*args, **kwargs)
    notes.note("", output)
    notes.settle()
    inclusive = {path: notes.inclusive.get(path, 0) for path in hooks}
    return Cost(
        counter.total, inclusive, notes.outputs, frozenset(notes.changed), notes.turns, frozenset(notes.repeated)
    )


@contextmanager
def flex_as_dense() -> Iterator[None]:
    """Flex attention cannot be traced while operations are counted: it is counted as attention without a mask."""
    from torch.nn.attention import flex_attention as flex

    def dense(
        query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, enable_gqa: bool = False,
        return_lse: bool = False, **__: Any,
    ) -> Any:  # fmt: skip
        out = nn.functional.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=enable_gqa)
        return (out, out.new_zeros(out.shape[:-1])) if return_lse else out

    own = flex.flex_attention
    flex.flex_attention = dense
    try:
        yield
    finally:
        flex.flex_attention = own


def _noted(handler: Handler, forward: Inner, *args: Any, **kwargs: Any) -> Any:
    return handler(forward, args, kwargs)


@contextmanager
def _noting(hooks: dict[str, SiteForward], notes: _Notes) -> Iterator[None]:
    """Let the hooks write down what passes through them, instead of what they do else."""
    previous = {path: (hook.handler, hook.hits) for path, hook in hooks.items()}
    try:
        for path, hook in hooks.items():
            hook.show_traced(False)
            hook.handler = notes.handler(path)
        yield
    finally:
        for path, (handler, hits) in previous.items():
            hooks[path].handler, hooks[path].hits = handler, hits
            hooks[path].show_traced(True)


class _Notes:
    """What the counting pass writes down. Returned tensors are held for a few modules only, to see them change."""

    HELD = 16

    def __init__(self, counter: FlopTotal) -> None:
        self.counter = counter
        self.inclusive: dict[str, int] = {}
        self.outputs: dict[str, list[Shape]] = {}
        self.changed: set[str] = set()
        self.turns: dict[str, int] = {}
        self.repeated: set[str] = set()
        self._held: deque[tuple[str, Tensor, int]] = deque()

    def handler(self, path: str) -> Handler:
        def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            before = self.counter.total
            output = inner(*args, **kwargs)
            self.inclusive[path] = self.inclusive.get(path, 0) + self.counter.total - before
            self.note(path, output)
            return output

        return handle

    def note(self, path: str, output: Any) -> None:
        tensors = [t for t in flatten_output(output) if t is not None]
        self.outputs.setdefault(path, []).extend((tuple(t.shape), t.dtype) for t in tensors)
        self.turns[path] = self.turns.get(path, 0) + 1
        if len({id(t) for t in tensors}) < len(tensors):
            self.repeated.add(path)
        self._held.extend((path, t, t._version) for t in tensors if not t.is_inference())
        while len(self._held) > self.HELD:
            self._check(*self._held.popleft())

    def settle(self) -> None:
        while self._held:
            self._check(*self._held.popleft())

    def _check(self, path: str, tensor: Tensor, version: int) -> None:
        if tensor._version != version:
            self.changed.add(path)

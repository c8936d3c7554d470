"""One hook per module: a stand-in for `forward` that the engine can redirect and that removes itself wholly.

The instance attribute `forward` is the only thing set on a module (a module inside a compiled block also holds its mode
and value). It is not a diffusers hook, because removing one of those silences others and accelerate's re-hooking drops
them; and it is an object, so that a deep copy of a hooked module gets its own unhooked forward instead of running the
original's weights.

Where diffusers' hooks (group offloading, context parallelism) are on a module too, a site's hook stands inside them and
the denoiser's around them, whichever came first: they bring weights and shards for what a site skips or computes.
"""

from __future__ import annotations

import copy
import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastercache.policies.errors import AttachError

Inner = Callable[..., Any]
Handler = Callable[[Inner, tuple[Any, ...], dict[str, Any]], Any]


# What a traced module does, decided before the call, so that a compiled graph holds no decision.
PASS = 0
STORE = 1  # compute, and leave the output in `value`
REUSE = 2  # return `value` without computing
MERGE = 3  # compute, leave the output in `fresh`, and return `value` where `mask` is set
_TRACED = ("_fc_mode", "_fc_value", "_fc_fresh", "_fc_mask")


def _traced_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a module inside a compiled region.

    One function for all modules with plain attributes for state, so that equal blocks share their graphs: calling an
    object instead would be guarded by its identity.
    """
    mode = self._fc_mode
    if mode == REUSE:
        return self._fc_value
    output = self._fc_inner(*args, **kwargs)
    if mode == STORE:
        self._fc_value = output
    elif mode == MERGE:
        self._fc_fresh = output
        return torch.where(self._fc_mask, self._fc_value, output)
    return output


def is_traced(module: nn.Module) -> bool:
    """Whether the module's forward is the traced form."""
    return getattr(module.__dict__.get("forward"), "__func__", None) is _traced_forward


def _untrace_copy(module: nn.Module) -> None:
    """Take off the traced form that a copy of a module inherited; no session of its own will."""
    own = module.__dict__
    if getattr(own.get("forward"), "__func__", None) is _traced_forward:
        own["forward"] = own["_fc_inner"]
        for name in (*_TRACED, "_fc_inner"):
            own.pop(name, None)


def _own_method(owner: Any, name: str) -> Any:
    """A method of the object's class, bound to it: what a hook or tap stands for in a pickle."""
    return getattr(type(owner), name).__get__(owner)


def _unchanged(value: Any) -> Any:
    return value


Place = tuple[dict[str, Any], str]


def wrapped_by_diffusers(module: nn.Module) -> list[Place]:
    """Where diffusers' hooks on a module keep the forward each of them wraps, the innermost first."""
    registry = module.__dict__.get("_diffusers_hook")
    found = []
    for reference in registry._fn_refs if registry is not None else ():
        key = "forward" if reference.original_forward is None else "original_forward"
        found.append((vars(reference), key))
    return found


def places(module: nn.Module) -> list[Place]:
    """Wherever a forward of the module may be kept: its own, accelerate's original, those that diffusers wrapped."""
    own = [(module.__dict__, name) for name in ("forward", "_old_forward", "_compiled_call_impl")]
    return [*own, *wrapped_by_diffusers(module)]


def is_hooked(module: nn.Module) -> bool:
    """Whether a session's hook is on the module."""
    return bool(hooks_on(module))


def hooks_on(module: nn.Module) -> list[SiteForward]:
    """The sessions' hooks on a module; one that is traced inside a compiled block is not seen."""
    return [hook for holder, key in places(module) if isinstance(hook := holder.get(key), SiteForward)]


class SiteForward:
    """Stands in for `module.forward`. With no `handler` it passes the call straight on.

    Inside a compiled region a handler would break the graph. There the module is `traced`: it only follows a mode,
    which costs one graph per mode and no break; everything else happens before and after the denoiser's call.
    """

    def __init__(self, module: nn.Module, *, outermost: bool = False) -> None:
        self.module = module
        self.outermost = outermost  # around diffusers' hooks, not inside them
        self.attribute = "forward"
        _untrace_copy(module)
        self.had_own = "forward" in module.__dict__
        self.inner: Inner = module.forward
        self.handler: Handler | None = None
        self.owner: Any = None  # the session, on the denoiser's own hook
        self.hits = 0
        self._under: list[Inner] = []  # what it stood around before a wrapper that calls it was set on from outside
        self._within: dict[int, int] = {}  # thread -> how many calls of this hook it is in
        self._called_within = False
        self._traced: Any = None
        functools.update_wrapper(
            self, self.inner, updated=()
        )  # keeps inspect.signature(module.forward) as diffusers reads it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._under:
            return self._around(args, kwargs)
        return self._once(args, kwargs)

    def _around(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call where this hook stands around a wrapper that holds it: called from there it passes the call on."""
        thread = threading.get_ident()
        depth = self._within.get(thread, 0)
        if depth:
            self._called_within = True
        self._within[thread] = depth + 1
        try:
            return self._under[-depth](*args, **kwargs) if depth else self._once(args, kwargs)
        finally:
            self._within[thread] = depth
            if not depth:
                del self._within[thread]

    def _once(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.hits += 1
        handler = self.handler
        if handler is None:
            return self.inner(*args, **kwargs)
        return handler(self.inner, args, kwargs)

    @property
    def traced(self) -> bool:
        return self._traced is not None

    @property
    def traceable(self) -> bool:
        """Whether no other library's wrapper is around or inside this hook, which the traced form would bypass."""
        return "_hf_hook" not in self.module.__dict__ and not wrapped_by_diffusers(self.module)

    def trace(self, on: bool) -> None:
        """Enter or leave the traced form."""
        if on == self.traced:
            return
        if on:
            self._traced = types.MethodType(_traced_forward, self.module)
            self.module.__dict__["_fc_inner"] = self.inner
            self.set_traced(PASS)
            self.show_traced(True)
        else:
            self.show_traced(False)
            self._traced = None
            for name in (*_TRACED, "_fc_inner"):
                self.module.__dict__.pop(name, None)

    def show_traced(self, on: bool) -> None:
        """Put the traced form, or this hook, in the module's place for forward: counting needs the latter."""
        if self.traced:
            self.module.__dict__["forward"] = self._traced if on else self

    def set_traced(self, mode: int, value: Any = None, mask: Any = None) -> None:
        self.module.__dict__.update(zip(_TRACED, (mode, value, None, mask), strict=True))

    def take_traced(self) -> tuple[int, Any, Any]:
        """Mode, value and fresh output after a call; the module lets go of them."""
        mode, value, fresh, _ = (self.module.__dict__[name] for name in _TRACED)
        self.set_traced(PASS)
        return mode, value, fresh

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied module starts unhooked: it gets a copy of the forward that this hook stands in for.

        Raises:
            AttachError: if diffusers' hooks are on the module, because their copies run the original.
        """
        if id(self.module) not in memo:
            return self
        if wrapped_by_diffusers(self.module):
            raise AttachError(
                f"{type(self.module).__name__} has diffusers' hooks (group offloading or parallelism), and a copy of "
                "those runs the original's weights: copy the pipeline before they are enabled"
            )
        return copy.deepcopy(self.inner, memo)

    def __reduce__(self) -> Any:
        """A pickled module has the forward of its class, or the one that was set on it before this hook."""
        if self.had_own:
            return _unchanged, (self.inner,)
        return _own_method, (self.module, self.attribute)

    @property
    def installed(self) -> bool:
        """Whether the module's calls reach this hook where it belongs, directly, traced, or through accelerate's."""
        if self.traced:
            return self.module.__dict__.get("forward") is self._traced
        place = self._place()
        return place is not None and (not self.outermost or place[0] is self.module.__dict__)

    def _place(self) -> Place | None:
        return next(((holder, key) for holder, key in places(self.module) if holder.get(key) is self), None)

    def install(self) -> None:
        """Stand in for the forward that is there now."""
        inside = [] if self.outermost or self.attribute != "forward" else wrapped_by_diffusers(self.module)
        holder, key = inside[0] if inside else (self.module.__dict__, self.attribute)
        self.had_own = key in holder
        self.inner = holder[key] if self.had_own else getattr(self.module, key)
        holder[key] = self

    def reinstall(self) -> None:
        """Install again where it belongs, after something dropped, moved or wrapped this hook."""
        if not self._called_within:
            self._under.clear()
        if self._place() is None:  # dropped, or held by a wrapper, which will then call it
            self._under.append(self.inner)
            self._called_within = False
        self._take_out()
        self.install()

    def _take_out(self) -> None:
        place = self._place()
        if place is None:
            return
        holder, key = place
        if key == "forward" and holder is self.module.__dict__ and not self.had_own:
            del holder[key]
        else:
            holder[key] = self.inner

    def surround_compiled(self) -> None:
        """Move from `forward`, which a compiled module traces, to around the compiled call itself."""
        if self.attribute == "forward":
            self.remove()
            self.attribute = "_compiled_call_impl"
            self.install()

    def remove(self) -> None:
        """Restore what was there before; if a later wrapper holds this hook, it is taken out from under it."""
        self.trace(False)
        self._take_out()
        self.handler = None
        if self._under:  # a wrapper that holds this hook goes on calling it
            self.inner = self._under.pop()


def chain(handlers: list[Handler]) -> Handler | None:
    """Several sites of one module as one handler, the outermost first."""
    if not handlers:
        return None
    if len(handlers) == 1:
        return handlers[0]
    outer, rest = handlers[0], chain(handlers[1:])

    def handle(inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert rest is not None
        return outer(lambda *a, **k: rest(inner, a, k), args, kwargs)

    return handle


class MethodTap:
    """Stands in for a method of one object and calls `after(result)` each time it returns, until removed.

    Like `SiteForward` it is an object, so that a deep copy of its owner gets its own untapped method, unless
    `follows()` says then that the copy does the owner's work.
    """

    def __init__(
        self, owner: Any, name: str, after: Callable[[Any], None], follows: Callable[[], bool] = lambda: False
    ) -> None:
        self.owner, self.name, self.after, self.follows = owner, name, after, follows
        self.had_own = name in vars(owner)
        self.original = getattr(owner, name)
        functools.update_wrapper(self, self.original, updated=())  # not its attributes: it may be a tap itself
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        self.after(result)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.owner))
        if copied is not None and self.follows():
            return MethodTap(copied, self.name, self._while_followed)
        return self if copied is None else functools.partial(getattr(type(copied), self.name), copied)

    def _while_followed(self, result: Any) -> None:
        if self.follows():
            self.after(result)

    def __reduce__(self) -> Any:
        return _own_method, (self.owner, self.name)

    @property
    def installed(self) -> bool:
        return vars(self.owner).get(self.name) is self

    def remove(self) -> None:
        """Restore what was there before; does nothing where something else has taken the place."""
        if not self.installed:
            return
        if self.had_own:
            vars(self.owner)[self.name] = self.original
        else:
            del vars(self.owner)[self.name]

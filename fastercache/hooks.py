"""One hook per module: a stand-in for `forward` that the engine can redirect and that removes itself wholly.

The instance attribute `forward` is the only thing set on a module. It is not a diffusers hook, because removing one of
those silences others and accelerate's re-hooking drops them; and it is an object, so that a deep copy of a hooked module
gets its own unhooked forward instead of running the original's weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

Inner = Callable[..., Any]
Handler = Callable[[Inner, tuple[Any, ...], dict[str, Any]], Any]


class SiteForward:
    """Stands in for `module.forward`. With no `handler` it passes the call straight on."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.had_own = "forward" in module.__dict__
        self.inner: Inner = module.forward
        self.handler: Handler | None = None
        self.hits = 0
        functools.update_wrapper(self, self.inner)  # keeps inspect.signature(module.forward) as diffusers reads it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.hits += 1
        handler = self.handler
        if handler is None:
            return self.inner(*args, **kwargs)
        return handler(self.inner, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied module starts unhooked: its forward is its own class's, bound to the copy."""
        copied = memo.get(id(self.module))
        if copied is None:
            return self
        return functools.partial(type(copied).forward, copied)

    @property
    def installed(self) -> bool:
        """Whether the module's calls reach this hook, directly or through accelerate's wrapper."""
        return self._holder() is not None

    def _holder(self) -> str | None:
        for name in ("forward", "_old_forward"):
            if self.module.__dict__.get(name) is self:
                return name
        return None

    def install(self) -> None:
        self.module.__dict__["forward"] = self

    def reinstall(self) -> None:
        """Install again around whatever `forward` is now, after another library's re-hooking dropped this hook."""
        self.had_own = "forward" in self.module.__dict__
        self.inner = self.module.forward
        self.install()

    def remove(self) -> None:
        """Restore what was there before; if a later wrapper holds this hook, it is taken out from under it."""
        holder = self._holder()
        if holder == "forward" and not self.had_own:
            del self.module.__dict__["forward"]
        elif holder is not None:
            setattr(self.module, holder, self.inner)
        self.handler = None


class MethodTap:
    """Stands in for a method of one object and calls `after(result)` each time it returns, until removed.

    Like `SiteForward` it is an object, so that a deep copy of its owner gets its own untapped method.
    """

    def __init__(self, owner: Any, name: str, after: Callable[[Any], None]) -> None:
        self.owner, self.name, self.after = owner, name, after
        self.had_own = name in vars(owner)
        self.original = getattr(owner, name)
        functools.update_wrapper(self, self.original)
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        self.after(result)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.owner))
        return self if copied is None else functools.partial(getattr(type(copied), self.name), copied)

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

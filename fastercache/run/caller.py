"""Who calls the denoiser: the pipeline that the session is attached to, in one thread at a time, or somebody else.

Pipelines share denoisers and schedulers (`from_pipe`), so neither tells who is calling. The pipeline's own `__call__`
does. Python looks it up on the class: until detached the pipeline is given a subclass of its class, of the same name.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from fastercache.policies.errors import ForeignCall


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


class Caller:
    """Follows the calls of one pipeline. `on_begin()` is called before one, and `on_end(error)` when it has ended, with
    what it raised or None.

    Where there is no pipeline, or it cannot be followed, only the thread of a run is known.
    """

    def __init__(
        self,
        pipe: Any | None,
        on_end: Callable[[BaseException | None], None],
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.pipe, self.on_end, self.on_begin = pipe, on_end, on_begin
        self.follows = False
        self.arguments: dict[str, Any] | None = None  # of the present pipeline call, by name
        self._depth = 0
        self._thread: int | None = None  # of the present pipeline call, or of the present run of a loop of one's own
        if pipe is not None and callable(pipe):
            self._base = type(pipe)
            try:
                pipe.__class__ = self._followed = self._subclass(self._base)
                self.follows = True
            except TypeError:  # a class whose instances cannot change theirs
                pass

    def _subclass(self, base: Any) -> Any:
        caller = self

        @functools.wraps(base.__call__)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return caller._called(functools.partial(base.__call__, self), args, kwargs)

        def reduce(self: Any, protocol: Any) -> Any:
            """Copies and pickles are of the pipeline's own class."""
            _, _, *rest = base.__reduce_ex__(self, max(int(protocol), 2))
            return _new, (base,), *rest

        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        return type(base.__name__, (base,), {**names, "__call__": call, "__reduce_ex__": reduce})

    def remove(self) -> None:
        """Give the pipeline its class back."""
        if self.follows and type(self.pipe) is self._followed:
            self.pipe.__class__ = self._base
        self.follows = False

    def _called(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.follows:
            return call(*args, **kwargs)
        self.check_thread()
        self.on_begin()
        if not self._depth:
            self.arguments = self._named(args, kwargs)
        self._depth += 1
        self._thread = threading.get_ident()
        error: BaseException | None = None
        try:
            return call(*args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._depth -= 1
            if not self._depth:
                self._thread = self.arguments = None
                self.on_end(error)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """A call's arguments by name; None for a call that the pipeline will refuse."""
        try:
            bound = inspect.signature(self._base.__call__).bind(self.pipe, *args, **kwargs)
        except (TypeError, ValueError):
            return None
        return {**bound.arguments, **bound.arguments.get("kwargs", {})}

    @property
    def inside(self) -> bool:
        """Whether a call of the pipeline goes on."""
        return self._depth > 0

    def check_thread(self) -> None:
        """Raises ForeignCall while a run goes on in another thread."""
        if self._thread in (None, threading.get_ident()):
            return
        if any(thread.ident == self._thread for thread in threading.enumerate()):  # else its run was left behind
            raise ForeignCall(
                "a run of this session goes on in another thread, and its values are not for this one: "
                "make one run after the other, or give each thread a copy of the pipeline and a session of its own"
            )

    def begin(self, announced: bool) -> None:
        """A run begins. `announced`: by `session.start`, so that the loop is the user's own.

        Raises:
            ForeignCall: outside a call of the pipeline, of which alone the guidance and the batch are known.
        """
        if self.follows and not self._depth and not announced:
            name = type(self.pipe).__name__
            raise ForeignCall(
                f"the denoiser was called outside a call of the {name} that the session is attached to, by another "
                "pipeline that shares it or a loop of your own: attach to the pipeline that runs, or to the denoiser "
                "itself with session.start(timesteps) before the loop"
            )

    def claim(self) -> None:
        """The run has begun: it is this thread's."""
        self._thread = threading.get_ident()

    def forget(self) -> None:
        """No run goes on: the next one may come from any thread, unless the pipeline's call still goes on."""
        if not self._depth:
            self._thread = None

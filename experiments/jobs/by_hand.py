"""What a cache should give, computed without the toolkit: a few lines around `forward`, for the sweep over diffusers.

Each computation is told which steps were reused, computes every module of every step all the same, and puts a predicted
value in the place of the computed one. It knows nothing of branches, plans or stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Wrapped = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]
"""Arguments, keyword arguments and output of a call -> what it returns instead."""


@contextmanager
def replaced(owner: Any, name: str, instead: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, a method of an object or a class is `instead`."""
    had, method = name in vars(owner), getattr(owner, name)
    setattr(owner, name, instead)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, method)
        else:
            delattr(owner, name)


@contextmanager
def _around(module: nn.Module, change: Wrapped) -> Iterator[None]:
    forward = module.forward

    def instead(*args: Any, **kwargs: Any) -> Any:
        return change(args, kwargs, forward(*args, **kwargs))

    with replaced(module, "forward", instead):
        yield


class Steps:
    """Counts the scheduler's steps, and the calls of each module within one.

    A step begins with the first call of a module after the scheduler's; some pipelines call the scheduler twice in one.
    """

    def __init__(self, scheduler: Any) -> None:
        self._index, self._over, self._scheduler, self._calls = 0, False, scheduler, dict[Any, int]()

    @property
    def index(self) -> int:
        """Of the step that a module called now belongs to."""
        if self._over:
            self._over = False
            self._index += 1
            self._calls.clear()
        return self._index

    @contextmanager
    def counting(self) -> Iterator[None]:
        kind = type(self._scheduler)  # of the class: a pipeline may step a copy of its scheduler as well
        step = kind.step

        def instead(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            self._over = True
            return step(scheduler, *args, **kwargs)

        with replaced(kind, "step", instead):
            yield

    def call_of(self, module: nn.Module) -> int:
        """How often this module was called in this step before."""
        key = (self.index, module)
        self._calls[key] = self._calls.get(key, -1) + 1
        return self._calls[key]


def mapped(change: Callable[[int, Tensor], Tensor], output: Any) -> Any:
    """An output with each of its tensors changed; `change` is given its place among them."""
    count = iter(range(1000))

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(next(count), value)
        if isinstance(value, dict):
            return type(value)(**{k: walk(v) for k, v in value.items()})
        return type(value)(walk(v) for v in value) if isinstance(value, (tuple, list)) else value

    return walk(output)


def taylor(run: Callable[[], Tensor], scheduler: Any, reused: Sequence[tuple[nn.Module, Sequence[bool]]]) -> Tensor:
    """y(i) = y(k) + (i - k) (y(k) - y(j)) / (k - j) with the last two computed steps j < k; y(k) where there is one."""
    steps = Steps(scheduler)
    kept: dict[tuple[nn.Module, int, int], list[tuple[int, Tensor]]] = {}

    def change_of(module: nn.Module, skipped: Sequence[bool]) -> Wrapped:
        def change(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            call = steps.call_of(module)

            def one(place: int, value: Tensor) -> Tensor:
                past = kept.setdefault((module, call, place), [])
                if not skipped[steps.index]:
                    past.append((steps.index, value.clone()))
                    return value
                k, newest = past[-1]
                if len(past) == 1:
                    return newest
                j, older = past[-2]
                return newest + (steps.index - k) * (newest - older) / (k - j)

            return mapped(one, output)

        return change

    with ExitStack() as stack:
        stack.enter_context(steps.counting())
        for module, skipped in reused:
            stack.enter_context(_around(module, change_of(module, skipped)))
        return run()


def guided(
    run: Callable[[], Tensor], scheduler: Any, denoiser: nn.Module, skipped: Sequence[bool], order: Sequence[str]
) -> Tensor:
    """uncond(i) = cond(i) + uncond(k) - cond(k) at reused steps, k being the last computed one.

    `order` names the branches of a batched call's rows, or has one name for each of a step's calls, `cond` the first.
    """
    steps = Steps(scheduler)
    batched = len(order) > 1 and order[0] == "batched"
    names = list(order[1:])
    cond = names.index("cond")
    kept: dict[int, Tensor] = {}
    now: list[Tensor] = []

    def change(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = steps.call_of(denoiser)

        def rows(place: int, value: Tensor) -> Tensor:
            parts = list(value.chunk(len(names)))
            for i, part in enumerate(parts):
                if i == cond:
                    continue
                if skipped[steps.index]:
                    parts[i] = parts[cond] + kept[i]
                else:
                    kept[i] = part - parts[cond]
            return torch.cat(parts)

        def alone(place: int, value: Tensor) -> Tensor:
            if call == 0:
                now[:] = [value]
                return value
            if skipped[steps.index]:
                return now[0] + kept[call]
            kept[call] = value - now[0]
            return value

        return mapped(rows if batched else alone, output)

    with steps.counting(), _around(denoiser, change):
        return run()


def chained(run: Callable[[], Tensor], scheduler: Any, blocks: Sequence[nn.Module], skipped: Sequence[bool]) -> Tensor:
    """The residual that a chain of blocks adds held at reused steps: last(i) = last(k) + first's input(i) - input(k).

    For blocks that pass on one tensor, the hidden states, and nothing else.
    """
    steps = Steps(scheduler)
    entered: list[Tensor] = []
    kept: dict[int, Tensor] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered[:] = [kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]]

    def leave(args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        call = steps.call_of(blocks[-1])
        if skipped[steps.index]:
            return entered[0] + kept[call]
        kept[call] = output - entered[0]
        return output

    handle = blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with steps.counting(), _around(blocks[-1], leave):
            return run()
    finally:
        handle.remove()

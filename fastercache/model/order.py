"""In which order does a denoiser run its blocks, and which of them make one chain? Found by watching one call.

Needed for classes that no family describes and that have several lists of blocks: the order in which the lists are
defined says nothing. A block belongs to the chain where it goes on with what another one returned; blocks that only
feed others (refiners of the text, control branches) do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastercache.model.finder import Block
from fastercache.model.layout import BlockIO, flatten_output


@dataclass
class _Link:
    """One call of a block: the call it goes on from, and how many calls the chain up to it has."""

    block: Block
    before: _Link | None
    length: int


def watch_chain(
    blocks: Sequence[Block], inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Block]:
    """The longest chain of blocks in one call of the denoiser, in the order they run; the later of two equally long.

    `inner(*args, **kwargs)` is called once, its output thrown away. A block goes on from another one if its hidden
    states are what that one returned, as they are or with the text's tokens joined on; or if it follows at once in the
    same list and their shapes agree, because a model may add something in between.
    """
    watch = _Watch()
    handles = []
    for block in blocks:
        io = BlockIO.of(block.module)
        handles.append(block.module.register_forward_pre_hook(watch.entering(block, io), with_kwargs=True))
        handles.append(block.module.register_forward_hook(watch.leaving(block)))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            inner(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return watch.longest()


class _Watch:
    """The calls seen so far, and of each list of blocks what its newest call returned."""

    def __init__(self) -> None:
        self._calls: list[_Link] = []
        self._returned: dict[str, tuple[_Link, list[Tensor]]] = {}

    def entering(self, block: Block, io: BlockIO) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = io.inputs(args, kwargs)[0]
            before = None if hidden is None else self._before(block, hidden)
            self._calls.append(_Link(block, before, 1 if before is None else before.length + 1))

        return hook

    def leaving(self, block: Block) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            tensors = [t for t in flatten_output(output) if t is not None]
            self._returned[block.family_list] = self._calls[-1], tensors

        return hook

    def _before(self, block: Block, hidden: Tensor) -> _Link | None:
        for link, tensors in self._returned.values():
            if any(_same(hidden, t) for t in _candidates(tensors)):
                return link
        newest = self._returned.get(block.family_list)
        if newest is not None and newest[0] is self._calls[-1] and any(t.shape == hidden.shape for t in newest[1]):
            return newest[0]
        return None

    def longest(self) -> list[Block]:
        found: list[Block] = []
        link = max(reversed(self._calls), key=lambda call: call.length, default=None)
        while link is not None:
            found.append(link.block)
            link = link.before
        return found[::-1]


def _candidates(tensors: list[Tensor]) -> list[Tensor]:
    """What may go on from these outputs: each of them, or two streams (B, N, D), (B, T, D) in one."""
    joined = []
    if len(tensors) == 2 and all(t.ndim == 3 for t in tensors) and tensors[0].shape[::2] == tensors[1].shape[::2]:
        joined = [torch.cat(tensors, dim=1), torch.cat(tensors[::-1], dim=1)]
    return [*tensors, *joined]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))

"""Cached values of one site, per branch: entries, histories, bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from fastercache.policies.base import Past, Predictor
from fastercache.policies.vocabulary import Branch, Step
from fastercache.run.transfer import Transfers


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a nested value, depth first."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, (tuple, list, set, frozenset, deque)):
        return [t for item in value for t in tensors_in(item)]
    return []


def map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting with `fn` applied to every tensor."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, fn) for item in value)
    return value


def storages(values: Any) -> dict[int, int]:
    """Identity -> bytes of the distinct storages behind the tensors of a nested value; works on meta tensors too."""
    found = {}
    for tensor in tensors_in(values):
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    return found


def rows_of(tensor: Tensor, position: int, parts: int) -> Tensor:
    """Rows of part `position` of `parts` equal parts along the leading axis, as a view."""
    size = tensor.shape[0] // parts
    return tensor.narrow(0, position * size, size)


@dataclass(slots=True, eq=False)
class Entry:
    """The encoded values of one computed call: `values` holds one item per stream, rows ordered as `branches`.

    `origin` is each stream's dtype and device before it was moved to the cache's. `signal` is what an aligned predictor
    watched then, in the same row order. `held` are the storages behind all of it, identity -> bytes.
    """

    step: Step
    branches: tuple[Branch, ...]
    values: list[Any]
    origin: list[tuple[torch.dtype, torch.device] | None]
    held: dict[int, int]
    signal: Tensor | None = None

    def watched(self, branch: Branch) -> Tensor | None:
        """One branch's rows of the signal."""
        if self.signal is None or len(self.branches) == 1:
            return self.signal
        return rows_of(self.signal, self.branches.index(branch), len(self.branches))

    def value(self, stream: int, branch: Branch) -> Any:
        """One branch's rows of one stream."""
        if len(self.branches) == 1:
            return self.values[stream]
        position, parts = self.branches.index(branch), len(self.branches)
        return map_tensors(self.values[stream], lambda t: rows_of(t, position, parts))


class History:
    """What is kept of one site: computed values, newest last, readable per branch.

    Branches computed in one call share an entry, so that a prediction for both is one operation on the whole batch;
    where their histories differ, each branch is predicted from its own rows.
    """

    def __init__(
        self,
        predictor: Predictor,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        transfers: Transfers | None = None,
    ) -> None:
        self.predictor = predictor
        self.depth = predictor.history
        self.dtype, self.device, self.transfers = dtype, device, transfers
        self.entries: list[Entry] = []

    def has(self, branch: Branch) -> bool:
        return any(branch in entry.branches for entry in self.entries)

    def add(
        self,
        step: Step,
        branches: tuple[Branch, ...],
        streams: Sequence[Tensor | None],
        *,
        own: bool,
        signal: Tensor | None = None,
    ) -> None:
        """Keep a computed value. `own=False` copies: the tensors are views of something larger, or will be changed.

        `signal`: what an aligned predictor watched, in the same row order; kept too.
        """
        values = []
        origin = [None if stream is None else (stream.dtype, stream.device) for stream in streams]
        for stream in streams:
            value = None if stream is None else self.predictor.encode(stream)
            if not own:
                value = map_tensors(value, torch.clone)
            if self.dtype is not None or self.device is not None:
                value = map_tensors(value, self._stored)
            values.append(value)
        if signal is not None:
            signal = signal.clone()
        entry = Entry(step, branches, values, origin, storages([values, signal]), signal)
        self.entries.append(entry)
        self._trim()

    def _stored(self, tensor: Tensor) -> Tensor:
        """A tensor in the cache's dtype and on its device."""
        tensor, device = tensor.to(self.dtype or tensor.dtype), self.device or tensor.device
        if self.transfers is not None and self.transfers.serves(tensor.device, device):
            return self.transfers.park(tensor)
        return tensor.to(device)

    def _restored(self, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A stored tensor in the dtype and on the device of the original."""
        if self.transfers is not None and self.transfers.serves(device, tensor.device):
            tensor = self.transfers.fetch(tensor, device)
        return tensor.to(device=device, dtype=dtype)

    def _trim(self) -> None:
        """Drop entries that no branch can read any more: each reads its newest `depth`."""
        read: dict[Branch, int] = {}
        keep = []
        for entry in reversed(self.entries):
            wanted = False
            for branch in entry.branches:
                read[branch] = read.get(branch, 0) + 1
                wanted |= read[branch] <= self.depth
            if wanted:
                keep.append(entry)
        if len(keep) < len(self.entries):
            self.entries = keep[::-1]

    def release(self, unread: Callable[[int, Branch], bool]) -> None:
        """Drop every entry whose step and branches are all unread by any later step."""
        keep = [e for e in self.entries if not all(unread(e.step.index, b) for b in e.branches)]
        if len(keep) < len(self.entries):
            self.entries = keep

    def storages(self) -> dict[int, int]:
        """Identity -> bytes of the storages of everything kept."""
        held: dict[int, int] = {}
        for entry in self.entries:
            held.update(entry.held)
        return held

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept; a storage that several values share counts once."""
        return sum(self.storages().values())

    def clear(self) -> None:
        self.entries = []

    def predict(self, step: Step, branches: tuple[Branch, ...], signal: Tensor | None = None) -> list[Tensor | None]:
        """Stand-ins for every stream, rows ordered as `branches`, in the dtype and on the device of the originals.

        `signal`: what an aligned predictor watches now, rows ordered as `branches`. Such a predictor measures it, so
        each branch is predicted by itself.
        """
        histories = [[e for e in self.entries if b in e.branches][-self.depth :] for b in branches]
        first = histories[0]
        shared = all(h == first for h in histories[1:]) and all(e.branches == branches for e in first)
        shared = shared and self.predictor.signal is None
        result: list[Tensor | None] = []
        for s in range(len(first[-1].values)):
            if first[-1].values[s] is None:
                result.append(None)
                continue
            origin = first[-1].origin[s]
            if shared:
                value = self._predict([Past(e.step, e.values[s]) for e in first], step, origin)
            else:
                parts = [
                    self._predict(
                        [Past(e.step, e.value(s, b), e.watched(b)) for e in history],
                        step,
                        origin,
                        None if signal is None else rows_of(signal, position, len(branches)),
                    )
                    for position, (b, history) in enumerate(zip(branches, histories, strict=True))
                ]
                value = parts[0] if len(parts) == 1 else torch.cat(parts)
            result.append(value)
        return result

    def _predict(
        self,
        past: list[Past],
        step: Step,
        origin: tuple[torch.dtype, torch.device] | None,
        signal: Tensor | None = None,
    ) -> Tensor:
        if origin is not None and (self.dtype is not None or self.device is not None):
            dtype, device = origin
            past = [
                Past(p.step, map_tensors(p.value, lambda t: self._restored(t, dtype, device)), p.signal) for p in past
            ]
        if signal is not None:
            return self.predictor.align(past, step, signal)
        return self.predictor.predict(past, step)

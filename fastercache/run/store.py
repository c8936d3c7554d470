"""Cached values of one site, per branch: entries, histories, bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from fastercache.policies.base import Now, Past, Predictor
from fastercache.policies.signals import declared
from fastercache.policies.vocabulary import Branch, Step
from fastercache.run.rows import Rows
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
    if isinstance(value, dict):
        return {key: map_tensors(item, fn) for key, item in value.items()}
    return value


def storages(values: Any) -> dict[int, int]:
    """Identity -> bytes of the distinct storages behind the tensors of a nested value; works on meta tensors too."""
    found = {}
    for tensor in tensors_in(values):
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    return found


@dataclass(slots=True, eq=False)
class Entry:
    """What a predictor keeps of one computed call: `values` holds one item per stream, rows ordered as `branches`.

    `origin` holds, for each stream, the dtype and device of each tensor before it was moved to the cache's. `held` are
    the storages behind the values, identity -> bytes.
    """

    step: Step
    branches: tuple[Branch, ...]
    values: list[Any]
    origin: list[list[tuple[torch.dtype, torch.device]]]
    held: dict[int, int]

    def value(self, stream: int, branch: Branch) -> Any:
        """One branch's rows of one stream."""
        rows = Rows(self.branches)
        return map_tensors(self.values[stream], lambda t: rows.of(t, (branch,)))


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
        *,
        seen_by_first: bool = False,
    ) -> None:
        """`seen_by_first`: what the predictor needs belongs to the first stream alone, as a denoiser's input does."""
        self.predictor = predictor
        self.depth = predictor.depth
        declared(predictor.needs, f"what the predictor {type(predictor).__name__} needs")
        self.seen_by_first = seen_by_first
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
        seen: Tensor | None = None,
    ) -> None:
        """Keep a computed value. `own=False` copies: the tensors are others' too, or will be changed.

        `seen`: what the predictor needs, in the same row order.
        """
        values, origin = [], []
        copies: dict[int, Tensor] = {}  # of what was seen, shared by the streams
        for s, stream in enumerate(streams):
            value = None if stream is None else self._kept(stream, self._seen(seen, s), own, copies)
            origin.append([(t.dtype, t.device) for t in tensors_in(value)])
            if self.dtype is not None or self.device is not None:
                value = map_tensors(value, self._stored)
            values.append(value)
        self.entries.append(Entry(step, branches, values, origin, storages(values)))
        self._trim()

    def _seen(self, seen: Tensor | None, stream: int) -> Tensor | None:
        return None if stream > 0 and self.seen_by_first else seen

    def _kept(self, value: Tensor, seen: Tensor | None, own: bool, copies: dict[int, Tensor]) -> Any:
        """What the predictor keeps, copied where it is (part of) something that is not the cache's own."""
        kept = self.predictor.keep(value, seen)
        foreign = {t.untyped_storage()._cdata for t in (seen, None if own else value) if t is not None}

        def copied(tensor: Tensor) -> Tensor:
            if tensor is seen:
                if id(seen) not in copies:
                    copies[id(seen)] = tensor.clone()
                return copies[id(seen)]
            storage = tensor.untyped_storage()
            # A slice, as the text's part of a joint attention's output, would keep all of what it was cut from.
            return tensor.clone() if storage._cdata in foreign or storage.nbytes() > tensor.nbytes else tensor

        return map_tensors(kept, copied)

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

    def predict(self, step: Step, branches: tuple[Branch, ...], seen: Tensor | None = None) -> list[Tensor | None]:
        """Stand-ins for every stream, rows ordered as `branches`, in the dtype and on the device of the originals.

        `seen`: what the predictor needs, now, rows ordered as `branches`. A predictor with needs may measure it, so
        each branch is predicted by itself.
        """
        histories = [[e for e in self.entries if b in e.branches][-self.depth :] for b in branches]
        first = histories[0]
        newest = first[-1]
        shared = all(h == first for h in histories[1:]) and all(e.branches == branches for e in first)
        shared = shared and self.predictor.needs is None
        result: list[Tensor | None] = []
        for s, kept in enumerate(newest.values):
            if kept is None:
                result.append(None)
                continue
            origin = newest.origin[s]
            if shared:
                value = self._predict([Past(e.step, e.values[s]) for e in first], Now(step), origin)
            else:
                given, rows = self._seen(seen, s), Rows(branches)
                value = rows.join(
                    {
                        (b,): self._predict(
                            [Past(e.step, e.value(s, b)) for e in history],
                            Now(step, None if given is None else rows.of(given, (b,))),
                            origin,
                        )
                        for b, history in zip(branches, histories, strict=True)
                    }
                )
            result.append(value)
        return result

    def _predict(self, past: list[Past], now: Now, origin: list[tuple[torch.dtype, torch.device]]) -> Tensor:
        if self.dtype is not None or self.device is not None:
            past = [Past(p.step, self._all_restored(p.value, iter(origin))) for p in past]
        return self.predictor.predict(past, now)

    def _all_restored(self, value: Any, origin: Iterator[tuple[torch.dtype, torch.device]]) -> Any:
        return map_tensors(value, lambda t: self._restored(t, *next(origin)))

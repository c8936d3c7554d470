"""Which rows of a tensor belong to which branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastercache.model.layout import equal_parts
from fastercache.policies.vocabulary import Branch

Streams = list[Tensor | None]
"""What a module or a run of blocks returns: a tensor for each stream, None where there is none."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows along the leading axis in equal parts, one for each branch, in this order. All cutting and joining by branch
    goes through here."""

    branches: tuple[Branch, ...]

    def of(self, tensor: Tensor, some: tuple[Branch, ...]) -> Tensor:
        """The rows of some branches, in the order given: a view where they lie side by side, else a copy."""
        if some == self.branches:
            return tensor
        return equal_parts(tensor, [self.branches.index(branch) for branch in some], len(self.branches))

    def apart(self, tensor: Tensor) -> list[Tensor]:
        """The rows of each branch by itself, as views."""
        if len(self.branches) == 1:
            return [tensor]
        size = tensor.shape[0] // len(self.branches)
        return [tensor.narrow(0, i * size, size) for i in range(len(self.branches))]

    def of_streams(self, streams: Sequence[Tensor | None], some: tuple[Branch, ...]) -> Streams:
        """The same of every stream."""
        return [None if stream is None else self.of(stream, some) for stream in streams]

    def join(self, parts: Mapping[tuple[Branch, ...], Tensor]) -> Tensor:
        """The rows of all branches, from tensors that hold the rows of some of them each: branches -> their rows."""
        if self.branches in parts:
            return parts[self.branches]
        rows = {b: own for some, tensor in parts.items() for b, own in zip(some, Rows(some).apart(tensor), strict=True)}
        return torch.cat([rows[branch] for branch in self.branches])

    def join_streams(self, parts: Mapping[tuple[Branch, ...], Streams]) -> Streams:
        """The same of every stream; None where a part has none."""
        parts = {some: streams for some, streams in parts.items() if some}
        result: Streams = []
        for stream in zip(*parts.values(), strict=True):
            there = {some: tensor for some, tensor in zip(parts, stream, strict=True) if tensor is not None}
            result.append(self.join(there) if len(there) == len(parts) else None)
        return result

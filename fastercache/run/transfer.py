"""Copies between the device that computes and host memory, on a stream of their own.

A plain copy to the host stops the program until the device has caught up. These wait for nothing: copies out follow
what was computed before them, copies in follow the copies out, and what is computed next waits for its copy in, on the
device alone. Host memory is pinned, without which such copies are not asynchronous.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


class Streams(Protocol):
    """What is needed of a device's streams; `torch.cuda`'s are `CudaStreams`."""

    def current(self, device: torch.device) -> Any:
        """The stream that computes; it can `wait_stream(other)`."""

    def side(self, device: torch.device) -> Any:
        """The stream that copies, always the same one."""

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Issue work to a stream."""

    def pinned(self, tensor: Tensor) -> Tensor:
        """Pinned host memory of a tensor's shape and dtype."""

    def copied(self, into: Tensor, source: Tensor) -> Tensor:
        """`into`, with a copy from `source` issued to the stream in use."""

    def keep(self, tensor: Tensor, stream: Any) -> None:
        """Do not hand a tensor's memory on before the stream is done with it."""


class CudaStreams:
    """`torch.cuda`'s streams, one for copying on each device."""

    def __init__(self) -> None:
        self._sides: dict[torch.device, torch.cuda.Stream] = {}

    def current(self, device: torch.device) -> Any:
        return torch.cuda.current_stream(device)

    def side(self, device: torch.device) -> Any:
        if device not in self._sides:
            self._sides[device] = torch.cuda.Stream(device)
        return self._sides[device]

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def pinned(self, tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def copied(self, into: Tensor, source: Tensor) -> Tensor:
        return into.copy_(source, non_blocking=True)

    def keep(self, tensor: Tensor, stream: Any) -> None:
        tensor.record_stream(stream)


class Transfers:
    """Asynchronous copies to the host and back."""

    def __init__(self, streams: Streams | None = None) -> None:
        self.streams: Streams = CudaStreams() if streams is None else streams

    def serves(self, compute: torch.device, host: torch.device) -> bool:
        """Whether copies between these two are made here; all others are plain ones."""
        return compute.type == "cuda" and host.type == "cpu"

    def park(self, tensor: Tensor) -> Tensor:
        """A copy in pinned host memory. Only `fetch` may read it: it may not have arrived yet."""
        streams, side = self.streams, self.streams.side(tensor.device)
        host = streams.pinned(tensor)
        side.wait_stream(streams.current(tensor.device))  # until the tensor is computed
        with streams.using(side):
            streams.copied(host, tensor)
        streams.keep(tensor, side)
        return host

    def fetch(self, host: Tensor, device: torch.device) -> Tensor:
        """A parked tensor on the device, ready for what the current stream does next."""
        streams, side = self.streams, self.streams.side(device)
        with streams.using(side):  # after the copy out, on the same stream; the memory is the side stream's own
            found = streams.copied(torch.empty_like(host, device=device, pin_memory=False), host)
        current = streams.current(device)
        current.wait_stream(side)
        streams.keep(found, current)
        return found

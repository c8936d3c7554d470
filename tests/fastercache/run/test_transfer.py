"""Copies to host memory and back on a stream of their own: in order, however late each stream gets to its work.

No accelerator is needed: the streams here are queues that do nothing until somebody must wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.policies.predictors.history import Difference
from fastercache.policies.vocabulary import COND, Step
from fastercache.run.store import History
from fastercache.run.transfer import Transfers
from fastercache.zoo.specimen import Specimen

CPU = torch.device("cpu")


class Queue:
    """A stream as late as can be: work is done only when a stream that waits for it must run."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], Any]] = []

    def issue(self, work: Callable[[], Any]) -> None:
        self.pending.append(work)

    def wait_stream(self, other: Queue) -> None:
        until = list(other.pending)
        self.issue(lambda: other.run(until))

    def run(self, only: list[Callable[[], Any]] | None = None) -> None:
        """Do all work, or what of `only` is left, in order."""
        while self.pending and (only is None or self.pending[0] in only):
            self.pending.pop(0)()


class Queues:
    """Two streams of one device."""

    def __init__(self) -> None:
        self.compute, self.copies = Queue(), Queue()
        self.used = self.compute
        self.kept: list[tuple[int, Queue]] = []

    def current(self, device: torch.device) -> Queue:
        return self.compute

    def side(self, device: torch.device) -> Queue:
        return self.copies

    @contextmanager
    def using(self, stream: Queue) -> Iterator[None]:
        self.used, before = stream, self.used
        yield
        self.used = before

    def pinned(self, tensor: Tensor) -> Tensor:
        return torch.full_like(tensor, torch.nan)

    def copied(self, into: Tensor, source: Tensor) -> Tensor:
        self.used.issue(lambda: into.copy_(source))
        return into.fill_(torch.nan)

    def keep(self, tensor: Tensor, stream: Queue) -> None:
        self.kept.append((id(tensor), stream))


def test_a_value_goes_out_after_it_is_computed_and_comes_back_before_it_is_read() -> None:
    queues = Queues()
    transfers = Transfers(queues)
    value, seen = torch.full((3,), torch.nan), []
    queues.compute.issue(lambda: value.fill_(7.0))
    host = transfers.park(value)
    back = transfers.fetch(host, CPU)
    queues.compute.issue(lambda: seen.append(back.clone()))
    assert host.isnan().all() and back.isnan().all(), "nothing has waited yet"
    queues.compute.run()
    assert torch.equal(seen[0], torch.full((3,), 7.0))
    assert queues.kept == [(id(value), queues.copies), (id(back), queues.compute)]


@pytest.mark.parametrize("left_out", ["copies", "compute"])
def test_without_either_wait_the_value_is_not_there(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queues = Queues()
    monkeypatch.setattr(getattr(queues, left_out), "wait_stream", lambda other: None)
    transfers = Transfers(queues)
    value, seen = torch.full((3,), torch.nan), []
    queues.compute.issue(lambda: value.fill_(7.0))
    back = transfers.fetch(transfers.park(value), CPU)
    if left_out == "copies":
        queues.copies.run()  # the copying stream is early
    queues.compute.issue(lambda: seen.append(back.clone()))
    queues.compute.run()
    assert seen[0].isnan().any()


class Prompt(Queues):
    """Copies at once, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def copied(self, into: Tensor, source: Tensor) -> Tensor:
        self.count += 1
        return into.copy_(source)


class Everywhere(Transfers):
    """Serves the CPU as if it were an accelerator."""

    def serves(self, compute: torch.device, host: torch.device) -> bool:
        return True


def test_a_history_goes_through_the_copies_both_ways() -> None:
    queues = Prompt()
    steps = [Step(index=i, count=4, timestep=1000.0 - i) for i in range(4)]
    plain = History(Difference(weight=0.5, order=1, gap=1))
    parked = History(Difference(weight=0.5, order=1, gap=1), torch.float64, CPU, Everywhere(queues))
    for history in (plain, parked):
        for i in range(2):
            history.add(steps[i], (COND,), [torch.full((1, 2), float(i))], own=True)
    assert queues.count == 2
    assert parked.nbytes == 2 * plain.nbytes
    (expected,), (stand_in,) = (history.predict(steps[2], (COND,)) for history in (plain, parked))
    assert queues.count == 4
    assert expected is not None and stand_in is not None and stand_in.dtype == torch.float32
    assert torch.equal(stand_in, expected)


def test_where_the_cache_is_on_the_device_that_computes_copies_are_plain(latte: Specimen) -> None:
    with fc.attach(latte.pipe, fc.FasterCache()):
        expected = latte.generate()
    with fc.attach(latte.pipe, fc.FasterCache(), cache_device="cpu") as session:
        assert torch.equal(latte.generate(), expected)
        assert session.last.cached_bytes > 0

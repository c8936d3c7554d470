"""What a session is doing right now, for tests, laws and tools that look at it from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastercache.model.families import Guidance
from fastercache.policies.vocabulary import Branch


@dataclass(frozen=True)
class Inspection:
    """`Session.inspect()`. Of several denoisers it describes the first.

    Attributes:
        guidance: how the loop calls the denoiser: `batched`, `separate` or `none`.
        expected: the branches in the order of the rows or calls, as known before a run.
        order: the same in the newest run.
        groups: the branches of each denoiser call of a step of that run, in row order; empty before the first run.
        coupled: whether no branch of a call can be left out, since the model tells branches by their place.
        step: which step the run stands at; the number of steps once it has ended.
        holders: everything that may hold a value of the run. A walk over all references from here finds every cached
            tensor, whatever the session itself has counted.
    """

    guidance: Guidance
    expected: tuple[Branch, ...]
    order: tuple[Branch, ...]
    groups: tuple[tuple[Branch, ...], ...]
    coupled: bool
    step: int
    holders: tuple[Any, ...]

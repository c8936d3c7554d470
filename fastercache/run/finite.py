"""Whether the denoiser's outputs are finite: one sum a call, read when its step has ended.

On a CUDA device reading would wait until the device has caught up, and leave it idle until the next step has begun. The
sum is therefore sent on its way and read once it has arrived, a step or so later; only a run's end waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastercache.policies.errors import NotFinite
from fastercache.policies.vocabulary import Branch, Step


class Seen(NamedTuple):
    """One output: when it was made, by which sites' kept values, and its sum."""

    step: Step
    branches: tuple[Branch, ...]
    reused: Sequence[str]
    total: Tensor


@dataclass(frozen=True)
class Sent:
    """A step's outputs and their common sum, on its way to the processor.

    Attributes:
        parts: the step's outputs. total: their sum, of no axis, on the CPU. arrived: the device's own mark behind the
            copy; None where there was nothing to wait for.
    """

    parts: list[Seen]
    total: Tensor
    arrived: Any | None

    @classmethod
    def of(cls, parts: list[Seen]) -> Sent:
        first = parts[0].total
        total = first if len(parts) == 1 else torch.stack([one.total.to(first) for one in parts]).sum()
        if not total.is_cuda:
            return cls(parts, total.cpu(), None)
        here = torch.empty((), dtype=total.dtype, pin_memory=True)
        here.copy_(total, non_blocking=True)
        mark = torch.cuda.Event()
        mark.record(torch.cuda.current_stream(total.device))
        return cls(parts, here, mark)

    def check(self) -> None:
        """Raises NotFinite, naming step, branches and site."""
        if math.isfinite(self.total.item()):
            return
        for step, branches, reused, total in self.parts:
            if not math.isfinite(total.item()):
                cause = f"with values reused at {_some(reused)}" if reused else "as the model computed it"
                when = f"step {step.index} of {step.count} (timestep {step.timestep:g}), branches {', '.join(branches)}"
                raise NotFinite(f"the denoiser's output contains NaN or infinity at {when}, {cause}")


class FiniteWatch:
    """Sums of one denoiser's outputs in a run. NaN and infinity stay in a sum, whatever else it holds."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._sent: deque[Sent] = deque()

    def see(
        self, step: Step, branches: tuple[Branch, ...], reused: Sequence[str], outputs: Sequence[Tensor | None]
    ) -> None:
        """Note a call's outputs, and the sites whose values stood in for computed ones."""
        for output in outputs:
            if output is None or output.is_meta or not output.is_floating_point():
                continue
            # Half precision would overflow.
            total = output.sum(dtype=torch.promote_types(output.dtype, torch.float32))
            self._seen.append(Seen(step, branches, reused, total))

    def clear(self) -> None:
        self._seen = []
        self._sent.clear()

    def check(self, last: bool) -> None:
        """At a step's end; `last` at that of the run, which waits for what is still on its way. Raises NotFinite."""
        if self._seen:
            parts, self._seen = self._seen, []
            self._sent.append(Sent.of(parts))
        while self._sent:
            mark = self._sent[0].arrived
            if mark is not None and not mark.query():
                if not last:
                    return
                mark.synchronize()
            self._sent.popleft().check()


def _some(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - 3} more sites" if len(sites) > 3 else ""
    return ", ".join(sites[:3]) + more

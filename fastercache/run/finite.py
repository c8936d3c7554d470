"""Whether the denoiser's outputs are finite: one sum a call, read once when the step has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastercache.policies.errors import NotFinite
from fastercache.policies.vocabulary import Branch, Step


class FiniteWatch:
    """Sums of one denoiser's outputs in the present step. NaN and infinity stay in a sum, whatever else it holds."""

    def __init__(self) -> None:
        self._seen: list[tuple[Step, tuple[Branch, ...], Sequence[str], Tensor]] = []

    def see(
        self, step: Step, branches: tuple[Branch, ...], reused: Sequence[str], outputs: Sequence[Tensor | None]
    ) -> None:
        """Note a call's outputs, and the sites whose values stood in for computed ones."""
        for output in outputs:
            if output is None or output.is_meta or not output.is_floating_point():
                continue
            # Half precision would overflow.
            total = output.sum(dtype=torch.promote_types(output.dtype, torch.float32))
            self._seen.append((step, branches, reused, total))

    def clear(self) -> None:
        self._seen = []

    def check(self) -> None:
        """At a step's end. Raises NotFinite, naming step, branches and site."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        totals = seen[0][3] if len(seen) == 1 else torch.stack([total.to(seen[0][3]) for *_, total in seen]).sum()
        if math.isfinite(totals.item()):
            return
        for step, branches, reused, total in seen:
            if not math.isfinite(total.item()):
                cause = f"with values reused at {_some(reused)}" if reused else "as the model computed it"
                when = f"step {step.index} of {step.count} (timestep {step.timestep:g}), branches {', '.join(branches)}"
                raise NotFinite(f"the denoiser's output contains NaN or infinity at {when}, {cause}")


def _some(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - 3} more sites" if len(sites) > 3 else ""
    return ", ".join(sites[:3]) + more

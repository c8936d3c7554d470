"""How well one guidance branch's output stands in for another's, step by step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastercache.analysis.measures import BANDS, ORDER, band_similarity, similarity
from fastercache.policies.vocabulary import COND, Branch

Array = NDArray[np.float64]


class GuidanceTape:
    """How well the conditional output stands in for each other branch's, per step, whole and by band.

    The denominator is the other branch's output, which is what a policy would skip. Values whose last two axes are not
    latent height and width (packed tokens, fewer than four axes) have no bands here; `bands` tells. Pairs are compared
    `together` at a time.
    """

    TOGETHER = 8

    def __init__(
        self, steps: int, branches: tuple[Branch, ...], device: torch.device, together: int = TOGETHER
    ) -> None:
        self.branches, self.bands, self._together = branches, True, together
        shape = (len(branches), steps, len(BANDS), len(ORDER))
        with torch.inference_mode(False):
            self._values = torch.full(shape, torch.nan, device=device)
        self._step, self._arrived = -1, dict[Branch, Tensor]()
        self._pairs: list[tuple[int, int, Tensor, Tensor]] = []  # place of the branch, step, conditional, other

    def add(self, step: int, branch: Branch, value: Tensor) -> None:
        """Note a branch's denoiser output (B, C, ..., H, W); the branches of a step may come in any order."""
        if step != self._step:
            self._step, self._arrived = step, {}
            if len(self._pairs) + len(self.branches) - 1 > self._together:
                self._compare()
        self._arrived[branch] = value.detach().clone()
        cond = self._arrived.get(COND)
        if cond is None:
            return
        for other in list(self._arrived) if branch == COND else [branch]:
            if other != COND:
                self._pairs.append((self.branches.index(other), step, cond, self._arrived.pop(other)))

    def _compare(self) -> None:
        if not self._pairs:
            return
        places, steps, conds, others = zip(*self._pairs, strict=True)
        self._pairs = []
        a, b = torch.stack(conds), torch.stack(others)  # (pairs, B, C, ..., H, W)
        if conds[0].ndim >= 4:
            found = band_similarity(a, b, batched=True)
        else:
            self.bands = False
            found = torch.full((len(steps), len(BANDS), len(ORDER)), torch.nan, device=a.device)
            found[:, 0] = similarity(a, b, batched=True)
        self._values[list(places), list(steps)] = found.to(self._values.device)

    def close(self) -> Array:
        """(branches, T, bands, measures); NaN for the conditional branch and where a branch was not there."""
        self._compare()
        return self._values.double().cpu().numpy()


def pair_bytes(value: Tensor) -> int:
    """Bytes that one pair of outputs like `value` takes until it is compared, comparing included."""
    return value.numel() * (4 * value.element_size() + 128)

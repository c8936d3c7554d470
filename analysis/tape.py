"""What is kept of one site and branch while a run goes on, and the statistics it becomes when the run ends.

Nothing here waits for the device: sums land in preallocated tensors and cross over once, at the end of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.measures import BANDS, ORDER, band_similarity, from_norms, similarity
from analysis.sketch import Coordinates, Projection
from policies.vocabulary import COND, Branch

Array = NDArray[np.float64]
_SCRATCH = 1 << 17  # elements of the differences computed at once, so that they stay in a processor's cache


@dataclass(frozen=True, slots=True)
class TapeStatistics:
    """One site and branch in one run of T steps; NaN where the site was not reached.

    Attributes:
        l1: mean|F_i|, (T,), exact.
        rms: root of mean F_i², (T,), exact.
        lag_l1, lag_rms: mean|F_i − F_{i−k}| and root of mean (F_i − F_{i−k})² for k = 1..K, (T, K), exact.
        gram: mean F_i F_j, (T, T), from the projection (its diagonal too, so that it stays positive semi-definite).
        matrices: cosine, relative L1 and relative L2 of step j standing in for step i, (T, T, 3) in the order of
            `measures.ORDER`; exact up to lag K, estimated beyond.
        check: estimated over exact distance, minus 1, at every lag up to K: (cells, 2) for L1 and L2; empty where the
            summaries are exact.
    """

    l1: Array
    rms: Array
    lag_l1: Array
    lag_rms: Array
    gram: Array
    matrices: Array
    check: Array


class Workspace:
    """What tapes of one size and device share: the two summaries and room for a difference."""

    def __init__(self, numel: int, device: torch.device, lags: int, sketch: int, sample: int, seed: int) -> None:
        self.lags = lags
        self.rows = max(1, min(lags, _SCRATCH // max(numel, 1)))
        with torch.inference_mode(False):  # so that later runs may use it in any mode
            self.projection = Projection(numel, sketch, seed, device)
            self.sample = Coordinates(numel, sample, seed, device)
            self.scratch = torch.empty((self.rows, numel), dtype=torch.float32, device=device)


class Tape:
    """Streams one site's values: a ring of the last K of them, exact norms and lags, and the two summaries.

    Memory: K values of the site, plus per step the summaries' widths and 2 + 2 K numbers.
    """

    def __init__(self, steps: int, value: Tensor, workspace: Workspace) -> None:
        self.steps, self.lags, self.numel = steps, workspace.lags, value.numel()
        self.dtype, self.device = value.dtype, value.device
        self._rows, self._scratch = workspace.rows, workspace.scratch
        self._projection, self._sample = workspace.projection, workspace.sample
        lags, projection, sample = workspace.lags, workspace.projection, workspace.sample
        with torch.inference_mode(False):
            self._ring = torch.empty((lags, self.numel), dtype=value.dtype, device=value.device)
            self._sketches = torch.empty((steps, projection.width), dtype=torch.float32, device=value.device)
            self._samples = torch.empty((steps, sample.width), dtype=torch.float32, device=value.device)
            self._norms = torch.empty((2, steps), dtype=torch.float32, device=value.device)
            self._lagged = torch.empty((2, steps, lags), dtype=torch.float32, device=value.device)
        self.reset()

    def reset(self) -> None:
        """Begin another run."""
        self._seen: list[int] = []  # steps recorded, in order
        self._slots: dict[int, list[int]] = {}  # step -> steps that the ring's filled slots held when it was compared

    def fits(self, value: Tensor) -> bool:
        return (value.numel(), value.dtype, value.device) == (self.numel, self.dtype, self.device)

    def add(self, step: int, value: Tensor) -> None:
        """Record a step's value (any shape). A second call for a step replaces the first."""
        native = value.detach().reshape(-1)
        x = native.float()
        if self._seen and self._seen[-1] == step:
            self._seen.pop()
        place = len(self._seen)
        filled = min(place, self.lags)
        torch.sum(x.abs(), 0, out=self._norms[0, step])
        torch.linalg.vector_norm(x, out=self._norms[1, step])
        self._sketches[step] = self._projection(x)
        self._samples[step] = self._sample(x)
        for start in range(0, filled, self._rows):
            stop = min(start + self._rows, filled)
            difference = torch.sub(self._ring[start:stop], x, out=self._scratch[: stop - start])
            torch.linalg.vector_norm(difference, dim=1, out=self._lagged[1, step, start:stop])
            torch.sum(difference.abs_(), 1, out=self._lagged[0, step, start:stop])
        # Slot s holds the newest recorded value whose place is s modulo the lags.
        newest = (place - 1 - (place - 1 - s) % self.lags for s in range(filled))
        self._slots[step] = [self._seen[p] for p in newest]
        self._ring[place % self.lags].copy_(native)
        self._seen.append(step)

    def close(self) -> TapeStatistics:
        """The statistics of the run that was recorded. The one place that waits for the device."""
        n, seen = self.numel, self._seen
        norms = self._norms.double().cpu()
        l1, rms = torch.full((2, self.steps), torch.nan, dtype=torch.float64)
        l1[seen], rms[seen] = norms[0, seen] / n, norms[1, seen] / n**0.5
        lag_l1, lag_rms = torch.full((2, self.steps, self.lags), torch.nan, dtype=torch.float64)
        places = [
            (step, step - other - 1, slot)
            for step, held in self._slots.items()
            for slot, other in enumerate(held)
            if 1 <= step - other <= self.lags
        ]
        if places:
            row, lag, slot = torch.tensor(places).T
            lagged = self._lagged.double().cpu()[:, row, slot]
            lag_l1[row, lag], lag_rms[row, lag] = lagged[0] / n, lagged[1] / n**0.5
        sketches = self._sketches[seen].double().cpu()
        gram = _spread(sketches @ sketches.T / n, seen, self.steps)
        apart_l1 = torch.zeros((len(seen), len(seen)), dtype=torch.float64)
        pairs = torch.pdist(self._samples[seen], p=1.0).double().cpu() / self._sample.width
        above, right = torch.triu_indices(len(seen), len(seen), 1)
        apart_l1[above, right] = apart_l1[right, above] = pairs
        square = gram.diagonal()
        apart = (square[:, None] + square[None, :] - 2 * gram).clamp(min=0).sqrt()
        estimated = torch.stack((_spread(apart_l1, seen, self.steps), apart))  # (2, T, T)
        exact = estimated.clone()
        for k in range(1, self.lags + 1):
            for which, values in enumerate((lag_l1[k:, k - 1], lag_rms[k:, k - 1])):
                exact[which].diagonal(-k).copy_(values)
                exact[which].diagonal(k).copy_(values)
        known = torch.ones_like(gram).tril(-1).triu(-self.lags).bool() & (exact > 0).all(0)
        check = (estimated[:, known] / exact[:, known] - 1.0).T
        if self._projection.width == n and self._sample.width == n:
            check = check[:0]
        # Row i is replaced (denominator), column j stands in for it.
        matrices = from_norms(exact[0], exact[1], l1[:, None], rms[None, :], rms[:, None])
        return TapeStatistics(*(t.numpy() for t in (l1, rms, lag_l1, lag_rms, gram, matrices, check)))


def _spread(square: Tensor, at: list[int], size: int) -> Tensor:
    """A matrix over the recorded steps as one over all steps, NaN elsewhere."""
    full = torch.full((size, size), torch.nan, dtype=torch.float64)
    index = torch.tensor(at)
    full[index[:, None], index[None, :]] = square
    return full


class GuidanceTape:
    """How well the conditional output stands in for each other branch's, per step, whole and by band.

    The denominator is the other branch's output, which is what a policy would skip. Values whose last two axes are not
    latent height and width (packed tokens, fewer than four axes) have no bands here; `bands` tells.
    """

    def __init__(self, steps: int, branches: tuple[Branch, ...], device: torch.device) -> None:
        self.branches, self.bands = branches, True
        shape = (len(branches), steps, len(BANDS), len(ORDER))
        with torch.inference_mode(False):
            self._values = torch.full(shape, torch.nan, device=device)
        self._step, self._arrived = -1, dict[Branch, Tensor]()

    def add(self, step: int, branch: Branch, value: Tensor) -> None:
        """Note a branch's denoiser output (B, C, ..., H, W); the branches of a step may come in any order."""
        if step != self._step:
            self._step, self._arrived = step, {}
        self._arrived[branch] = value.detach()
        cond = self._arrived.get(COND)
        if cond is None:
            return
        for other in list(self._arrived) if branch == COND else [branch]:
            if other != COND:
                self._compare(step, other, cond, self._arrived.pop(other))

    def _compare(self, step: int, branch: Branch, cond: Tensor, value: Tensor) -> None:
        row = self._values[self.branches.index(branch), step]
        if value.ndim >= 4:
            row.copy_(band_similarity(cond, value))
        else:
            self.bands = False
            row[0].copy_(similarity(cond, value))

    def close(self) -> Array:
        """(branches, T, bands, measures); NaN for the conditional branch and where a branch was not there."""
        self._arrived = {}
        return self._values.double().cpu().numpy()

"""What is kept of one site and branch while a run goes on, and the statistics it becomes when the run ends.

Nothing here waits for the device: sums land in preallocated tensors and cross over once, at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastercache.analysis.measures import BANDS, ORDER, band_similarity, from_norms, similarity
from fastercache.analysis.sketch import Coordinates, Projection
from fastercache.policies.vocabulary import COND, Branch

Array = NDArray[np.float64]
_CACHED = 1 << 18  # elements of a step taken together, so that they stay in a processor's cache


@dataclass(frozen=True, slots=True)
class TapeStatistics:
    """One site and branch (a row of a `Deck`) in one run of T steps; NaN where the site was not reached.

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


class Deck:
    """Tapes of sites and branches whose values have one size, dtype and device, run together.

    A value is only copied when it is reported. Once its step is over, the norms, lags and summaries of all rows are
    computed in a few operations, over as many rows at once as stay in a processor's cache.

    Memory: K + 1 values per row, and per row and step the widths of the summaries and 2 + 2 K numbers.

    Args:
        rows: how many sites and branches. steps: T. value: one of the values. lags: K.
        sketch, sample, seed: of the summaries (see `fastercache.analysis.sketch`).
    """

    def __init__(self, rows: int, steps: int, value: Tensor, *, lags: int, sketch: int, sample: int, seed: int) -> None:
        self.rows, self.steps, self.lags, self.numel = rows, steps, lags, value.numel()
        self.dtype, self.device = value.dtype, value.device
        self._chunk = max(1, min(rows, _CACHED // max(self.numel, 1)))
        with torch.inference_mode(False):  # so that later runs may write them in any mode
            self.projection = Projection(self.numel, sketch, seed, value.device)
            self.sample = Coordinates(self.numel, sample, seed, value.device)
            self._ring = torch.empty((lags + 1, rows, self.numel), dtype=value.dtype, device=value.device)
            self._scratch = torch.empty((self._chunk, self.numel), dtype=torch.float32, device=value.device)
            self._sketches = torch.empty((steps, rows, self.projection.width), dtype=torch.float32, device=value.device)
            self._samples = torch.empty((steps, rows, self.sample.width), dtype=torch.float32, device=value.device)
            self._norms = torch.empty((2, steps, rows), dtype=torch.float32, device=value.device)
            self._lagged = torch.empty((2, lags, steps, rows), dtype=torch.float32, device=value.device)
        self.begin()

    def begin(self) -> None:
        """Forget the last run."""
        self._seen: list[list[int]] = [[] for _ in range(self.rows)]  # per row: steps recorded
        self._held: dict[int, set[int]] = {}  # step -> rows, for what the ring holds
        self._lagged.fill_(torch.nan)

    def fits(self, value: Tensor) -> bool:
        return (value.numel(), value.dtype, value.device) == (self.numel, self.dtype, self.device)

    def put(self, row: int, step: int, value: Tensor) -> None:
        """Keep a row's value (any shape) until `settle`. A second one for the same step replaces the first."""
        if step not in self._held:
            self._held = {s: rows for s, rows in self._held.items() if step - s <= self.lags} | {step: set()}
        self._ring[step % (self.lags + 1), row].copy_(value.detach().reshape(-1))
        self._held[step].add(row)

    def settle(self, step: int) -> None:
        """Compute what is kept of a step, once all its values are there."""
        present = sorted(self._held.get(step, ()))
        # Rows next to each other that can look back on the same steps go together.
        for past, group in groupby(present, lambda r: tuple(s for s in self._held if s < step and r in self._held[s])):
            for start, stop in _stretches(list(group), self._chunk):
                self._reduce(step, past, start, stop)
        for row in present:
            if step not in self._seen[row][-1:]:
                self._seen[row].append(step)

    def _reduce(self, step: int, past: tuple[int, ...], start: int, stop: int) -> None:
        rows = slice(start, stop)
        x = self._ring[step % (self.lags + 1), rows].float()  # (rows, n)
        scratch = self._scratch[: stop - start]
        torch.sum(torch.abs(x, out=scratch), 1, out=self._norms[0, step, rows])
        torch.linalg.vector_norm(x, dim=1, out=self._norms[1, step, rows])
        self._sketches[step, rows] = self.projection(x)
        self._samples[step, rows] = self.sample(x)
        for earlier in past:
            lag = step - earlier - 1
            difference = torch.sub(self._ring[earlier % (self.lags + 1), rows], x, out=scratch)
            torch.linalg.vector_norm(difference, dim=1, out=self._lagged[1, lag, step, rows])
            torch.sum(difference.abs_(), 1, out=self._lagged[0, lag, step, rows])

    def recorded(self, row: int) -> bool:
        """Whether this run had a value for the row."""
        return bool(self._seen[row])

    def close(self, row: int) -> TapeStatistics:
        """The statistics of a row in the run that was recorded. The one place that waits for the device."""
        n, seen = self.numel, self._seen[row]
        l1, rms = torch.full((2, self.steps), torch.nan, dtype=torch.float64)
        norms = self._norms[:, :, row].double().cpu()
        l1[seen], rms[seen] = norms[0, seen] / n, norms[1, seen] / n**0.5
        lagged = self._lagged[..., row].double().cpu().transpose(1, 2)  # (2, T, K)
        lag_l1, lag_rms = lagged[0] / n, lagged[1] / n**0.5
        sketches = self._sketches[seen, row].double().cpu()
        gram = _spread(sketches @ sketches.T / n, seen, self.steps)
        apart_l1 = torch.zeros((len(seen), len(seen)), dtype=torch.float64)
        pairs = torch.pdist(self._samples[seen, row], p=1.0).double().cpu() / self.sample.width
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
        if self.projection.exact and self.sample.exact:
            check = check[:0]
        # Row i is replaced (denominator), column j stands in for it.
        matrices = from_norms(exact[0], exact[1], l1[:, None], rms[None, :], rms[:, None])
        return TapeStatistics(*(t.numpy() for t in (l1, rms, lag_l1, lag_rms, gram, matrices, check)))


def _stretches(rows: list[int], size: int) -> Iterator[tuple[int, int]]:
    """Ascending rows as half-open ranges without gaps, of at most `size` rows."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1 or i - start == size:
            yield rows[start], rows[i - 1] + 1
            start = i


def _spread(square: Tensor, at: list[int], size: int) -> Tensor:
    """A matrix over the recorded steps as one over all steps, NaN elsewhere."""
    full = torch.full((size, size), torch.nan, dtype=torch.float64)
    index = torch.tensor(at)
    full[index[:, None], index[None, :]] = square
    return full


class GuidanceTape:
    """How well the conditional output stands in for each other branch's, per step, whole and by band.

    The denominator is the other branch's output, which is what a policy would skip. Values whose last two axes are not
    latent height and width (packed tokens, fewer than four axes) have no bands here; `bands` tells. Pairs are compared
    a few steps at a time.
    """

    TOGETHER = 8

    def __init__(self, steps: int, branches: tuple[Branch, ...], device: torch.device) -> None:
        self.branches, self.bands = branches, True
        shape = (len(branches), steps, len(BANDS), len(ORDER))
        with torch.inference_mode(False):
            self._values = torch.full(shape, torch.nan, device=device)
        self._step, self._arrived = -1, dict[Branch, Tensor]()
        self._pairs: list[tuple[int, int, Tensor, Tensor]] = []  # place of the branch, step, conditional, other

    def add(self, step: int, branch: Branch, value: Tensor) -> None:
        """Note a branch's denoiser output (B, C, ..., H, W); the branches of a step may come in any order."""
        if step != self._step:
            self._step, self._arrived = step, {}
            if len(self._pairs) >= self.TOGETHER:
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

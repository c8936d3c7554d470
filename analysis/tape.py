"""What is kept of one site and branch while a run goes on, and the statistics it becomes when the run ends.

Nothing here waits for the device: sums land in preallocated tensors and cross over once, at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastercache.analysis.measures import from_norms
from fastercache.analysis.sketch import Coordinates, Projection, Tokens

Array = NDArray[np.float64]
_CACHED = 1 << 19  # elements of a step taken together, so that they stay in a processor's cache


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
        token_check: root mean square of the value's sampled tokens over that of all, minus 1, (steps seen,); empty
            where the value is kept whole.
    """

    l1: Array
    rms: Array
    lag_l1: Array
    lag_rms: Array
    gram: Array
    matrices: Array
    check: Array
    token_check: Array


def chunk_of(rows: int, numel: int) -> int:
    """How many of a deck's rows are reduced at once."""
    return max(1, min(rows, _CACHED // max(numel, 1)))


def deck_bytes(
    rows: int, steps: int, tokens: int, width: int, itemsize: int, *, lags: int, sketch: int, sample: int
) -> tuple[int, int]:
    """The most bytes that a `Deck` holds for values of `tokens` x `width` elements, and those that a reduction needs
    besides, while it lasts."""
    numel = tokens * width
    per_step = 4 * (min(numel, sketch) + min(numel, sample) + 3 + 2 * lags)
    padded = -(-numel // sketch) * sketch if numel > sketch else 0
    chunk = chunk_of(rows, numel)
    held = rows * ((lags + 1) * numel * itemsize + steps * per_step) + 5 * padded + 8 * sample + 8 * tokens
    held += 4 * chunk * (numel + padded) + 8 * rows * (lags + 1)
    return held, 4 * chunk * numel


class Deck:
    """Tapes of sites and branches whose values have one size, dtype and device, run together.

    A value is only copied when it is reported. Once its step is over, the norms, lags and summaries of all rows are
    computed in a few operations, over as many rows at once as stay in a processor's cache.

    Memory: K + 1 values per row, and per row and step the widths of the summaries and 2 + 2 K numbers (`deck_bytes`).
    Where `tokens` are a sample, a value is those of its tokens, and every statistic is one of them.

    Args:
        rows: how many sites and branches. steps: T. value: one of the values. tokens: which of its tokens are kept.
        lags: K. sketch, sample, seed: of the summaries (see `fastercache.analysis.sketch`).
    """

    def __init__(
        self, rows: int, steps: int, value: Tensor, tokens: Tokens, *, lags: int, sketch: int, sample: int, seed: int
    ) -> None:
        self.rows, self.steps, self.lags, self.tokens = rows, steps, lags, tokens
        self.numel = tokens.numel
        self.dtype, self.device = value.dtype, value.device
        self._chunk = chunk_of(rows, self.numel)
        with torch.inference_mode(False):  # so that later runs may write them in any mode
            self.projection = Projection(self.numel, sketch, seed, value.device)
            self.sample = Coordinates(self.numel, sample, seed, value.device)
            self._ring: list[Tensor | None] = [None] * (lags + 1)  # each (rows, n), made when it is first written
            self._scratch = self._empty(self._chunk, self.numel)
            self._signed = self._empty(self._chunk, self.projection.padded)
            self._sketches = self._empty(steps, rows, self.projection.width)
            self._samples = self._empty(steps, rows, self.sample.width)
            self._whole = self._empty(steps, rows)
            # Norms, then norms of differences at each lag, each L1 and L2: of the present step, and of all.
            self._present = self._empty(lags + 1, 2, rows)
            self._norms = self._empty(steps, lags + 1, 2, rows)
        self._rows: list[list[Tensor]] = [[] for _ in self._ring]  # views of the ring, one for each row
        self._parts: dict[tuple[int, int], _Part] = {}
        self.begin()

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def begin(self) -> None:
        """Forget the last run."""
        self._seen: list[list[int]] = [[] for _ in range(self.rows)]  # per row: steps recorded
        self._held: dict[int, set[int]] = {}  # step -> rows, for what the ring holds

    def fits(self, value: Tensor) -> bool:
        return self.tokens.fits(value) and (value.dtype, value.device) == (self.dtype, self.device)

    def put(self, row: int, step: int, value: Tensor) -> None:
        """Keep a row's value (any shape) until `settle`. A second one for the same step replaces the first."""
        self.put_kept(row, step, self.tokens.of(value), self.tokens.mean_square(value))

    def put_kept(self, row: int, step: int, kept: Tensor, mean_square: Tensor | None) -> None:
        """The same, with what `tokens` keeps of the value already taken."""
        if step not in self._held:
            self._held = {s: rows for s, rows in self._held.items() if step - s <= self.lags} | {step: set()}
        self._values(step)[row].copy_(kept)
        if mean_square is not None:
            self._whole[step, row] = mean_square
        self._held[step].add(row)

    def _values(self, step: int) -> list[Tensor]:
        """Where the values of a step lie, (n,) for each row."""
        place = step % (self.lags + 1)
        if self._ring[place] is None:
            with torch.inference_mode(False):
                slot = torch.empty((self.rows, self.numel), dtype=self.dtype, device=self.device)
                self._ring[place], self._rows[place] = slot, list(slot.unbind())
        return self._rows[place]

    def settle(self, step: int) -> None:
        """Compute what is kept of a step, once all its values are there."""
        present = sorted(self._held.get(step, ()))
        if not present:
            return
        self._present.fill_(torch.nan)
        for past, rows in self._alike(step, present):
            for start, stop in _stretches(rows, self._chunk):
                self._reduce(step, past, start, stop)
        self._norms[step] = self._present
        for row in present:
            if step not in self._seen[row][-1:]:
                self._seen[row].append(step)

    def _alike(self, step: int, present: list[int]) -> list[tuple[tuple[int, ...], list[int]]]:
        """Rows next to each other that can look back on the same steps, which go together: these steps, the rows."""
        past = {s: rows for s, rows in self._held.items() if s < step}
        if all(rows >= self._held[step] for rows in past.values()):
            return [(tuple(past), present)]
        found = groupby(present, lambda row: tuple(s for s, rows in past.items() if row in rows))
        return [(steps, list(rows)) for steps, rows in found]

    def _reduce(self, step: int, past: tuple[int, ...], start: int, stop: int) -> None:
        part = self._parts.get((start, stop))
        if part is None:
            part = self._parts[start, stop] = _Part.of(self._scratch, self._signed, self._present, start, stop)
        x = part.of_ring(self._ring, step).float()  # (rows, n)
        scratch, (l1, l2) = part.scratch, part.norms[0]
        torch.sum(torch.abs(x, out=scratch), 1, out=l1)
        torch.linalg.vector_norm(x, dim=1, out=l2)
        self.projection(x, self._sketches[step, part.rows], part.signed)
        self.sample(x, self._samples[step, part.rows])
        for earlier in past:
            l1, l2 = part.norms[step - earlier]
            torch.sub(part.of_ring(self._ring, earlier), x, out=scratch)
            torch.linalg.vector_norm(scratch, dim=1, out=l2)
            torch.sum(scratch.abs_(), 1, out=l1)

    def waiting(self, row: int, step: int) -> tuple[Tensor, Tensor | None] | None:
        """A copy of what `put` kept of a row at this step, and its mean square over all tokens; None for nothing."""
        if row not in self._held.get(step, ()):
            return None
        return self._values(step)[row].clone(), None if self.tokens.whole else self._whole[step, row].clone()

    def recorded(self, row: int) -> bool:
        """Whether this run had a value for the row."""
        return bool(self._seen[row])

    def close(self, rows: Sequence[int]) -> list[TapeStatistics]:
        """The statistics of rows in the run that was recorded. The one place that waits for the device."""
        found: dict[int, TapeStatistics] = {}
        by_seen = sorted(rows, key=lambda row: self._seen[row])
        for seen, group in groupby(by_seen, lambda row: self._seen[row]):
            alike, size = list(group), max(1, _CACHED // self.steps**2)
            for start in range(0, len(alike), size):
                part = alike[start : start + size]
                found.update(zip(part, self._close(part, seen), strict=True))
        return [found[row] for row in rows]

    def _close(self, rows: list[int], seen: list[int]) -> Iterator[TapeStatistics]:
        """Those of rows that were there at the same steps."""
        n, at = self.numel, torch.tensor(seen)
        norms = torch.full((self.steps, self.lags + 1, 2, len(rows)), torch.nan, dtype=torch.float64)
        norms[at] = self._norms[seen][..., rows].double().cpu()
        norms /= torch.tensor([[n], [n**0.5]], dtype=torch.float64)
        (l1, rms), (lag_l1, lag_rms) = norms[:, 0].permute(1, 2, 0), norms[:, 1:].permute(2, 3, 0, 1)
        products, distances = torch.zeros((2, len(rows), len(seen), len(seen)), dtype=torch.float64)
        above, right = torch.triu_indices(len(seen), len(seen), 1)
        every: slice | list[int] = slice(None) if len(seen) == self.steps else seen
        for i, row in enumerate(rows):
            sketches = self._sketches[every, row].double().cpu()
            products[i] = sketches @ sketches.T / n
            pairs = torch.pdist(self._samples[every, row], p=1.0).double().cpu() / self.sample.width
            distances[i, above, right] = distances[i, right, above] = pairs
        gram = _spread(products, at, self.steps)
        square = gram.diagonal(dim1=-2, dim2=-1)
        apart = (square[..., :, None] + square[..., None, :] - 2 * gram).clamp(min=0).sqrt()
        estimated = torch.stack((_spread(distances, at, self.steps), apart))  # (2, rows, T, T)
        exact = estimated.clone()
        for k in range(1, self.lags + 1):
            for which, values in enumerate((lag_l1[:, k:, k - 1], lag_rms[:, k:, k - 1])):
                for offset in (-k, k):
                    exact[which].diagonal(offset, dim1=-2, dim2=-1).copy_(values)
        known = torch.ones_like(gram).tril(-1).triu(-self.lags).bool() & (exact > 0).all(0)
        kept_whole = self.projection.exact and self.sample.exact
        token_check = torch.zeros((len(rows), 0), dtype=torch.float64)
        if not self.tokens.whole:
            token_check = rms[:, at] / self._whole[:, rows][at].T.double().cpu().sqrt() - 1.0
        # Row i is replaced (denominator), column j stands in for it.
        matrices = from_norms(exact[0], exact[1], l1[..., :, None], rms[..., None, :], rms[..., :, None])
        for i in range(len(rows)):
            check = (estimated[:, i, known[i]] / exact[:, i, known[i]] - 1.0).T[: 0 if kept_whole else None]
            there = token_check[i][token_check[i].isfinite()]
            parts = (l1[i], rms[i], lag_l1[i], lag_rms[i], gram[i], matrices[i], check, there)
            yield TapeStatistics(*(part.numpy() for part in parts))


@dataclass(frozen=True, slots=True)
class _Part:
    """Where some rows are reduced: views of a deck's working copies, of its norms as (L1, L2), by lag from 0, of its
    ring by place."""

    rows: slice
    scratch: Tensor
    signed: Tensor
    norms: list[tuple[Tensor, Tensor]]
    ring: dict[int, Tensor]

    @classmethod
    def of(cls, scratch: Tensor, signed: Tensor, norms: Tensor, start: int, stop: int) -> _Part:
        lags = norms[..., start:stop].unbind()
        pairs = [(l1, l2) for l1, l2 in lags]
        return cls(slice(start, stop), scratch[: stop - start], signed[: stop - start], pairs, {})

    def of_ring(self, ring: Sequence[Tensor | None], step: int) -> Tensor:
        """The rows' values at a step that the ring holds."""
        place = step % len(ring)
        if place not in self.ring:
            slot = ring[place]
            assert slot is not None  # it was written
            self.ring[place] = slot[self.rows]
        return self.ring[place]


def _stretches(rows: list[int], size: int) -> Iterator[tuple[int, int]]:
    """Ascending rows as half-open ranges without gaps, of at most `size` rows."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1 or i - start == size:
            yield rows[start], rows[i - 1] + 1
            start = i


def _spread(squares: Tensor, at: Tensor, size: int) -> Tensor:
    """Matrices over the recorded steps, (rows, s, s), as ones over all steps, NaN elsewhere."""
    full = torch.full((len(squares), size, size), torch.nan, dtype=torch.float64)
    full[:, at[:, None], at[None, :]] = squares
    return full

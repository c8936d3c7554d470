"""Statistics over several runs, from those of each run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastercache.analysis.measures import ORDER
from fastercache.analysis.tape import TapeStatistics
from fastercache.policies.vocabulary import Branch, Run, Site


class RunSums:
    """Statistics over runs: small arrays are kept per run, matrices as running sums."""

    def __init__(self, sites: tuple[Site, ...], run: Run) -> None:
        self.runs = 0
        self._rows = {(s.name, b): (i, j) for i, s in enumerate(sites) for j, b in enumerate(run.branches)}
        self._shape = (len(sites), len(run.branches), run.count)
        square = (*self._shape, run.count)
        self._count = np.zeros(square, dtype=np.int32)
        self._gram = np.zeros(square)
        self._matrix, self._matrix_square = np.zeros((2, *square, len(ORDER)))
        self._per_run: list[dict[str, NDArray[np.float32]]] = []
        self._squares = np.zeros(2)
        self._checked = 0
        self._token_squares, self._token_checked = 0.0, 0

    def add(self, tapes: dict[tuple[str, Branch], TapeStatistics], guidance: NDArray[np.float64] | None) -> None:
        lags = next(iter(tapes.values())).lag_l1.shape[-1]
        small = {name: np.full(self._shape, np.nan, dtype=np.float32) for name in ("l1", "rms")}
        small |= {name: np.full((*self._shape, lags), np.nan, dtype=np.float32) for name in ("lag_l1", "lag_rms")}
        for key, tape in tapes.items():
            at = self._rows[key]
            for name, array in small.items():
                array[at] = getattr(tape, name)
            there = ~np.isnan(tape.gram)
            self._count[at] += there
            self._gram[at] += np.where(there, tape.gram, 0.0)
            values = np.where(there[..., None], tape.matrices, 0.0)
            self._matrix[at] += values
            self._matrix_square[at] += values**2
            self._squares += (tape.check**2).sum(axis=0)
            self._checked += len(tape.check)
            self._token_squares += float((tape.token_check**2).sum())
            self._token_checked += len(tape.token_check)
        if guidance is None:
            guidance = np.zeros((*self._shape[1:], 0, 0))
        self._per_run.append({**small, "guidance": guidance.astype(np.float32)})
        self.runs += 1

    def check(self) -> dict[Any, float] | None:
        """Relative root mean square error of estimated L1 and L2 distances where exact ones are known."""
        if not self._checked:
            return None
        rms = np.sqrt(self._squares / self._checked)
        return {"rel_l1": float(rms[0]), "rel_l2": float(rms[1])}

    def token_check(self) -> float | None:
        """Root mean square, over values, of the relative error of a token sample's root mean square; None for none."""
        return float(np.sqrt(self._token_squares / self._token_checked)) if self._token_checked else None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of a `Profile`. The standard deviation is that of the sample (n − 1); 0 for a single run."""
        there = self._count > 0
        n = np.where(there, self._count, 1)
        mean = self._matrix / n[..., None]
        spread = (
            np.clip(self._matrix_square / n[..., None] - mean**2, 0.0, None) * (n / np.maximum(n - 1, 1))[..., None]
        )
        gap = np.where(there, 0.0, np.nan)
        stacked = {name: np.stack([run[name] for run in self._per_run]) for name in self._per_run[0]}
        return {
            **stacked,
            "gram": self._gram / n + gap,
            "matrix_mean": (mean + gap[..., None]).astype(np.float32),
            "matrix_std": (np.sqrt(spread) + gap[..., None]).astype(np.float32),
        }

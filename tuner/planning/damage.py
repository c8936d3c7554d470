"""What skipping a stretch of steps costs, for every schedule, from recorded inner products alone.

A policy computes the denoiser at `S = {0 = s_0 < s_1 < ... < s_{B-1}}`. After computing step i it replaces the outputs
of the skipped steps i + 1 .. j - 1 by one combination of the last K outputs and the latent x_i, fitted in closed form.
To first order and with the sampler alone, an error dF_m of the output at step m moves the last latent by `h_m dF_m`, h
the sampler's impulse response. So a stretch from i to j does the isolated damage

    D(i, j | history) = min_w || sum_{m=i+1}^{j-1} h_m F_m  -  w . [F_{s_q}, F_{s_q} - F_{s_{q-1}}, ..., x_i] ||^2

summed over the recorded runs, and all inner products that it needs are entries of the Gram matrices. For a sampler
`x_{k+1} = a_k x_k + b_k F_k` it is S_j^2 times the squared error of x_j, `S_j = |prod_{m>=j} a_m|`.

The damage of a plan is the sum over its stretches. `rehearsal` has what the fit of later stretches repairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastercache.analysis.trajectory import Trajectory

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KEPT = 1 << 15
"""Histories whose stretches are kept."""


class Damage:
    """Isolated damage of stretches, from the Gram matrices of all runs.

    Args:
        trajectory: the recorded runs.
        impulse: (n,), h_m: change of the last latent per change of the output at step m, by the sampler alone.
        history: K, how many computed outputs a predictor combines.
        latent: whether it combines x_i too.
        ridge: added to the diagonal of the normalised normal equations.
        starts: first step of each denoiser; values of another denoiser are no history.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        impulse: Floats,
        *,
        history: int = 5,
        latent: bool = True,
        ridge: float = 1e-10,
        starts: Sequence[int] = (0,),
    ) -> None:
        n = trajectory.steps
        self.steps = n
        self.starts = tuple(sorted(starts))
        self.history = history
        self.latent = latent
        self.ridge = ridge
        self._gram = trajectory.products.mean(axis=0)  # (2n+1, 2n+1)
        outputs = slice(n + 1, 2 * n + 1)
        # inner products of every vector with the weighted outputs added up to step m (exclusive): (2n+1, n+1)
        self._summed = np.zeros((2 * n + 1, n + 1))
        np.cumsum(self._gram[:, outputs] * impulse, axis=1, out=self._summed[:, 1:])
        weighted = np.zeros((n + 1, n + 1))  # and of those sums with each other
        products = self._gram[outputs, outputs] * np.outer(impulse, impulse)
        weighted[1:, 1:] = products.cumsum(axis=0).cumsum(axis=1)
        self._squares = weighted
        self._rows: dict[tuple[int, ...], Floats] = {}

    def stretches(self, recent: Ints) -> Floats:
        """Damage of every stretch that follows a computed step.

        Args:
            recent: (U, K), the last K computed steps, newest first, padded with -1. All rows share the newest, i.

        Returns:
            (U, n - i): column c is the stretch that ends at `j = i + 1 + c`; the first is 0.
        """
        i = int(recent[0, 0])
        rows, known = self._features(recent)
        gram = self._gram[rows[:, :, None], rows[:, None, :]]  # (U, f, f), of outputs, and of the latent at last
        k = recent.shape[1]
        targets = (self._summed[:, i + 1 :] - self._summed[:, i + 1 : i + 2])[rows]  # (U, f, n-i)
        change = np.broadcast_to(np.eye(rows.shape[1]), gram.shape).copy()  # rows: newest, differences, latent
        for p in range(1, k):
            change[:, p, p - 1], change[:, p, p] = 1.0, -1.0
        change *= known[:, :, None]
        gram = change @ gram @ change.transpose(0, 2, 1)
        targets = change @ targets
        size = np.sqrt(np.maximum(np.einsum("uff->uf", gram), 1e-300))
        size = np.where(known, size, 1.0)
        gram = gram / size[:, :, None] / size[:, None, :]
        targets = targets / size[:, :, None]
        index = np.arange(rows.shape[1])
        regular = gram.copy()
        regular[:, index, index] += np.where(known, self.ridge, 1.0)
        weights = np.linalg.solve(regular, targets)  # (U, f, n-i)
        corner = self._squares[i + 1, i + 1]
        square = np.diagonal(self._squares)[i + 1 :] - 2.0 * self._squares[i + 1, i + 1 :] + corner
        error = square - np.einsum("ufj,ufj->uj", weights, 2.0 * targets - gram @ weights)
        error[:, 0] = 0.0
        damage: Floats = np.maximum(error, 0.0)
        return damage

    def _row(self, recent: tuple[int, ...]) -> Floats:
        """Damage of every stretch after one history; kept, because plans that are compared share most of theirs."""
        if recent not in self._rows:
            if len(self._rows) >= KEPT:
                self._rows.clear()
            self._rows[recent] = self.stretches(np.array([recent], dtype=np.int64))[0]
        return self._rows[recent]

    def _features(self, recent: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Rows of the Gram matrix of the outputs and the latent, (U, f), and which of the features exist."""
        rows = np.where(recent >= 0, self.steps + 1 + np.maximum(recent, 0), 0)
        known = recent >= 0
        if self.latent:
            column = recent[:, :1]
            rows, known = np.hstack([rows, column]), np.hstack([known, np.ones_like(column, dtype=bool)])
        return rows, known

    def first_of(self, step: int) -> int:
        """The first step of the denoiser that runs at `step`."""
        return max(start for start in self.starts if start <= step)

    def alone(self) -> Floats:
        """Damage of skipping each step alone while all others are computed, (n,); NaN where a step must be computed."""
        found = np.full(self.steps, np.nan)
        for step in range(1, self.steps):
            if step not in self.starts:  # every other stretch of such a plan is empty and does no damage
                found[step] = self._row(self._recent(range(step), step - 1))[1]
        return found

    def of(self, computed: Sequence[int]) -> float:
        """Damage of a whole plan: what its stretches add."""
        return float(self.by_stretch(computed).sum())

    def by_stretch(self, computed: Sequence[int]) -> Floats:
        """Damage of each stretch of a plan, (B,)."""
        ends = [*computed[1:], self.steps]
        pairs = zip(computed, ends, strict=True)
        return np.array([self._row(self._recent(computed, q))[j - i - 1] for q, (i, j) in enumerate(pairs)])

    def _recent(self, computed: Sequence[int], q: int) -> tuple[int, ...]:
        """The last K computed steps up to the q-th, newest first, padded with -1; none of another denoiser."""
        first = self.first_of(computed[q])
        past = [step for step in computed[max(q - self.history + 1, 0) : q + 1] if step >= first][::-1]
        return (*past, *[-1] * (self.history - len(past)))

"""A cached run rehearsed in the space of the recording: what a fit repairs and what it cannot, without a run.

`Damage` takes each stretch by itself. A real fit sees where the cached run has got to and repairs part of what earlier
stretches did wrong, so errors cancel, and which do depends on the whole plan. All of that stays within the span of the
recorded vectors [x_0 .. x_n, F_0 .. F_{n-1}], whose inner products are known. So the cached run is rehearsed there:
every output that it uses and every latent that it reaches is a combination of recorded vectors, and each stretch is
fitted as `fitting` does, by a least-squares problem of K + 1 unknowns.

One thing is not in the recording: what the denoiser makes of a latent that is off by e. Two numbers stand for it, the
same for every model:

    F_s(x + e) = F_s(x) + GROWTH / (n b_s) e + NOVELTY / (n |b_s|) |e| u_s

b_s is what the sampler adds to the latent for an output of 1. The first term lets an error that nothing repairs grow by
e^GROWTH over the run. The second one turns part of it into a direction u_s of its own, which no fit can see in advance.

A rehearsal is too hopeful of cancellation where stretches are long, and the isolated damage too gloomy. The geometric
mean of both, `Foresight`, ranks plans better than either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastercache.analysis.trajectory import Trajectory
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.fitting import Sampler, Steps

Floats = NDArray[np.float64]

GROWTH = 0.7
NOVELTY = 0.7
KEPT = 4096
"""Beginnings of plans whose rehearsal is kept."""


@dataclass(frozen=True)
class _State:
    """A rehearsal after some computed steps: what was used so far.

    Attributes:
        used: (first step, last step + 1, vector) of every output that the run used, in order.
        past: computed outputs that a fit may combine, newest first.
        behind: sum_m h_m (F*_m - U_m), what the last latent is off by.
    """

    used: tuple[tuple[int, int, Floats], ...]
    past: tuple[Floats, ...]
    behind: Floats


class Rehearsal:
    """Damage of whole plans, rehearsed.

    Args:
        trajectory: the recorded runs.
        matrix: (n + 1, n + 1), the sampler's response: x_k in terms of [x_0, F_0 .. F_{n-1}].
        history: K, how many computed outputs a stand-in combines. latent: whether it combines x_s too.
        starts: first step of each denoiser; values of another denoiser are no history.
        ridge: added to the diagonal of the normalised normal equations.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        matrix: Floats,
        *,
        history: int = 5,
        latent: bool = True,
        starts: Sequence[int] = (0,),
        ridge: float = 1e-10,
        growth: float = GROWTH,
        novelty: float = NOVELTY,
    ) -> None:
        n = self.steps = trajectory.steps
        self.history, self.latent, self.ridge = history, latent, ridge
        self.starts = tuple(sorted(starts))
        self._matrix, self._impulse = matrix, matrix[-1, 1:]
        gain = np.array([matrix[s + 1, 1 + s] for s in range(n)])
        inverse = np.divide(1.0, n * gain, out=np.zeros(n), where=np.abs(gain) > 1e-12)
        self._growth, self._novelty = growth * inverse, novelty * np.abs(inverse)
        # Coordinates of the recorded vectors in an orthonormal basis, and one new direction for each step after them.
        points = np.hstack([coordinates(trajectory.products.mean(axis=0)), np.zeros((2 * n + 1, n))])
        self._latents, self._outputs = points[: n + 1], points[n + 1 :]
        self._ahead = np.vstack([np.zeros(3 * n + 1), np.cumsum(self._impulse[:, None] * self._outputs, axis=0)])
        self._kept: dict[Steps, _State] = {}

    def of(self, computed: Sequence[int]) -> float:
        """Predicted squared error of the last latent: a mean over its elements and the recorded runs."""
        plan = tuple(computed)
        known = len(plan)
        while known and plan[:known] not in self._kept:
            known -= 1
        state = self._kept[plan[:known]] if known else _State((), (), np.zeros(3 * self.steps + 1))
        for q in range(known, len(plan)):
            arrived = self._skipped(state, plan[q - 1], plan[q]) if q else state
            state = self._computed(arrived, plan[q])
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[plan[: q + 1]] = state
        last = self._skipped(state, plan[-1], self.steps)
        return float(last.behind @ last.behind)

    def _computed(self, state: _State, step: int) -> _State:
        """Compute the denoiser, on a latent that is off by what was used so far."""
        error = self._latent(state, step) - self._latents[step]
        output = self._outputs[step] + self._growth[step] * error
        output[2 * self.steps + 1 + step] += self._novelty[step] * math.sqrt(float(error @ error))
        past = () if step in self.starts else state.past
        behind = state.behind + self._impulse[step] * (self._outputs[step] - output)
        return _State((*state.used, (step, step + 1, output)), (output, *past)[: self.history], behind)

    def _skipped(self, state: _State, step: int, end: int) -> _State:
        """Skip the steps after `step` up to `end`, exclusive, with one fitted output."""
        if end == step + 1:
            return state
        ahead = self._ahead[end] - self._ahead[step + 1]
        impulse = self._impulse[step + 1 : end]
        weight = float(impulse.sum())
        whole = abs(weight) > 1e-6 * float(np.abs(impulse).sum())
        target = (ahead + state.behind) / weight if whole else self._outputs[step + 1]
        newest = state.past[0]
        columns = [newest, *(a - b for a, b in zip(state.past, state.past[1:], strict=False))]
        if self.latent:
            columns.append(self._latent(state, step))
        features = np.array(columns)
        norms = np.sqrt(np.maximum(np.einsum("fd,fd->f", features, features), 1e-300))
        features /= norms[:, None]
        normal = features @ features.T
        normal[np.diag_indices(len(normal))] += self.ridge
        output = newest + np.linalg.solve(normal, features @ (target - newest)) @ features
        behind = state.behind + ahead - weight * output
        return _State((*state.used, (step + 1, end, output)), state.past, behind)

    def _latent(self, state: _State, step: int) -> Floats:
        """The latent before a step."""
        row = self._matrix[step]
        found: Floats = row[0] * self._latents[0]
        if state.used:
            weights = np.array([row[1 + first : 1 + end].sum() for first, end, _ in state.used])
            found = found + weights @ np.array([vector for _, _, vector in state.used])
        return found


def coordinates(products: Floats) -> Floats:
    """Coordinates of vectors in an orthonormal basis, a row each, from their inner products (V, V)."""
    values, vectors = np.linalg.eigh(products)
    found: Floats = vectors * np.sqrt(np.maximum(values, 0.0))
    return found


@dataclass(frozen=True)
class Foresight:
    """What planning believes of a whole plan: the geometric mean of isolated and rehearsed damage.

    `rehearsal` is None where the sampler is not linear in the outputs; then it is the isolated damage.
    """

    damage: Damage
    rehearsal: Rehearsal | None

    @classmethod
    def recorded(cls, trajectory: Trajectory, sampler: Sampler, history: int = 5) -> Foresight:
        """What a recording foresees. `history`: K, how many computed outputs a stand-in combines."""
        latent, starts = sampler.input is not None, sampler.relations.starts
        damage = Damage(trajectory, sampler.impulse, history=history, latent=latent, starts=starts)
        if not sampler.held:
            return cls(damage, None)
        matrix = sampler.response.matrix
        return cls(damage, Rehearsal(trajectory, matrix, history=history, latent=latent, starts=starts))

    def of(self, computed: Sequence[int]) -> float:
        """Predicted squared error of the last latent."""
        isolated = self.damage.of(computed)
        if self.rehearsal is None:
            return isolated
        return math.sqrt(isolated * self.rehearsal.of(computed))

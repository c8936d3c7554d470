"""What cached runs teach about damage: how much of an error is left after the next stretch.

Along a fitted cached run the mean squared error of the latent before each computed step is known for nothing. It
follows, in units of the last latent,

    E_j = rho_ij E_i + mu D(i, j | history),     log rho_ij = sum_f theta_f hat_f(j / n)

with D the isolated damage from the recording. rho below 1 is what the fit repairs and the denoiser contracts, mu what
history from an erring run costs. theta and log mu are fitted to all runs so far by damped Gauss-Newton on log E, drawn
towards a prior, so that one run already helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KNOTS = 4
PRIOR = -0.35
"""log rho of a stretch before anything was measured."""
STIFFNESS = 0.5
"""Weight of the prior, in runs' stretches (squared deviations of log E count one each)."""
FLOOR = 1e-12


@dataclass(frozen=True)
class Lesson:
    """One cached run: where its stretches ended, (B,); isolated damage and measured error there, (B,) each."""

    ends: tuple[int, ...]
    isolated: Floats
    measured: Floats


@dataclass(frozen=True)
class Carry:
    """`levels`, log rho at `KNOTS` even positions of the progress j / n; `factor`, mu."""

    levels: tuple[float, ...] = (PRIOR,) * KNOTS
    factor: float = 1.0

    def matrix(self, steps: int) -> Floats:
        """(n + 1, n + 1): rho by where a stretch begins and ends, as `Damage` takes it."""
        rho = np.exp(_hats(np.arange(steps + 1) / steps) @ np.array(self.levels))
        return np.broadcast_to(rho, (steps + 1, steps + 1)).copy()


def learn(lessons: Sequence[Lesson], steps: int, rounds: int = 30) -> Carry:
    """The carry that explains the measured errors of some runs."""
    theta = np.r_[np.full(KNOTS, PRIOR), 0.0]
    prior = theta.copy()
    if not lessons:
        return Carry()
    for _ in range(rounds):
        residuals, rows = [], []
        for lesson in lessons:
            hats = _hats(np.asarray(lesson.ends) / steps)
            before = np.r_[0.0, lesson.measured[:-1]]
            kept = np.exp(hats @ theta[:-1]) * before
            added = np.exp(theta[-1]) * lesson.isolated
            total = kept + added + FLOOR
            use = lesson.measured > 10 * FLOOR
            residuals.append((np.log(lesson.measured + FLOOR) - np.log(total))[use])
            rows.append(np.column_stack([hats * (kept / total)[:, None], added / total])[use])
        jacobian, residual = np.concatenate(rows), np.concatenate(residuals)
        bound = np.clip(np.abs(residual), 0.7, None)  # Huber: a stretch that is far off counts less
        weight = 0.7 / bound
        normal = jacobian.T @ (jacobian * weight[:, None]) + STIFFNESS * np.eye(KNOTS + 1)
        step = np.linalg.solve(normal, jacobian.T @ (weight * residual) + STIFFNESS * (prior - theta))
        theta = theta + np.clip(step, -0.5, 0.5)
        theta[:-1] = np.clip(theta[:-1], -4.0, 1.0)
    return Carry(tuple(float(v) for v in theta[:-1]), float(np.exp(theta[-1])))


def _hats(progress: Floats) -> Floats:
    """Values of the linear hat functions at even knots, (m, KNOTS)."""
    position = np.clip(progress, 0.0, 1.0)[:, None] * (KNOTS - 1)
    return np.maximum(1.0 - np.abs(position - np.arange(KNOTS)), 0.0)

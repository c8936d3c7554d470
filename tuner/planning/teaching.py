"""What cached runs teach about damage: how much of an error is left after the next stretch.

Along a fitted cached run the mean squared error of the latent before each computed step is known for nothing. It
follows, in units of the last latent,

    E_j = rho_ij E_i + mu D(i, j | history),     log rho_ij = sum_f theta_f hat_f(j / n)

with D the isolated damage from the recording. rho below 1 is what the fit repairs and the denoiser contracts, mu what
history from an erring run costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KNOTS = 4
PRIOR = -0.35
"""log rho of a stretch before anything was measured."""


@dataclass(frozen=True)
class Carry:
    """`levels`, log rho at `KNOTS` even positions of the progress j / n; `factor`, mu."""

    levels: tuple[float, ...] = (PRIOR,) * KNOTS
    factor: float = 1.0

    def matrix(self, steps: int) -> Floats:
        """(n + 1, n + 1): rho by where a stretch begins and ends, as `Damage` takes it."""
        rho = np.exp(_hats(np.arange(steps + 1) / steps) @ np.array(self.levels))
        return np.broadcast_to(rho, (steps + 1, steps + 1)).copy()


def _hats(progress: Floats) -> Floats:
    """Values of the linear hat functions at even knots, (m, KNOTS)."""
    position = np.clip(progress, 0.0, 1.0)[:, None] * (KNOTS - 1)
    return np.maximum(1.0 - np.abs(position - np.arange(KNOTS)), 0.0)

"""Several paths worth running: what the prediction cannot tell apart, from differently minded predictions.

Plans within a decibel of each other in predicted damage differ by up to 5 dB in truth, so a handful is run. They come
from the planner itself, without a run of their own: squares added, as recorded; with a share of every error repaired by
the next fit, which moves computed steps late; with errors instead of squares added, which balances the stretches; with
noise on the outputs, which avoids weights that amplify it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from fastercache.analysis.trajectory import Trajectory
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.paths import plans
from fastercache.tuner.planning.teaching import Carry

NOISE = 3.0
"""Mean squared error of a cached run's outputs, in multiples of the damage predicted for its last latent."""


def portfolio(
    trajectory: Trajectory,
    impulse: NDArray[np.float64],
    count: int,
    *,
    carry: Carry | None = None,
    history: int = 5,
    latent: bool = True,
    starts: Sequence[int] = (0,),
    width: int = 32,
) -> list[tuple[int, ...]]:
    """Distinct plans with `count` computed steps, the most promising first; 9 to 12 of them.

    Args:
        carry: of cached runs seen before, if any.
        starts: first step of each denoiser.
    """
    n = trajectory.steps

    def damage(
        carry: NDArray[np.float64] | None = None, noise: NDArray[np.float64] | None = None, exponent: float = 2.0
    ) -> Damage:
        return Damage(
            trajectory,
            impulse,
            history=history,
            latent=latent,
            carry=carry,
            noise=noise,
            exponent=exponent,
            starts=starts,
        )

    plain = damage()
    least = plans(plain, counts=[count], width=width)[count]
    if not least:
        return []
    repaired = damage(carry=(carry or Carry()).matrix(n))
    noisy = damage(noise=np.full(n, NOISE * least[0].damage))
    asked: Sequence[tuple[Damage, int, int]] = (
        (plain, 3, 1),
        (repaired, 2, 2),
        (plain, 4, 2),
        (damage(exponent=1.0), 1, 1),
        (noisy, 3, 2),
    )
    found = [
        [path.computed for path in plans(which, counts=[count], width=width, best=best, apart=apart)[count]]
        for which, best, apart in asked
    ]
    return list(dict.fromkeys(_in_turn(found)))


def _in_turn(lists: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[tuple[int, ...]]:
    """The first of each list, then the second of each, and so on."""
    for row in zip_longest(*lists):
        yield from (plan for plan in row if plan is not None)

"""From predicted damage to measured decibels.

What the recording foresees of a plan ranks plans, but a decibel of it is more than a decibel of the video, and the
whole scale is off by some constant of the model. Both come from plans that were run.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STEEPNESS = 1.35
"""Measured decibels for each foreseen one, where fewer than two plans were run or beyond them. On both reference
models, between 4 and 20 of 50 steps, it is 1.3 to 1.4: with fewer steps every stand-in also rests on worse ones."""
APART = 1.0
"""Anchors nearer to each other than this, in foreseen dB, say nothing about steepness: they count as one."""


class Scale:
    """A rising line through plans that were run.

    Args:
        anchors: foreseen level and measured decibels of each, in any order.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, anchors: Iterable[tuple[float, float]]) -> None:
        groups: list[list[tuple[float, float]]] = []
        for anchor in sorted(anchors):
            if groups and anchor[0] - groups[-1][0][0] < APART:
                groups[-1].append(anchor)
            else:
                groups.append([anchor])
        if not groups:
            raise ValueError("a scale needs one plan that was run")
        points = np.array([np.mean(group, axis=0) for group in groups])
        self.levels, self.measured = points[:, 0], points[:, 1]

    def __call__(self, level: float) -> float:
        """Measured decibels to expect at a foreseen level: between anchors on their line, beyond them `STEEPNESS`."""
        inside = float(np.clip(level, self.levels[0], self.levels[-1]))
        return float(np.interp(inside, self.levels, self.measured)) + STEEPNESS * (level - inside)

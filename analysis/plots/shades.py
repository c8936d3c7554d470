"""How a measure is coloured, and the one convention of all step x step maps.

Down: step i, which is replaced, the first on top. Across: step j, which stands in. Light is alike. Similarities are
shown as what they lack to 1, on a logarithmic axis: redundancy is in the small differences. An arrow at an end of the
colour bar says that values beyond it exist and have its colour.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from fastercache.analysis.measures import measure_of
from fastercache.analysis.plots.style import step_ticks

FORMULAS = {
    "cosine": "1 − ⟨F{j}, F{i}⟩ / (‖F{j}‖ ‖F{i}‖)",
    "rel_l1": "mean|F{j} − F{i}| / mean|F{i}|",
    "rel_l2": "‖F{j} − F{i}‖ / ‖F{i}‖",
}
STANDS_IN, REPLACED = "step j that stands in →", "← step i that is replaced"
LEAST = 1e-7
"""Smaller differences have no shade of their own: float32 does not tell them from 0."""


def difference(measure: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """How far values are apart, 0 where they are equal, whatever the measure; what is shown."""
    wide = np.asarray(values, dtype=np.float64)
    return measure_of(measure).identical - wide if measure_of(measure).identical else wide


def formula(measure: str, j: str, i: str) -> str:
    """What `difference` is, with the denominator, of a value `Fj` that stands in for `Fi`."""
    return FORMULAS[measure].format(j=j, i=i)


def logarithmic(measure: str) -> bool:
    """Whether `difference` is shown on a logarithmic axis."""
    return measure_of(measure).identical != 0.0


class Shades(NamedTuple):
    """A colour scale: keyword arguments of `imshow`, and of `colorbar` which ends have arrows."""

    norm: Normalize
    extend: str


def shades(measure: str, shown: NDArray[np.float64]) -> Shades:
    """The scale of some differences: up to their 99th percentile, but not beyond 1, the distance to no value at all."""
    known = shown[np.isfinite(shown)]
    if not known.size:
        return Shades(Normalize(0.0, 1.0), "neither")
    high = min(max(float(np.percentile(known, 99)), 1e-6), 1.0)
    above = bool(known.max() > high + 1e-9)
    if not logarithmic(measure):
        return Shades(Normalize(0.0, high), "max" if above else "neither")
    apart = known[known > LEAST]
    low = min(float(np.percentile(apart, 2)) if apart.size else LEAST, high / 1.5)
    below = bool(known.min() < low - 1e-9)
    return Shades(
        LogNorm(low, high, clip=True), {(0, 1): "max", (1, 0): "min", (1, 1): "both"}.get((below, above), "neither")
    )


def draw_map(axes: Axes, shown: NDArray[np.float64], scale: Shades, colours: str = "magma_r") -> AxesImage:
    """A step x step map of differences, (T, T): row i is replaced, column j stands in."""
    image = axes.imshow(shown, cmap=colours, norm=scale.norm, interpolation="nearest")
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        step_ticks(axis, len(shown))
    axes.set_xlabel(STANDS_IN)
    axes.set_ylabel(REPLACED)
    return image

"""Damped and oscillating exponentials identified from the last values: dynamic mode decomposition, Prony's method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Now, Past, Predictor
from fastercache.policies.predictors.history import Taylor
from fastercache.policies.registry import register

FEWEST = 4
"""Values at equal distances below which no exponentials are identified: one oscillation needs three pairs of them."""
NOISE = 1e-4
"""Directions whose singular value is below this share of the largest one are noise."""
RIDGE = 1e-8
"""Added to each singular value before it is inverted."""
CHUNK = 1 << 18
"""Elements of a row that are multiplied out in float64 at a time."""


@register
class Exponential(Predictor):
    """Exponentials through the last values: F(a + k d) = Phi lambda^k b, by dynamic mode decomposition.

    With Y = [F_1 ... F_m] the last values, d steps apart, X and X' its first and last m - 1 columns, and the truncated
    X = U S V',

        A = U' X' V S^-1 = W diag(lambda) W^-1,   Phi = X' V S^-1 W,   b = argmin |Phi b - F_m|,
        F = Re Phi lambda^k b,   k = (steps since F_m) / d, a fraction of a distance included

    [Schmid 2010; as a stand-in: HiCache++ and cache-dit's DMD calibrator]. Everything follows from the inner products
    of the values. Each row of the first axis has exponentials of its own, so that no sample changes another.

    Guards, as cache-dit has them: only the newest values that are equally far apart are used; fewer than 4 of them give
    a Taylor forecast of order 1; a fit that fails, or a forecast that is not finite, gives the newest value, each row
    for itself.
    """

    name: ClassVar[str] = "exponential"
    history: Annotated[int, Field(ge=FEWEST, le=12)] = Field(
        default=6, description="how many computed values the exponentials are identified from, at most"
    )

    @property
    def depth(self) -> int:
        return self.history

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        known, distance = _evenly_spaced(past[-self.history :])
        if len(known) < FEWEST:
            return Taylor(order=1).predict(past, now)
        newest: Tensor = known[-1].value
        ahead = (now.step.index - known[-1].step.index) / distance
        values = [entry.value.reshape(newest.shape[0] if newest.dim() > 1 else 1, -1) for entry in known]
        grams = _grams(values).cpu().numpy()
        hold = np.eye(len(values) - 1)[-1]
        fitted = [_weights(gram, ahead) if np.isfinite(gram).all() else None for gram in grams]
        weights = torch.from_numpy(np.stack([hold if row is None else row for row in fitted])).to(newest.device)
        total = torch.zeros_like(values[-1], dtype=torch.promote_types(newest.dtype, torch.float32))
        for j, value in enumerate(values[1:]):
            total += weights[:, j : j + 1].to(total.dtype) * value
        forecast = total.to(newest.dtype)
        finite = torch.isfinite(forecast).all(dim=1, keepdim=True)
        return torch.where(finite, forecast, values[-1]).reshape(newest.shape)


def _evenly_spaced(past: Sequence[Past]) -> tuple[list[Past], int]:
    """The newest values that are equally far apart, oldest first, and their distance in steps."""
    if len(past) < 2:
        return list(past), 1
    distance = past[-1].step.index - past[-2].step.index
    kept = [past[-1], past[-2]]
    for entry in past[-3::-1]:
        if kept[-1].step.index - entry.step.index != distance:
            break
        kept.append(entry)
    return kept[::-1], distance


def _grams(values: Sequence[Tensor]) -> Tensor:
    """Inner products of the values, (rows, m, m) in float64, each value being (rows, width)."""
    rows, width = values[0].shape
    total = torch.zeros(rows, len(values), len(values), dtype=torch.float64, device=values[0].device)
    for begin in range(0, width, CHUNK):
        part = torch.stack([value[:, begin : begin + CHUNK] for value in values], dim=1).double()
        total += part @ part.mT
    return total


def _weights(gram: NDArray[np.float64], ahead: float) -> NDArray[np.float64] | None:
    """What the columns of X' are multiplied by in the forecast, (m - 1,); None for a degenerate fit."""
    try:
        squares, v = np.linalg.eigh(gram[:-1, :-1])  # X'X = V S^2 V', rising
        singular = np.sqrt(np.maximum(squares, 0.0))
        kept = singular > NOISE * singular[-1]
        if not kept.any():
            return None
        basis = v[:, kept] / (singular[kept] + RIDGE)  # V S^-1, (m - 1, r)
        values, modes = np.linalg.eig(basis.T @ gram[:-1, 1:] @ basis)
        spanned = basis @ modes  # Phi = X' spanned
        amplitudes = np.linalg.lstsq(
            spanned.conj().T @ gram[1:, 1:] @ spanned, spanned.conj().T @ gram[1:, -1], rcond=None
        )[0]
        weights = (spanned @ (values.astype(np.complex128) ** ahead * amplitudes)).real
    except np.linalg.LinAlgError:
        return None
    return weights if np.isfinite(weights).all() else None

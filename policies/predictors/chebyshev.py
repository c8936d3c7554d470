"""Chebyshev polynomials fitted to all recent values by ridge regression [Spectrum, arXiv 2603.01623]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Now, Past, Predictor
from fastercache.policies.predictors.history import weighted
from fastercache.policies.registry import register


@register
class Chebyshev(Predictor):
    """Chebyshev polynomials through the run so far, by ridge regression, mixed with a line [Spectrum, 2603.01623].

    With X the matrix of T_0 ... T_M at the computed steps, tau = 2 s / n - 1 for step s of n, and H their values,

        C = (X'X + lambda I)^-1 X'H,   F(t) = blend [T_0(tau) ... T_M(tau)] C + (1 - blend) L(t)

    with L the line through the two newest values. The ridge shrinks every coefficient, that of T_0 too, so the weights
    on the values do not sum to 1. Formula and defaults are the official code's (github.com/hanjq17/Spectrum), which
    calculates in bfloat16, has n = 50 whatever the run, and keeps 100 values. With one value known it is held.
    """

    name: ClassVar[str] = "chebyshev"
    degree: Annotated[int, Field(ge=0, le=8)] = Field(default=4, description="highest polynomial (M in the paper)")
    ridge: Annotated[float, Field(ge=1e-6, le=10.0)] = Field(
        default=0.1, description="penalty on the squared coefficients, no unit (lambda in the paper)"
    )
    blend: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.5, description="share of the polynomial; the rest is the line through the two newest values (w)"
    )
    history: Annotated[int, Field(ge=2, le=100)] = Field(
        default=16,
        description="how many computed values are fitted; 16 are all those of the published 50-step schedule",
    )

    @property
    def depth(self) -> int:
        return self.history

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        known = past[-self.history :]
        if len(known) < 2:
            value: Tensor = past[-1].value
            return value
        steps = np.array([entry.step.index for entry in known], dtype=np.float64)
        basis = chebvander(2.0 * steps / now.step.count - 1.0, self.degree)  # (values, M + 1)
        here = chebvander(2.0 * np.array([now.step.index]) / now.step.count - 1.0, self.degree)[0]
        weights = basis @ np.linalg.solve(basis.T @ basis + self.ridge * np.eye(self.degree + 1), here)
        weights *= self.blend
        ahead = (now.step.index - steps[-1]) / (steps[-1] - steps[-2])
        weights[-2:] += (1.0 - self.blend) * np.array([-ahead, 1.0 + ahead])
        return weighted(weights.tolist(), [entry.value for entry in known])

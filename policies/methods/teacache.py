"""TeaCache [arXiv 2411.19108]: the change of the timestep-modulated input tells the change of the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Citation
from fastercache.policies.errors import RecordingError, UnknownPolicy, suggest
from fastercache.policies.measurements import Curve, Measurements
from fastercache.policies.methods.dynamic import Dynamic, Memo, Threshold, relative_l1
from fastercache.policies.registry import register
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Step

COEFFICIENTS: dict[str, Curve] = {
    "open-sora": (217.546007, -118.329252, 26.8662585, -0.0459364272, 0.048442624),
    "latte": (-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402),
}
"""The published polynomials, highest power first."""


@register
class TeaCache(Dynamic):
    """Accumulate f(relL1(m_t, m_{t-1})) of the first block's modulated input m, relative to the older one, f being the
    polynomial `coefficients`; reuse while the sum is below `threshold`. The first and the last step are computed.

    The polynomial maps the change of the input to that of the output and belongs to one model: take a published one,
    `TeaCache(coefficients=COEFFICIENTS["latte"])`, or fit one, `TeaCache.calibrated(calibration)`, see
    `fastercache.analysis.calibrate`. The default is the identity.
    """

    name: ClassVar[str] = "teacache"
    citation: ClassVar[Citation] = Citation(
        "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model",
        "Liu et al.",
        2024,
        "https://arxiv.org/abs/2411.19108",
        "the residual of all blocks, while the modulated input's accumulated change is small",
    )
    unsearched: ClassVar[frozenset[str]] = frozenset({"coefficients", "scope"})
    constants: ClassVar[Mapping[str, Any]] = {"coefficients": (1.0, 0.0)}
    threshold: Threshold = Field(
        default=0.15,
        description="reused while the accumulated, rescaled change is below this, no unit (delta in the paper)",
    )
    coefficients: Curve = Field(
        default=(1.0, 0.0),
        min_length=1,
        description=(
            "polynomial f from the input's change to the output's, highest power first, no unit; belongs to one model"
        ),
    )

    @property
    def signal(self) -> Signal:
        return Signal.MODULATED_INPUT

    def judge(self, memo: Memo, step: Step, signal: Tensor | None) -> bool:
        if memo.seen is None or signal is None or step.index in (0, step.count - 1):
            return False
        memo.total += polynomial(self.coefficients, relative_l1(signal, memo.seen))
        return memo.total < self.threshold

    @classmethod
    def calibrated(cls, measured: Measurements, *, degree: int = 4, **fields: Any) -> Self:
        """With the least-squares polynomial from the measured changes of the input to those of the output.

        Raises:
            RecordingError: with fewer pairs of changes than coefficients.
        """
        if "coefficients" in fields:
            return cls(**fields)
        x, y = (np.concatenate([np.asarray(run) for run in runs]) for runs in (measured.inputs, measured.outputs))
        if len(x) <= degree:
            raise RecordingError(f"{len(x)} changes cannot determine a polynomial of degree {degree}: record more runs")
        return cls(coefficients=tuple(float(c) for c in np.polyfit(x, y, degree)), **fields)

    @classmethod
    def published(cls, model: str, **fields: Any) -> TeaCache:
        """With the published polynomial of a model. Raises UnknownPolicy, naming those there are."""
        if model not in COEFFICIENTS:
            raise UnknownPolicy(f"TeaCache has no published polynomial for '{model}'{suggest(model, COEFFICIENTS)}")
        return cls(coefficients=COEFFICIENTS[model], **fields)


def polynomial(coefficients: Curve, x: float) -> float:
    """Horner's rule, highest power first, as `numpy.poly1d`."""
    total = 0.0
    for coefficient in coefficients:
        total = total * x + coefficient
    return total

"""How well TeaCache's polynomial tells the change of the denoiser's output from that of its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastercache.analysis.calibrate import Calibration
from fastercache.policies.errors import RecordingError
from fastercache.policies.methods.teacache import TeaCache
from fastercache.policies.notebook import Framed
from fastercache.policies.wording import counted

Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Goodness(Framed):
    """A calibrated polynomial beside what was measured.

    Attributes:
        coefficients: of the polynomial, highest power first.
        inputs, outputs: relative L1 change of the first block's modulated input and of the denoiser's output, from each
            step to the next, (runs, T - 1), no unit.
        told: what the polynomial makes of `inputs`, (runs, T - 1).
        r2: share of the outputs' variance that it tells; 1 is all of it.
        r2_held_out: the same where each run is told by a polynomial fitted on the others; None with one run.
    """

    coefficients: tuple[float, ...]
    inputs: Floats
    outputs: Floats
    told: Floats
    r2: float
    r2_held_out: float | None

    @property
    def error(self) -> float:
        """Root mean square of what is told less what was measured, over the mean measured change."""
        return float(np.sqrt(np.mean((self.told - self.outputs) ** 2)) / np.mean(self.outputs))

    @property
    def words(self) -> str:
        """`R² 0.97 on 3 prompts (0.96 on prompts left out of the fit); a change is told to within 9 %`."""
        left_out = "" if self.r2_held_out is None else f" ({self.r2_held_out:.2f} on prompts left out of the fit)"
        prompts = counted(len(self.outputs), "prompt")
        return f"R² {self.r2:.2f} on {prompts}{left_out}; a change is told to within {100 * self.error:.0f} %"

    def rows(self) -> list[dict[str, object]]:
        """One row for each run and step but the first."""
        return [
            {
                "run": run,
                "step": i + 1,
                "input": float(x),
                "output": float(y),
                "told": float(f),
                "residual": float(y - f),
            }
            for run, values in enumerate(zip(self.inputs, self.outputs, self.told, strict=True))
            for i, (x, y, f) in enumerate(zip(*values, strict=True))
        ]

    def _facts(self) -> dict[str, object]:
        return {
            "runs": len(self.outputs),
            "r2": round(self.r2, 3),
            "r2_held_out": None if self.r2_held_out is None else round(self.r2_held_out, 3),
            "in words": self.words,
        }


def goodness(calibration: Calibration, degree: int = 4) -> Goodness:
    """Fit TeaCache's polynomial as `TeaCache.calibrated` does, and say how well it fits.

    Raises:
        RecordingError: with fewer changes than coefficients.
    """
    policy = TeaCache.calibrated(calibration, degree=degree)
    inputs, outputs = np.array(calibration.inputs), np.array(calibration.outputs)
    told = np.polyval(policy.coefficients, inputs)
    left_out = None
    if len(inputs) > 1 and inputs[1:].size > degree:
        others = [TeaCache.calibrated(_without(calibration, run), degree=degree) for run in range(len(inputs))]
        guessed = np.array([np.polyval(one.coefficients, x) for one, x in zip(others, inputs, strict=True)])
        left_out = _r2(outputs, guessed)
    return Goodness(policy.coefficients, inputs, outputs, told, _r2(outputs, told), left_out)


def _without(calibration: Calibration, run: int) -> Calibration:
    """The same without the changes of one run."""
    return calibration.model_copy(
        update={
            name: tuple(values for i, values in enumerate(getattr(calibration, name)) if i != run)
            for name in ("inputs", "outputs")
        }
    )


def _r2(measured: Floats, told: Floats) -> float:
    spread = float(np.sum((measured - measured.mean()) ** 2))
    if spread == 0.0:
        raise RecordingError("the output changes by the same amount at every step: there is nothing to tell")
    return 1.0 - float(np.sum((measured - told) ** 2)) / spread

"""How well a calibration fits, against sums by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache.analysis import Calibration
from fastercache.analysis.goodness import goodness
from fastercache.analysis.plots.goodness import draw_goodness
from fastercache.analysis.plots.style import to_image
from fastercache.policies.errors import RecordingError


def calibration(inputs: Any, outputs: Any) -> Calibration:
    steps = len(inputs[0]) + 1
    lists: dict[str, Any] = {"errors": [[0.0] * steps], "gains": [[1.0] * steps]}
    changes = {"inputs": np.asarray(inputs).tolist(), "outputs": np.asarray(outputs).tolist()}
    return Calibration.model_validate(
        {"steps": steps, "runs": len(inputs), "ratios": {"cond": [1.0] * steps}, "curves": {}, **lists, **changes}
    )


def test_r2_by_hand() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 0.5, (3, 20))
    y = 0.2 + x**2 + rng.normal(scale=0.01, size=x.shape)
    found = goodness(calibration(x, y), degree=2)
    whole = np.polyfit(x.ravel(), y.ravel(), 2)
    left = y - np.polyval(whole, x)
    assert found.r2 == pytest.approx(1 - (left**2).sum() / ((y - y.mean()) ** 2).sum())
    assert found.error == pytest.approx(np.sqrt((left**2).mean()) / y.mean())
    guessed = [
        np.polyval(np.polyfit(np.delete(x, run, 0).ravel(), np.delete(y, run, 0).ravel(), 2), x[run])
        for run in range(3)
    ]
    assert found.r2_held_out == pytest.approx(1 - ((y - guessed) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert found.r2_held_out is not None and found.r2_held_out < found.r2 < 1.0
    assert found.coefficients == fc.TeaCache.calibrated(calibration(x, y), degree=2).coefficients
    rows = found.rows()
    assert len(rows) == 60 and rows[25]["run"] == 1 and rows[25]["step"] == 6
    assert rows[25]["residual"] == pytest.approx(left[1, 5])
    assert to_image(draw_goodness(found)).std() > 0


def test_an_exact_law_is_told_wholly_and_noise_not_at_all() -> None:
    x = np.linspace(0.1, 0.5, 40).reshape(1, 40)
    exact = goodness(calibration(x, 3 * x + 0.1), degree=1)
    assert (
        exact.r2 == pytest.approx(1.0) and exact.r2_held_out is None and exact.words.startswith("R² 1.00 on 1 prompt;")
    )
    rng = np.random.default_rng(1)
    noise = goodness(calibration(rng.uniform(size=(2, 200)), rng.uniform(size=(2, 200))), degree=1)
    assert abs(noise.r2) < 0.05 and noise.r2_held_out is not None and noise.r2_held_out < noise.r2
    with pytest.raises(RecordingError, match="same amount at every step"):
        goodness(calibration(x, np.full_like(x, 0.2)), degree=1)

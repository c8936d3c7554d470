"""What the analysis does where nobody says otherwise: figures depend on each of these, so each is written down twice.

The registered metrics stand in `test_metrics`.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.defaults import defaults_of

DEFAULTS: dict[str, dict[str, Any]] = {
    "calibrate": {
        "Calibration(version)": 1,
        "Calibration(offsets)": (),
        "calibrate(policies)": (),
        "calibrate(lags)": 6,
        "Calibrator(comparisons)": (),
    },
    "least_squares": {},
    "measures": {
        "BANDS": ("whole", "low", "high"),
        "ORDER": ("cosine", "rel_l1", "rel_l2"),
        "similarity(batched)": False,
        "band_similarity(batched)": False,
        "_flat(batched)": False,
    },
    "metrics": {"Metric(decibel)": False, "Metric(reference_free)": False, "measure(metrics)": ("psnr", "ssim")},
    "predictability": {
        "HISTORY": 5,
        "RIDGE": 1e-10,
        "INTERVALS": (2, 3, 4, 5, 6),
        "fitted_errors(history)": 5,
        "Predictability.league(interval)": 3,
        "predictability(intervals)": (2, 3, 4, 5, 6),
        "predictability(starts)": (0,),
    },
    "quality": {"PSNR_CAP": 100.0, "WINDOW": 11, "SIGMA": 1.5},
    "ranking": {"LIMIT": 0.05},
    "response": {"SEED": 0, "REPEATS": 8, "probe(first)": 0, "probe(tolerance)": 1e-4},
    "sketch": {},
    "tape": {"_CACHED": 524288},
    "trajectory": {"BLOCK": 4194304, "interpolation(points)": 6},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    assert defaults_of(importlib.import_module(f"fastercache.analysis.{name}")) == DEFAULTS[name]

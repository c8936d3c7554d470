"""Calibrated MagCache ratios equal those that diffusers 0.42.1 calibrates on the same runs."""

from __future__ import annotations

import ast
import copy
from typing import Any

import numpy as np
import pytest
from diffusers import MagCacheConfig

from fastercache.analysis.calibrate import calibrate


def test_magcache_ratios(cogvideox: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """diffusers calibrates both halves of a batch together, which is the mean of the branches' ratios."""
    pipe = copy.deepcopy(cogvideox.pipe)
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=12))
    cogvideox.run(12, pipe)
    printed = capsys.readouterr().out
    theirs = ast.literal_eval(printed[printed.index("\n[1.0") :].strip().splitlines()[0])
    with calibrate(cogvideox.pipe, lags=1) as calibrator:
        cogvideox.run(12)
    ratios = calibrator.result().ratios
    np.testing.assert_allclose((np.array(ratios["cond"]) + np.array(ratios["uncond"])) / 2, theirs, rtol=1e-5)

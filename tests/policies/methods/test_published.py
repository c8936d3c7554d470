"""What methods were published with: defaults of every policy and predictor, and settings of papers and codes.

A default is a part of a method. Whoever changes one changes the result of everybody who relies on it, so each is
written down here a second time.
"""

from __future__ import annotations

from typing import Any

import pytest

import fastercache as fc
from fastercache.policies import predictors
from fastercache.policies.methods.adacache import CODEBOOKS
from fastercache.policies.methods.meancache import PLANS

DEFAULTS: dict[str, dict[str, Any]] = {
    "ab_cache": {"interval": 4, "start": 5 / 49, "stop": 1.0, "offset": None, "sites": "denoiser", "order": 3},
    "adacache": {
        "sites": "block",
        "scope": "call",
        "codebook": ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3)),
        "scale": 1.0,
        "cool_down": 2,
    },
    "adaptive_guidance": {
        "threshold": 0.3,
        "max_interval": 8,
        "start": 0.2,
        "stop": 1.0,
        "band": "larger",
        "divisor": 5,
    },
    "branch_reuse": {
        "interval": 1,
        "start": 1 / 3,
        "stop": 1.0,
        "offset": None,
        "sites": "denoiser",
        "other_interval": 3,
    },
    "bwcache": {"sites": "block", "scope": "call", "threshold": 0.15, "rest": 0.1, "tail": 0.5},
    "cfg_cache": {
        "interval": 5,
        "start": 1 / 3,
        "stop": 1.0,
        "alpha_low": 0.2,
        "alpha_high": 0.2,
        "switch": 2 / 3,
        "switch_high": None,
        "weighting": "paper",
        "radius": None,
        "divisor": 5,
        "offset": None,
    },
    "deepcache": {"interval": 3, "start": 0.0, "stop": 1.0, "offset": None, "sites": "", "depth": 1},
    "delta_dit": {"interval": 2, "start": 0.0, "stop": 1.0, "offset": None, "share": 0.5, "gate": 0.5},
    "dicache": {"sites": "stack[1:]", "scope": "call", "threshold": 0.1, "start": 0.2},
    "dmd": {"interval": 4, "start": 3 / 49, "stop": 1.0, "offset": None, "sites": "stack", "history": 6},
    "dual_block_cache": {
        "sites": "",
        "scope": "call",
        "threshold": 0.08,
        "front": 1,
        "back": 0,
        "warm_up": 4,
        "max_consecutive": 4,
    },
    "dynamic_reuse": {
        "sites": "attention",
        "interval": 2,
        "start": 1 / 3,
        "stop": 1.0,
        "weight": "ramp",
        "order": 1,
        "offset": None,
    },
    "easycache": {"sites": "denoiser", "scope": "cond", "threshold": 0.05, "start": 0.2, "relative": True},
    "ertacache": {"gains": (), "offsets": (), "threshold": 0.1, "max_skip": 6, "start": 0.1, "sites": "stack"},
    "fastercache": {
        "sites": "attention",
        "interval": 2,
        "start": 1 / 3,
        "stop": 1.0,
        "weight": "ramp",
        "order": 1,
        "offset": None,
        "cfg_interval": 5,
        "cfg_start": 1 / 3,
        "cfg_stop": 1.0,
        "alpha_low": 0.2,
        "alpha_high": 0.2,
        "switch": 2 / 3,
        "switch_high": None,
        "weighting": "paper",
        "radius": None,
        "divisor": 5,
        "cfg_offset": None,
    },
    "first_block_cache": {"sites": "stack[1:]", "scope": "call", "threshold": 0.08},
    "foca": {"interval": 4, "start": 3 / 49, "stop": 1.0, "offset": None, "sites": "all", "horizon": 3},
    "fora": {"interval": 2, "start": 0.0, "stop": 1.0, "offset": None, "sites": "all"},
    "guidance_interval": {"start": 0.1, "stop": 0.8},
    "guidance_reuse": {"interval": 5, "start": 1 / 3, "stop": 1.0, "offset": None},
    "hicache": {"interval": 4, "start": 3 / 49, "stop": 1.0, "offset": None, "sites": "all", "order": 2, "scale": 0.5},
    "magcache": {"threshold": 0.06, "max_skip": 3, "retention": 0.2, "sites": "stack"},
    "max_consecutive": {"limit": 3},
    "meancache": {"interval": 3, "start": 0.2, "stop": 1.0, "offset": None, "sites": "denoiser", "span": 2, "plan": ()},
    "no_cache": {"sites": "all|denoiser"},
    "pab": {"spatial": 2, "temporal": 3, "cross": 6, "joint": 2, "ff": 1, "low": 100.0, "high": 800.0},
    "seacache": {
        "sites": "stack",
        "scope": "call",
        "threshold": 0.25,
        "max_consecutive": 2,
        "warm_up": 1,
        "cool_down": 1,
        "power": 3.0,
        "channels": 1,
    },
    "smoothcache": {"alpha": 0.1, "lookahead": 3},
    "spectrum": {
        "interval": 2,
        "start": 5 / 49,
        "stop": 1.0,
        "offset": None,
        "sites": "stack",
        "growth": 0.75,
        "degree": 4,
        "ridge": 0.1,
        "blend": 0.5,
    },
    "static_interval": {"interval": 2, "start": 0.0, "stop": 1.0, "offset": None, "sites": "attention"},
    "taylorseer": {"interval": 4, "start": 3 / 49, "stop": 1.0, "offset": None, "sites": "all", "order": 1},
    "teacache": {"sites": "stack", "scope": "call", "threshold": 0.15, "coefficients": (1.0, 0.0)},
    "tgate": {"gate": 0.4, "self_interval": 2, "start": 0.1},
    "warm_up": {"steps": 1},
    "window": {"start": 0.0, "stop": 1.0},
}

PREDICTORS: dict[str, dict[str, Any]] = {
    "AdamsBashforth": {"order": 3},
    "Aligned": {"limit": 2.0},
    "AverageVelocity": {"span": 2},
    "Chebyshev": {"degree": 4, "ridge": 0.1, "blend": 0.5, "history": 16},
    "Difference": {"weight": 0.5, "order": 1, "gap": 2},
    "Exponential": {"history": 6},
    "FoCaForecast": {"horizon": 3},
    "Hermite": {"order": 2, "scale": 0.5},
    "Linear": {"weight": 1.0},
    "Taylor": {"order": 1},
}


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults_of_policies(name: str) -> None:
    fields = fc.policy_class(name).model_fields
    found = {key: fields[key].default for key in DEFAULTS[name]}
    assert {key: getattr(value, "value", value) for key, value in found.items()} == DEFAULTS[name]
    others = {key for key, field in fields.items() if not field.is_required() and field.default_factory is None}
    assert others == set(DEFAULTS[name])


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_defaults_of_predictors(name: str) -> None:
    predictor = getattr(predictors, name)()
    assert {key: getattr(predictor, key) for key in PREDICTORS[name]} == PREDICTORS[name]


def test_meancache_plans_of_the_official_code() -> None:
    """github.com/UnicomAI/MeanCache, computed steps of 50 for Qwen-Image."""
    assert PLANS == {
        "qwen-image-25": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 32, 40, 43, 45, 47, 48, 49),
        "qwen-image-17": (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 17, 24, 31, 38, 45, 48, 49),
        "qwen-image-10": (0, 1, 3, 7, 14, 21, 28, 35, 42, 49),
    }


def test_pab_settings_of_the_official_code() -> None:
    """github.com/NUS-HPC-AI-Lab/VideoSys: intervals by kind of attention, inside a window of timesteps."""
    wanted = {
        "latte": (2, 3, 6, 100.0, 800.0),
        "open-sora": (2, 4, 6, 450.0, 930.0),
        "cogvideox": (2, 1, 1, 100.0, 800.0),
    }
    for model, numbers in wanted.items():
        found = fc.PyramidAttentionBroadcast.preset(model)
        assert (found.spatial, found.temporal, found.cross, found.low, found.high) == numbers
    assert fc.PyramidAttentionBroadcast.preset("cogvideox").joint == 2


def test_adacache_codebooks_of_the_official_code() -> None:
    """Change up to a bound -> distance of the next computed step."""
    assert {name: dict(book) for name, book in CODEBOOKS.items()} == {
        "open-sora-100": {0.03: 12, 0.05: 10, 0.07: 8, 0.09: 6, 0.11: 4, 1.0: 3},
        "open-sora-30-fast": {0.08: 6, 0.16: 5, 0.24: 4, 0.32: 3, 0.4: 2, 1.0: 1},
        "open-sora-30-slow": {0.08: 3, 0.16: 2, 0.24: 1, 0.32: 1, 0.4: 1, 1.0: 1},
    }

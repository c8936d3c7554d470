"""What methods were published with: defaults of every policy and predictor, and settings of papers and codes.

A default is a part of a method. Whoever changes one changes the result of everybody who relies on it, so each is
written down here a second time.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

import fastercache as fc
from fastercache.policies import predictors
from fastercache.policies.methods.adacache import CODEBOOKS
from fastercache.policies.methods.meancache import PLANS
from fastercache.policies.methods.teacache import COEFFICIENTS, polynomial

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


def test_fastercache_bands_of_the_official_codes() -> None:
    """Where the low band's extra weight ends and the high one's begins: index of the step, as a share of the last."""
    wanted = {
        "open-sora": (25 / 29, 19 / 29), "latte": (44 / 49, 44 / 49), "open-sora-plan": (130 / 149, 130 / 149),
        "cogvideox": (40 / 49, 29 / 49), "mochi": (51 / 63, 30 / 63), "vchitect": (79 / 99, 60 / 99),
    }  # fmt: skip
    assert {name: (p.switch, p.switch_high) for name, p in fc.PRESETS.items()} == wanted


def test_teacache_polynomials_of_the_official_code() -> None:
    """github.com/ali-vilab/TeaCache, highest power first."""
    assert COEFFICIENTS == {
        "open-sora": (2.17546007e02, -1.18329252e02, 2.68662585e01, -4.59364272e-02, 4.84426240e-02),
        "latte": (-2.46434137e03, 3.08044764e02, 8.07447667e01, -4.11385132e00, 1.11001402e-01),
    }
    assert polynomial((2.0, 3.0, 5.0), 2.0) == 2 * 4 + 3 * 2 + 5 and polynomial((), 2.0) == 0.0


def test_constants_that_stand_where_nothing_was_measured() -> None:
    stated = {name: dict(fc.policy_class(name).constants) for name in fc.known_policies()}
    assert {name: constants for name, constants in stated.items() if constants} == {
        "ertacache": {"errors": ((0.0,),), "gains": (), "offsets": ()},
        "magcache": {"ratios": {"*": (1.0,)}},
        "smoothcache": {"curves": {"ff": ((0.0,),)}},
        "teacache": {"coefficients": (1.0, 0.0)},
    }


def test_what_a_watching_rule_remembers_and_for_whom_it_decides_unless_it_says() -> None:
    class Bare(fc.SitePolicy, fc.WatchingRule[None]):
        name: ClassVar[str] = "bare"

        @property
        def query(self) -> str:
            return "stack"

        @property
        def signal(self) -> None:
            return None

        def reuse(self, state: None, step: fc.Step, seen: Any) -> bool:
            return False

    assert (Bare().remembers, Bare().decides) == (3, fc.Scope.BRANCH)
    assert fc.AdaptiveGuidance().remembers == 1  # the difference at the last full step


def test_what_the_tuner_leaves_alone_unless_asked() -> None:
    """Counts of where an interval begins, whose signal decides, and what is measured on a model."""
    known = {n: cls for n, cls in fc.known_policies().items() if cls.__module__.startswith("fastercache.policies")}
    assert {name: set(cls.unsearched) for name, cls in known.items() if cls.unsearched} == {
        "ab_cache": {"offset"},
        "adacache": {"codebook", "cool_down", "scope"},
        "adaptive_guidance": {"divisor"},
        "branch_reuse": {"offset", "sites"},
        "bwcache": {"scope"},
        "cfg_cache": {"divisor", "offset"},
        "deepcache": {"offset", "sites"},
        "delta_dit": {"offset"},
        "dicache": {"scope"},
        "dmd": {"offset"},
        "dual_block_cache": {"scope", "sites"},
        "dynamic_reuse": {"offset"},
        "easycache": {"relative", "scope"},
        "ertacache": {"errors", "gains", "offsets"},
        "fastercache": {"cfg_offset", "divisor", "offset"},
        "first_block_cache": {"scope"},
        "foca": {"offset"},
        "fora": {"offset"},
        "guidance_reuse": {"offset"},
        "hicache": {"offset"},
        "magcache": {"ratios"},
        "meancache": {"offset", "plan", "sites"},
        "seacache": {"channels", "power", "scope"},
        "smoothcache": {"curves"},
        "spectrum": {"offset"},
        "static_interval": {"offset"},
        "taylorseer": {"offset"},
        "teacache": {"coefficients", "scope"},
    }


def test_the_settings_at_which_nothing_is_reused() -> None:
    known = {n: cls for n, cls in fc.known_policies().items() if cls.__module__.startswith("fastercache.policies")}
    once = {name: dict(cls.off) for name, cls in known.items() if cls.off}
    assert {name: off for name, off in once.items() if off not in ({"interval": 1}, {"threshold": 0.0})} == {
        "branch_reuse": {"interval": 1, "other_interval": 1},
        "fastercache": {"interval": 1, "cfg_interval": 1},
        "guidance_interval": {"start": 0.0, "stop": 1.0},
        "magcache": {"retention": 1.0},
        "pab": {"spatial": 1, "temporal": 1, "cross": 1, "joint": 1, "ff": 1},
        "smoothcache": {"alpha": 0.0},
        "tgate": {"gate": 1.0, "self_interval": 1},
    }

"""What the tuner does where nothing is said, written down a second time: whoever changes a default changes everybody's
results."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from fastercache.tuner import Evaluator, Study, certify, clock, early, propose, record, seconds, simulate, tune
from fastercache.tuner.evaluate import Evaluation
from fastercache.tuner.setting import Setting, as_video

DEFAULTS: dict[Callable[..., Any], dict[str, Any]] = {
    Study.__init__: {
        "held_out": (), "name": "tuning", "seed": 0, "sampler": "known-cost", "seeds": None, "guests": None,
        "objective": "flops", "clock": None,
    },
    Study.optimise: {"trials": 30, "timeout": None, "on_trial": None},
    Study.verify: {"policy": None, "prompts": None, "repeats": 1},
    Study.certify: {"policy": None, "confidence": 0.95},
    Evaluator.__init__: {
        "call": None, "metrics": ("psnr", "ssim"), "seed": 0, "video": None, "max_cache_bytes": None,
    },
    Evaluator.evaluate: {"stop": None},
    Evaluator.compare: {"repeats": 1},
    Evaluation.__init__: {"flops": 0, "flops_full": 0, "cached_bytes": 0, "stopped": None},
    Setting.__init__: {"seed": 0, "video": as_video},
    propose.Proposer.__init__: {"pool": 96, "most": math.inf},
    propose.KnownCostSampler.__init__: {"seed": None, "general": None},
    simulate.CostModel.__init__: {"guidance": "none", "latent": (), "clock": None, "by_clock": False},
    record.records: {"known": None},
    seconds.Seconds.measured: {"history": 5},
    certify.clopper_pearson: {"confidence": 0.95},
    certify.prompts_needed: {"confidence": 0.95, "violations": 0},
    certify.hoeffding_bentkus: {"maximum": 1.0},
    certify.fixed_sequence: {"level": 0.05},
    certify.certificate: {"confidence": 0.95},
    certify.sequential: {"rate": 0.05, "confidence": 0.95},
    tune: {
        "policy": "fastercache", "held_out": (), "call": None, "trials": 30, "timeout": None, "out": "tuning",
        "storage": None, "name": "tuning", "seed": 0, "metrics": ("psnr", "ssim"), "fixed": None, "bounds": None,
        "seeds": None, "sampler": "known-cost", "on_trial": None, "references": None, "logdir": None, "video": None,
        "objective": "flops", "table": None,
    },
}  # fmt: skip
CONSTANTS: dict[Any, dict[str, Any]] = {
    propose: {"CAUTION": 2.0, "LEAST_GAIN": 0.002},
    record: {"SAME": 1e-9},
    simulate: {"BINS": 4},
    seconds: {"RUNS": 2, "SAMPLES": 3},
    clock: {"UNSIGNED": 10.0},
    early: {"PRIOR_SPREAD": 2.0, "PRIOR_WEIGHT": 6.0, "SIGMAS": 3.0},
}


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda function: str(function.__qualname__))
def test_defaults(function: Callable[..., Any]) -> None:
    given = inspect.signature(function).parameters
    assert {name: given[name].default for name in DEFAULTS[function]} == DEFAULTS[function]


@pytest.mark.parametrize("module", CONSTANTS, ids=lambda module: str(module.__name__))
def test_constants(module: Any) -> None:
    assert {name: getattr(module, name) for name in CONSTANTS[module]} == CONSTANTS[module]

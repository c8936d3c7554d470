"""What planning does where nobody says otherwise: a plan depends on each of these, so each is written down twice."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest

from fastercache.tuner.planning.planner import Effort
from tests.defaults import defaults_of

GIB = 2**30
DEFAULTS: dict[str, dict[str, Any]] = {
    "attribution": {"holding(part)": 0.5, "rank_interval(draws)": 1000},
    "damage": {
        "KEPT": 32768,
        "Damage(history)": 5,
        "Damage(latent)": True,
        "Damage(ridge)": 1e-10,
        "Damage(starts)": (0,),
    },
    "fitting": {
        "RIDGE": 1e-10,
        "FittedRuns(complete)": False,
        "FittedRuns(calls)": 0,
        "fit(history)": 5,
        "fit(ridge)": 1e-10,
        "fit(exact)": (),
        "fit(finish)": True,
        "replay(exact)": (),
        "replay(keep)": True,
        "replay(finish)": False,
        "replay(variance)": True,
        "_computed(keep)": True,
        "_Work(variance)": True,
    },
    "fixed": {"NEAR": 8.0, "LOOK": 2, "BEHIND": 1.0, "better_of(history)": 16, "better_of(most)": math.inf},
    "front": {"Front(version)": 1},
    "lockstep": {},
    "material": {"material(max_bytes)": 4 * GIB},
    "opening": {"opened(effort)": 1, "opened(metrics)": ()},
    "paths": {"plans(width)": 24, "plans(alternatives)": 1, "plans(best)": 1, "plans(apart)": 1},
    "planner": {
        "EFFORTS": (
            Effort(recorded=2, generations=10.0, groups=(), fitted=None),
            Effort(recorded=8, generations=24.0, groups=((0, 1), (2, 3, 4)), fitted=None),
            Effort(recorded=12, generations=160.0, groups=((0, 1), (2, 3, 4), (5, 6, 7)), fitted=8),
        ),
        "REFINING": 0.6,
        "Effort(groups)": (),
        "Effort.price(questions)": 1,
        "Planner(effort)": 1,
        "Planner(metrics)": ("psnr", "ssim"),
        "Planner(history)": 5,
        "Planner.verify(keep)": 0.0,
        "Planner._fit(keep)": 0.0,
        "Planner._fit(rivals)": True,
        "computed_for(fewest)": 1,
    },
    "portfolio": {"ROUNDS": 40, "portfolio(width)": 32, "bettered(best)": 1, "bettered(apart)": 2},
    "record": {"PlanRecord(history)": 5},
    "referee": {"BEHIND": pytest.approx(1.1512925465), "KEEPS_UP": pytest.approx(0.11512925465), "TINY": 1e-14},
    "refine": {"DAMPING": (0.1, 0.01, 0.001, 0.0001)},
    "rehearsal": {
        "GROWTH": 0.7,
        "NOVELTY": 0.7,
        "KEPT": 4096,
        "Rehearsal(history)": 5,
        "Rehearsal(latent)": True,
        "Rehearsal(starts)": (0,),
        "Rehearsal(ridge)": 1e-10,
        "Rehearsal(growth)": 0.7,
        "Rehearsal(novelty)": 0.7,
        "Foresight.recorded(history)": 5,
    },
    "room": {"HISTORY": 5},
    "scale": {"STEEPNESS": 1.35, "APART": 1.0},
    "search": {"Search(spent)": 0.0, "search(prompts)": 1, "search(worse)": 3.0, "search(fixed)": (0,)},
    "within": {
        "SPREAD": 3.0,
        "WEIGHT": 4.0,
        "NEARLY": 0.5,
        "SURE": 3.0,
        "CONFIDENCE": 0.9,
        "Within._fewest(more)": 0.0,
        "Within._fewest(above)": 0,
    },
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    assert defaults_of(importlib.import_module(f"fastercache.tuner.planning.{name}")) == DEFAULTS[name]

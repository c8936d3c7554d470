"""The modules that decide correctness, by room, each with the quick tests that mirror it: what `make mutate` works on.

The tests of a module are few and quick, because each of its mutants runs them; those that are most likely to fail stand
first, since a run ends at the first failure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deciding:
    """A module and the tests that are to notice its mutants.

    Attributes:
        module: its file, from the root of the repository.
        tests: files of tests, or single tests as pytest names them.
    """

    module: str
    tests: tuple[str, ...]


def _of(tests: str, *modules: str) -> tuple[Deciding, ...]:
    """Modules of one folder with the same tests; both by their paths without `tests/` and `.py`."""
    files = tuple(f"tests/{name}.py" for name in tests.split())
    return tuple(Deciding(f"{module}.py", files) for module in modules)


_METHODS = (
    "policies/methods/test_methods policies/methods/test_dynamic policies/methods/test_presets "
    "policies/methods/test_published policies/test_off"
)
_RUN = (
    "fastercache/run/test_units fastercache/run/test_assembly fastercache/run/test_store fastercache/run/test_transfer "
    "fastercache/test_laws fastercache/run/test_planned"
)
_PLAN = "tuner/planning/test_damage tuner/planning/test_rehearsal tuner/planning/test_scale tuner/planning/test_search"

ROOMS: dict[str, tuple[Deciding, ...]] = {
    "policies": (
        *_of(
            "policies/test_schedule policies/test_interpreter policies/test_alike policies/test_composition "
            "policies/test_off policies/methods/test_published policies/test_notebook",
            "policies/schedule",
            "policies/compose",
            "policies/wrappers",
            "policies/rules",
        ),
        *_of("policies/test_vocabulary policies/test_composition policies/test_schedule", "policies/vocabulary"),
        *_of("policies/test_signals fastercache/run/test_signals", "policies/signals"),
        *_of(
            "policies/predictors/test_predictors policies/predictors/test_forecasts_of_2026 "
            "policies/methods/test_published policies/methods/test_methods",
            "policies/predictors/forecasts",
            "policies/predictors/history",
            "policies/predictors/adams_bashforth",
            "policies/predictors/chebyshev",
            "policies/predictors/exponential",
        ),
        *_of(
            "policies/predictors/test_frequency policies/methods/test_guidance policies/methods/test_dynamic",
            "policies/predictors/frequency",
        ),
        *_of("policies/predictors/test_fitted", "policies/predictors/fitted"),
        *_of(
            _METHODS,
            "policies/methods/adacache",
            "policies/methods/dicache",
            "policies/methods/dmd",
            "policies/methods/dynamic",
            "policies/methods/dynamic_reuse",
            "policies/methods/easycache",
            "policies/methods/ertacache",
            "policies/methods/faster_cache",
            "policies/methods/first_block_cache",
            "policies/methods/magcache",
            "policies/methods/meancache",
            "policies/methods/pyramid_attention_broadcast",
            "policies/methods/seacache",
            "policies/methods/smoothcache",
            "policies/methods/spectrum",
            "policies/methods/static_interval",
            "policies/methods/taylorseer",
            "policies/methods/teacache",
            "policies/methods/tgate",
        ),
        *_of(
            "policies/methods/test_guidance policies/methods/test_methods policies/methods/test_presets "
            "policies/methods/test_published policies/test_off",
            "policies/methods/cfg_cache",
            "policies/methods/guidance",
        ),
    ),
    "runtime": (
        *_of(
            _RUN,
            "fastercache/run/units",
            "fastercache/run/store",
            "fastercache/run/stack_unit",
            "fastercache/run/module_unit",
            "fastercache/run/assembly",
        ),
        *_of(
            "fastercache/run/test_memory_plan fastercache/run/test_store fastercache/run/test_memory",
            "fastercache/run/memory",
        ),
        *_of(
            "fastercache/run/test_clock fastercache/run/test_schedulers fastercache/run/test_early_end",
            "fastercache/run/clock",
        ),
        *_of("fastercache/run/test_jury fastercache/run/test_signals", "fastercache/run/signals"),
        *_of("fastercache/run/test_store", "fastercache/run/rows"),
        *_of("fastercache/model/test_rows", "fastercache/model/rows"),
        *_of("fastercache/model/test_branch_finder fastercache/model/test_branches", "fastercache/model/branches"),
        *_of("fastercache/model/test_grids", "fastercache/model/grids"),
    ),
    "planner": (
        *_of(
            _PLAN,
            "tuner/planning/damage",
            "tuner/planning/paths",
            "tuner/planning/rehearsal",
            "tuner/planning/refine",
            "tuner/planning/scale",
            "tuner/planning/search",
            "tuner/planning/portfolio",
        ),
        *_of("tuner/planning/test_front tuner/planning/test_planner", "tuner/planning/front", "tuner/planning/room"),
        *_of("tuner/planning/test_fixed tuner/planning/test_planner", "tuner/planning/fixed"),
        *_of("tuner/planning/test_fitting", "tuner/planning/fitting", "tuner/planning/material"),
        *_of("tuner/planning/test_lockstep tuner/planning/test_fitting", "tuner/planning/lockstep"),
        *_of("tuner/planning/test_referee", "tuner/planning/referee"),
        *_of("tuner/planning/test_record", "tuner/planning/record"),
        *_of("tuner/planning/test_seconds", "tuner/planning/seconds"),
        *_of("tuner/planning/test_attribution", "tuner/planning/attribution"),
        *_of(
            "tuner/planning/test_planner tuner/planning/test_search",
            "tuner/planning/planner",
            "tuner/planning/opening",
            "tuner/planning/within",
        ),
    ),
    "tuner": (
        *_of("tuner/test_budget tuner/test_early", "tuner/budget"),
        *_of("tuner/test_defaults tuner/test_study tuner/test_sequential", "tuner/study"),
        *_of("tuner/test_defaults tuner/test_evaluate tuner/test_early", "tuner/evaluate"),
        *_of("tuner/test_defaults tuner/test_proposals tuner/test_propose", "tuner/propose"),
        *_of("tuner/test_defaults tuner/test_simulate", "tuner/simulate"),
        *_of("tuner/test_defaults tuner/test_record tuner/test_study", "tuner/record"),
    ),
    "certificate": _of("tuner/test_defaults tuner/test_certify tuner/test_sequential", "tuner/certify"),
    "verdict": _of(
        "experiments/test_verdict experiments/test_contest experiments/test_bench",
        "experiments/bench/verdict",
        "experiments/bench/contest",
    ),
    "analysis": (
        *_of("analysis/test_measures", "analysis/measures"),
        *_of("analysis/test_quality", "analysis/quality"),
        *_of("analysis/test_metrics", "analysis/metrics"),
        *_of("analysis/test_calibrate", "analysis/calibrate", "analysis/least_squares"),
        *_of("analysis/test_predictability", "analysis/predictability"),
        *_of("analysis/test_ranking", "analysis/ranking"),
        *_of("analysis/test_record", "analysis/tape", "analysis/sketch"),
        *_of("analysis/test_response", "analysis/response"),
        *_of("analysis/test_sampling", "analysis/trajectory"),
    ),
}
"""Room -> its deciding modules."""

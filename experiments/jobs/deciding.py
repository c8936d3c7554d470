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
    "policies/methods/test_methods policies/methods/test_settings policies/methods/test_dynamic "
    "policies/methods/test_presets policies/methods/test_published policies/test_off policies/test_fields"
)
_RUN = (
    "fastercache/run/test_units fastercache/run/test_assembly fastercache/run/test_store fastercache/run/test_transfer "
    "fastercache/test_laws fastercache/run/test_planned fastercache/run/test_nested"
)
_SET = "tuner/planning/test_constants"
_DEFAULT = "analysis/test_constants"

ROOMS: dict[str, tuple[Deciding, ...]] = {
    "policies": (
        *_of(
            "policies/test_schedule policies/test_schedules_of_many policies/test_interpreter policies/test_alike "
            "policies/test_composition policies/test_off policies/methods/test_published policies/test_notebook "
            "fastercache/run/test_nested",
            "policies/schedule",
            "policies/compose",
            "policies/wrappers",
            "policies/rules",
        ),
        *_of(
            "policies/test_vocabulary policies/test_schedules_of_many policies/test_composition policies/test_schedule",
            "policies/vocabulary",
        ),
        *_of("policies/test_signals fastercache/run/test_signals", "policies/signals"),
        *_of(
            "policies/test_registry policies/test_off policies/test_composition policies/test_files "
            "policies/test_documents",
            "policies/base",
            "policies/registry",
        ),
        *_of("policies/test_documents", "policies/documents"),
        *_of("policies/test_files", "policies/files", "policies/plugins"),
        *_of("policies/test_notebook", "policies/notebook"),
        *_of(
            "policies/predictors/test_predictors policies/predictors/test_edges "
            "policies/predictors/test_forecasts_of_2026 policies/predictors/test_fitted "
            "policies/methods/test_published policies/methods/test_methods",
            "policies/predictors/forecasts",
            "policies/predictors/history",
            "policies/predictors/adams_bashforth",
            "policies/predictors/chebyshev",
            "policies/predictors/exponential",
        ),
        *_of(
            "policies/predictors/test_frequency policies/predictors/test_edges policies/methods/test_guidance "
            "policies/methods/test_dynamic",
            "policies/predictors/frequency",
        ),
        *_of("policies/predictors/test_edges policies/predictors/test_fitted", "policies/predictors/fitted"),
        *_of(
            _METHODS,
            "policies/methods/ab_cache",
            "policies/methods/adacache",
            "policies/methods/calibrated",
            "policies/methods/deepcache",
            "policies/methods/delta_dit",
            "policies/methods/dicache",
            "policies/methods/dmd",
            "policies/methods/dynamic",
            "policies/methods/dynamic_reuse",
            "policies/methods/easycache",
            "policies/methods/ertacache",
            "policies/methods/faster_cache",
            "policies/methods/first_block_cache",
            "policies/methods/fora",
            "policies/methods/magcache",
            "policies/methods/meancache",
            "policies/methods/planned",
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
            "policies/methods/test_guidance policies/methods/test_settings policies/methods/test_methods "
            "policies/methods/test_presets policies/methods/test_published policies/test_off policies/test_fields",
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
            "fastercache/run/test_denoiser fastercache/test_session fastercache/run/test_units",
            "fastercache/run/denoiser",
            "fastercache/run/calls",
            "fastercache/run/plan",
        ),
        *_of("fastercache/run/test_compiled", "fastercache/run/compiled"),
        *_of(
            "fastercache/test_session fastercache/run/test_denoiser fastercache/test_applied",
            "fastercache/session",
            "fastercache/attachment",
            "fastercache/model/experts",
            "fastercache/run/trace",
            "fastercache/run/writer",
            "fastercache/run/idle",
        ),
        *_of("fastercache/model/test_layout", "fastercache/model/layout"),
        *_of("fastercache/model/test_skeleton fastercache/run/test_denoiser", "fastercache/model/skeleton"),
        *_of(
            "fastercache/run/test_memory_plan fastercache/run/test_store fastercache/run/test_memory",
            "fastercache/run/memory",
        ),
        *_of(
            "fastercache/run/test_clock fastercache/run/test_schedulers fastercache/run/test_early_end",
            "fastercache/run/clock",
        ),
        *_of("fastercache/run/test_jury fastercache/run/test_signals", "fastercache/run/signals"),
        *_of("fastercache/run/test_store fastercache/run/test_units", "fastercache/run/rows"),
        *_of("fastercache/model/test_rows", "fastercache/model/rows"),
        *_of("fastercache/model/test_branch_finder fastercache/model/test_branches", "fastercache/model/branches"),
        *_of("fastercache/model/test_grids", "fastercache/model/grids"),
    ),
    "planner": (
        *_of(f"tuner/planning/test_damage {_SET}", "tuner/planning/damage", "tuner/planning/paths"),
        *_of(f"tuner/planning/test_rehearsal {_SET}", "tuner/planning/rehearsal"),
        *_of(f"tuner/planning/test_refine {_SET}", "tuner/planning/refine"),
        *_of(f"tuner/planning/test_scale {_SET}", "tuner/planning/scale"),
        *_of(f"tuner/planning/test_search {_SET}", "tuner/planning/search"),
        *_of(f"tuner/planning/test_portfolio {_SET} tuner/planning/test_rehearsal", "tuner/planning/portfolio"),
        *_of(f"tuner/planning/test_front {_SET}", "tuner/planning/front"),
        *_of(f"tuner/planning/test_room {_SET} tuner/test_limits", "tuner/planning/room"),
        *_of(f"tuner/planning/test_fixed {_SET}", "tuner/planning/fixed"),
        *_of(f"tuner/planning/test_fitting {_SET} tuner/planning/test_refine", "tuner/planning/fitting"),
        *_of(f"tuner/planning/test_material {_SET}", "tuner/planning/material"),
        *_of(f"tuner/planning/test_lockstep {_SET} tuner/planning/test_fitting", "tuner/planning/lockstep"),
        *_of(f"tuner/planning/test_referee {_SET}", "tuner/planning/referee"),
        *_of(f"tuner/planning/test_record {_SET}", "tuner/planning/record"),
        *_of(f"tuner/planning/test_attribution {_SET}", "tuner/planning/attribution"),
        *_of(f"{_SET} tuner/planning/test_planner", "tuner/planning/planner"),
        *_of(f"tuner/planning/test_opening {_SET}", "tuner/planning/opening"),
        *_of(f"tuner/planning/test_within {_SET}", "tuner/planning/within"),
    ),
    "tuner": (
        *_of("tuner/test_budget tuner/test_early tuner/test_round_trips", "tuner/budget"),
        *_of(
            "tuner/test_defaults tuner/test_results tuner/test_study tuner/test_sequential tuner/test_planned_in_tune "
            "tuner/test_by_clock",
            "tuner/study",
        ),
        *_of("tuner/test_attempts tuner/test_study tuner/test_by_clock tuner/test_many_workers", "tuner/attempts"),
        *_of("tuner/test_defaults tuner/test_evaluate tuner/test_early", "tuner/evaluate"),
        *_of("tuner/test_early", "tuner/early"),
        *_of("tuner/test_defaults tuner/test_proposals tuner/test_propose", "tuner/propose"),
        *_of("tuner/test_defaults tuner/test_simulate tuner/test_by_clock", "tuner/simulate"),
        *_of("tuner/test_defaults tuner/test_seconds tuner/test_by_clock", "tuner/seconds"),
        *_of("tuner/test_defaults tuner/test_by_clock", "tuner/clock"),
        *_of("tuner/test_defaults tuner/test_record tuner/test_results tuner/test_study", "tuner/record"),
        *_of("tuner/test_storage tuner/test_attempts tuner/test_many_workers", "tuner/storage", "tuner/codec"),
        *_of("tuner/test_fields tuner/test_space", "tuner/fields"),
        *_of("tuner/test_database tuner/test_many_workers", "tuner/database"),
        *_of("tuner/test_results tuner/test_study", "tuner/export", "tuner/logbook"),
        *_of("tuner/test_library", "tuner/library"),
        *_of("tuner/test_setting tuner/test_evaluate", "tuner/setting"),
        *_of(
            "tuner/test_space tuner/test_results tuner/test_library tuner/test_round_trips",
            "tuner/space",
            "tuner/joint",
        ),
    ),
    "certificate": (
        *_of("tuner/test_defaults tuner/test_certify tuner/test_sequential", "tuner/certify"),
        *_of("experiments/test_certify experiments/test_dial", "experiments/jobs/certifying"),
        *_of("fastercache/test_picking fastercache/test_dial experiments/test_certify", "fastercache/picking"),
        *_of("fastercache/test_dial fastercache/test_picking experiments/test_dial", "fastercache/dial"),
        *_of("fastercache/test_made_for fastercache/test_tuned fastercache/test_conditions", "fastercache/tuned"),
        *_of(
            "fastercache/test_applied fastercache/test_made_for fastercache/test_tuned fastercache/test_conditions",
            "fastercache/applied",
        ),
        *_of("fastercache/test_bounds tuner/test_budget tuner/test_limits", "fastercache/bounds"),
        *_of("fastercache/test_prompts tuner/test_prompts", "fastercache/prompts"),
    ),
    "verdict": (
        *_of(
            "experiments/test_verdict experiments/test_contest experiments/test_bench experiments/jobs/test_swept",
            "experiments/bench/verdict",
            "experiments/bench/contest",
        ),
        *_of("experiments/test_equal", "experiments/bench/equal", "experiments/bench/swept"),
        *_of(
            "experiments/test_bench_parts experiments/test_bench",
            "experiments/bench/entries",
            "experiments/bench/lineup",
            "experiments/bench/peers",
            "experiments/bench/plans",
            "experiments/bench/runner",
        ),
    ),
    "analysis": (
        *_of(f"analysis/test_measures {_DEFAULT}", "analysis/measures"),
        *_of(f"analysis/test_quality {_DEFAULT} analysis/test_metrics", "analysis/quality"),
        *_of(f"analysis/test_metrics {_DEFAULT}", "analysis/metrics"),
        *_of(f"analysis/test_calibrate {_DEFAULT}", "analysis/calibrate"),
        *_of("analysis/test_least_squares", "analysis/least_squares"),
        *_of(f"analysis/test_predictability {_DEFAULT}", "analysis/predictability"),
        *_of(f"analysis/test_ranking {_DEFAULT}", "analysis/ranking"),
        *_of(f"analysis/test_tape {_DEFAULT} analysis/test_record", "analysis/tape"),
        *_of("analysis/test_sketch analysis/test_tape analysis/test_bound", "analysis/sketch"),
        *_of(f"analysis/test_response {_DEFAULT}", "analysis/response"),
        *_of(f"analysis/test_sampling {_DEFAULT}", "analysis/trajectory"),
        *_of(
            "analysis/test_trajectory_files analysis/test_sampling", "analysis/sampling", "analysis/trajectory_profile"
        ),
        *_of("analysis/test_aggregate analysis/test_record", "analysis/aggregate"),
        *_of("analysis/test_profile analysis/test_record", "analysis/profile"),
        *_of("analysis/test_record analysis/test_bound", "analysis/record", "analysis/bound"),
        *_of("analysis/test_guidance_tape analysis/test_record", "analysis/guidance_tape"),
        *_of("analysis/test_policy_measures analysis/test_calibrate", "analysis/policy_measures"),
        *_of("analysis/test_consequence analysis/test_injection", "analysis/consequence"),
        *_of("analysis/test_injection", "analysis/injection", "analysis/faults"),
    ),
    "export": (
        *_of(
            "fastercache/export/test_recipes fastercache/export/test_python",
            "fastercache/export/recipe",
            "fastercache/export/python",
        ),
        *_of(
            "fastercache/export/test_recipes fastercache/export/test_settings",
            "fastercache/export/cache_dit",
            "fastercache/export/diffusers",
            "fastercache/export/hub",
            "fastercache/export/targets",
            "fastercache/export/words",
        ),
    ),
}
"""Room -> its deciding modules."""

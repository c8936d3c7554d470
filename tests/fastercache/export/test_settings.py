"""What is written for cache-dit, SGLang, diffusers and the hub, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import fastercache as fc
from fastercache.export import NotExportable, exported
from fastercache.export.cache_dit import bins
from fastercache.export.diffusers import taylorseer_steps
from fastercache.policies.base import Hold
from fastercache.tuned import Certificate, Measured, Results, TunedConfig

PLAN = fc.Planned(steps=8, computed=(0, 1, 3, 6), stand_in=fc.Taylor(order=2))


def config(latte: Any, policy: fc.Policy, **fields: Any) -> TunedConfig:
    given = {"steps": 8, "guidance_scale": 4.0, "guidance": "batched", **fields}
    return TunedConfig.describe(latte.pipe, policy, **given)


def test_the_mask_of_a_plan(latte: Any) -> None:
    found = exported(config(latte, PLAN), "cache-dit")
    assert yaml.safe_load(found.files["cache-dit.yaml"]) == {
        "cache_config": {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 0,
            "residual_diff_threshold": 0.08,
            "max_warmup_steps": 2,
            "max_continuous_cached_steps": -1,
            "num_inference_steps": 8,
            "steps_computation_mask": [1, 1, 0, 1, 0, 0, 1, 0],
            "steps_computation_policy": "static",
            "enable_taylorseer": True,
            "taylorseer_order": 2,
        }
    }
    assert [line.split(",")[0] for line in found.lost] == [
        "cache-dit runs the first block at every step",
        "the residual of the blocks after the first is reused",
        "cache-dit forms no difference before its fourth step",
    ]


def variables(text: str) -> dict[str, str]:
    rows = [line.removeprefix("SGLANG_CACHE_DIT_").split("=") for line in text.splitlines() if line[0] != "#"]
    return {name: value for name, value in rows}


def test_the_same_as_sglang_has_it(latte: Any) -> None:
    found = variables(exported(config(latte, PLAN), "sglang").files["sglang.env"])
    assert found["SCM_COMPUTE_BINS"] == "2,1,1" and found["SCM_CACHE_BINS"] == "1,2,1"
    assert (found["SCM_POLICY"], found["TAYLORSEER"], found["TS_ORDER"]) == ("static", "true", "2")


def test_runs_of_a_mask_that_ends_computed() -> None:
    assert bins((1, 1, 0, 0, 0, 1)) == ([2, 1], [3])


def test_a_stack_between_other_blocks_loses_nothing(latte: Any) -> None:
    policy = fc.StaticInterval(sites="stack[2:-1]", interval=4)
    found = exported(config(latte, policy), "cache-dit")
    fields = yaml.safe_load(found.files["cache-dit.yaml"])["cache_config"]
    assert (fields["Fn_compute_blocks"], fields["Bn_compute_blocks"]) == (2, 1)
    assert fields["steps_computation_mask"] == [1, 0, 0, 0, 1, 0, 0, 0]
    assert "enable_taylorseer" not in fields and found.lost == ()


def test_a_threshold_goes_over_as_it_is(latte: Any) -> None:
    policy = fc.DualBlockCache(front=2, back=1, threshold=0.3, warm_up=4, max_consecutive=3)
    found = exported(config(latte, policy), "sglang")
    assert variables(found.files["sglang.env"]) == {
        "ENABLED": "true", "FN": "2", "BN": "1", "WARMUP": "4", "RDT": "0.3", "MC": "3",
    }  # fmt: skip
    assert found.lost == ()


@pytest.mark.parametrize(
    ("target", "policy", "said"),
    [
        ("cache-dit", fc.FasterCache(), "governs other values"),
        ("cache-dit", fc.BranchReuse(other_interval=3), "treats them differently"),
        ("cache-dit", fc.TeaCache(coefficients=(1.0, 0.0)), "by a rule that cache-dit does not have"),
        ("diffusers", PLAN, "diffusers has no cache like planned"),
        ("diffusers", fc.FirstBlockCache(stand_in=fc.Linear()), "nothing else"),
        ("diffusers", fc.TaylorSeer(sites="temporal"), "told modules by patterns"),
    ],
)
def test_what_a_target_has_no_words_for(latte: Any, target: str, policy: fc.Policy, said: str) -> None:
    with pytest.raises(NotExportable, match=said) as found:
        exported(config(latte, policy), target)
    assert "\n" not in str(found.value)


def test_the_steps_that_diffusers_taylorseer_computes() -> None:
    """Three steps of warm-up, one forecast, then each third: read off its `should_predict`."""
    assert taylorseer_steps(3, 3, 12) == [0, 1, 2, 4, 7, 10]


def test_taylorseer_says_which_steps_differ(latte: Any) -> None:
    """Interval 2 from step 2: 0, 1, 2, 4, 6; with three steps of warm-up diffusers computes 0, 1, 2, 4, 6 too.
    Interval 4 from step 2: 0, 1, 2, 6; with one step of warm-up diffusers computes 0, 2, 6, the nearest."""
    two = exported(config(latte, fc.TaylorSeer(sites="attention", interval=2, start=2 / 7)), "diffusers")
    assert two.lost == () and "disable_cache_before_step=3" in two.files["diffusers_cache.py"]
    four = exported(config(latte, fc.TaylorSeer(sites="attention", interval=4, start=2 / 7)), "diffusers")
    assert four.lost == ("it does not compute the steps 1",)


def test_the_folder_for_the_hub(latte: Any) -> None:
    measured = Measured(
        prompts=12, quality={"psnr": 49.8125}, speedup_flops=2.0, seconds=1.0, cached_bytes=2**21, hardware="test"
    )
    certificate = Certificate(budget="psnr>=40", prompts=59, violations=0, rate=0.05, confidence=0.95)
    one = config(latte, PLAN, budget="psnr>=40", measured=Results(held_out=measured), certificate=certificate)
    found = exported(one, "hub")
    assert set(found.files) == {"tuned.json", "cached.py", "README.md", "CITATION.bib"} and found.lost == ()
    assert TunedConfig.model_validate_json(found.files["tuned.json"]) == one
    card = found.files["README.md"]
    assert "| held-out | 12 | 2.00x | 2.0 | 49.81 |" in card
    assert "Certificate: misses psnr>=40 on at most 5 % of prompts like these, 95 % sure; 59 prompts, 0 misses." in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "diffusers" and front["license"] == "apache-2.0"
    assert exported(config(latte, fc.FasterCache()), "hub").lost[0].startswith("the folder holds no plain Python file")


def test_hold_is_no_calibrator(latte: Any) -> None:
    plan = fc.Planned(steps=8, computed=(0, 4), stand_in=Hold())
    assert "TAYLORSEER" not in variables(exported(config(latte, plan), "sglang").files["sglang.env"])

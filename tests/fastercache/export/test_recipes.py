"""What a policy does as plain numbers, step by step, and what targets are told beside the plan, worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import fastercache as fc
from fastercache import zoo
from fastercache.export import NotExportable, exported
from fastercache.export.cache_dit import Settings, bins, settings_of
from fastercache.export.recipe import INPUT, OUTPUT, Recipe, recipes
from fastercache.export.words import figures, heading, made_for
from fastercache.policies.base import Hold, Predictor
from fastercache.tuned import Certificate, Identity, Measured, Model, Results, TunedConfig
from tests.fastercache.export.test_python import STEPS, agree, described, fitted, module

CONFIG = {"num_layers": 2, "in_channels": 4, "out_channels": 4}


def config(
    policy: fc.Policy, kind: str = "LatteTransformer3DModel", pipeline: str = "LattePipeline", **fields: Any
) -> Any:
    given: dict[str, Any] = {"steps": 8, "guidance_scale": 4.0, "guidance": "batched", "scheduler": None}
    shape = CONFIG | fields.pop("shape", {})
    model = Model(pipeline=pipeline, denoiser=Identity.of(kind, shape))
    return TunedConfig(model=model, policy=policy, **given | fields)


def terms(policy: fc.Policy, branch: str = "cond", **fields: Any) -> dict[int, Recipe]:
    return recipes(config(policy, **fields)).by_branch[branch]


def whole(how: Any, *terms: tuple[int, int, float]) -> Recipe:
    return Recipe("whole", how, terms)


# -- recipes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("predictor", "expected"),
    [
        (Hold(), {2: whole("hold", (1, OUTPUT, 1.0)), 5: whole("hold", (4, OUTPUT, 1.0))}),
        (
            fc.Linear(),
            {
                2: whole("lerp", (0, OUTPUT, -1.0), (1, OUTPUT, 2.0)),
                6: whole("lerp", (1, OUTPUT, -2 / 3), (4, OUTPUT, 5 / 3)),
            },
        ),
        (
            fc.Difference(weight=1.0, order=2, gap=2),
            # at step 5 with values at 4, 1 and 0: F_4 + d1 + d1 - (F_1 - F_0) 2 with d1 = (F_4 - F_1) 2 / 3
            {5: whole("sum", (4, OUTPUT, 1 + 4 / 3), (0, OUTPUT, 2.0), (1, OUTPUT, -2.0 - 4 / 3))},
        ),
    ],
    ids=["hold", "linear", "difference"],
)
def test_a_prediction_is_written_as_its_weights(predictor: Predictor, expected: dict[int, Recipe]) -> None:
    """Steps 0, 1 and 4 of 8 are computed, at uneven distances."""
    found = terms(fc.Planned(steps=8, computed=(0, 1, 4), stand_in=predictor))
    assert sorted(found) == [2, 3, 5, 6, 7]
    for step, recipe in expected.items():
        assert (found[step].of, found[step].how) == (recipe.of, recipe.how)
        assert [one[:2] for one in found[step].terms] == [one[:2] for one in recipe.terms]
        assert [one[2] for one in found[step].terms] == pytest.approx([one[2] for one in recipe.terms])


def test_fitted_weights_are_summed_wide_with_the_input_last() -> None:
    stretches = (
        fc.Stretch(after=1, start=2, outputs=(0.75,), input=0.0),
        fc.Stretch(after=4, start=5, outputs=(1.5, -0.25, 0.125), input=0.0625),
        fc.Stretch(after=4, start=7, outputs=(1.0, -0.5), input=-0.5),
    )
    policy = fc.Planned(steps=8, computed=(0, 1, 4), stand_in=fc.Fitted(stretches=stretches, variance=True))
    three = whole("wide", (4, OUTPUT, 1.5), (1, OUTPUT, -0.25), (0, OUTPUT, 0.125), (4, INPUT, 0.0625))
    last = whole("wide", (4, OUTPUT, 1.0), (1, OUTPUT, -0.5), (4, INPUT, -0.5))
    one = whole("wide", (1, OUTPUT, 0.75))
    found = terms(policy)
    assert {step: (r.how, [t for t in r.terms if t[2]]) for step, r in found.items()} == {
        step: (r.how, list(r.terms)) for step, r in {2: one, 3: one, 5: three, 6: three, 7: last}.items()
    }
    assert recipes(config(policy)).uniform and recipes(config(policy)).variance


def test_branches_have_recipes_of_their_own() -> None:
    policy = fc.GuidanceReuse(interval=3, start=0.0, stand_in=Hold())
    found = recipes(config(policy))
    assert not found.uniform and found.order == ("uncond", "cond") and found.by_branch["cond"] == {}
    assert {step: (r.of, r.how, r.terms) for step, r in found.by_branch["uncond"].items()} == {
        step: ("difference", "hold", ((step - step % 3, OUTPUT, 1.0),)) for step in (1, 2, 4, 5, 7)
    }
    alone = recipes(config(fc.Planned(steps=8, computed=(0, 4)), guidance="none"))
    assert list(alone.by_branch) == ["cond"] and alone.uniform


@pytest.mark.parametrize(
    ("variance", "shape", "says"),
    [
        (True, {}, True),
        (False, {}, False),
        (None, {}, True),
        (None, {"out_channels": 8}, None),
        (True, {"out_channels": 8}, True),
        (False, {"out_channels": 8}, False),
    ],
)
def test_weights_say_whether_they_serve_a_learned_variance(
    variance: bool | None, shape: Any, says: bool | None
) -> None:
    stretch = fc.Stretch(after=0, start=1, outputs=(1.0,), input=0.5)
    policy = fc.Planned(steps=8, computed=(0,), stand_in=fc.Fitted(stretches=(stretch,), variance=variance))
    if says is None:
        with pytest.raises(NotExportable, match="do not say whether"):
            recipes(config(policy, shape=shape))
        without = fc.Fitted(stretches=(stretch.model_copy(update={"input": 0.0}),))
        assert recipes(config(policy.model_copy(update={"stand_in": without}), shape=shape)).variance
    else:
        assert recipes(config(policy, shape=shape)).variance is says


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ({}, ("uncond", "cond")),
        ({"kind": "DiTTransformer2DModel", "pipeline": "DiTPipeline"}, ("cond", "uncond")),
        ({"kind": "WanTransformer3DModel", "pipeline": "WanPipeline", "guidance": "separate"}, ("cond", "uncond")),
        ({"kind": "Unknown"}, None),
        ({"pipeline": "LattePAGPipeline"}, None),
        ({"shape": {"transformer_2": {}}}, None),
    ],
)
def test_branches_that_are_treated_differently_need_a_known_order(fields: Any, order: Any) -> None:
    apart = fc.BranchReuse(interval=2, other_interval=4, start=0.0)
    if order is None:
        with pytest.raises(NotExportable):
            recipes(config(apart, **fields))
    else:
        assert recipes(config(apart, **fields)).order == order
    if "shape" not in fields:
        alike = fc.Planned(steps=8, computed=(0, 4))
        assert recipes(config(alike, **fields)).uniform, "where they are alike none is needed"


def test_a_model_in_half_precision_sums_as_the_plan_does() -> None:
    specimen = zoo.build("latte")
    specimen.pipe.to(torch.bfloat16)
    policy = fitted((0, 1), 4)
    with fc.attach(specimen.pipe, policy) as session:
        ours = specimen.generate(steps=4)
        made = module(described(specimen.pipe, session, policy))
    made.attach(specimen.pipe)
    assert torch.equal(specimen.generate(steps=4), ours) and ours.dtype == torch.bfloat16


def test_both_calls_of_a_step_keep_their_own_values() -> None:
    specimen = zoo.build("wan")
    agree(specimen, fc.Planned(steps=STEPS, computed=(0, 2), stand_in=fc.Linear()))


def test_batches_of_several_prompts_and_of_changing_size(latte: Any) -> None:
    """Two prompts, then one, in one attachment; per branch, and alike."""
    for policy in (fitted(), fc.BranchReuse(interval=2, other_interval=4, start=0.0)):
        ours = []
        with fc.attach(latte.pipe, policy) as session:
            for prompts in (2, 1):
                ours.append(latte.generate(steps=STEPS, prompts=prompts))
            made = module(described(latte.pipe, session, policy))
        detach = made.attach(latte.pipe)
        for prompts, expected in zip((2, 1, 2), (*ours, ours[0]), strict=True):
            assert torch.equal(latte.generate(steps=STEPS, prompts=prompts), expected)
        detach()


# -- settings of other packages ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("policy", "settings", "lost"),
    [
        (fc.Planned(steps=8, computed=(0, 4)), Settings(1, 0, 0, (1, 0, 0, 0, 1, 0, 0, 0), warm_up=1), 2),
        (fc.StaticInterval(sites="stack[1:]", interval=4), Settings(1, 0, 0, (1, 0, 0, 0, 1, 0, 0, 0), warm_up=1), 0),
        (fc.StaticInterval(sites="stack", interval=4), Settings(1, 0, 0, (1, 0, 0, 0, 1, 0, 0, 0), warm_up=1), 1),
        (fc.StaticInterval(sites="stack[3:-2]", interval=8), Settings(3, 2, 0, (1, *[0] * 7), warm_up=1), 0),
        (
            fc.Planned(steps=8, computed=(0, 1, 2, 3, 6), stand_in=fc.Linear()),
            Settings(1, 0, 1, (1, 1, 1, 1, 0, 0, 1, 0), warm_up=4),
            2,
        ),
        (
            fc.Planned(steps=8, computed=(0, 1, 2, 6), stand_in=fc.Linear()),
            Settings(1, 0, 1, (1, 1, 1, 0, 0, 0, 1, 0), warm_up=3),
            3,
        ),
        (
            fc.Planned(steps=8, computed=(0, 1, 2, 3, 6), stand_in=fc.Linear(weight=0.5)),
            Settings(1, 0, 1, (1, 1, 1, 1, 0, 0, 1, 0), warm_up=4),
            3,
        ),
        (fc.FirstBlockCache(threshold=0.2), Settings(1, 0, 0, (), 0.2), 0),
    ],
)
def test_the_nearest_settings_of_cache_dit(policy: fc.Policy, settings: Settings, lost: int) -> None:
    found, said = settings_of(config(policy))
    assert found == settings and len(said) == lost
    unguided = settings_of(config(policy, guidance="none"))[0]
    assert unguided == settings


@pytest.mark.parametrize(
    "policy",
    [
        fc.FirstBlockCache(sites="stack[2:]"),
        fc.DualBlockCache(sites="stack[2:-1]"),
        fc.StaticInterval(sites="block[0:2]"),
        fc.Planned(steps=8, computed=(0, 4)),
    ],
)
def test_what_cache_dit_cannot_be_told(policy: fc.Policy) -> None:
    two = config(policy, shape={"transformer_2": {}})
    with pytest.raises(NotExportable, match="two transformers"):
        settings_of(two)
    if not isinstance(policy, fc.Planned):
        with pytest.raises(NotExportable):
            settings_of(config(policy))


def test_a_mask_is_told_as_lengths() -> None:
    assert bins((1,)) == ([1], []) and bins((1, 0)) == ([1], [1]) and bins((1, 0, 0, 1, 1, 0)) == ([1, 2], [2, 1])
    env = exported(config(fc.Planned(steps=8, computed=(0, 1, 5))), "sglang").files["sglang.env"].splitlines()
    told = dict(row.removeprefix("SGLANG_CACHE_DIT_").split("=") for row in env if not row.startswith("#"))
    assert told == {
        "ENABLED": "true", "FN": "1", "BN": "0", "WARMUP": "2", "RDT": "0.08", "MC": "-1", "SCM_COMPUTE_BINS": "2,1",
        "SCM_CACHE_BINS": "3,2", "SCM_POLICY": "static",
    }  # fmt: skip


def test_a_threshold_is_told_with_what_it_is_bounded_by() -> None:
    policy = fc.DualBlockCache(
        front=3, back=2, threshold=0.25, warm_up=5, max_consecutive=2, stand_in=fc.Taylor(order=2)
    )
    fields = yaml.safe_load(exported(config(policy), "cache-dit").files["cache-dit.yaml"])["cache_config"]
    assert fields == {
        "Fn_compute_blocks": 3, "Bn_compute_blocks": 2, "residual_diff_threshold": 0.25, "max_warmup_steps": 5,
        "max_continuous_cached_steps": 2, "enable_taylorseer": True, "taylorseer_order": 2,
    }  # fmt: skip


def arguments(policy: fc.Policy, **fields: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """What diffusers' configuration is given, as source, and what is lost."""
    found = exported(config(policy, **fields), "diffusers")
    rows = [line.strip() for line in found.files["diffusers_cache.py"].splitlines() if line.startswith(" " * 12)]
    return dict(row.rstrip(",").split("=", 1) for row in rows if "=" in row), found.lost


def test_diffusers_is_told_magcaches_mean_ratios() -> None:
    alike = fc.MagCache(ratios={"cond": (1.0, 0.5), "uncond": (1.0, 0.5)}, threshold=0.125, max_skip=4, retention=0.3)
    expected = {
        "threshold": "0.125", "max_skip_steps": "4", "retention_ratio": "0.3", "num_inference_steps": "STEPS",
        "mag_ratios": "[1.0, 0.5]",
    }  # fmt: skip
    assert arguments(alike) == (expected, ())
    apart = alike.model_copy(update={"ratios": {"cond": (1.0, 0.5), "uncond": (1.0, 1.0)}})
    found, lost = arguments(apart)
    assert found == expected | {"mag_ratios": "[1.0, 0.75]"} and len(lost) == 1


def test_diffusers_is_told_pabs_ranges_that_skip_anything() -> None:
    window = "(50, 900)"
    found, lost = arguments(fc.PyramidAttentionBroadcast(spatial=2, joint=3, temporal=1, cross=4, low=50.0, high=900.0))
    assert found == {
        "spatial_attention_block_skip_range": "3", "spatial_attention_timestep_skip_range": window,
        "cross_attention_block_skip_range": "4", "cross_attention_timestep_skip_range": window,
        "current_timestep_callback": "lambda: pipe.current_timestep",
    }  # fmt: skip
    assert lost == ("spatial and joint attention have one range, 3",)
    assert (
        len(arguments(fc.PyramidAttentionBroadcast(spatial=2, joint=2, temporal=2, cross=2), guidance="separate")[1])
        == 1
    )


def test_diffusers_is_told_seacaches_bounds() -> None:
    policy = fc.SeaCache(threshold=0.5, warm_up=3, cool_down=2, max_consecutive=4, power=1.5, stand_in=fc.Linear())
    found, lost = arguments(policy)
    assert found == {
        "threshold": "0.5", "residual_order": "1", "retention_steps": "3", "cache_end_steps": "2",
        "max_consecutive_cached": "4", "power_exp": "1.5",
    } and lost == ()  # fmt: skip
    held = policy.model_copy(update={"stand_in": Hold()})
    assert arguments(held)[0]["residual_order"] == "0"
    assert len(arguments(policy.model_copy(update={"stand_in": fc.Linear(weight=0.5)}))[1]) == 1


@pytest.mark.parametrize("target", ["diffusers", "cache-dit"])
def test_two_transformers_have_no_cache_in_other_packages(target: str) -> None:
    with pytest.raises(NotExportable, match="two transformers"):
        exported(config(fc.FirstBlockCache(threshold=0.1), shape={"transformer_2": {}}), target)


# -- words -------------------------------------------------------------------------------------------------------------
def test_what_is_said_of_a_config() -> None:
    measured = Measured(
        prompts=1, quality={"psnr": 41.2345}, speedup_flops=2.5, seconds=1.0, cached_bytes=3 * 2**20, hardware="x"
    )
    held_out = measured.model_copy(update={"prompts": 3, "quality": {}, "speedup_flops": 1.5})
    sure = Certificate(budget="psnr>=40", prompts=59, violations=0, rate=0.05, confidence=0.95)
    one = config(
        fc.FORA(interval=2), budget="psnr>=41", certificate=sure, measured=Results(search=measured, held_out=held_out),
        scheduler=Identity.of("Solver", {}), packages={"fastercache": "1.2"},
    )  # fmt: skip
    assert made_for(one) == "LattePipeline, 8 steps of Solver, batched guidance of scale 4"
    assert figures(one) == [
        "Budget: psnr>=41.", f"Certificate: {sure.words}.",
        "Measured on 3 held-out prompts: 1.50x fewer FLOPs.",
        "Measured on 1 search prompt: 2.50x fewer FLOPs, psnr 41.23.",
    ]  # fmt: skip
    assert heading(one).splitlines()[-1] == "Made with fastercache 1.2."
    bare = config(fc.FORA(interval=2), guidance="none", guidance_scale=None, pipeline=None)
    assert made_for(bare) == "LatteTransformer3DModel, 8 steps, no guidance" and figures(bare) == []
    card = exported(one, "hub").files["README.md"]
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| held-out | 3 | 1.50x | 3.0 |  |", "| search | 1 | 2.50x | 3.0 | 41.23 |"]


def test_a_file_of_another_name_says_its_own() -> None:
    one = config(fc.Planned(steps=8, computed=(0, 4)))
    found = exported(one, "python", "fast.py").files
    assert (
        list(found) == ["fast.py"]
        and "from fast import attach" in found["fast.py"]
        and "cached" not in "".join(line for line in found["fast.py"].splitlines() if "import attach" in line)
    )
    assert list(exported(one, "python").files) == ["cached.py"]
    assert list(exported(one, "cache-dit", "a.yaml").files) == ["a.yaml"]
    assert "load_configs('a.yaml')" in exported(one, "cache-dit", "a.yaml").files["a.yaml"]


# -- orders, pipelines and settings at their ends ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "pipeline", "guidance", "order"),
    [
        ("WanTransformer3DModel", "WanPipeline", "batched", ("uncond", "cond")),
        ("LatteTransformer3DModel", "LattePipeline", "separate", ("cond", "uncond")),
        ("UNet2DConditionModel", "StableDiffusionPipeline", "batched", ("uncond", "cond")),
        ("UNet2DConditionModel", "StableDiffusionInstructPix2PixPipeline", "batched", None),
        ("HiDreamImageTransformer2DModel", "HiDreamImagePipeline", "batched", None),
        ("ZImageTransformer2DModel", "ZImagePipeline", "batched", None),
        ("LTX2VideoTransformer3DModel", "LTX2Pipeline", "batched", None),
        ("VchitectXLTransformerModel", "VchitectPipeline", "separate", None),
    ],
)
def test_the_order_of_the_branches_is_that_of_the_pipelines_own_calls(
    kind: str, pipeline: str, guidance: str, order: tuple[str, ...] | None
) -> None:
    one = config(fc.GuidanceReuse(interval=2, start=0.0), kind=kind, pipeline=pipeline, guidance=guidance)
    if order is None:
        with pytest.raises(NotExportable, match=r"cannot be told apart|calls the unconditional branch first"):
            recipes(one)
    else:
        assert recipes(one).order == order


def test_branches_of_two_transformers_are_not_told_apart_even_with_fitted_weights() -> None:
    stretch = fc.Stretch(after=0, start=1, outputs=(0.5,), input=0.0)
    policy = fc.GuidanceReuse(interval=8, start=0.0, stand_in=fc.Fitted(stretches=(stretch,)))
    assert not recipes(config(policy)).uniform
    with pytest.raises(NotExportable, match="cannot be told apart"):
        recipes(config(policy, shape={"transformer_2": {}}))


class Scheduler:
    """Stands in for a scheduler whose list of timesteps is longer than a run."""

    begin_index: int | None = 3
    order = 1

    def __init__(self) -> None:
        self.timesteps = list(range(11))

    def set_timesteps(self) -> None: ...
    def step(self) -> None: ...


@pytest.mark.parametrize(
    ("told", "order", "begin", "runs"),
    [
        (8, 1, None, True),
        (7, 1, 3, False),
        (9, 1, 3, False),
        (None, 1, 3, True),
        (None, 1, None, False),
        (11, 2, 3, True),
        ("8", 1, 2, False),
    ],
)
def test_a_run_has_the_steps_that_the_pipeline_tells_or_the_rest_of_the_schedulers_list(
    told: Any, order: int, begin: int | None, runs: bool
) -> None:
    """Of a scheduler of a higher order the pipeline's number is not that of its steps."""
    made = module(config(fc.Planned(steps=8, computed=(0, 4))))
    pipe = SimpleNamespace(scheduler=Scheduler(), _num_timesteps=told)
    pipe.scheduler.order, pipe.scheduler.begin_index = order, begin
    now = made.Now(pipe)
    with pytest.raises(RuntimeError, match="before the scheduler's set_timesteps"):
        now.enter()
    now.begin()
    if runs:
        assert [now.enter(), now.enter()] == [(0, 0), (0, 1)]
    else:
        with pytest.raises(RuntimeError, match="this plan is for 8 steps"):
            now.enter()


def test_a_forward_of_the_users_own_is_run_and_put_back() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Model()
    own = model.forward = lambda x: x + 1.0  # type: ignore[method-assign, assignment]
    scheduler = Scheduler()
    pipe = SimpleNamespace(scheduler=scheduler, transformer=model)
    made = module(config(fc.Planned(steps=8, computed=(0, 4)), pipeline="SimpleNamespace"))
    detach = made.attach(pipe)
    scheduler.set_timesteps()
    found = []
    for step in range(8):
        found.append(float(model(torch.tensor([float(step)]))))
        scheduler.step()
        scheduler.step()  # a second one ends nothing
    assert found == [1.0] * 4 + [5.0] * 4
    detach()
    assert vars(model)["forward"] is own and not {"step", "set_timesteps"} & set(vars(scheduler))


def test_a_plan_that_computes_all_and_a_threshold_by_branch() -> None:
    computed = settings_of(config(fc.Planned(steps=8, computed=tuple(range(8)))))[0]
    assert computed == Settings(1, 0, 0, (1,) * 8, warm_up=8)
    assert len(settings_of(config(fc.FirstBlockCache(threshold=0.2, scope="branch")))[1]) == 1  # type: ignore[arg-type]
    assert len(arguments(fc.FirstBlockCache(threshold=0.2, scope="branch"))[1]) == 1  # type: ignore[arg-type]
    assert arguments(fc.FirstBlockCache(threshold=0.2)) == ({"threshold": "0.2"}, ())


def test_diffusers_is_told_each_setting_of_fastercache() -> None:
    """Of 11 steps a progress of 0.35 is the fourth step, the first that is not before it; 0.2 is the second exactly."""
    policy = fc.FasterCache(
        interval=3, start=0.35, weight=0.25, order=1, cfg_interval=6, cfg_start=0.2, alpha_low=0.125, alpha_high=0.375,
        switch=0.5, switch_high=0.75,
    )  # fmt: skip
    found, _ = arguments(policy, steps=11)
    assert found == {
        "spatial_attention_block_skip_range": "3", "temporal_attention_block_skip_range": "3",
        "spatial_attention_timestep_skip_range": "(-1, timesteps[4] + 0.5)",
        "temporal_attention_timestep_skip_range": "(-1, timesteps[4] + 0.5)",
        "unconditional_batch_skip_range": "6",
        "unconditional_batch_timestep_skip_range": "(-1, timesteps[2] + 0.5)",
        "low_frequency_weight_update_timestep_range": "(timesteps[5] + 0.5, timesteps[2] + 0.5)",
        "high_frequency_weight_update_timestep_range": "(-1, timesteps[8] + 0.5)",
        "alpha_low_frequency": "1.125", "alpha_high_frequency": "1.375", "attention_weight_callback": "lambda _: 0.25",
        "tensor_format": "'BCFHW'", "current_timestep_callback": "lambda: pipe.current_timestep",
    }  # fmt: skip
    same = arguments(policy.model_copy(update={"switch_high": None}), steps=11)[0]
    assert same["high_frequency_weight_update_timestep_range"] == "(-1, timesteps[5] + 0.5)"
    assert arguments(policy.model_copy(update={"order": 0}))[0]["attention_weight_callback"] == "lambda _: 0.0"
    assert arguments(policy, pipeline="CogVideoXPipeline")[0]["tensor_format"] == "'BFCHW'"
    usual = len(arguments(policy)[1])
    for update in ({"stop": 0.9}, {"cfg_stop": 0.9}, {"radius": 2}, {"divisor": 4}, {"order": 2}):
        more = len(arguments(policy.model_copy(update=update))[1]) - usual
        assert more == (0 if "order" in update else 1), update
    with pytest.raises(NotExportable, match="needs both branches in one call"):
        arguments(policy, guidance="separate")
    with pytest.raises(NotExportable, match="every self-attention"):
        arguments(policy.model_copy(update={"sites": "temporal"}))

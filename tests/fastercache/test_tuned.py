"""A tuned config survives the disk unchanged, and says by name why it cannot be read or does not fit."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import fastercache as fc
from fastercache import zoo
from fastercache.analysis import record
from fastercache.analysis.sampling import TrajectoryRecorder
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.applied import Applied
from fastercache.picking import Pick
from fastercache.tuned import PARTS, Identity, Measured, Results, TunedConfig, guidance_scale_of, model_identity
from fastercache.zoo.videos import latte

CALL = {
    "height": 32,
    "width": 32,
    "video_length": 4,
    "clean_caption": False,
    "output_type": "pt",
    "guidance_scale": 4.0,
}


def config(pipe: Any, **changes: Any) -> TunedConfig:
    measured = Results(
        search=Measured(
            prompts=4,
            quality={"psnr": 31.5, "ssim": 0.96},
            speedup_flops=1.6,
            seconds=0.5,
            cached_bytes=7,
            hardware="test",
        )
    )
    fields = {"steps": 5, "guidance_scale": 4.0, "guidance": "batched", "budget": "psnr>=30", "measured": measured}
    policy = changes.pop("policy", fc.FasterCache(interval=3, weight=0.5))
    return TunedConfig.describe(pipe, policy, **{**fields, **changes})


def run(pipe: Any, steps: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red seven", generator=generator, num_inference_steps=steps, **CALL).frames


def test_a_saved_config_loads_equal(tiny_latte: Any, tmp_path: Path) -> None:
    before = config(tiny_latte)
    assert fc.load(before.save(tmp_path / "deep" / "tuned.json")) == before
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["tuned.json"]  # no partial file is left


def test_applied_from_the_file_it_gives_the_same_output_bit_for_bit(tiny_latte: Any, tmp_path: Path) -> None:
    before = config(tiny_latte)
    with fc.attach(tiny_latte, before.policy):
        expected = run(tiny_latte)
    with fc.attach(tiny_latte, fc.load(before.save(tmp_path / "tuned.json"))) as session:
        found = run(tiny_latte)
    assert torch.equal(found, expected)
    assert session.last.speedup_flops > 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no tuned config"),
        ('{"format": "fastercache-tuned", "vers', "was cut off"),
        ("", "was cut off"),
        ("[1, 2]", "is no tuned config"),
        ('{"a": 1}', "no key 'format'"),
        ('{"format": "other"}', "its format is 'other'"),
        ('{"format": "fastercache-tuned", "version": 99}', "version 99"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "tuned.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(fc.ConfigUnreadable, match=says) as error:
        TunedConfig.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(colour="red"), "no field 'colour'"),
        (lambda d: d.update(steps="five"), "steps"),
        (lambda d: d.pop("model"), "needs the field 'model'"),
        (lambda d: d["policy"].update(interval=99), "interval"),
        (lambda d: d["policy"].update(policy="fastercash"), "did you mean 'fastercache'"),
        (lambda d: d["measured"]["search"].update(speed=2), "speed"),
    ],
)
def test_damaged_fields_are_named(tiny_latte: Any, tmp_path: Path, change: Any, says: str) -> None:
    path = config(tiny_latte).save(tmp_path / "tuned.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(fc.ConfigUnreadable, match=says) as error:
        TunedConfig.load(path)
    assert "\n" not in str(error.value)


def test_another_model_is_refused_by_the_setting_that_differs(tiny_latte: Any) -> None:
    deeper = latte(layers=3).build("deeper").pipe
    tuned = config(tiny_latte)
    with pytest.raises(fc.ConfigMismatch, match=r"LatteTransformer3DModel with num_layers=2, .* has num_layers=3"):
        fc.attach(deeper, tuned)
    with fc.attach(deeper, tuned, allow={"model"}):
        run(deeper)


def test_other_weights_and_paths_are_no_other_model(tiny_latte: Any) -> None:
    before = model_identity(tiny_latte)
    tiny_latte.transformer.register_to_config(_name_or_path="/elsewhere")
    assert model_identity(tiny_latte) == before


def test_another_scheduler_is_refused_by_name(tiny_latte: Any) -> None:
    tuned = config(tiny_latte)
    tiny_latte.scheduler = DDIMScheduler.from_config(tiny_latte.scheduler.config, beta_end=0.5)
    with pytest.raises(fc.ConfigMismatch, match=r"DDIMScheduler with beta_end=0.02, .* beta_end=0.5"):
        fc.attach(tiny_latte, tuned)
    tiny_latte.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(fc.ConfigMismatch, match=r"DDIMScheduler, .* DPMSolverMultistepScheduler"):
        tuned.check(tiny_latte)
    tuned.check(tiny_latte, allow={"scheduler"})


def test_a_run_of_another_kind_is_refused_when_it_begins(tiny_latte: Any) -> None:
    tuned = config(tiny_latte)
    with fc.attach(tiny_latte, tuned), pytest.raises(fc.ConfigMismatch, match="5 steps, this run has 6"):
        run(tiny_latte, steps=6)
    with fc.attach(tiny_latte, tuned, allow={"steps"}):
        run(tiny_latte, steps=6)
    with pytest.raises(fc.ConfigMismatch, match=r"guidance scale 4, this run has 7.5"):
        tuned.check_run(5, 7.5)
    with pytest.raises(fc.ConfigMismatch, match="batched guidance, this run has separate"):
        tuned.check_run(5, 4.0, guidance="separate")
    tuned.check_run(5, 7.5, allow={"guidance"}, guidance="separate")


def test_another_style_of_guidance_is_refused_when_the_run_begins(tiny_latte: Any) -> None:
    """The config says that guidance is in two calls; this pipeline's is in one."""
    tuned = config(tiny_latte).model_copy(update={"guidance": "separate"})
    with (
        fc.attach(tiny_latte, tuned),
        pytest.raises(fc.ConfigMismatch, match="separate guidance, this run has batched"),
    ):
        run(tiny_latte)
    with fc.attach(tiny_latte, tuned, allow={"guidance"}):
        run(tiny_latte)


def test_the_command_line_offers_what_can_be_allowed() -> None:
    from fastercache.experiments.commands.options import Allow

    offered = Allow.__metadata__[0].help.partition("differs: ")[2].rstrip(".").split(", ")  # type: ignore[attr-defined]
    assert tuple(offered) == PARTS


def test_a_file_with_a_field_for_each_metric_is_read(tiny_latte: Any, tmp_path: Path) -> None:
    """As older versions wrote it."""
    path = config(tiny_latte).save(tmp_path / "old.json")
    data = json.loads(path.read_text())
    measured = data["measured"]["search"]
    measured |= {"lpips": None, **measured.pop("quality")}
    path.write_text(json.dumps(data))
    assert "psnr" in measured and TunedConfig.load(path) == config(tiny_latte)


def test_a_misspelt_permission_is_refused(tiny_latte: Any) -> None:
    with pytest.raises(fc.ConfigMismatch, match="did you mean 'scheduler'"):
        config(tiny_latte).check(tiny_latte, allow={"schedulers"})


@pytest.mark.parametrize("allow", [{"schedulers"}, 5])
def test_a_permission_that_is_none_is_refused_beside_a_policy_too(tiny_latte: Any, allow: Any) -> None:
    says = r"cannot allow a difference in 'schedulers'|allow takes a set of model"
    with pytest.raises(fc.ConfigMismatch, match=says):
        fc.attach(tiny_latte, fc.NoCache(), allow=allow)
    assert fc.detach(tiny_latte) == 0


def test_one_permission_may_be_given_as_a_text(tiny_latte: Any) -> None:
    """It was taken for a set of letters when a run began."""
    assert Applied.of(tiny_latte, config(tiny_latte), pick=Pick(), allow="guidance").allow == {"guidance"}


@pytest.mark.parametrize("family", ["pixart-sigma", "dit"])
def test_the_guidance_scale_is_that_of_the_call_where_the_pipeline_does_not_tell(family: str) -> None:
    specimen = zoo.build(family)
    pipe = specimen.pipe
    assert not hasattr(pipe, "guidance_scale")
    tuned = config(pipe, policy=fc.StaticInterval(interval=2), steps=specimen.steps, guidance_scale=4.0)
    call = specimen.call(steps=specimen.steps) if callable(specimen.call) else {}
    with fc.attach(pipe, tuned):
        pipe(**call | {"guidance_scale": 4.0})
        for other in (9.0, 4.01):
            with pytest.raises(fc.ConfigMismatch, match=f"guidance scale 4, this run has {other:g}"):
                pipe(**call | {"guidance_scale": other})
        default = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
        left_out = {key: value for key, value in call.items() if key != "guidance_scale"}
        if default != 4.0:
            with pytest.raises(fc.ConfigMismatch, match=f"this run has {default:g}"):
                pipe(**left_out)
    with fc.attach(pipe, tuned, allow={"guidance"}):
        pipe(**call | {"guidance_scale": 9.0})
    assert guidance_scale_of(pipe) is None and guidance_scale_of(pipe, {}) == default
    assert guidance_scale_of(pipe, {"guidance_scale": 3}) == 3.0


def test_a_recording_has_the_guidance_scale_of_a_pipeline_that_does_not_tell() -> None:
    specimen = zoo.build("pixart-sigma")
    call = specimen.call(steps=4) | {"guidance_scale": 3.5}
    with record(specimen.pipe, "denoiser") as recorder:
        specimen.pipe(**call)
    assert recorder.profile().info.guidance_scale == 3.5
    found: list[Any] = []
    with TrajectoryRecorder(specimen.pipe, done=found.append):
        specimen.pipe(**call)
    assert TrajectoryProfile.of(found, specimen.pipe, call=call).info.guidance_scale == 3.5


def test_a_scheduler_exchanged_under_a_session_is_refused(tiny_latte: Any) -> None:
    before = tiny_latte.scheduler
    with fc.attach(tiny_latte, config(tiny_latte)) as session:
        run(tiny_latte)
        tiny_latte.scheduler = DPMSolverMultistepScheduler.from_config(before.config)
        try:
            with pytest.raises(fc.ConfigMismatch, match=f"for {type(before).__name__}, this pipeline has DPMSolver"):
                run(tiny_latte)
            session.use(fc.NoCache())  # which is for any scheduler
            run(tiny_latte)
        finally:
            tiny_latte.scheduler = before


def test_no_permission_is_offered_for_the_steps_of_a_plan(tiny_latte: Any) -> None:
    tuned = config(tiny_latte, policy=fc.Planned(steps=5, computed=(0, 2, 4)))
    for allow in ((), {"steps"}):
        with fc.attach(tiny_latte, tuned, allow=allow):
            with pytest.raises(fc.ConfigMismatch, match="for 5 steps, this run has 6: run it with 5") as found:
                run(tiny_latte, steps=6)
            assert "allow" not in str(found.value)


def test_an_infinite_setting_of_a_scheduler_makes_no_other_scheduler(tiny_latte: Any, tmp_path: Path) -> None:
    """JSON has no infinity, so the file holds none; DPMSolver++ has lambda_min_clipped = -inf."""
    own = Identity.of("Solver", {"clipped": -math.inf, "order": 2})
    kept = config(tiny_latte).model_copy(update={"scheduler": own})
    read = fc.load(kept.save(tmp_path / "tuned.json"))
    assert read == kept and read.scheduler == own and len({read.scheduler, own}) == 1
    assert read.scheduler is not None and read.scheduler.difference(own) is None
    assert (
        own
        != Identity.of("Solver", {"clipped": -1.0, "order": 2})
        != Identity.of("Other", {"clipped": -1.0, "order": 2})
    )

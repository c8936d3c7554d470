"""The exported file, run in a module of its own, gives the latents of our own run bit for bit."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.experiments import reference
from fastercache.export import NotExportable, exported
from fastercache.policies.base import Hold
from fastercache.tuned import TunedConfig

STEPS, COMPUTED = 6, (0, 1, 3)


def module(config: TunedConfig) -> Any:
    """The exported text as a module of nothing but itself and torch."""
    text = exported(config, "python").files["cached.py"]
    assert "fastercache" not in text.split('"""')[2]  # below its heading
    made = types.ModuleType("cached")
    exec(compile(text, "cached.py", "exec"), made.__dict__)
    return made


def fitted(computed: tuple[int, ...] = COMPUTED, steps: int = STEPS, reach: int = 3, source: float = 0.3) -> fc.Planned:
    """A plan with weights of up to `reach` outputs and of the input (from `source` down), different at each step."""
    stretches = []
    for k in (k for k in range(steps) if k not in computed):
        past = [s for s in computed if s < k][::-1][:reach]
        weights = (1.0 + 0.07 * k / steps, *(-0.03 * (j + 1) / (1 + k) for j in range(len(past) - 1)))
        stretches.append(fc.Stretch(after=past[0], start=k, outputs=weights, input=source / (k + 1)))
    return fc.Planned(steps=steps, computed=computed, stand_in=fc.Fitted(stretches=tuple(stretches), variance=True))


def described(pipe: Any, session: fc.Session, policy: fc.Policy) -> TunedConfig:
    guided = len(session.last.run.branches) > 1
    style = session.guidance if guided else "none"
    count = session.last.run.count
    return TunedConfig.describe(pipe, policy, steps=count, guidance_scale=None, guidance=style)


def agree(specimen: Any, policy: fc.Policy, **call: Any) -> tuple[Any, TunedConfig]:
    """Ours and the exported file's latents of the same call are equal, twice, and nothing stays behind."""
    call = {"steps": STEPS, **call}
    bare = specimen.generate(**call)
    with fc.attach(specimen.pipe, policy) as session:
        ours = specimen.generate(**call)
        config = described(specimen.pipe, session, policy)
    made = module(config)
    parts = [
        part for part in (getattr(specimen.pipe, n, None) for n in ("transformer", "transformer_2", "unet")) if part
    ]
    before = [dict(vars(part)) for part in (*parts, specimen.pipe.scheduler)]
    detach = made.attach(specimen.pipe)
    assert torch.equal(specimen.generate(**call), ours)
    assert torch.equal(specimen.generate(**call), ours)
    detach()
    assert not torch.equal(ours, bare) and torch.equal(specimen.generate(**call), bare)
    for part, was in zip((*parts, specimen.pipe.scheduler), before, strict=True):
        assert ("forward" in vars(part), "step" in vars(part)) == ("forward" in was, "step" in was)
    return made, config


@pytest.mark.parametrize(
    "family",
    ["latte", "wan", "flux", "ltx-2", "cosmos", "svd", "pixart-pag", "hunyuan-video-1.5", "sdxl-i2i", "vchitect-2.0"],
)
def test_a_fitted_plan(family: str) -> None:
    """Guidance batched, separate, absent and in three passes; video and sound; a scheduler stepped twice; a part of the
    scheduler's list; an input with more channels than the output, which no weights can be for; frames in an axis of
    their own going in and not coming out."""
    specimen = zoo.build(family)
    with fc.attach(specimen.pipe, fc.NoCache(sites="denoiser")) as session:
        specimen.generate(steps=STEPS)
    count = session.last.run.count
    source = 0.0 if family in ("svd", "hunyuan-video-1.5") else 0.3
    agree(specimen, fitted(tuple(k for k in COMPUTED if k < count - 1), count, source=source))


def test_weights_that_do_not_say_what_they_are_for_are_not_exported(latte: Any) -> None:
    """A learned variance, and a file of an older version."""
    older = fitted().model_copy(update={"stand_in": fc.Fitted(stretches=fitted().stand_in.stretches)})  # type: ignore[attr-defined]
    with fc.attach(latte.pipe, fc.NoCache()) as session:
        latte.generate(steps=STEPS)
    with pytest.raises(NotExportable, match="do not say whether"):
        exported(described(latte.pipe, session, older), "python")


def test_two_experts_have_histories_of_their_own() -> None:
    """Wan 2.2: at 0.8 of the training steps the second transformer takes over, and its first step is computed."""
    specimen = zoo.build("wan-2.2")
    with fc.attach(specimen.pipe, fc.NoCache(sites="denoiser")) as session:
        specimen.generate(steps=8)
    second = next(step.index for step in session.last.run.steps if step.denoiser == "transformer_2")
    assert 1 < second < 7
    policy = fitted((0, second), 8, reach=1)
    agree(specimen, policy, steps=8)
    with pytest.raises(NotExportable, match="two transformers"):
        exported(
            TunedConfig.describe(
                specimen.pipe, fc.Planned(steps=8, computed=(0,)), steps=8, guidance_scale=None, guidance="separate"
            ),
            "python",
        )


@pytest.mark.parametrize(
    "predictor",
    [
        Hold(),
        fc.Linear(),
        fc.Taylor(order=2),
        fc.Difference(order=2),
        fc.Hermite(),
        fc.FoCaForecast(),
        fc.AverageVelocity(),
    ],
    ids=lambda predictor: predictor.name,
)
def test_every_predictor_that_weighs_outputs(latte: Any, predictor: fc.Predictor) -> None:
    agree(latte, fc.Planned(steps=STEPS, computed=COMPUTED, stand_in=predictor))


LINE = fc.GuidanceReuse(interval=3, start=0.1)
APART = fc.BranchReuse(interval=2, other_interval=4, start=0.0)
BOTH = fc.Compose([LINE, fc.StaticInterval(sites="denoiser", interval=2, start=0.3)])
TAYLOR = fc.GuidanceReuse(interval=2, start=0.0, stand_in=fc.Taylor(order=2))


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        *(("latte", policy) for policy in (LINE, APART, BOTH, TAYLOR)),
        *(("wan", policy) for policy in (APART, BOTH)),
        ("dit", LINE),
        ("qwen-image", LINE),
        ("animatediff", LINE),
    ],
)
def test_plans_that_treat_the_branches_differently(family: str, policy: fc.Policy) -> None:
    """Rows of either order, calls for each branch, packed tokens, and embeddings with a row for each frame."""
    agree(zoo.build(family), policy)


def test_the_denoiser_is_called_at_the_planned_steps_only(latte: Any) -> None:
    made, _ = agree(latte, fitted())
    seen = []
    hook = latte.pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: seen.append(1))
    detach = made.attach(latte.pipe)
    latte.generate(steps=STEPS)
    detach()
    hook.remove()
    assert len(seen) == len(COMPUTED)


def test_an_interrupted_run_leaves_nothing_to_the_next(latte: Any) -> None:
    made, _ = agree(latte, fitted())
    detach = made.attach(latte.pipe)
    whole = latte.generate(steps=STEPS)

    original = latte.pipe.scheduler.scale_model_input
    calls = iter(range(100))

    def scale(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    latte.pipe.scheduler.scale_model_input = scale
    with pytest.raises(KeyboardInterrupt):
        latte.generate(steps=STEPS)
    del latte.pipe.scheduler.scale_model_input
    assert torch.equal(latte.generate(steps=STEPS), whole)
    detach()


def test_another_number_of_steps_or_pipeline_is_refused(latte: Any) -> None:
    made, _ = agree(latte, fitted())
    detach = made.attach(latte.pipe)
    with pytest.raises(RuntimeError, match="this plan is for 6 steps, the run has 5"):
        latte.generate(steps=5)
    detach()
    with pytest.raises(RuntimeError, match="LattePipeline, not for WanPipeline"):
        made.attach(zoo.build("wan").pipe)


def config_of(latte: Any, policy: fc.Policy, **fields: Any) -> TunedConfig:
    given = {"steps": STEPS, "guidance_scale": 4.0, "guidance": "batched", **fields}
    return TunedConfig.describe(latte.pipe, policy, **given)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (fc.FasterCache(), "governs blocks or modules inside the denoiser"),
        (fc.TeaCache(coefficients=(1.0, 0.0)), "decides while the model runs"),
        (fc.CFGCache(), "the predictor guidance_delta does more than weigh computed outputs"),
    ],
)
def test_what_cannot_be_a_file_is_said_in_one_line(latte: Any, policy: fc.Policy, said: str) -> None:
    with pytest.raises(NotExportable, match=said) as found:
        exported(config_of(latte, policy), "python")
    assert "\n" not in str(found.value)


def test_an_unknown_target_names_those_there_are(latte: Any) -> None:
    with pytest.raises(NotExportable, match=r"no target .pyhton..*python"):
        exported(config_of(latte, fitted()), "pyhton")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("latte-digits", 50), ("wan-digits", None)])
def test_reference_models(name: str, steps: int | None) -> None:
    """On the trained models, with a plan of about an eighth of the steps."""
    pipe = reference.load(name)
    pipe.set_progress_bar_config(disable=True)
    call = reference.GENERATION[name].kwargs()
    count = int(call["num_inference_steps"])

    def latents() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        result = pipe("a red seven moving left", generator=generator, output_type="latent", return_dict=False, **call)[
            0
        ]
        assert isinstance(result, torch.Tensor)
        return result

    policy = fitted(tuple(k for k in range(count) if k % 7 == 0), count)
    with fc.attach(pipe, policy) as session:
        ours = latents()
        made = module(described(pipe, session, policy))
    detach = made.attach(pipe)
    assert torch.equal(latents(), ours)
    detach()
    assert not torch.equal(latents(), ours)


def test_a_plan_that_is_attached_already_is_not_covered_by_another(latte: Any) -> None:
    config = described_plan(latte)
    made = module(config)
    detach = made.attach(latte.pipe)
    with pytest.raises(fc.AttachError, match="an exported plan attached already: call what its attach returned"):
        fc.attach(latte.pipe, fc.NoCache())
    with pytest.raises(RuntimeError, match="a plan is attached to this pipeline already"):
        module(config).attach(latte.pipe)
    detach()
    session = fc.attach(latte.pipe, fc.NoCache())
    with pytest.raises(RuntimeError, match="a session of a policy is attached to this pipeline: detach that first"):
        made.attach(latte.pipe)
    session.detach()
    made.attach(latte.pipe)()
    assert "forward" not in vars(latte.pipe.transformer)


def described_plan(specimen: Any) -> TunedConfig:
    return TunedConfig.describe(specimen.pipe, fitted(), steps=STEPS, guidance_scale=None, guidance="batched")

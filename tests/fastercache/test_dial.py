"""A dial: several measured plans in one file, picked by speedup, budget or word, and switched between runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache.bounds import InvalidBudget
from fastercache.dial import QUALITIES
from fastercache.tuned import Certificate, Measured, Results

STEPS = 6
CALL = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False, "guidance_scale": 4.0}
PLANS = {  # computed steps -> PSNR of two search prompts, of three held-out prompts
    (0, 1, 2, 4): ((70.0, 72.0), (60.0, 58.0, 44.0)),
    (0, 2, 4): ((50.0, 52.0), (40.0, 41.0, 36.0)),
    (0, 3): ((46.0, 46.0), (31.0, 33.0, 29.0)),
}


def measured(computed: tuple[int, ...], values: tuple[float, ...]) -> Measured:
    mean = sum(values) / len(values)
    return Measured(
        prompts=len(values),
        quality={"psnr": mean, "lpips": 0.01},
        speedup_flops=STEPS / len(computed),
        seconds=1.0,
        cached_bytes=1024 * len(computed),
        hardware="test",
    )


def dial(pipe: Any, held_out: bool = True) -> fc.Dial:
    configs, values = [], []
    for computed, (searched, unseen) in reversed(PLANS.items()):  # put in order by the dial
        configs.append(
            fc.TunedConfig.describe(
                pipe,
                fc.Planned(steps=STEPS, computed=computed),
                steps=STEPS,
                guidance_scale=4.0,
                guidance="batched",
                measured=Results(
                    search=measured(computed, searched), held_out=measured(computed, unseen) if held_out else None
                ),
                seen=("0123456789abcdef", str(len(computed)) * 16),
            )
        )
        used = unseen if held_out else searched
        values.append({"psnr": used, "lpips": (0.01,) * len(used)})
    return fc.Dial.of(configs, values, {"psnr": ">=", "lpips": "<="})


@pytest.fixture
def path(tiny_latte: Any, tmp_path: Path) -> Path:
    return dial(tiny_latte).save(tmp_path / "dial.json")


def run(pipe: Any, steps: int = STEPS, **more: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe("a red seven", generator=generator, num_inference_steps=steps, output_type="pt", **CALL, **more).frames


def computed(config: fc.TunedConfig) -> tuple[int, ...]:
    assert isinstance(config.policy, fc.Planned)
    return config.policy.computed


def test_it_survives_the_disk_and_is_in_order(tiny_latte: Any, path: Path) -> None:
    found = fc.Dial.load(path)
    assert found == dial(tiny_latte)
    assert [plan.speedup for plan in found.plans] == [1.5, 2.0, 3.0]
    assert set(found.seen) == {"0123456789abcdef", "4" * 16, "3" * 16, "2" * 16}


@pytest.mark.parametrize("speedup", [1.0, 1.4, 1.5, 1.6, 2.0, 2.5, 3.0])
def test_a_speedup_picks_the_slowest_that_is_fast_enough(path: Path, speedup: float) -> None:
    expected = max((plan for plan in PLANS if STEPS / len(plan) >= speedup), key=len)
    assert computed(fc.load(path, speedup=speedup)) == expected


BUDGETS = [
    ("psnr>=30", lambda v: sum(v) / len(v) >= 30),
    ("psnr>=39", lambda v: sum(v) / len(v) >= 39),
    ("psnr>=54", lambda v: sum(v) / len(v) >= 54),
    ("p60:psnr>=40", lambda v: sum(x >= 40 for x in v) >= math.ceil(0.6 * len(v))),
    ("p100:psnr>=40", lambda v: min(v) >= 40),
    ("psnr>=30,p100:psnr>=36, lpips<=0.02", lambda v: min(v) >= 36),
]


@pytest.mark.parametrize(("budget", "keeps"), BUDGETS)
def test_a_budget_picks_the_fastest_that_kept_it_on_held_out_prompts(path: Path, budget: str, keeps: Any) -> None:
    expected = min((plan for plan, (_, unseen) in PLANS.items() if keeps(unseen)), key=len)
    assert computed(fc.load(path, budget=budget)) == expected


def test_without_held_out_prompts_the_search_prompts_count(tiny_latte: Any) -> None:
    found = dial(tiny_latte, held_out=False)
    assert computed(found.pick(budget="psnr>=46")) == (0, 3) and computed(found.pick(budget="psnr>=46.5")) == (0, 2, 4)


@pytest.mark.parametrize("word", QUALITIES)
def test_a_word_is_short_for_a_budget(path: Path, word: str) -> None:
    assert fc.load(path, quality=word) == fc.load(path, budget=QUALITIES[word])
    assert QUALITIES == {"high": "psnr>=45", "medium": "psnr>=38", "low": "psnr>=30"}  # as the docs say


HOLDS = r"1\.50x \(lpips 0\.01, psnr 54\), 2\.00x \(lpips 0\.01, psnr 39\), 3\.00x \(lpips 0\.01, psnr 31\)"


@pytest.mark.parametrize(
    ("pick", "error", "says"),
    [
        ({}, fc.ConfigUnreadable, f"{HOLDS}: pick one by speedup, budget or quality, found none"),
        ({"speedup": 2, "quality": "high"}, fc.ConfigUnreadable, "found speedup and quality"),
        ({"speedup": 3.1}, fc.BudgetNotMet, f"no plan of this dial is 3.1x as fast: it holds {HOLDS}"),
        ({"budget": "psnr>=60"}, fc.BudgetNotMet, f"keeps psnr>=60 where it was measured: it holds {HOLDS}"),
        ({"budget": "ssim>=0.9"}, InvalidBudget, "ssim was not measured .* it knows lpips, psnr"),
        ({"budget": "psnr<=40"}, InvalidBudget, "psnr is better when higher: write psnr>=40"),
        ({"budget": "psnr"}, InvalidBudget, "cannot read the budget term 'psnr'"),
        ({"quality": "hihg"}, fc.ConfigUnreadable, "did you mean 'high'"),
    ],
)
def test_what_cannot_be_picked_is_one_line(path: Path, pick: dict[str, Any], error: Any, says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        fc.load(path, **pick)
    assert "\n" not in str(caught.value)


def test_a_file_of_one_plan_and_a_policy_are_not_picked_from(tiny_latte: Any, path: Path, tmp_path: Path) -> None:
    one = fc.load(path, speedup=2).save(tmp_path / "tuned.json")
    with pytest.raises(fc.ConfigUnreadable, match="holds one schedule: leave them out"):
        fc.attach(tiny_latte, one, speedup=2)
    with pytest.raises(fc.AttachError, match="found the policy fastercache"):
        fc.attach(tiny_latte, fc.FasterCache(), quality="high")


def test_what_planning_only_foresaw_is_no_dial(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_text(json.dumps({"format": "fastercache-front", "version": 1}))
    with pytest.raises(fc.ConfigUnreadable, match="holds what planning foresaw, and no schedules to apply"):
        fc.load(path, budget="psnr>=30")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["plans"][0].update(measured={}), "must have been measured"),
        (lambda d: d["plans"].reverse(), "must rise"),
        (lambda d: d["plans"][0]["values"].update(psnr=[1.0]), "psnr has 1 values for 3 prompts"),
        (lambda d: d["signs"].pop("psnr"), "signs says nothing of psnr"),
        (lambda d: d.update(plans=[]), "plans"),
    ],
)
def test_damaged_files_are_one_line(path: Path, change: Any, says: str) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(fc.ConfigUnreadable, match=says) as caught:
        fc.load(path, speedup=2)
    assert "\n" not in str(caught.value) and "{" not in str(caught.value), "one line, without the file in it"


def test_plans_of_different_models_make_no_dial(tiny_latte: Any, path: Path) -> None:
    one = fc.load(path, speedup=2)
    with pytest.raises(fc.ConfigMismatch, match="differ in steps"):
        fc.Dial.of([one, one.model_copy(update={"steps": 9})], [{}, {}], {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", fc.tuned.Model(pipeline="Other", denoiser=fc.tuned.Identity.of("Other", {}))),
        ("scheduler", None),
        ("guidance_scale", 5.0),
        ("guidance", "separate"),
        ("conditions", None),
    ],
)
def test_plans_made_for_anything_else_make_no_dial(tiny_latte: Any, path: Path, name: str, value: Any) -> None:
    configs = [fc.load(path, speedup=speedup) for speedup in (1.5, 2, 3)]
    configs[2] = configs[2].model_copy(update={name: value})
    with pytest.raises(fc.ConfigMismatch, match=f"differ in {name.split('_')[0]}"):
        fc.Dial.of(configs, [{}] * 3, {})


def test_a_plan_comes_out_of_a_dial_as_it_was_put_in(tiny_latte: Any, path: Path, tmp_path: Path) -> None:
    """With its budget, certificate, figures and conditions; only `seen` and `tried` are those of all."""
    sure = Certificate(budget="psnr>=30", prompts=59, violations=1, rate=0.08, confidence=0.9)
    packages = {"torch": "0"}
    configs = [
        fc.load(path, speedup=speedup).model_copy(
            update={"budget": f"psnr>={speedup}", "tried": {str(speedup): ("aa",)}, "packages": packages}
        )
        for speedup in (1.5, 2, 3)
    ]
    configs[1] = configs[1].model_copy(update={"certificate": sure})
    found = fc.Dial.of(configs, [{"psnr": [40, 41, 42]}] * 3, {"psnr": ">="})
    tried = {"1.5": ("aa",), "2": ("aa",), "3": ("aa",)}
    found = found.model_copy(update={"packages": packages})
    again = fc.Dial.load(found.save(tmp_path / "again.json"))
    assert again == found and again.plans[1].values == {"psnr": (40.0, 41.0, 42.0)}
    assert [again.config(plan) for plan in again.plans] == [one.model_copy(update={"tried": tried}) for one in configs]
    other = sure.model_copy(update={"violations": 0})
    assert [plan.certificate for plan in again.certified({2: other}).plans] == [None, sure, other]


def test_of_equally_fast_plans_the_first_is_kept(tiny_latte: Any, path: Path) -> None:
    one = fc.load(path, speedup=2)
    configs = [one.model_copy(update={"budget": text}) for text in ("first", "second")]
    assert [plan.budget for plan in fc.Dial.of(configs, [{}, {}], {}).plans] == ["first"]
    twice = json.loads(path.read_text())
    twice["plans"] = [twice["plans"][0]] * 2
    path.write_text(json.dumps(twice))
    with pytest.raises(fc.ConfigUnreadable, match=r"must rise, found 1\.5, 1\.5"):
        fc.Dial.load(path)


def test_a_plan_of_which_a_metric_was_not_measured_keeps_no_bound_of_it(tiny_latte: Any, path: Path) -> None:
    """The fastest has PSNR alone, so a budget on LPIPS is kept by the next one."""
    whole = fc.Dial.load(path)
    fastest = whole.plans[-1].model_copy(update={"values": {"psnr": whole.plans[-1].values["psnr"]}})
    some = whole.model_copy(update={"plans": (*whole.plans[:-1], fastest)})
    assert computed(some.pick(budget="lpips<=0.01")) == (0, 2, 4)  # 0.01 each, which is just kept
    assert computed(some.pick(budget="psnr>=30,p100:lpips<=0.01")) == (0, 2, 4)
    assert computed(some.pick(budget="psnr>=30")) == (0, 3)
    with pytest.raises(fc.BudgetNotMet):
        some.pick(budget="lpips<=0.0099")


@pytest.mark.parametrize(
    ("budget", "plan"),
    [
        ("psnr>=31,cache<=2KiB", (0, 3)),
        ("psnr>=39,cache<=3KiB", (0, 2, 4)),
        ("cache<=4KiB,psnr>=54", (0, 1, 2, 4)),
        ("cache<=3072B", (0, 3)),
        ("psnr>=39,cache<=3071B", None),
        ("cache<=2047B", None),
        ("psnr>=54.01", None),
    ],
)
def test_a_limit_of_the_cache_is_kept_by_as_many_bytes_and_no_more(
    path: Path, budget: str, plan: tuple[int, ...] | None
) -> None:
    if plan is not None:
        assert computed(fc.load(path, budget=budget)) == plan
        return
    with pytest.raises(fc.BudgetNotMet):
        fc.load(path, budget=budget)


def test_a_dial_knows_no_seconds(path: Path) -> None:
    with pytest.raises(InvalidBudget, match="ask for a speedup"):
        fc.load(path, budget="psnr>=30,time<=8s")
    with pytest.raises(InvalidBudget, match=r"write lpips<=0\.1"):
        fc.load(path, budget="lpips>=0.1")


def test_a_speedup_is_met_up_to_rounding(path: Path) -> None:
    found = [computed(fc.load(path, speedup=speedup)) for speedup in (2.0 + 1e-9, 2.0 + 1e-8, 3.0 + 1e-9)]
    assert found == [(0, 2, 4), (0, 3), (0, 3)]
    with pytest.raises(fc.BudgetNotMet):
        fc.load(path, speedup=3.0 + 1e-8)


def test_a_dial_is_picked_from_by_one_question(path: Path) -> None:
    for pick in ({"speedup": 2, "budget": "psnr>=30"}, {"budget": "psnr>=30", "quality": "low"}):
        with pytest.raises(fc.ConfigUnreadable, match=f"found {' and '.join(pick)}"):
            fc.load(path, **pick)
    with pytest.raises(fc.BudgetNotMet, match="0x as fast"):
        fc.load(path, speedup=30)
    assert computed(fc.load(path, speedup=0)) == (0, 1, 2, 4)


# -- applied --------------------------------------------------------------------------------------------
def test_switched_between_runs_it_does_what_each_plan_does_alone(tiny_latte: Any, path: Path) -> None:
    alone = {}
    for plan in PLANS:
        with fc.attach(tiny_latte, fc.Planned(steps=STEPS, computed=plan)):
            alone[plan] = run(tiny_latte)
    slow, middle, fast = PLANS
    with fc.attach(tiny_latte, path, speedup=3) as session:
        assert torch.equal(run(tiny_latte), alone[fast])
        session.use(quality="high")
        assert torch.equal(run(tiny_latte), alone[slow])
        session.use(fc.NoCache(sites="denoiser"))
        assert session.tuned is None
        run(tiny_latte)
        session.use(budget="psnr>=38")
        assert torch.equal(run(tiny_latte), alone[middle]) and session.last.speedup_flops == 2.0
        with pytest.raises(fc.BudgetNotMet):
            session.use(speedup=9)
        assert torch.equal(run(tiny_latte), alone[middle])  # the old one stays


def test_it_is_checked_as_a_tuned_config_is(tiny_latte: Any, path: Path) -> None:
    from fastercache.zoo.videos import latte

    with pytest.raises(fc.ConfigMismatch, match="num_layers"):
        fc.attach(latte(layers=3).build("deeper").pipe, path, speedup=2)
    with fc.attach(tiny_latte, path, speedup=2) as session:
        with pytest.raises(fc.ConfigMismatch, match="6 steps"):
            run(tiny_latte, steps=5)
        session.use(fc.FasterCache())
        run(tiny_latte, steps=5)  # made for nothing in particular
        session.use(speedup=2)
        with pytest.raises(fc.ConfigMismatch, match="6 steps"):
            run(tiny_latte, steps=5)


def test_a_tuned_config_given_to_use_is_checked_too(tiny_latte: Any, path: Path) -> None:
    other = fc.load(path, speedup=2).model_copy(update={"scheduler": None, "guidance_scale": 9.0})
    with fc.attach(tiny_latte, fc.FasterCache()) as session:
        session.use(other)
        assert session.tuned == other
        with pytest.raises(fc.ConfigMismatch, match="guidance scale 9"):
            run(tiny_latte)
        with pytest.raises(fc.AttachError, match="there is no dial to pick from"):
            session.use(speedup=2)


def test_in_the_middle_of_a_run_it_is_refused(tiny_latte: Any, path: Path) -> None:
    said: list[str] = []
    with fc.attach(tiny_latte, path, speedup=3) as session:

        def switch(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step < STEPS - 1:  # after the last one the run is over
                with pytest.raises(fc.AttachError) as caught:
                    session.use(speedup=2)
                said.append(str(caught.value))
            return {}

        found = run(tiny_latte, callback_on_step_end=switch)
        assert torch.equal(found, run(tiny_latte)) and computed(session.tuned) == (0, 3)  # type: ignore[arg-type]
    assert f"2 of {STEPS} steps are done: swap the policy before or after it" in said[1]


def test_an_own_loop_that_was_broken_off_does_not_stand_in_the_way(tiny_latte: Any) -> None:
    model = tiny_latte.transformer
    x, text = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 7, model.config.caption_channels)
    with fc.attach(model, fc.NoCache(), guidance="batched") as session, torch.no_grad():
        session.start([900, 500])
        model(x, encoder_hidden_states=text, timestep=torch.tensor([900, 900]))
        with pytest.raises(fc.AttachError, match=r"next session\.start"):
            session.use(fc.NoCache())
        session.start([900, 500])
        session.use(fc.NoCache())


def test_the_certificate_of_the_plan_in_force_is_said(tiny_latte: Any, path: Path) -> None:
    sure = Certificate(budget="psnr>=30", prompts=59, violations=0, rate=0.05, confidence=0.95)
    fc.Dial.load(path).certified({1: sure}).save(path)
    with fc.attach(tiny_latte, path, speedup=2) as session:
        run(tiny_latte)
        assert session.summary().endswith(sure.words)
        session.use(speedup=3)
        run(tiny_latte)
        assert "misses" not in session.summary()


@pytest.mark.slow
def test_it_is_applied_without_the_lab(path: Path) -> None:
    """In production there is no Optuna, SciPy, typer or rich: a process in which they cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('optuna', 'scipy', 'typer', 'rich', 'matplotlib', 'torchmetrics', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "from fastercache.dial import Dial\n"
        "from fastercache.picking import load\n"
        f"print(load({str(path)!r}, budget='p60:psnr>=40').policy.computed)\n"
        "import fastercache.attachment\n"
        "assert not any(name.startswith(('fastercache.tuner', 'fastercache.analysis')) for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(0, 2, 4)"

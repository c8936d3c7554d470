"""The planner on a small random model: what it promises, counted and measured by other means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import fastercache as fc
from fastercache import zoo
from fastercache.policies.errors import BudgetNotMet
from fastercache.tuner import Budget
from fastercache.tuner.planning import planner as module
from fastercache.tuner.planning.material import Material, material
from fastercache.tuner.planning.planner import Effort, Planner
from fastercache.tuner.planning.scale import APART, STEEPNESS
from fastercache.tuner.planning.search import Judged
from fastercache.tuner.planning.within import margin_of
from fastercache.tuner.setting import References, Setting
from fastercache.zoo.specimen import Specimen

STEPS, PROMPTS = 10, ("one", "two", "three")
EFFORTS = (
    Effort(3, 9.0),
    Effort(3, 12.0, ((0,), (1, 2))),
    Effort(3, 60.0, ((0,), (1,)), fitted=2),
)


class Counter:
    """Denoiser calls, by a hook of its own."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.calls, self._denoiser = 0, denoiser

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        def heard(*_: Any) -> None:
            self.calls += 1

        # On the first block: the denoiser's own forward is also called where a stand-in answers.
        handle = self._denoiser.get_submodule("transformer_blocks.0").register_forward_hook(heard)
        yield self
        handle.remove()


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return zoo.build("latte")


@pytest.fixture(scope="module")
def setting(specimen: Specimen) -> Setting:
    pipe = specimen.pipe
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "video_length": 4, "num_inference_steps": STEPS, "clean_caption": False}
    return Setting(pipe, call)


@pytest.fixture(scope="module")
def recorded(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Material:
    references = References(setting, tmp_path_factory.mktemp("references"))
    return material(references, setting.cases(PROMPTS))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EFFORTS", EFFORTS)


def replayed(setting: Setting, recorded: Material, policy: fc.Planned) -> list[float]:
    """PSNR of each search prompt under the policy by hand: the mean over frames."""
    found = []
    with fc.attach(setting.pipe, policy):
        for case, video in zip(recorded.cases, recorded.videos, strict=True):
            error = (setting.generate(case).double() - video.double()).square().flatten(1).mean(1)
            found.append(float((-10.0 * error.log10()).mean()))
    return found


@pytest.mark.parametrize("effort", [0, 1, 2])
def test_a_speedup_is_reached_and_everything_is_counted(
    setting: Setting, recorded: Material, specimen: Specimen, effort: int
) -> None:
    planner = Planner(setting, recorded, effort=effort)
    with Counter(specimen.pipe.transformer).counting() as counter:
        point = planner.for_speedup(2.4)
    assert len(point.computed) == 4 and point.verified
    assert planner.spent == pytest.approx(len(PROMPTS) + counter.calls / STEPS)
    assert planner.spent <= EFFORTS[effort].generations
    values = replayed(setting, recorded, point.policy(STEPS))
    np.testing.assert_allclose(point.quality["psnr"], values, atol=1e-3)
    assert planner.front().generations == planner.spent


def test_more_effort_judges_more_plans_and_takes_the_best(setting: Setting, recorded: Material) -> None:
    judged: list[Judged] = []
    planner = Planner(setting, recorded, effort=1, judged=judged.append)
    point = planner.for_speedup(2.4)
    whole = [one for one in judged if math.isfinite(one.error)]
    assert len(judged) > 5
    assert point.computed == min(whole, key=lambda one: (one.error, one.computed)).computed
    first = Planner(setting, recorded, effort=0).for_speedup(2.4)
    assert judged[0].computed == first.computed, "the first plan run is the one that is foreseen to be best"


def test_two_runs_give_the_same_and_known_plans_are_not_run_again(
    setting: Setting, recorded: Material, specimen: Specimen
) -> None:
    judged: list[Judged] = []
    first = Planner(setting, recorded, effort=1, judged=judged.append)
    point = first.for_speedup(2.4)
    second = Planner(setting, recorded, effort=1)
    assert second.for_speedup(2.4) == point and second.front() == first.front()
    known = {one.computed: one for one in judged}
    third = Planner(setting, recorded, effort=1, known=known)
    with Counter(specimen.pipe.transformer).counting() as counter:
        assert third.for_speedup(2.4) == point
    before = len(PROMPTS) + sum(one.spent for one in judged)
    assert first.spent == pytest.approx(before + counter.calls / STEPS), "only the fit on all prompts is run again"
    assert third.spent == pytest.approx(first.spent), "what was spent before counts"


@pytest.mark.parametrize("effort", [0, 1])
def test_a_budget_is_kept_with_its_margin_by_the_fewest_steps_tried(
    setting: Setting, recorded: Material, effort: int
) -> None:
    wanted = Budget.parse("psnr>=24")
    planner = Planner(setting, recorded, effort=effort)
    point = planner.for_budget(wanted, margin=1.5)
    assert np.mean(replayed(setting, recorded, point.policy(STEPS))) >= 25.5 - 1e-3
    kept = [
        len(other.computed)
        for other in planner.front().verified
        if np.mean(other.quality["psnr"]) >= 25.5 and len(other.computed) < len(point.computed)
    ]
    assert not kept
    assert len(point.computed) < STEPS


def test_what_no_plan_does_is_refused(setting: Setting, recorded: Material) -> None:
    planner = Planner(setting, recorded, effort=0)
    with pytest.raises(BudgetNotMet, match="at most 10x"):
        planner.for_speedup(11.0)
    with pytest.raises(BudgetNotMet, match="keeps psnr>=90 on 3 search prompts with the margin"):
        Planner(setting, recorded, effort=0).for_budget(Budget.parse("psnr>=90"), margin=50.0)


def test_the_margin_is_the_bound_of_a_mean() -> None:
    """8 values with variance 4 and 4 more prompts' worth of spread 3: t of 11 degrees, 90 %."""
    values = [40.0 + 2.0 * (-1) ** i for i in range(8)]
    spread = math.sqrt((8 * 4.0 + 4 * 9.0) / (7 + 4))
    assert margin_of(values) == pytest.approx(stats.t.ppf(0.9, 11) * spread / math.sqrt(8))
    assert margin_of([40.0] * 100) < margin_of([40.0] * 10) < margin_of([40.0])


def test_predictions_lie_on_the_scale_of_what_was_measured(setting: Setting, recorded: Material) -> None:
    planner = Planner(setting, recorded, effort=0)
    for speedup in (2.0, 5.0):
        planner.for_speedup(speedup)
    front = {len(point.computed): point for point in planner.front().points}
    levels = {c: -10.0 * math.log10(planner.foresight.of(p.computed)) for c, p in front.items() if c < STEPS}
    psnr = {c: front[c].psnr or 0.0 for c in (2, 5)}
    for count in (2, 5):
        assert front[count].predicted_psnr == pytest.approx(psnr[count])
    assert levels[2] + APART < levels[3] < levels[5]
    share = (levels[3] - levels[2]) / (levels[5] - levels[2])
    assert front[3].predicted_psnr == pytest.approx(psnr[2] + share * (psnr[5] - psnr[2]))
    assert front[6].predicted_psnr == pytest.approx(min(psnr[5] + STEEPNESS * (levels[6] - levels[5]), 100.0))
    missed = abs(psnr[2] + STEEPNESS * (levels[5] - levels[2]) - psnr[5])
    assert planner.front().prediction_error == pytest.approx(missed), "either of the two from the other alone"


@pytest.mark.parametrize("effort", [0, 1])
@pytest.mark.parametrize("level", [14.0, 20.0, 26.0, 32.0])
def test_a_budget_never_takes_more_than_the_generations_of_its_effort(
    setting: Setting, recorded: Material, specimen: Specimen, effort: int, level: float
) -> None:
    planner = Planner(setting, recorded, effort=effort)
    with Counter(specimen.pipe.transformer).counting() as counter:
        try:
            planner.for_budget(Budget.parse(f"psnr>={level}"))
        except BudgetNotMet as error:
            assert "raise --effort" in str(error) or "lower the budget" in str(error)
    assert planner.spent == pytest.approx(len(PROMPTS) + counter.calls / STEPS)
    assert planner.spent <= EFFORTS[effort].generations


def test_no_reference_is_generated_twice(setting: Setting, specimen: Specimen, tmp_path: Path) -> None:
    references = References(setting, tmp_path)
    priced: list[float] = []
    with Counter(specimen.pipe.transformer).counting() as counter:
        material(references, setting.cases(PROMPTS[:2]), priced=priced.append)
        assert counter.calls == 2 * STEPS
        assert len(priced) == 1 and priced[0] > 0.0, "once, of the first that is made"
        again = material(references, setting.cases(PROMPTS), priced=priced.append)
        assert counter.calls == 3 * STEPS and len(priced) == 2
        material(references, setting.cases(PROMPTS), priced=priced.append)
        assert len(priced) == 2, "what is read from disk tells no price"
    assert again.spent == 3.0
    assert again.profile.trajectory.runs == 3

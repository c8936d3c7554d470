"""The planner on a small random model: what it promises, counted and measured by other means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
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
from fastercache.tuner.planning.planner import Effort, Known, Planner
from fastercache.tuner.planning.refine import Refined
from fastercache.tuner.planning.scale import APART, STEEPNESS, Scale
from fastercache.tuner.planning.search import Judged, Search
from fastercache.tuner.planning.within import margin_of
from fastercache.tuner.setting import References, Setting
from fastercache.zoo.specimen import Specimen

STEPS, PROMPTS = 10, ("one", "two", "three")
EFFORTS = (
    Effort(3, 9.0),
    Effort(3, 12.0, ((0,), (1, 2, 3), (4, 5))),  # of three prompts
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
    told: list[tuple[str, float]] = []
    planner = Planner(setting, recorded, effort=effort, told=lambda doing, spent: told.append((doing, spent)))
    with Counter(specimen.pipe.transformer).counting() as counter:
        point = planner.for_speedup(2.4)
    assert len(point.computed) == 4 and point.verified
    assert planner.spent == pytest.approx(len(PROMPTS) + counter.calls / STEPS)
    assert planner.spent <= EFFORTS[effort].generations
    values = replayed(setting, recorded, point.policy(STEPS))
    np.testing.assert_allclose(point.quality["psnr"], values, atol=1e-3)
    assert planner.front().generations == planner.spent
    fitted = planner.known[4].fitted
    assert fitted is not None and len(fitted.errors[-1]) == len(PROMPTS)
    assert planner.known[4].level == pytest.approx(float(np.mean(-10.0 * np.log10(fitted.errors[-1]))))
    weights = sum(len(stretch.outputs) + 1 for stretch in fitted.stretches)
    judged = sum("plan " in doing for doing, _ in told)
    assert [doing for doing, _ in told] == [
        "4 computed steps: planning",
        *(f"4 computed steps, plan {number + 1}" for number in range(judged)),
        "4 computed steps: fitting on 3 prompts",
        *(f"4 computed steps: refining weight {number + 1} of {weights}" for number in range(weights * (effort == 2))),
    ]
    assert told[0][1] == len(PROMPTS) and [spent for _, spent in told] == sorted(spent for _, spent in told)


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


def test_what_plans_cost(setting: Setting, recorded: Material) -> None:
    """Of 10 steps on 3 prompts. Refining 4 varies 6 weights after each of 3 steps, and runs 3 prompts 6 times more."""
    assert Effort(2, 10.0).price(2) == 10.0 and Effort(2, 10.0).price(3, 4) == 3.0 + 4 * 7.0
    assert [Planner(setting, recorded, effort=effort).cost(4) for effort in (0, 1)] == [1.2, 1.2]
    planner = Planner(setting, recorded, effort=2)
    assert planner.cost(4) == pytest.approx(1.2 + (2 * 6 * (3 + 2 + 1) + 6 * 3 * 4) / 10)
    assert planner.cost(6) == pytest.approx(1.8 + (2 * 6 * 15 + 6 * 3 * 6) / 10), "28.8 of 60 generations"
    assert planner.cost(7) == pytest.approx(2.1), "37.8 are more than 60 % of 60, so it is not refined"
    assert Planner(setting, recorded, effort=2, history=4).cost(7) == pytest.approx(2.1 + (2 * 5 * 21 + 126) / 10)


def test_a_question_has_the_generations_of_its_effort_whatever_was_asked_before(
    setting: Setting, recorded: Material
) -> None:
    planner = Planner(setting, recorded, effort=0)
    assert planner.left == 9.0 - 3.0
    planner.for_speedup(10 / 3)
    assert planner.left == pytest.approx(6.0 - (planner.spent - 3.0)) and planner.spent > 3.0
    assert len(planner.for_speedup(10 / 3).computed) == 3
    assert planner.left == pytest.approx(6.0), "what is known is not run again"
    whole = planner.for_speedup(1.0)
    assert whole.computed == tuple(range(STEPS)) and whole.predicted_psnr is None and not whole.verified


def test_no_more_than_a_hundred_decibels_are_foreseen(setting: Setting, recorded: Material) -> None:
    planner = Planner(setting, recorded, effort=0)
    planner.known[2] = Known(planner.predicted[2].computed, quality={"psnr": [98.0, 100.0, 99.0]})
    assert planner.point(2).predicted_psnr == 99.0 and planner.point(6).predicted_psnr == 100.0
    assert planner.front().prediction_error is None, "one plan says nothing of the others"


def test_the_prediction_error_is_a_root_mean_square_of_each_plan_from_the_others(
    setting: Setting, recorded: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three plans on made-up scales: foreseen 10, 20 and 30 dB, measured at 12, 25 and 31."""
    planner = Planner(setting, recorded, effort=0)
    plans = {2: (0, 1), 3: (0, 1, 2), 4: (0, 1, 2, 3)}
    measured, levels = {2: 12.0, 3: 25.0, 4: 31.0}, {2: 10.0, 3: 20.0, 4: 30.0}
    monkeypatch.setattr(planner, "foreseen", lambda plan: levels[len(plan)])
    known = {c: Known(plans[c], quality={"psnr": [measured[c] - 1.0, measured[c] + 1.0]}) for c in plans}
    misses = []
    for c in plans:
        others = [(levels[o], measured[o]) for o in plans if o != c]
        misses.append(Scale(others)(levels[c]) - measured[c])
    assert len({round(abs(miss), 3) for miss in misses}) == 3
    assert planner._prediction_error(known) == pytest.approx(math.sqrt(sum(m * m for m in misses) / 3))


def test_a_look_takes_two_prompts_and_is_not_the_best_plan(setting: Setting, recorded: Material) -> None:
    told: list[str] = []
    planner = Planner(
        setting, recorded, effort=1, metrics=("ssim", "psnr", "ssim"), told=lambda doing, spent: told.append(doing)
    )
    look = planner.look(3)
    assert {name: len(values) for name, values in look.quality.items()} == {"psnr": 2, "ssim": 2}
    assert list(look.quality) == ["psnr", "ssim"] and not planner.known
    assert planner.spent == pytest.approx(3.0 + 2 * 3 / STEPS), "no rival is run"
    assert told == ["3 computed steps: planning", "3 computed steps: a first look"]


def test_rivals_get_what_is_left_of_the_generations_in_calls(
    setting: Setting, recorded: Material, specimen: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation without a cache is one call of the denoiser at each step here, both branches in one."""
    rivals, given, left = module.better_of, [], []
    with Counter(specimen.pipe.transformer).counting() as counter:

        def heard(*args: Any, **more: Any) -> Any:
            given.append(more["most"])
            left.append((EFFORTS[0].generations - len(PROMPTS)) * STEPS - counter.calls)
            return rivals(*args, **more)

        monkeypatch.setattr(module, "better_of", heard)
        Planner(setting, recorded, effort=0).for_speedup(2.4)
    assert given == pytest.approx(left) and len(given) == 1 and left[0] > STEPS


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


def test_plans_are_judged_by_the_prompts_that_there_are_and_compute_each_denoisers_first_step(
    setting: Setting, recorded: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the groups' six prompts three were recorded. Of two denoisers the second runs from step 5 on."""
    made: list[Any] = []
    asked: list[Any] = []
    monkeypatch.setattr(module, "Referee", lambda pipe, *given: made.append(given))

    def nothing(*given: Any, **words: Any) -> Search:
        asked.append((given[3:], words))
        return Search()

    monkeypatch.setattr(module, "search", nothing)
    known = {(0, 1, 2, 3): Judged((0, 1, 2, 3), -3.0, 0.5)}
    planner = Planner(setting, recorded, effort=1, history=3, known=known)
    sampler: Any = SimpleNamespace(steps=STEPS, relations=SimpleNamespace(starts=(0, 5)))
    planner.sampler = sampler
    planner.search(4, 5.0)
    assert made == [(recorded.runs, sampler, [[0], [1, 2]], 3)]
    ((given, words),) = asked
    assert given == (STEPS, 5.0) and words["fixed"] == (0, 5) and words["prompts"] == 3 and words["known"] == known
    assert planner.known[4].plan == planner._portfolio(4)[0] and planner.spent == 3.0


def test_prompts_that_weights_were_not_fitted_on_decide_whether_they_are_refined(
    setting: Setting, recorded: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def unchanged(pipe: Any, runs: Any, others: Any, sampler: Any, computed: Any, stretches: Any, **_: Any) -> Refined:
        asked.append((list(runs), list(others), computed))
        return Refined(list(stretches), 0.0, 0)

    monkeypatch.setattr(module, "refine", unchanged)
    planner = Planner(setting, recorded, effort=2)
    planner.verify(4)
    runs = list(recorded.runs)
    assert asked == [(runs[:2], runs[2:], planner.known[4].plan)]


def test_a_generation_is_as_many_calls_as_its_steps_make(setting: Setting, recorded: Material) -> None:
    planner = Planner(setting, recorded, effort=0)
    sampler: Any = SimpleNamespace(steps=STEPS, relations=SimpleNamespace(calls=2))
    planner.sampler = sampler
    planner._pay(30)
    assert planner.spent == 3.0 + 30 / (2 * STEPS)

"""Attribution beside runs made by hand, around the denoiser's forward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.policies.errors import InvalidPolicy, ScheduleMismatch
from fastercache.tuner.planning import attribution
from fastercache.tuner.planning.attribution import Decision, decisions
from fastercache.tuner.planning.fitting import Sampler, fit
from fastercache.tuner.planning.material import Material, material
from fastercache.tuner.setting import References, Setting
from fastercache.zoo.specimen import Specimen

STEPS, PROMPTS, COMPUTED = 10, ("one", "two"), (0, 2, 3, 6, 9)
SKIPPED = (Decision(0, 1, 1), Decision(3, 4, 5), Decision(6, 7, 8))


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    found = zoo.build("latte")
    found.pipe.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def recorded(specimen: Specimen, tmp_path_factory: pytest.TempPathFactory) -> Material:
    call = {"height": 32, "width": 32, "video_length": 4, "num_inference_steps": STEPS, "clean_caption": False}
    setting = Setting(specimen.pipe, call)
    return material(References(setting, tmp_path_factory.mktemp("references")), setting.cases(PROMPTS))


@pytest.fixture(scope="module")
def plan(specimen: Specimen, recorded: Material) -> fc.Planned:
    found = fit(specimen.pipe, recorded.runs, recorded.sampler, COMPUTED, history=2, finish=False)
    assert found.predictor is not None
    return fc.Planned(steps=STEPS, computed=COMPUTED, stand_in=found.predictor)


@pytest.fixture(scope="module")
def truth(specimen: Specimen, recorded: Material, plan: fc.Planned) -> tuple[attribution.Truth, int, list[int]]:
    told: list[int] = []
    with counted(specimen.pipe.transformer) as calls:
        found = attribution.truth(
            specimen.pipe,
            recorded.runs,
            recorded.videos,
            recorded.sampler,
            plan,
            told=lambda doing, spent: told.append(spent),
        )
    return found, len(calls), told


@contextmanager
def counted(denoiser: torch.nn.Module) -> Iterator[list[None]]:
    """Denoiser calls, by a hook on its first block."""
    calls: list[None] = []
    handle = denoiser.get_submodule("transformer_blocks.0").register_forward_hook(lambda *_: calls.append(None))
    yield calls
    handle.remove()


def last_latents(specimen: Specimen, recorded: Material, plan: fc.Planned, exact: tuple[int, ...]) -> list[Tensor]:
    """Each prompt's last latent, the denoiser's forward replaced by one that skips and combines."""
    denoiser, scheduler = specimen.pipe.transformer, specimen.pipe.scheduler
    forward, step = denoiser.forward, scheduler.step
    last: list[Tensor] = []
    for run in recorded.runs:
        past: list[tuple[Tensor, Tensor]] = []
        count = 0

        def cached(hidden_states: Tensor, *args: Any, past: Any = past, **kwargs: Any) -> Any:
            nonlocal count
            now, count = count, count + 1
            if now in plan.computed or now in exact:
                output = forward(hidden_states, *args, **kwargs)
                if now in plan.computed:
                    past.insert(0, (output[0], hidden_states))
                return output
            weights = [s for s in plan.stand_in.stretches if s.start <= now][-1]  # type: ignore[attr-defined]
            mixed = sum(w * value for w, (value, _) in zip(weights.outputs, past, strict=False))
            assert isinstance(mixed, Tensor)
            source = torch.zeros_like(mixed)  # half of the output's channels are variances, which the input has not
            source[:, : past[0][1].shape[1]] = past[0][1]
            return (mixed + weights.input * source,)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            found = step(*args, **kwargs)
            latent = found[0]
            last[-1:] = [latent.clone()]
            return found

        last.append(torch.empty(0))
        denoiser.forward, scheduler.step = cached, stepped
        try:
            # through the recorded run's own call, so that prompt and noise are the same
            run.generate(specimen.pipe)
        finally:
            denoiser.forward, scheduler.step = forward, step
    return last


def errors(latents: list[Tensor], recorded: Material) -> list[float]:
    truths = [run.reference.latents[-1].double() for run in recorded.runs]
    return [float((a.double() - b).square().mean()) for a, b in zip(latents, truths, strict=True)]


def test_decisions_are_the_stretches_that_are_skipped(plan: fc.Planned) -> None:
    assert decisions(plan) == SKIPPED
    assert list(map(str, SKIPPED)) == ["1 after 0", "4-5 after 3", "7-8 after 6"]
    assert decisions(fc.Planned(steps=5, computed=(0, 1))) == (Decision(1, 2, 4),)


def test_the_error_and_each_drop_are_those_of_a_run_by_hand(
    specimen: Specimen, recorded: Material, plan: fc.Planned, truth: tuple[attribution.Truth, int, list[int]]
) -> None:
    found = truth[0]
    whole = errors(last_latents(specimen, recorded, plan, ()), recorded)
    np.testing.assert_allclose(found.whole, whole, rtol=1e-3)
    for place, decision in enumerate(SKIPPED):
        without = errors(last_latents(specimen, recorded, plan, tuple(decision.steps)), recorded)
        np.testing.assert_allclose(found.without[place], without, rtol=1e-3, atol=1e-9)
        assert found.drops[place] == pytest.approx(1.0 - np.mean(without) / np.mean(whole), rel=1e-2, abs=1e-4)
    assert found.explained == pytest.approx(float(np.sum(found.drops)))


def least_squares(recorded: Material) -> tuple[list[float], float]:
    """The weights [F_3, F_2, x_3] of steps 4 and 5 on the uncached runs, and the squared error of the last latent."""
    decision = SKIPPED[1]
    impulse = recorded.sampler.impulse[decision.first : decision.last + 1]
    columns, target = [], []
    for run in recorded.runs:
        outputs = [run.reference.outputs[k].double().flatten() for k in range(STEPS)]
        latent = run.reference.latents[decision.after].double().flatten()
        columns.append(torch.stack([outputs[3], outputs[2], latent], dim=1))
        target.append(sum(h * outputs[k] for h, k in zip(impulse.tolist(), decision.steps, strict=True)))
    matrix, wanted = torch.cat(columns), torch.cat(target)  # type: ignore[arg-type]
    carried = matrix * float(impulse.sum())
    solved = torch.linalg.lstsq(carried, wanted[:, None], driver="gelsd").solution
    return solved.flatten().tolist(), float((wanted - (carried @ solved)[:, 0]).square().mean())


def test_a_stretch_alone_is_a_run_that_skips_nothing_else(
    specimen: Specimen, recorded: Material, plan: fc.Planned, truth: tuple[attribution.Truth, int, list[int]]
) -> None:
    """With weights by least squares on the uncached outputs; the sampler says how far a held output carries."""
    place, decision = 1, SKIPPED[1]
    solved, _ = least_squares(recorded)
    scale = recorded.sampler.input
    assert scale is not None
    stretch = {"after": 3, "start": 4, "outputs": solved[:2], "input": solved[2] / float(scale[3])}
    every = tuple(k for k in range(STEPS) if k not in decision.steps)
    weights = fc.Planned(steps=STEPS, computed=every, stand_in={"predictor": "fitted", "stretches": [stretch]})
    alone = errors(last_latents(specimen, recorded, weights, ()), recorded)
    np.testing.assert_allclose(truth[0].alone[place], alone, rtol=2e-2)


def test_what_is_run_is_priced_counted_and_told(
    plan: fc.Planned, truth: tuple[attribution.Truth, int, list[int]]
) -> None:
    found, calls, told = truth
    # the plan; 1, 4-5, 7-8 computed and what the plan computes after; each alone skipped, and the uncached 0-6 once
    assert attribution.price(plan) == 5 + (1 + 4) + (2 + 2) + (2 + 1) + (8 + 4 + 1) + 7
    assert found.calls == calls == attribution.price(plan) * len(PROMPTS)
    assert told == sorted(told) and told[0] == 0 and told[-1] == calls and len(told) == 2 * len(SKIPPED) + 2


def test_the_prediction_is_what_least_squares_leave_and_the_denoiser_makes_of_it(
    recorded: Material, plan: fc.Planned, truth: tuple[attribution.Truth, int, list[int]]
) -> None:
    predicted = attribution.predicted(recorded.profile.trajectory, recorded.sampler, plan)
    _, left = least_squares(recorded)
    assert predicted[1] == pytest.approx(left * math.exp(0.7 * 4 / 10) ** 2, rel=1e-3), "4 of 10 steps are to come"
    assert attribution.shares(predicted).sum() == pytest.approx(1.0) and truth[0].shares.sum() == pytest.approx(1.0)
    assert np.argsort(predicted).tolist() == np.argsort(truth[0].shares).tolist()
    alone = truth[0].alone.mean(axis=1)
    assert truth[0].repaired == pytest.approx(1.0 - float(truth[0].whole.mean() / alone.sum()))


def test_the_fewest_that_hold_a_part() -> None:
    assert attribution.holding(np.array([0.1, 0.5, 0.4])) == [1]
    assert attribution.holding(np.array([0.1, 0.5, 0.4]), 0.8) == [1, 2]
    assert attribution.holding(np.array([1.0])) == [0]
    assert math.isnan(attribution.rank_correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    assert attribution.rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    np.testing.assert_allclose(attribution.shares(np.zeros(4)), 0.25)


def test_plans_without_weights_of_their_own_are_refused(recorded: Material, plan: fc.Planned) -> None:
    with pytest.raises(InvalidPolicy, match="computes every step"):
        attribution.weights_of(fc.Planned(steps=3, computed=(0, 1, 2)), recorded.sampler)
    with pytest.raises(InvalidPolicy, match="stand-in is `hold`"):
        attribution.weights_of(fc.Planned(steps=STEPS, computed=COMPUTED), recorded.sampler)
    for computed in ((0, 2, 3, 5, 9), (0, 1, 3, 6, 9)):
        with pytest.raises(ScheduleMismatch, match="no weights for steps"):
            attribution.weights_of(plan.model_copy(update={"computed": computed}), recorded.sampler)


def test_gains_are_decibels_of_the_video(
    specimen: Specimen, recorded: Material, plan: fc.Planned, truth: tuple[attribution.Truth, int, list[int]]
) -> None:
    found = truth[0]
    with fc.attach(specimen.pipe, plan):
        made = [run.generate(specimen.pipe).double() for run in recorded.runs]
    errors = [(a - b.double()).square().flatten(1).mean(1) for a, b in zip(made, recorded.videos, strict=True)]
    np.testing.assert_allclose(found.psnr, [float((-10.0 * error.log10()).mean()) for error in errors], atol=1e-3)
    assert found.psnr_without.shape == (len(SKIPPED), len(PROMPTS))
    for gain, without in zip(found.gains, found.psnr_without, strict=True):
        assert gain == pytest.approx((without[0] - found.psnr[0] + without[1] - found.psnr[1]) / 2)


def test_half_is_held_by_what_holds_half() -> None:
    assert attribution.holding(np.array([0.25, 0.25, 0.5])) == [2]
    assert attribution.holding(np.array([0.25, 0.25, 0.5]), 0.75) == [2, 0]
    np.testing.assert_allclose(attribution.shares(np.array([1.0, 3.0])), [0.25, 0.75])


def test_a_rank_has_its_bootstrap_interval() -> None:
    """The same draws, ranked by hand: Pearson's correlation of the ranks."""
    rng = np.random.default_rng(5)
    true = rng.normal(size=12)
    predicted = true + rng.normal(size=12)

    def spearman(a: np.ndarray, b: np.ndarray) -> float:
        ranks = [np.array([(np.sum(x < v) + np.sum(x <= v) + 1) / 2 for v in x]) for x in (a, b)]
        return float(np.corrcoef(*ranks)[0, 1])

    found = attribution.rank_interval(predicted, true, draws=200)
    draws = np.random.default_rng(0).integers(0, 12, (200, 12))
    every = sorted(spearman(predicted[one], true[one]) for one in draws)
    assert found["spearman"] == pytest.approx(spearman(predicted, true))
    assert every[4] <= found["low"] <= every[5] and every[194] <= found["high"] <= every[195]  # 199 * .025 = 4.975
    assert attribution.rank_interval(true, true, draws=50) == pytest.approx({"spearman": 1.0, "low": 1.0, "high": 1.0})
    assert math.isnan(attribution.rank_interval(true[:2], true[:2])["spearman"])


@pytest.mark.parametrize(("outputs", "starts", "fits"), [(2, (0,), True), (3, (0,), False), (2, (0, 2), False)])
def test_weights_combine_no_more_outputs_than_their_denoiser_gave(
    outputs: int, starts: tuple[int, ...], fits: bool
) -> None:
    stretch = {"after": 2, "start": 3, "outputs": [0.5] * outputs, "input": 0.0}
    first = {"after": 0, "start": 1, "outputs": [1.0], "input": 0.0}
    made = fc.Planned(steps=4, computed=(0, 2), stand_in={"predictor": "fitted", "stretches": [first, stretch]})
    response: Any = SimpleNamespace(steps=4)
    relations: Any = SimpleNamespace(starts=starts)
    if fits:
        assert attribution.weights_of(made, Sampler(response, relations)) == made.stand_in
    else:
        with pytest.raises(ScheduleMismatch, match="no weights for steps 3 after 2"):
            attribution.weights_of(made, Sampler(response, relations))

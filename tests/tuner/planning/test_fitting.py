"""Fitting beside least squares in a bare sampling loop, and its replay through the runtime."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.response import Response
from fastercache.analysis.sampling import Recording, Relations, RunValues, TrajectoryRecorder
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.experiments.jobs.planning_families import recorded
from fastercache.model.layout import strip
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.methods.planned import Planned
from fastercache.policies.predictors.fitted import Stretch
from fastercache.tuner.planning.fitting import FittedRuns, Memory, Sampler, SearchRun, _Work, beginning, fit, replay
from tests.tuner.planning.bare import STEPS, Answer, Loops, Pipe

Floats = NDArray[np.float64]
SEEDS = (0, 1, 2)
PLAN = (0, 1, 3, 6)


def material(pipe: Pipe, seeds: tuple[int, ...] = SEEDS) -> tuple[Sampler, list[SearchRun]]:
    found: list[Recording] = []
    with TrajectoryRecorder(pipe, done=found.append):
        for seed in seeds:
            pipe(seed)
    profile = TrajectoryProfile.of(found, _Told(pipe))
    runs = [SearchRun(lambda p, s=seed: p(s), one.values) for seed, one in zip(seeds, found, strict=True)]
    return Sampler(profile.response, profile.relations), runs


class _Told:
    """What a profile asks of a pipeline beside its runs."""

    def __init__(self, pipe: Pipe) -> None:
        self.transformer, self.scheduler, self.guidance_scale = pipe.transformer, pipe.scheduler, 1.0


def steered(plan: tuple[int, ...], history: int, seeds: tuple[int, ...] = SEEDS) -> tuple[Loops, dict[int, Floats]]:
    """The fit by hand: hold one output over each stretch that brings x_j closest to the uncached run's.

    Returns the cached runs, and by first skipped step the weights of [F_newest, F_older ..., x_newest].
    """
    truth = Loops.run(seeds)
    weights: dict[int, Floats] = {}
    held: dict[int, Floats] = {}

    def rule(k: int, cached: Loops) -> Floats | None:
        if k in plan:
            return None
        past = [s for s in plan if s < k][::-1][:history]
        end = min((s for s in plan if s > k), default=STEPS)
        if past[0] + 1 == k:
            features = [cached.outputs[s] for s in past] + [cached.latents[past[0]]]
            reach = cached.sigmas[end] - cached.sigmas[k]
            target = (truth.latents[end] - cached.latents[k]) / reach
            matrix = np.stack([f.ravel() for f in features], axis=1)
            weights[k] = np.linalg.lstsq(matrix, target.ravel(), rcond=None)[0]
            held[past[0]] = (matrix @ weights[k]).reshape(target.shape)
        return held[past[0]]

    return Loops.run(seeds, rule), weights


@pytest.mark.parametrize(
    ("history", "answer"), [(1, "plain"), (2, "plain"), (3, "plain"), (2, "variance"), (2, "joined")]
)
def test_weights_equal_least_squares_in_a_bare_loop(history: int, answer: Answer) -> None:
    """The steering target: x_j of the cached run is brought to the uncached run's, whatever was wrong before.

    Also where a learned variance stands behind the prediction, so that outputs are longer than inputs, and where
    outputs have one axis less than inputs.
    """
    pipe = Pipe(answer=answer)
    sampler, runs = material(pipe)
    found = fit(pipe, runs, sampler, PLAN, history=history)
    cached, weights = steered(PLAN, history)
    assert [(s.after, s.start) for s in found.stretches] == [(1, 2), (3, 4), (6, 7)]
    for stretch in found.stretches:
        np.testing.assert_allclose([*stretch.outputs, stretch.input], weights[stretch.start], rtol=2e-2, atol=2e-3)
    last = np.stack([result.double().numpy().ravel() for result in found.results])
    truth = Loops.run(SEEDS).latents[-1]
    np.testing.assert_allclose(last, cached.latents[-1], atol=1e-4)
    np.testing.assert_allclose(found.errors[-1], np.mean((last - truth) ** 2, axis=1), rtol=1e-2)
    assert found.calls == len(PLAN) * len(SEEDS) and found.complete and found.ends == [1, 3, 6, 8]


@pytest.mark.parametrize("answer", ["plain", "variance", "joined"])
def test_no_other_weights_of_the_last_stretch_do_better(answer: Answer) -> None:
    pipe = Pipe(answer=answer)
    sampler, runs = material(pipe)
    found = fit(pipe, runs, sampler, PLAN, history=2)
    best = float(np.sum(found.errors[-1]))
    last = found.stretches[-1]
    truth = Loops.run(SEEDS).latents[-1]
    for place in range(3):
        for change in (-0.02, 0.02):
            numbers = np.array([*last.outputs, last.input])
            numbers[place] += change
            moved = last.model_copy(update={"outputs": tuple(numbers[:-1].tolist()), "input": float(numbers[-1])})
            policy = planned(found, (*found.stretches[:-1], moved))
            with fc.attach(pipe.transformer, policy, guidance="none") as session:
                error = 0.0
                for row, seed in enumerate(SEEDS):
                    pipe.scheduler.set_timesteps(STEPS)
                    session.start(pipe.scheduler.timesteps)
                    error += float(np.mean((pipe(seed).double().numpy().ravel() - truth[row]) ** 2))
            assert error > best


def planned(found: FittedRuns, stretches: Any = None) -> Planned:
    predictor = found.predictor
    assert predictor is not None
    if stretches is not None:
        predictor = predictor.model_copy(update={"stretches": tuple(stretches)})
    return Planned(steps=STEPS, computed=found.computed, stand_in=predictor)


def test_memory_of_shared_beginnings_saves_calls_and_changes_nothing() -> None:
    pipe = Pipe()
    sampler, runs = material(pipe)
    memory = Memory()
    fit(pipe, runs, sampler, (0, 1, 3, 6), memory=memory)
    fresh = fit(pipe, runs, sampler, (0, 1, 3, 5))
    shared = fit(pipe, runs, sampler, (0, 1, 3, 5), memory=memory)
    assert shared.stretches == fresh.stretches
    assert all(torch.equal(a, b) for a, b in zip(shared.results, fresh.results, strict=True))
    assert (fresh.calls, shared.calls) == (12, 3)
    assert fit(pipe, runs, sampler, (0, 1, 3, 5), memory=memory).calls == 0
    memory.only((0, 1, 3, 6))
    assert set(memory.kept) == {(0,), (0, 1), (0, 1, 3), (0, 1, 3, 6)}
    assert fit(pipe, runs, sampler, (0, 2, 3, 6), memory=memory).calls == 9


def test_memory_tells_computed_steps_that_are_combined_from_others() -> None:
    """Both runs compute steps 0, 1, 2, 3 and 6, but what stands in at 4 and 5 is made of other outputs."""
    pipe = Pipe()
    sampler, runs = material(pipe)
    memory = Memory()
    other = fit(pipe, runs, sampler, (0, 1, 2, 3, 6), history=3, memory=memory)
    fresh = fit(pipe, runs, sampler, (0, 2, 3, 6), history=3, exact={1})
    shared = fit(pipe, runs, sampler, (0, 2, 3, 6), history=3, exact={1}, memory=memory)
    assert shared.stretches == fresh.stretches != other.stretches
    assert all(torch.equal(a, b) for a, b in zip(shared.results, fresh.results, strict=True))
    assert (fresh.calls, shared.calls) == (5 * len(SEEDS), 4 * len(SEEDS)), "step 0 is shared"


def test_a_plan_is_given_up_when_asked() -> None:
    pipe = Pipe()
    sampler, runs = material(pipe)
    seen: list[int] = []
    ends: list[int] = []

    def go_on(found: FittedRuns) -> bool:
        seen.append(found.ends[-1])
        return found.ends[-1] < 3

    found = fit(pipe, runs, sampler, PLAN, go_on=go_on)
    assert fit(pipe, runs, sampler, PLAN, go_on=lambda found: bool(ends.append(found.ends[-1])) or True).complete
    assert ends == [1, 3, 6], "at the end there is nothing to give up"
    assert seen == [1, 3] and not found.complete and found.calls == 2 * len(SEEDS) and not found.results
    assert torch.equal(pipe(0), Pipe()(0))


def test_every_step_computed_needs_no_weights() -> None:
    pipe = Pipe()
    sampler, runs = material(pipe)
    found = fit(pipe, runs, sampler, tuple(range(STEPS)))
    assert found.predictor is None
    assert all(torch.equal(result, pipe(seed)) for result, seed in zip(found.results, SEEDS, strict=True))
    np.testing.assert_allclose(found.errors[-1], 0.0, atol=1e-12)


def test_the_first_step_of_each_denoiser_must_be_computed() -> None:
    specimen = zoo.build("wan-2.2")
    sampler, found = recorded(specimen, (0,), 6)
    second = sampler.relations.starts[1]
    with pytest.raises(FasterCacheError, match=f"step {second} is left out"):
        fit(specimen.pipe, found.runs, sampler, (0, second + 1))


def test_values_of_another_denoiser_are_no_history() -> None:
    specimen = zoo.build("wan-2.2")
    sampler, found = recorded(specimen, (0,), 6)
    second = sampler.relations.starts[1]
    plan = (*range(second + 1),)
    fitted = fit(specimen.pipe, found.runs, sampler, plan)
    assert [len(stretch.outputs) for stretch in fitted.stretches] == [1]


@pytest.mark.parametrize("family", ["latte", "wan", "wan-2.2", "cogvideox-i2v"])
def test_the_runtime_replays_the_fit_bit_for_bit(family: str) -> None:
    specimen = zoo.build(family)
    sampler, found = recorded(specimen, (0, 1), 6)
    computed = tuple(sorted({0, 1, 3, *sampler.relations.starts}))
    fitted = fit(specimen.pipe, found.runs, sampler, computed, history=2)
    policy = Planned(steps=6, computed=computed, stand_in=fitted.predictor)
    with fc.attach(specimen.pipe, policy) as session:
        for seed, result in enumerate(fitted.results):
            assert torch.equal(specimen.generate(steps=6, seed=seed), result)
        assert session.last.speedup_flops > 1.2


def test_a_nonlinear_sampler_is_fitted_step_by_step() -> None:
    specimen = zoo.build("latte")
    specimen.pipe.scheduler = DDIMScheduler(clip_sample=True, clip_sample_range=0.5)
    sampler, found = recorded(specimen, (0, 1), 6)
    assert not sampler.held and sampler.response.kind == "nonlinear"
    fitted = fit(specimen.pipe, found.runs, sampler, (0, 2), history=2)
    assert [(s.after, s.start) for s in fitted.stretches] == [(0, 1), (2, 3), (2, 4), (2, 5)]
    with fc.attach(specimen.pipe, Planned(steps=6, computed=(0, 2), stand_in=fitted.predictor)):
        assert torch.equal(specimen.generate(steps=6, seed=1), fitted.results[1])
    off = [float((a - specimen.generate(steps=6, seed=k)).square().mean()) for k, a in enumerate(fitted.results)]
    np.testing.assert_allclose(fitted.errors[-1], off, rtol=1e-4)


def test_a_ridge_draws_towards_holding_the_newest_output() -> None:
    """The first stretch, up to which the cached runs are the uncached ones; the columns are [F_1, F_1 - F_0, x_1]."""
    pipe = Pipe()
    sampler, runs = material(pipe)
    found = fit(pipe, runs, sampler, PLAN, history=2, ridge=0.2).stretches[0]
    truth = Loops.run(SEEDS)
    newest, older, latent = (part.ravel() for part in (truth.outputs[1], truth.outputs[0], truth.latents[1]))
    columns = np.stack([newest, newest - older, latent], axis=1)
    target = (truth.latents[3] - truth.latents[2]).ravel() / (truth.sigmas[3] - truth.sigmas[2])
    rows = np.vstack([columns, np.sqrt(0.2) * np.diag(np.linalg.norm(columns, axis=0))])
    change = np.linalg.lstsq(rows, np.r_[target - newest, np.zeros(3)], rcond=None)[0]
    expected = (1.0 + change[0] + change[1], -change[1])
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-3)
    assert found.input == pytest.approx(change[2], rel=1e-3)


def test_beginnings() -> None:
    """Steps whose output no stand-in combines are written as ~k."""
    assert beginning((0, 2, 5), (), 1) == (0,)
    assert beginning((0, 2, 5), (), 2) == (0, 2)
    assert beginning((0, 2, 5), (3, 4), 3) == (0, 2, ~3)
    assert beginning((0, 2, 5), {4, 3}, 9) == (0, 2, ~3, ~4, 5)


# -- the state of a fit by itself: two runs of three steps and 20 elements -----------------------------------------
OUTPUTS = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 20)))
LATENTS = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 4, 20)))


def at_work(impulse: tuple[float, ...], kind: Any = "memoryless", scale: float | None = 2.0) -> _Work:
    matrix = np.zeros((4, 4))
    matrix[-1, 1:] = impulse
    zeros = np.zeros(3)
    scales = None if scale is None else np.full(3, scale)
    response = Response(kind, np.array([3.0, 2.0, 1.0]), matrix, zeros, zeros, 0, np.ones(3), False, 0.0)
    references = [RunValues(list(LATENTS[run]), list(OUTPUTS[run])) for run in (0, 1)]
    return _Work(Sampler(response, Relations(scales, "", True, True, (0,), 1)), references, 2, 1e-10)


def step(index: int, run: int, shift: float = 0.0) -> Any:
    """What a run did at a step: what it used is off by `shift`."""
    return SimpleNamespace(
        index=index, output=OUTPUTS[run, index] + shift, latent=LATENTS[run, index], after=LATENTS[run, index + 1] - 1.0
    )


def test_what_a_run_is_behind_by_adds_up_with_the_impulse() -> None:
    work = at_work((0.5, -0.25, 2.0))
    work.used([step(0, 0, 0.1), step(0, 1, -0.2)])
    work.used([step(1, 0, 0.4), step(1, 1, 0.0)])
    np.testing.assert_allclose(work.errors(), [(0.5 * 0.1 - 0.25 * 0.4) ** 2, (0.5 * 0.2) ** 2])
    bent = at_work((0.5, -0.25, 2.0), "nonlinear")
    for index in (0, 1):
        bent.used([step(index, 0, 0.1), step(index, 1, 0.1)])
    np.testing.assert_allclose(bent.errors(), [(0.25 * 0.1) ** 2] * 2)
    bent.used([step(2, 0, 0.1), step(2, 1, 0.1)])
    np.testing.assert_allclose(bent.errors(), [1.0, 1.0], rtol=1e-12, err_msg="at the end it is measured")


def test_the_weight_of_the_latent_is_for_the_input_that_the_denoiser_was_given_when_it_ran() -> None:
    """Sigmas scale the input of each step otherwise; a skipped step has none."""
    found = []
    for scales in ((1.0, 1.0, 1.0), (4.0, 0.5, 0.25)):
        work = at_work((1.0, 0.5, -0.5))
        assert work.sampler.input is not None
        work.sampler.input[:] = scales
        work.computed([step(0, 0, 0.1), step(0, 1, 0.2)])
        found.append(work.stretch(1, (0,)).input)
    assert found[1] == pytest.approx(found[0] / 4.0, rel=1e-9)


@pytest.mark.parametrize("cancels", [True, False])
def test_where_a_held_output_carries_nothing_the_next_one_is_the_target(cancels: bool) -> None:
    work = at_work((1.0, 0.5, -0.5 if cancels else -0.4))
    work.computed([step(0, 0, 0.1), step(0, 1, 0.2)])
    found = work.stretch(1, (0,))
    target = OUTPUTS[:, 1] if cancels else (
        0.5 * OUTPUTS[:, 1] - 0.4 * OUTPUTS[:, 2] - torch.tensor([[0.1], [0.2]])
    ) / 0.1  # fmt: skip
    used = OUTPUTS[:, 0] + torch.tensor([[0.1], [0.2]])
    columns = torch.stack([used.flatten(), LATENTS[:, 0].flatten()], dim=1)
    best = torch.linalg.lstsq(columns, target.flatten()[:, None]).solution.flatten()
    assert found.outputs == pytest.approx([float(best[0])], rel=1e-6)
    assert found.input == pytest.approx(float(best[1]) / 2.0, rel=1e-6), "the denoiser is given twice the latent"
    assert (found.after, found.start) == (0, 1) and work.stretch(2, (0,)) is found


def test_the_sizes_of_what_a_stretch_combines() -> None:
    work = at_work((1.0, 1.0, 1.0))
    for index in (0, 1):
        work.computed([step(index, 0), step(index, 1)])
    parts = [OUTPUTS[:, 1], OUTPUTS[:, 1] - OUTPUTS[:, 0], LATENTS[:, 1]]
    np.testing.assert_allclose(work.sizes(), [float(part.square().mean().sqrt()) for part in parts])
    work.computed([step(2, 0), step(2, 1)])
    assert len(work.sizes()) == 3 and work.steps[0][0].index == 2, "two outputs are combined, the newest first"


def test_a_latent_that_the_denoiser_is_not_given_has_no_weight_and_nan_is_told() -> None:
    work = at_work((1.0, 0.5, 0.5), scale=None)
    work.computed([step(0, 0), step(0, 1)])
    assert work.stretch(1, (0,)).input == 0.0
    work.references[0].outputs[2] = torch.full((20,), torch.nan)
    with pytest.raises(FasterCacheError, match="the weights at step 1 are not finite"):
        work._stretch = None
        work.stretch(1, (0,))


def stood_in(stretch: Stretch, *, denoisers: tuple[int, int] = (0, 0)) -> Any:
    """Two steps, newest first, with two outputs of one shape: 1 and 10, before them 2 and 20; the newest input is 5."""

    def step(denoiser: int, *outputs: float) -> Any:
        call = SimpleNamespace(
            outputs=[torch.full((1, 2), value) for value in outputs],
            template=strip(tuple(torch.zeros(1, 2) for _ in outputs)),
            input=torch.full((1, 2), 5.0),
            denoiser=denoiser,
        )
        return [SimpleNamespace(calls=[call])]

    work: Any = SimpleNamespace(steps=[step(denoisers[0], 1.0, 10.0), step(denoisers[1], 2.0, 20.0)], variance=True)
    return _Work.answer(work, stretch)(0, 0, denoisers[0], torch.zeros(1, 2))


def test_only_the_first_of_several_outputs_is_moved_by_the_latent() -> None:
    """Video and sound: the latent is the video's, also where the sound has its shape."""
    video, sound = stood_in(Stretch(after=1, start=2, outputs=(0.5, 0.25), input=2.0))
    assert video.tolist() == [[0.5 * 1 + 0.25 * 2 + 2 * 5] * 2] and sound.tolist() == [[0.5 * 10 + 0.25 * 20] * 2]


def test_an_output_of_another_denoiser_is_not_combined() -> None:
    with pytest.raises(FasterCacheError, match="changed within the run"):
        stood_in(Stretch(after=1, start=2, outputs=(0.5, 0.25), input=0.0), denoisers=(0, 1))


@pytest.mark.parametrize(
    ("kind", "guided", "steady", "held"),
    [
        ("memory", True, True, True),
        ("memory", False, True, False),
        ("memory", True, False, False),
        ("nonlinear", True, True, False),
    ],
)
def test_an_output_is_held_and_the_latent_a_feature_where_all_is_linear(
    kind: Any, guided: bool, steady: bool, held: bool
) -> None:
    response = Response(kind, np.ones(3), np.zeros((4, 4)), np.ones(3), np.ones(3), 0, np.ones(3), False, 0.0)
    sampler = Sampler(response, Relations(np.ones(3), "", guided, steady, (0,), 1))
    assert sampler.held is held and (sampler.input is not None) is held


def test_a_replay_keeps_what_it_computes_only_where_it_is_asked_to() -> None:
    pipe = Pipe()
    sampler, runs = material(pipe)
    stretches = fit(pipe, runs, sampler, PLAN).stretches
    memory = Memory()
    replay(pipe, runs, sampler, PLAN, stretches, memory=memory, keep=False)
    assert memory.kept == {}
    replay(pipe, runs, sampler, PLAN, stretches, memory=memory)
    assert set(memory.kept) == {PLAN[:count] for count in range(1, len(PLAN) + 1)}

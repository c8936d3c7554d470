"""Weights fitted to a plan, as a predictor and a policy: formula, laws, files, refusals, memory, deployment."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.experiments.jobs.planning_families import recorded
from fastercache.policies import Now, Past, Run
from fastercache.policies.errors import InvalidPolicy, ScheduleMismatch
from fastercache.policies.methods.planned import Planned
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.policies.registry import load_policy
from fastercache.policies.signals import Signal
from fastercache.testing import check_policy
from fastercache.testing.deployment import check_compile
from fastercache.zoo.specimen import Specimen

STRETCHES = (
    Stretch(after=0, start=1, outputs=(0.9,), input=0.1),
    Stretch(after=2, start=3, outputs=(1.5, -0.5), input=-0.05),
    Stretch(after=2, start=4, outputs=(1.7, -0.7)),
)
FITTED = Fitted(stretches=STRETCHES, variance=True)
POLICY = Planned(steps=6, computed=(0, 2, 5), stand_in=FITTED)


def test_the_prediction_is_the_weighted_sum() -> None:
    rng = np.random.default_rng(0)
    old, new, source = (rng.normal(size=(2, 3)) for _ in range(3))
    steps = Run.of(6).steps
    past = [Past(steps[s], FITTED.keep(torch.from_numpy(v), torch.from_numpy(source))) for s, v in ((0, old), (2, new))]
    at_3, at_4 = (FITTED.predict(past, Now(steps[k])).numpy() for k in (3, 4))
    np.testing.assert_allclose(at_3, 1.5 * new - 0.5 * old - 0.05 * source, rtol=1e-12)
    np.testing.assert_allclose(at_4, 1.7 * new - 0.7 * old, rtol=1e-12)
    assert FITTED.depth == 2 and FITTED.needs is Signal.INPUT
    assert Fitted(stretches=STRETCHES[2:]).needs is None


def test_the_input_is_added_to_the_prediction_before_a_learned_variance() -> None:
    """(2, 6, 5) holds a prediction and a variance of (2, 3, 5) each; the input stays out of the variance."""
    rng = np.random.default_rng(0)
    output, source = rng.normal(size=(2, 6, 5)), rng.normal(size=(2, 3, 5))
    expected = 0.9 * output
    expected[:, :3] += 0.1 * source
    steps = Run.of(6).steps
    past = [Past(steps[0], FITTED.keep(torch.from_numpy(output), torch.from_numpy(source)))]
    np.testing.assert_allclose(FITTED.predict(past, Now(steps[1])).numpy(), expected, rtol=1e-12)
    left_out = FITTED.model_copy(update={"variance": False})
    past = [Past(steps[0], left_out.keep(torch.from_numpy(output), torch.from_numpy(source)))]
    np.testing.assert_allclose(left_out.predict(past, Now(steps[1])).numpy(), 0.9 * output, rtol=1e-12)


def test_an_input_with_frames_in_an_axis_of_their_own_is_added_frame_by_frame() -> None:
    """(2, 3, 4, 5), two videos of three frames, goes in; (6, 4, 5) comes out, or (6, 8, 5) with a learned variance."""
    rng = np.random.default_rng(0)
    source = rng.normal(size=(2, 3, 4, 5))
    steps = Run.of(6).steps
    for channels in (4, 8):
        output = rng.normal(size=(6, channels, 5))
        expected = 0.9 * output
        for frame in range(6):
            expected[frame, :4] += 0.1 * source[frame // 3, frame % 3]
        past = [Past(steps[0], FITTED.keep(torch.from_numpy(output), torch.from_numpy(source)))]
        np.testing.assert_allclose(FITTED.predict(past, Now(steps[1])).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 6, 5), "do not say whether"), ((2, 4, 5), "which has another shape"), ((4, 3, 5), "which has another shape")],
    ids=["an older file", "other channels", "other rows"],
)
def test_an_input_that_cannot_be_added_is_refused(shape: tuple[int, ...], said: str) -> None:
    older = Fitted(stretches=STRETCHES)
    with pytest.raises(ScheduleMismatch, match=said):
        older.keep(torch.ones(shape), torch.ones(2, 3, 5))
    assert isinstance(Fitted(stretches=STRETCHES[2:]).keep(torch.ones(shape), torch.ones(2, 3, 5)), torch.Tensor)


def test_half_precision_is_summed_in_float32() -> None:
    values = [torch.full((4,), v, dtype=torch.float16) for v in (1000.0, 1001.0)]
    steps = Run.of(6).steps
    past = [Past(steps[0], values[0]), Past(steps[2], values[1])]
    stretch = Stretch(after=2, start=3, outputs=(100.0, -99.5))
    found = Fitted(stretches=(stretch,)).predict(past, Now(steps[3]))
    assert found.dtype == torch.float16
    assert float(found[0]) == pytest.approx(100.0 * 1001.0 - 99.5 * 1000.0, abs=1.0)


@pytest.mark.parametrize(
    ("newest", "older", "asked"), [(1, 0, 3), (2, None, 3), (3, 2, 4)], ids=["another step", "too few", "a later one"]
)
def test_other_computed_steps_are_refused(newest: int, older: int | None, asked: int) -> None:
    steps = Run.of(6).steps
    past = [Past(steps[s], torch.ones(1)) for s in (older, newest) if s is not None]
    with pytest.raises(
        ScheduleMismatch, match=f"no weights were fitted for step {asked} after computing step {newest}"
    ):
        FITTED.predict(past, Now(steps[asked]))


def test_nonsense_is_refused_in_a_file() -> None:
    with pytest.raises(InvalidPolicy, match="serve later steps"):
        Stretch(after=3, start=3, outputs=(1.0,))
    with pytest.raises(InvalidPolicy, match="in the order of their steps"):
        Fitted(stretches=STRETCHES[::-1])
    with pytest.raises(InvalidPolicy, match="finite"):
        Stretch(after=0, start=1, outputs=(float("nan"),))
    for computed in ((1, 2), (0, 2, 2), (0, 6), (0, 3, 1)):
        with pytest.raises(InvalidPolicy, match="computed steps must rise"):
            Planned(steps=6, computed=computed)


def test_json_round_trip() -> None:
    again = load_policy(json.loads(json.dumps(fc.dump(POLICY))))
    assert again == POLICY and isinstance(again, Planned) and again.stand_in == FITTED


@pytest.mark.parametrize("family", ["latte", "wan", "wan-2.2"])
def test_laws(family: str) -> None:
    """Laws 1 to 9, batched and separate guidance, and two denoisers."""
    policy = POLICY
    if family == "wan-2.2":
        steps = zoo.build(family).steps
        first = recorded(zoo.build(family), (0,), steps)[0].relations.starts[1]
        assert first > 1
        one = Stretch(after=0, start=1, outputs=(0.9,), input=0.1)
        two = Stretch(after=first, start=first + 1, outputs=(1.1,), input=-0.1)
        policy = Planned(steps=steps, computed=(0, first), stand_in=Fitted(stretches=(one, two), variance=True))
    check_policy(policy, zoo.build(family)).raise_if_broken()


def test_a_run_of_other_length_is_refused(latte: Specimen) -> None:
    with fc.attach(latte.pipe, POLICY), pytest.raises(ScheduleMismatch, match="6 steps, the run has 5"):
        latte.generate(steps=5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_memory_is_as_planned(latte: Specimen, dtype: torch.dtype | None) -> None:
    """Two outputs and the input of the newest one, in the cache's dtype."""
    with fc.attach(latte.pipe, POLICY, cache_dtype=dtype, cache_device="cpu") as session:
        planned = session.plan(**latte.call(steps=6))
        latte.generate(steps=6)
        assert planned.exact and planned.per_step == session.last.bytes_per_step
        assert planned.peak == session.last.cached_bytes > 0
        assert session.last.bytes_per_step[-1] == 0


@pytest.mark.slow
def test_compiled_blocks() -> None:
    short = Planned(steps=4, computed=(0, 2), stand_in=FITTED.model_copy(update={"stretches": STRETCHES[:2]}))
    outcome = check_compile(lambda: zoo.build("latte"), short)
    assert outcome.passed, outcome.detail

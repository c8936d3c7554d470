"""Recordings of a sampler's runs: inner products, merging, files, and what is said of the denoiser's input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.response import probe
from fastercache.analysis.sampling import Recording, TrajectoryRecorder, record_trajectory
from fastercache.analysis.trajectory import Trajectory, gram, interpolation
from fastercache.analysis.trajectory_profile import TrajectoryProfile, load_values, save_values
from fastercache.policies.errors import AttachError, ConfigUnreadable, RecordingError
from fastercache.zoo.specimen import Specimen

STEPS = 4


@contextmanager
def spied(pipe: Any) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """(output, latent, next latent) of every call of the scheduler's step."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    original = pipe.scheduler.step

    def step(output: Tensor, t: Any, latent: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(output, t, latent, *args, **kwargs)
        seen.append((output.clone(), latent.clone(), result[0].clone()))
        return result

    pipe.scheduler.step = step
    try:
        yield seen
    finally:
        del pipe.scheduler.step


def profile_of(specimen: Specimen, seeds: tuple[int, ...] = (0,), steps: int = STEPS) -> TrajectoryProfile:
    found: list[Recording] = []
    with TrajectoryRecorder(specimen.pipe, done=found.append) as recorder:
        for seed in seeds:
            specimen.generate(steps=steps, seed=seed)
    return TrajectoryProfile.of(found, specimen.pipe, recorder.discarded)


@pytest.fixture(scope="module")
def latte_profile() -> TrajectoryProfile:
    return profile_of(zoo.build("latte"), (0, 1))


@pytest.mark.parametrize("family", ["latte", "wan", "sdxl-i2i"])
def test_products_equal_direct_ones(family: str) -> None:
    specimen = zoo.build(family)
    with spied(specimen.pipe) as seen:
        profile = profile_of(specimen)
    vectors = [latent for _, latent, _ in seen] + [seen[-1][2]] + [output for output, _, _ in seen]
    rows = torch.stack([v.double().flatten() for v in vectors]).numpy()
    assert profile.trajectory.steps == len(seen)
    np.testing.assert_allclose(profile.trajectory.products[0], rows @ rows.T / rows.shape[1], rtol=1e-5, atol=1e-9)


def test_products_by_branch_are_those_of_the_raw_outputs(latte: Specimen) -> None:
    """Guidance F = u + s (c - u): the products of c and u give those of F."""
    profile = profile_of(latte)
    n = STEPS
    assert profile.trajectory.branches == 2 and profile.relations.guided
    scale = float(latte.pipe.guidance_scale)
    mix = np.hstack([(1 - scale) * np.eye(n), scale * np.eye(n)])  # the unconditional rows come first
    guided = mix @ profile.trajectory.by_branch[0] @ mix.T
    np.testing.assert_allclose(guided, profile.trajectory.products[0, n + 1 :, n + 1 :], rtol=1e-4)


def test_a_recording_changes_nothing_and_counts_calls(latte: Specimen) -> None:
    alone = latte.generate(steps=STEPS)
    with record_trajectory(latte.pipe) as recorder:
        inside = latte.generate(steps=STEPS)
    assert torch.equal(alone, inside) and torch.equal(alone, latte.generate(steps=STEPS))
    assert recorder.computed == STEPS and len(recorder.recordings) == 1
    assert recorder.recordings[0].values.latents == []


def test_a_run_that_ends_early_is_discarded_and_counted(latte: Specimen) -> None:
    def interrupt(pipe: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            raise KeyboardInterrupt
        return {}

    with record_trajectory(latte.pipe) as recorder:
        with pytest.raises(KeyboardInterrupt):
            latte.generate(steps=STEPS, callback_on_step_end=interrupt)
        assert recorder.discarded == 1 and not recorder.recordings
        latte.generate(steps=STEPS)
        assert recorder.discarded == 1 and len(recorder.recordings) == 1
    with pytest.raises(RecordingError, match="no complete run was recorded"):
        TrajectoryProfile.of([], latte.pipe)


def test_more_memory_than_allowed_is_refused(latte: Specimen) -> None:
    with pytest.raises(RecordingError, match="max_bytes"), record_trajectory(latte.pipe, max_bytes=1000):
        latte.generate(steps=STEPS)
    with record_trajectory(latte.pipe) as recorder:
        latte.generate(steps=STEPS)
    assert len(recorder.recordings) == 1


def test_attached_sessions_are_refused(latte: Specimen) -> None:
    with (
        fc.attach(latte.pipe, fc.StaticInterval(sites="attention")),
        pytest.raises(AttachError, match="detach it first"),
    ):
        record_trajectory(latte.pipe)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("cogvideox-i2v", "has the shape"), ("hunyuan-video-1.5", "has the shape"), ("cosmos", "has the shape")],
)
def test_an_input_that_is_not_the_latent_is_named(family: str, reason: str) -> None:
    relations = profile_of(zoo.build(family), steps=2).relations
    assert relations.input is None and reason in relations.why


def test_a_scaled_input_is_the_latent_times_a_number() -> None:
    specimen = zoo.build("sdxl")
    found = profile_of(specimen).relations.input
    sigmas = specimen.pipe.scheduler.sigmas[:-1].double().numpy()
    assert found is not None
    expected = 1.0 / np.sqrt(sigmas**2 + 1.0) if "Euler" in type(specimen.pipe.scheduler).__name__ else np.ones(STEPS)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_two_experts_have_two_starts() -> None:
    specimen = zoo.build("wan-2.2")
    calls: list[int] = []
    for number, module in enumerate((specimen.pipe.transformer, specimen.pipe.transformer_2)):
        module.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    profile = profile_of(specimen, steps=6)
    by_step = calls[::2]
    assert profile.relations.starts == (0, by_step.index(1)) and profile.relations.calls == 2
    with pytest.raises(RecordingError, match="several denoisers share the steps"):
        profile.with_steps(specimen.pipe.scheduler, 8)


def test_profiles_merge_and_differ(latte: Specimen, latte_profile: TrajectoryProfile) -> None:
    other = profile_of(latte, (5,))
    both = TrajectoryProfile.merged([latte_profile, other])
    assert both.trajectory.runs == both.info.runs == 3
    np.testing.assert_array_equal(both.trajectory.products[2], other.trajectory.products[0])
    np.testing.assert_array_equal(both.trajectory.only([2]).products, other.trajectory.products)
    with pytest.raises(RecordingError, match="record with the same steps"):
        TrajectoryProfile.merged([latte_profile, profile_of(latte, steps=3)])
    latte.pipe.scheduler = DDIMScheduler(clip_sample=False, beta_end=0.05)
    with pytest.raises(RecordingError, match="differ in their scheduler"):
        TrajectoryProfile.merged([latte_profile, profile_of(latte)])


def test_files_round_trip(tmp_path: Path, latte_profile: TrajectoryProfile) -> None:
    latte_profile.save(tmp_path / "one")
    again = TrajectoryProfile.load(tmp_path / "one")
    assert again.info == latte_profile.info
    for name in ("products", "times", "by_branch"):
        np.testing.assert_array_equal(getattr(again.trajectory, name), getattr(latte_profile.trajectory, name))
    for name in ("matrix", "scale", "gain", "input_scale", "times"):
        np.testing.assert_array_equal(getattr(again.response, name), getattr(latte_profile.response, name))
    assert again.relations.starts == (0,) and again.relations.input is not None
    np.testing.assert_array_equal(again.relations.input, latte_profile.relations.input)


@pytest.mark.parametrize(
    "damage",
    [
        "no file",
        "cut",
        "a tensor is missing",
        "wrong shape",
        "wrong matrix",
        "wrong scale",
        "not finite",
        "wrong kind",
        "other runs",
        "late start",
    ],
)
def test_hostile_files_are_one_line(tmp_path: Path, latte_profile: TrajectoryProfile, damage: str) -> None:
    latte_profile.save(tmp_path / "one")
    arrays, info = tmp_path / "one.safetensors", tmp_path / "one.json"
    found = load_file(arrays)
    if damage == "no file":
        arrays.unlink()
    elif damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:100])
    elif damage in ("wrong kind", "other runs", "late start"):
        change = {"wrong kind": {"kind": "magic"}, "other runs": {"runs": 7}, "late start": {"starts": [0, STEPS]}}
        info.write_text(json.dumps(json.loads(info.read_text()) | change[damage]))
    else:
        if damage == "a tensor is missing":
            del found["gain"]
        elif damage == "wrong shape":
            found["products"] = found["products"][:, :-1]
        elif damage == "wrong matrix":
            found["matrix"] = found["matrix"][:-1, :-1].contiguous()
        elif damage == "wrong scale":
            found["input"] = found["input"][:-1].contiguous()
        elif damage == "not finite":
            found["products"][0, 0, 0] = torch.nan
        save_file({k: v.contiguous() for k, v in found.items()}, arrays)
    with pytest.raises(ConfigUnreadable) as caught:
        TrajectoryProfile.load(tmp_path / "one")
    assert "\n" not in str(caught.value) and "one" in str(caught.value)


def test_values_round_trip_and_hostile_values_are_one_line(tmp_path: Path, latte: Specimen) -> None:
    found: list[Recording] = []
    with TrajectoryRecorder(latte.pipe, done=found.append):
        latte.generate(steps=2)
    values, place = found[0].values, tmp_path / "values.safetensors"
    save_values(place, values)
    again = load_values(place)
    assert all(
        torch.equal(a, b) for a, b in zip(again.latents + again.outputs, values.latents + values.outputs, strict=True)
    )
    for tensors in ({"latents": torch.zeros(3, 2)}, {"latents": torch.zeros(3, 2), "outputs": torch.zeros(3, 2)}):
        save_file(tensors, place)
        with pytest.raises(ConfigUnreadable) as caught:
            load_values(place)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [4, 9, 50])
def test_gram_holds_no_more_at_a_time_however_many_vectors_there_are(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastercache.analysis.trajectory.BLOCK", 40)
    sizes: list[int] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda found: (sizes.append(sum(t.numel() for t in found)), stack(found))[1])
    vectors = [torch.randn(3, 5, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    found = gram(vectors)
    assert sum(sizes) == 15 * count and max(sizes) <= max(40, count) and len(sizes) > 1
    rows = stack(vectors).reshape(count, -1).double().numpy()
    np.testing.assert_allclose(found, rows @ rows.T / 15, rtol=1e-12)


def test_merging_copies_each_recording_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [Trajectory(np.full((1, 5, 5), k), np.array([2.0, 1.0]), np.full((1, 4, 4), k)) for k in range(6)]
    copied: list[int] = []
    joined = np.concatenate
    monkeypatch.setattr(np, "concatenate", lambda found: (copied.append(sum(map(len, found))), joined(found))[1])
    merged = Trajectory.merged(parts)
    assert copied == [6, 6] and merged.runs == 6 and merged.branches == 2
    assert [run[0, 0] for run in merged.products] == [run[0, 0] for run in merged.by_branch] == list(range(6))


def test_interpolation_is_exact_for_polynomials_and_takes_double_times_once() -> None:
    known = np.array([1.0, 0.9, 0.9, 0.7, 0.7, 0.5, 0.4, 0.2, 0.0])
    wanted = np.array([0.95, 0.6, 0.33, 0.1, 0.7])
    values = 1.0 - 2.0 * known + 3.0 * known**3 - known**5
    expected = 1.0 - 2.0 * wanted + 3.0 * wanted**3 - wanted**5
    np.testing.assert_allclose(interpolation(known, wanted) @ values, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(clip_sample=False), DPMSolverMultistepScheduler()], ids=["DDIM", "DPM"]
)
def test_another_number_of_steps_from_the_recording(scheduler: Any) -> None:
    """Outputs that are polynomials of time are known at all times, and so is the other sampler's run."""
    rng = np.random.default_rng(0)
    coefficients, start = rng.normal(size=(5, 30)), rng.normal(size=30)

    def products(steps: int) -> tuple[Trajectory, Any]:
        response = probe(scheduler, steps)
        outputs = np.vander(response.times / 1000.0, 5) @ coefficients
        latents = response.matrix @ np.vstack([start, outputs])
        rows = np.vstack([latents, outputs])
        return Trajectory((rows @ rows.T / 30)[None], response.times, np.zeros((1, 0, 0))), response

    recorded, _ = products(12)
    wanted, response = products(7)
    found = recorded.resampled(response.times, response.matrix)
    size = np.abs(wanted.products).max()
    np.testing.assert_allclose(found.products, wanted.products, atol=1e-6 * size)


@pytest.mark.parametrize("points", [1, 2, 5, 6])
def test_interpolation_takes_the_positions_around_the_wanted_one(points: int) -> None:
    """As many on either side as there are; of an odd number one more above, at the ends the nearest."""
    known = np.array([0.0, 1.0, 2.0, 4.0, 5.0, 7.0, 8.0, 9.0, 10.0])
    for wanted in (0.5, 3.0, 6.0, 9.5, -1.0, 11.0):
        below = int(np.sum(known < wanted))
        first = min(max(below - points // 2, 0), len(known) - points)
        weights = interpolation(known, np.array([wanted]), points)[0]
        assert np.flatnonzero(weights).tolist() == list(range(first, first + points)), wanted
        near = known[first : first + points]
        for place, position in enumerate(near):
            others = [other for other in near if other != position]
            expected = np.prod([(wanted - other) / (position - other) for other in others])
            assert weights[first + place] == pytest.approx(expected)
    assert np.count_nonzero(interpolation(known, np.array([3.0]))) == 6
    assert np.flatnonzero(interpolation(known[:3], np.array([1.5]))).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(interpolation(known, known), np.eye(9))


def test_a_trajectory_of_other_shapes_is_refused() -> None:
    times = np.array([2.0, 1.0])
    whole = Trajectory(np.zeros((1, 5, 5)), times, np.zeros((1, 4, 4)))
    assert (whole.steps, whole.runs, whole.branches) == (2, 1, 2)
    assert [whole.latent(k) for k in (0, 2)] == [0, 2] and [whole.output(k) for k in (0, 1)] == [3, 4]
    for shape in ((1, 4, 4), (1, 5, 4), (5, 5)):
        with pytest.raises(RecordingError, match=r"2 steps have products of shape \(P, 5, 5\)"):
            Trajectory(np.zeros(shape), times, np.zeros((1, 0, 0)))
    for shape in ((2, 4, 4), (1, 4, 2), (1, 2, 4), (1, 3, 3)):
        with pytest.raises(RecordingError, match="products by branch have the shape"):
            Trajectory(np.zeros((1, 5, 5)), times, np.zeros(shape))
    one, two = (Trajectory(np.zeros((1, 5, 5)), times, np.zeros((1, n, n))) for n in (0, 4))
    with pytest.raises(RecordingError, match="with and without guidance cannot be merged"):
        Trajectory.merged([one, two])
    with pytest.raises(RecordingError, match="different timesteps"):
        Trajectory.merged([one, Trajectory(one.products, times + 0.5, one.by_branch)])
    assert gram([]).shape == (0, 0)


def test_products_by_branch_are_resampled_branch_by_branch() -> None:
    """Raw outputs of two branches that are polynomials of time, of 6 steps and of 4."""
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(2, 3, 20))

    def recorded(times: np.ndarray[Any, Any]) -> Trajectory:
        raw = np.concatenate([np.vander(times, 3) @ one for one in coefficients])
        n = len(times)
        return Trajectory(np.zeros((1, 2 * n + 1, 2 * n + 1)), times, (raw @ raw.T)[None])

    times = np.linspace(1.0, 0.1, 6)
    other = np.array([0.9, 0.55, 0.4, 0.15])
    found = recorded(times).resampled(other, np.zeros((5, 5)))
    np.testing.assert_allclose(found.by_branch, recorded(other).by_branch, rtol=1e-8)
    np.testing.assert_array_equal(found.times, other)

"""A trajectory profile of unusual settings: what its file keeps, what merges, and what holds in all runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastercache.analysis.response import Response
from fastercache.analysis.sampling import EXACT, Relations, _close, _combined, _input_scales, _parts, _recording
from fastercache.analysis.trajectory import Trajectory
from fastercache.analysis.trajectory_profile import TrajectoryInfo, TrajectoryProfile, load_values, save_values
from fastercache.policies.errors import ConfigUnreadable, RecordingError
from fastercache.tuned import Identity, Model

N = 3
RELATIONS = Relations(np.array([1.0, 0.5, 0.25]), "", True, True, (0,), 2)


def profile(runs: int = 2, seed: int = 0, **info: Any) -> TrajectoryProfile:
    """A sampler with memory that adds noise, of two denoisers, whose input is not the latent."""
    rng = np.random.default_rng(seed)
    vectors, raw = rng.normal(size=(runs, 2 * N + 1, 8)), rng.normal(size=(runs, 2 * N, 8))
    times = np.array([900.0, 500.0, 100.0])
    trajectory = Trajectory(vectors @ vectors.swapaxes(1, 2), times, raw @ raw.swapaxes(1, 2))
    response = Response(
        kind="memory", times=times, matrix=np.tril(np.arange(16.0).reshape(4, 4)), scale=np.array([1.0, 2.0, 3.0]),
        gain=np.array([4.0, 5.0, 6.0]), reach=2, input_scale=np.array([0.5, 0.6, 0.7]), stochastic=True, residual=3e-5,
    )  # fmt: skip
    relations = Relations(None, "the input has another shape", False, False, (0, 2), 2)
    given: dict[str, Any] = {"guidance_scale": 4.5, "discarded": 1, "scheduler": Identity.of("Solver", {"order": 2})}
    made = TrajectoryInfo(
        model=Model(pipeline="P", denoiser=Identity.of("D", {"x": 1})), kind="memory", reach=2, stochastic=True,
        residual=3e-5, guided=False, steady=False, starts=(0, 2), calls=2, why=relations.why, runs=runs,
        **{**given, **info},
    )  # fmt: skip
    return TrajectoryProfile(trajectory, response, relations, made)


def equal(one: TrajectoryProfile, other: TrajectoryProfile) -> None:
    assert one.info == other.info
    for part in ("trajectory", "response", "relations"):
        ours, theirs = vars(getattr(one, part)), vars(getattr(other, part))
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, theirs[name], err_msg=name)
            else:
                assert value == theirs[name], name


@pytest.mark.parametrize("source", [None, np.array([1.0, 0.5, 0.25])])
def test_everything_comes_back_from_the_file(tmp_path: Path, source: Any) -> None:
    made = profile()
    made = replace(made, relations=replace(made.relations, input=source))
    made.save(tmp_path / "one")
    equal(TrajectoryProfile.load(tmp_path / "one"), made)


def test_profiles_of_one_pipeline_are_merged_and_of_others_refused() -> None:
    one, two = profile(), profile(3, seed=1, discarded=4)
    both = TrajectoryProfile.merged([one, two])
    assert (both.info.runs, both.info.discarded, both.trajectory.runs) == (5, 5, 5)
    np.testing.assert_array_equal(both.trajectory.products[2:], two.trajectory.products)
    np.testing.assert_array_equal(both.trajectory.by_branch[:2], one.trajectory.by_branch)
    others = {
        "model": Model(pipeline="Q", denoiser=Identity.of("D", {"x": 1})),
        "scheduler": Identity.of("Solver", {"order": 3}),
        "guidance_scale": 4.0,
        "starts": (0, 1),
        "calls": 1,
    }
    for name, value in others.items():
        changed = replace(two, info=two.info.model_copy(update={name: value}))
        with pytest.raises(RecordingError, match=f"differ in their {name.replace('_', ' ')}"):
            TrajectoryProfile.merged([one, two, changed])


def test_runs_of_another_sampler_make_no_profile() -> None:
    made = profile(1)
    pipe = SimpleNamespace(scheduler=None, transformer=torch.nn.Linear(1, 1), guidance_scale=2.0)

    def recording(response: Response) -> Any:
        return SimpleNamespace(trajectory=made.trajectory, response=response, relations=made.relations)

    found = TrajectoryProfile.of([recording(made.response)] * 2, pipe, discarded=3)
    assert (found.info.runs, found.info.discarded, found.info.guidance_scale) == (2, 3, 2.0)
    assert found.info == profile(2, scheduler=None, guidance_scale=2.0, discarded=3).info.model_copy(
        update={"model": found.info.model}
    )
    near, far = (replace(made.response, matrix=made.response.matrix * factor) for factor in (1 + 5e-5, 1 + 5e-4))
    TrajectoryProfile.of([recording(made.response), recording(near)], pipe)
    for other in (far, replace(made.response, matrix=np.eye(3))):
        with pytest.raises(RecordingError, match="differ in their sampler"):
            TrajectoryProfile.of([recording(made.response), recording(near), recording(other)], pipe)


def test_values_of_another_count_or_shape_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "values.safetensors"
    for latents, outputs in (((3, 4), (3, 4)), ((4, 4), (3, 5)), ((2, 4), (3, 4))):
        values: Any = SimpleNamespace(latents=list(torch.zeros(latents)), outputs=list(torch.zeros(outputs)))
        save_values(place, values)
        with pytest.raises(ConfigUnreadable, match=r"n \+ 1 latents and n outputs"):
            load_values(place)
    values = SimpleNamespace(latents=list(torch.ones(4, 2)), outputs=list(torch.zeros(3, 2)))
    save_values(place, values)
    assert load_values(place).steps == 3 and torch.equal(load_values(place).latents[3], torch.ones(2))


# -- what holds in all runs ------------------------------------------------------------------------------------------
def test_what_holds_in_both_runs_is_kept() -> None:
    near, far = (replace(RELATIONS, input=RELATIONS.input * factor) for factor in (1 + 5e-4, 1 + 5e-3))  # type: ignore[operator]
    found = RELATIONS.merged(near)
    assert found.input is RELATIONS.input and (found.why, found.guided, found.steady) == ("", True, True)
    other = RELATIONS.merged(far)
    assert other.input is None and other.why == "its scale differs between runs"
    none = replace(RELATIONS, input=None, why="another shape")
    for pair in ((RELATIONS, none), (none, RELATIONS), (none, none)):
        assert pair[0].merged(pair[1]).input is None and pair[0].merged(pair[1]).why == "another shape"
    for name in ("guided", "steady"):
        less = replace(RELATIONS, **{name: False})
        for pair in ((RELATIONS, less), (less, RELATIONS)):
            merged = pair[0].merged(pair[1])
            assert getattr(merged, name) is False and merged.guided + merged.steady == 1
    for different in (replace(RELATIONS, starts=(0, 1)), replace(RELATIONS, calls=1)):
        with pytest.raises(RecordingError, match="differ in their denoiser calls"):
            RELATIONS.merged(different)


def call(source: torch.Tensor, output: torch.Tensor | None = None, denoiser: int = 0) -> Any:
    return SimpleNamespace(input=source, outputs=[output], denoiser=denoiser)


def test_the_scale_of_the_input_is_read_off_every_row_of_every_call() -> None:
    latents = [torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(k)) for k in range(2)]

    def steps(*sources: list[torch.Tensor]) -> list[Any]:
        pairs = zip(latents, sources, strict=True)
        return [SimpleNamespace(latent=x, calls=[call(one) for one in given]) for x, given in pairs]

    x, y = latents
    scales, why = _input_scales(steps([torch.cat([2 * x, 2 * x]), 2 * x], [3 * y, 3 * y]))
    assert scales is not None and scales.tolist() == pytest.approx([2.0, 3.0]) and why == ""
    off = 3 * y
    off[1, 2, 3] += 1.0
    for wrong in ([off, 3 * y], [3 * y, off], [torch.cat([3 * y, off])], [torch.cat([off, 3 * y])]):
        assert _input_scales(steps([2 * x], wrong)) == (None, "the denoiser's input is not the latent times a number")
    for shape in ((2, 3, 5), (3, 3, 4), (2, 12), (2, 3, 4, 1)):
        scales, why = _input_scales(steps([2 * x], [torch.zeros(shape)]))
        assert scales is None and "has the shape" in why


def test_outputs_are_combined_alike_at_every_step_or_not() -> None:
    rng = torch.Generator().manual_seed(0)
    parts = [[torch.randn(1, 6, generator=rng) for _ in range(2)] for _ in range(3)]
    guided = [4.0 * cond - 3.0 * uncond for cond, uncond in parts]
    assert _combined(parts, guided)
    assert not _combined(parts, [*guided[:2], 5.0 * parts[2][0] - 4.0 * parts[2][1]])
    assert _close(torch.ones(4), torch.ones(4) * (1 + 0.9 * EXACT)) and not _close(torch.ones(4), torch.ones(4) * 1.01)
    assert not _close(torch.ones(4), torch.ones(5)) and _close(torch.zeros(2), torch.zeros(2))


def test_raw_outputs_are_taken_apart_by_branch() -> None:
    """Two calls, the first of both branches' rows; a learned variance behind is left out."""
    latent = torch.zeros(2, 3, 4)
    both = torch.arange(4.0)[:, None, None].expand(4, 3, 4)
    step: Any = SimpleNamespace(output=latent, calls=[call(latent, both), call(latent, 7 + both[:2])])
    assert [part[:, 0, 0].tolist() for part in _parts(step)] == [[0.0, 1.0], [2.0, 3.0], [7.0, 8.0]]
    wide = torch.cat([both, torch.full((4, 3, 4), 9.0)], dim=1)
    step.calls = [call(latent, wide)]
    assert [(part[:, 0, 0].tolist(), part.shape) for part in _parts(step)] == [
        ([0.0, 1.0], latent.shape), ([2.0, 3.0], latent.shape),
    ]  # fmt: skip
    for output in (None, torch.zeros(3, 3, 4), torch.zeros(2, 3, 5), torch.zeros(2, 12)):
        step.calls = [call(latent, both), call(latent, output)]
        assert _parts(step) == []


def test_a_run_says_how_its_calls_relate_to_the_sampler() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, outputs = torch.randn(2, 4, 1, 6, generator=generator).unbind()

    def steps(
        denoisers: tuple[int, ...] = (0, 0, 1), counts: tuple[int, ...] = (1, 1, 1), jump: float = 0.0
    ) -> list[Any]:
        return [
            SimpleNamespace(
                latent=latents[k], after=latents[k + 1] + (jump if k == 0 else 0.0), output=outputs[k], index=k,
                calls=[call(latents[k], outputs[k], denoisers[k])] * counts[k],
            )
            for k in range(3)
        ]  # fmt: skip

    response = profile().response
    found = _recording(steps(), response)
    assert found.relations.starts == (0, 2) and found.relations.calls == 1 and found.relations.steady
    assert found.relations.guided and found.trajectory.branches == 1
    rows = torch.cat([latents, outputs[:3]]).reshape(7, -1).double().numpy()
    np.testing.assert_allclose(found.trajectory.products[0], rows @ rows.T / 6)
    assert not _recording(steps(jump=0.5), response).relations.steady
    assert _recording(steps((0, 1, 0)), response).relations.starts == (0, 1, 2)
    with pytest.raises(RecordingError, match="make 1 or 2 denoiser calls"):
        _recording(steps(counts=(2, 2, 1)), response)

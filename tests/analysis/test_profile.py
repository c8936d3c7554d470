"""A profile comes back from its files as it was, and files that are not one are refused in one line."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from fastercache.analysis.predictability import predictability
from fastercache.analysis.profile import ARRAYS_NAME, JSON_NAME, Profile
from fastercache.analysis.record import Recorder
from fastercache.policies.errors import ConfigUnreadable, MeasurementError, NoSiteMatched, RecordingError
from fastercache.policies.methods.static_interval import StaticInterval
from fastercache.policies.schedule import compile_policy
from tests.analysis.fakes import SITES, FakeSession, drifting


@pytest.fixture
def profile() -> Profile:
    session = FakeSession(drifting(numel=3000))
    recorder = Recorder(session, None, 2, 256, 256, 0, None, owned=False)
    session.go(5)
    session.go(5)
    return recorder.profile()


def test_saving_and_loading_gives_the_same_profile(profile: Profile, tmp_path: Path) -> None:
    found = Profile.load(profile.save(tmp_path / "a" / "profile"))
    assert found.info == profile.info
    for field in fields(Profile)[1:]:
        ours, theirs = getattr(profile, field.name), getattr(found, field.name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(p.name for p in (tmp_path / "a" / "profile").iterdir()) == [JSON_NAME, ARRAYS_NAME]


def test_a_profile_knows_its_sites_branches_and_run(profile: Profile) -> None:
    assert profile.sites == SITES
    assert dict(profile.groups()) == {"spatial": [0], "temporal": [1], "denoiser": [2], "branch": [3]}
    table = compile_policy(StaticInterval(sites="spatial"), profile.run)
    assert table.codes.shape == (1, 2, 5)


def test_a_guidance_difference_is_read_from_the_branch_that_has_it(profile: Profile) -> None:
    assert np.isfinite(profile.lag("branch", "rel_l1")[..., 1:]).all()
    assert np.isnan(profile.lag("branch", "rel_l1", branch="cond")).all()


def test_what_was_not_recorded_is_refused(profile: Profile) -> None:
    with pytest.raises(RecordingError, match="lags 1 to 2 were recorded exactly, found 3"):
        profile.lag("spatial", "rel_l1", 3)
    with pytest.raises(RecordingError, match="did you mean 'uncond'"):
        profile.matrix("spatial", "rel_l1", "unconditional")
    with pytest.raises(MeasurementError, match="did you mean 'rel_l"):
        profile.matrix("spatial", "rel_l3")
    with pytest.raises(NoSiteMatched):
        profile.matrix("cross", "rel_l1")


def test_damaged_and_foreign_files_are_refused_in_one_line(profile: Profile, tmp_path: Path) -> None:
    folder = profile.save(tmp_path / "p")
    text, arrays = (folder / JSON_NAME).read_text(), (folder / ARRAYS_NAME).read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(ConfigUnreadable, match=match) as caught:
            Profile.load(folder)
        assert "\n" not in str(caught.value)
        (folder / JSON_NAME).write_text(text)
        (folder / ARRAYS_NAME).write_bytes(arrays)

    (folder / JSON_NAME).write_text(text[: len(text) // 2])
    refused("was cut off")
    (folder / JSON_NAME).write_text('{"format": "fastercache-tuned", "version": 1}')
    refused("its format is 'fastercache-tuned'")
    (folder / JSON_NAME).write_text("[1]")
    refused("is no profile: expected a JSON object, found list")
    (folder / JSON_NAME).write_text(json.dumps(json.loads(text) | {"version": 2}))
    refused("version 2")
    (folder / JSON_NAME).write_text(json.dumps(json.loads(text) | {"surprise": 1}))
    refused("no field 'surprise'")
    (folder / JSON_NAME).write_text(json.dumps(json.loads(text) | {"runs": 3}))
    refused(r"'l1' has shape \(2, 4, 2, 5\) of float32, expected \(3, 4, 2, 5\) of floats")
    (folder / ARRAYS_NAME).write_bytes(arrays[:100])
    refused("damaged")
    (folder / ARRAYS_NAME).unlink()
    refused(f"there is no file of a profile's arrays at .*{ARRAYS_NAME}")
    (folder / JSON_NAME).unlink()
    refused(f"there is no profile at .*{JSON_NAME}")


def test_a_lag_stands_in_with_the_norm_of_its_own_step() -> None:
    """Values that double from step to step: an earlier one is parallel, and short by a power of two."""
    session = FakeSession(lambda site, branch, step: 2.0**step * drifting(numel=40)(site, branch, 0))
    recorder = Recorder(session, None, 2, 256, 256, 0, None, owned=False)
    session.go(4)
    found = recorder.profile()
    for lag, off in ((1, 0.5), (2, 0.75)):
        for measure, value in (("cosine", 1.0), ("rel_l1", off), ("rel_l2", off)):
            row = found.lag("spatial", measure, lag, "uncond")[0, 0]
            assert np.isnan(row[:lag]).all() and row[lag:] == pytest.approx([value] * (4 - lag), abs=1e-6)
    with pytest.raises(RecordingError, match="found 0"):
        found.lag("spatial", "rel_l1", 0)


def test_rows_say_what_each_step_was_and_how_it_changed(profile: Profile) -> None:
    rows = profile.rows()
    assert len(rows) == 5 * (2 + 2 + 2 + 1), "of the guidance difference one branch has values"
    assert [(row["site"], row["role"], row["branch"]) for row in rows[::5]] == [
        ("blocks.0.attn1", "spatial", "cond"), ("blocks.0.attn1", "spatial", "uncond"),
        ("blocks.1.attn1", "temporal", "cond"), ("blocks.1.attn1", "temporal", "uncond"),
        ("denoiser", None, "cond"), ("denoiser", None, "uncond"), ("branch", None, "uncond"),
    ]  # fmt: skip
    row = rows[5 * 3 + 2]
    assert (row["step"], row["timestep"]) == (2, profile.info.timesteps[2])
    assert row["mean_abs"] == pytest.approx(float(profile.l1[:, 1, 1, 2].mean()))
    assert row["rms"] == pytest.approx(float(profile.rms[:, 1, 1, 2].mean()))
    assert [row[name] for name in ("cosine", "rel_l1", "rel_l2")] == profile.matrix_mean[1, 1, 2, 1].tolist()
    assert [rows[0][name] for name in ("cosine", "rel_l1", "rel_l2")] == [None] * 3


def test_a_matrix_is_the_mean_over_the_sites_that_are_named(profile: Profile) -> None:
    for m, measure in enumerate(("cosine", "rel_l1", "rel_l2")):
        both = profile.matrix("spatial|temporal", measure, "uncond")
        np.testing.assert_allclose(both, profile.matrix_mean[:2, 1, :, :, m].mean(axis=0))
        mixed = profile.matrix("temporal|branch", measure)
        np.testing.assert_allclose(mixed, (profile.matrix_mean[1, 0] + profile.matrix_mean[3, 1])[..., m] / 2)
    assert profile.cells("branch|spatial") == ([0, 3], [0, 1]) and profile.cells("denoiser", "uncond") == ([2], [1])


def test_predictability_of_a_role_is_the_root_mean_square_over_its_sites(profile: Profile) -> None:
    errors = [predictability(profile.gram[s, 0][None], profile.run.steps, intervals=(2, 3)).errors for s in (0, 1)]
    found = profile.predictability("spatial|temporal", intervals=(2, 3))
    np.testing.assert_allclose(found.errors, np.sqrt((errors[0] ** 2 + errors[1] ** 2) / 2))
    assert (found.runs, found.intervals) == (2, (2, 3))
    gram = profile.gram.copy()
    gram[1, 0, 3, 2] = np.nan
    holed = replace(profile, gram=gram)
    holed.predictability("spatial")
    with pytest.raises(RecordingError, match="not reached at every step"):
        holed.predictability("spatial|temporal")


@pytest.mark.parametrize("name", ["l1", "rms", "lag_l1", "lag_rms", "gram", "matrix_mean", "matrix_std", "guidance"])
def test_arrays_of_another_shape_or_type_are_refused(profile: Profile, tmp_path: Path, name: str) -> None:
    array = getattr(profile, name)
    for other in (array[:, :1], np.zeros(array.shape, np.int32)):
        folder = replace(profile, **{name: other}).save(tmp_path / "p")
        with pytest.raises(ConfigUnreadable, match=f"'{name}' has shape"):
            Profile.load(folder)

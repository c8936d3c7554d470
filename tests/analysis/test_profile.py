"""A profile comes back from its files as it was, and files that are not one are refused in one line."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

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

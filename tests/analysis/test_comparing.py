"""Two profiles: what both have is compared by role and branch, what cannot be compared is refused by name."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import matplotlib
import numpy as np
import pytest

from fastercache.analysis import compare
from fastercache.analysis.plots.profiles import draw_profiles
from fastercache.analysis.plots.style import to_image
from fastercache.analysis.profile import Profile
from fastercache.analysis.record import Recorder
from fastercache.policies.errors import MeasurementError, RecordingError
from fastercache.policies.vocabulary import Role
from tests.analysis.fakes import FakeSession, drifting


def recorded(seed: int, steps: int = 6, sites: str | None = None) -> Profile:
    session = FakeSession(drifting(numel=200, seed=seed))
    recorder = Recorder(session, sites, 2, 64, 64, 0, None, owned=False)
    session.go(steps)
    return recorder.profile()


def test_matrices_are_compared_by_role_and_branch() -> None:
    first, second = recorded(0), recorded(1)
    found = compare(first, second, "rel_l2")
    pair = next(p for p in found.pairs if (p.group, p.branch) == ("spatial", "uncond"))
    np.testing.assert_array_equal(pair.first, first.matrix("spatial", "rel_l2", "uncond"))
    np.testing.assert_array_equal(
        pair.difference, second.matrix("spatial", "rel_l2", "uncond") - first.matrix("spatial", "rel_l2", "uncond")
    )
    assert pair.nearby(2)[1] == pytest.approx(np.mean([pair.second[i, i - 2] for i in range(2, 6)]))
    i, j, value = pair.largest()
    assert value == pair.difference[i, j]
    assert abs(value) == max(abs(pair.difference[k, m]) for k, m in product(range(6), repeat=2))
    assert ("branch", "cond") not in {(p.group, p.branch) for p in found.pairs}
    assert found.left_out == () and "rel_l2" in repr(found)


def test_what_only_one_has_is_named_and_what_cannot_be_compared_refused() -> None:
    whole = recorded(0)
    part = compare(whole, recorded(1, sites="spatial"))
    assert {p.group for p in part.pairs} == {"spatial"}
    assert "temporal, cond: only in the first" in part.left_out
    with pytest.raises(RecordingError, match="6 and 4 steps"):
        compare(whole, recorded(0, steps=4))
    with pytest.raises(RecordingError, match=r"nothing in common.*spatial, cond: only in the first"):
        compare(recorded(0, sites="spatial"), recorded(0, sites="temporal"))
    with pytest.raises(MeasurementError, match="no measure 'l3'"):
        compare(whole, whole, "l3")


def test_equal_profiles_differ_nowhere_and_are_drawn() -> None:
    profile = recorded(0, sites="spatial")
    found = compare(profile, replace(profile), "cosine")
    assert all((pair.difference == 0).all() for pair in found.pairs)
    figure = draw_profiles(found, ("base", "LoRA"))
    assert to_image(figure, 60).std() > 5
    words = " | ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))
    for text in ("spatial, cond: base", "spatial, cond: LoRA", "second less first", "1 − ⟨Fⱼ, Fᵢ⟩"):
        assert text in words


def test_sites_of_one_role_are_averaged_and_counted_in_each_profile() -> None:
    """Both attentions are spatial in the first profile, one of them in the second, which has more prompts."""
    first, second = recorded(0), replace(recorded(1), info=recorded(1).info.model_copy(update={"runs": 3}))
    rows = [row.model_copy(update={"role": Role.SPATIAL}) if n == 1 else row for n, row in enumerate(first.info.sites)]
    first = replace(first, info=first.info.model_copy(update={"sites": tuple(rows)}))
    found = compare(first, second, "rel_l2")
    pair = next(p for p in found.pairs if (p.group, p.branch) == ("spatial", "cond"))
    assert pair.sites == (2, 1) and (found.steps, found.runs) == (6, (1, 3))
    np.testing.assert_allclose(pair.first, (first.matrix_mean[0, 0] + first.matrix_mean[1, 0])[..., 2] / 2)
    np.testing.assert_array_equal(pair.second, second.matrix_mean[0, 0, :, :, 2])
    assert found.left_out == ("temporal, cond: only in the second", "temporal, uncond: only in the second")
    row = next(row for row in found.rows() if (row["group"], row["branch"]) == ("spatial", "cond"))
    near = [float(np.mean([matrix[i, i - 1] for i in range(1, 6)])) for matrix in (pair.first, pair.second)]
    assert [row["first"], row["second"]] == pytest.approx(near) and (row["sites_first"], row["sites_second"]) == (2, 1)
    i, j, value = pair.largest()
    assert (row["replaced_step"], row["stand_in_step"], row["largest_difference"]) == (i, j, value)

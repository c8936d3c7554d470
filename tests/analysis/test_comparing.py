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

"""The ranked answer: the longest stretch within the limit, what it saves, and in which order it is told."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastercache.analysis.predictability import Predictability
from fastercache.analysis.ranking import finding, ranked
from fastercache.policies.errors import RecordingError
from fastercache.policies.vocabulary import Kind, Role, Run, Site


def errors(*hold: float, fitted: float = 0.01) -> Predictability:
    """Errors at interval 2: of steps 1, 3, 5, ..."""
    row = np.full(2 * len(hold), np.nan)
    row[1::2] = hold
    other = np.where(np.isnan(row), np.nan, fitted)
    return Predictability(("hold", "fitted"), (2,), np.stack([row, other])[:, None], 2, True)


def test_the_longest_stretch_within_the_limit() -> None:
    one = finding("spatial", 4, errors(0.2, 0.04, 0.2, 0.03, 0.04, 0.05, 0.3), share=0.28)
    assert (one.first, one.last) == (7, 11)
    assert one.hold == pytest.approx(np.sqrt((0.03**2 + 0.04**2 + 0.05**2) / 3)) and one.fitted == pytest.approx(0.01)
    assert one.saves == pytest.approx(0.28 * 3 / 14)
    assert str(one) == (
        "spatial (4 sites), steps 7 to 11: every second value is off by 4.1% by holding it, 1.0% by a fitted "
        "combination; saves 6.0% of the denoiser's FLOPs"
    )


def test_where_nothing_can_be_held() -> None:
    one = finding("cross", 1, errors(0.2, 0.4))
    assert one.first is None and one.hold == pytest.approx(np.sqrt((0.04 + 0.16) / 2)) and one.saves is None
    assert str(one).startswith("cross (1 site): no step's value can be held within 5%; off by 31.6% by holding it")
    assert "step 1:" in str(finding("cross", 1, errors(0.01, 0.4)))


@dataclass(frozen=True)
class Named:
    name: str


class Four:
    """Stands for a profile of four groups, of which one was not recorded at every step."""

    sites = (Named("a"), Named("b"), Named("c"), Named("d"), Named("e"))

    def groups(self) -> Any:
        return [("bad", [0]), ("small", [1]), ("large", [2, 3]), ("lost", [4])]

    def predictability(self, group: str, intervals: Any) -> Predictability:
        assert intervals == (2,)
        if group == "lost":
            raise RecordingError("not reached")
        return errors(0.4, 0.4) if group == "bad" else errors(0.01 if group == "small" else 0.02, 0.02)


def test_what_saves_most_is_told_first() -> None:
    profile: Any = Four()
    assert [one.group for one in ranked(profile)] == ["small", "large", "bad"]
    found = ranked(profile, {"a": 0.9, "b": 0.1, "c": 0.2, "d": 0.2})
    assert [one.group for one in found] == ["large", "small", "bad"]
    assert [one.saves for one in found] == pytest.approx([0.2, 0.05, 0.0])
    assert ranked(profile, {"c": 0.2})[0].saves is None


def test_of_two_stretches_of_one_length_the_first_is_told_at_the_first_interval() -> None:
    one = errors(0.2, 0.04, 0.03, 0.2, 0.01, 0.02)
    assert (finding("spatial", 4, one).first, finding("spatial", 4, one).last) == (3, 5)
    both = Predictability(one.predictors, (2, 4), np.concatenate([one.errors, one.errors + 1.0], axis=1), 2, True)
    assert finding("spatial", 4, both) == finding("spatial", 4, one)


class Measured:
    """Stands for a profile of one site, whose values are the rows of `VALUES`, in one branch."""

    VALUES = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [1.0, 0.2], [1.0, 0.0]])
    sites = (Site("a", Kind.MODULE, Role.SPATIAL, 0, (0, 1)),)
    branches = ("cond",)
    run = Run.of(5)
    info = SimpleNamespace(timesteps=(4, 3, 2, 1, 0))

    def __init__(self) -> None:
        self.gram = (self.VALUES @ self.VALUES.T / 2)[None, None]

    def groups(self) -> Any:
        return [("spatial", [0])]

    def predictability(self, group: str, intervals: Any) -> Predictability:
        return errors(0.01, 0.01)  # held at steps 1 and 3


def test_the_psnr_of_a_finding_is_that_of_the_error_which_holding_leaves() -> None:
    """What a held value is off by, relative to the value, times what a relative error of 1 does to the video.

    The errors of both steps are added before they are squared."""
    injected: Any = SimpleNamespace(groups=("spatial",), factors=lambda count: {"spatial": np.arange(1.0, count + 1.0)})
    profile: Any = Measured()
    (found,) = ranked(profile, None, injected)
    off = np.zeros(2)
    for step in found.skipped:
        value = Measured.VALUES[step]
        off += (step + 1.0) * (Measured.VALUES[step - 1] - value) / np.sqrt(np.mean(value**2))
    assert list(found.skipped) == [1, 3]
    assert found.psnr == pytest.approx(-10.0 * np.log10(np.mean(off**2)))

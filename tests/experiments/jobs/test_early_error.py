"""What holding an output, and a straight line through two, would have missed at the next computed step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache.experiments.jobs.early_error import errors, measured
from fastercache.experiments.pipelines import Subject
from tests.tuner.conftest import CALL


def test_errors_by_hand() -> None:
    """0, 1 and then 4 at steps 0, 2 and 6: a hold gives 1, the line 3."""
    found = errors({0: torch.tensor([0.0]), 2: torch.tensor([1.0]), 6: torch.tensor([4.0])})
    assert found == {6: {"hold": pytest.approx(0.75), "line": pytest.approx(0.25)}}
    assert errors({0: torch.ones(1), 2: torch.ones(1)}) == {}


def test_only_computed_outputs_count(tiny_latte: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "captions", lambda self, split: ["a red seven"])
    plan: Any = fc.Planned(steps=6, computed=(0, 1, 3, 5))
    (off, found), (other, _) = measured(Subject("tiny", tiny_latte, dict(CALL), False), plan, 2)
    assert set(found) == {3, 5} and off > 0 and other > 0 and off != other

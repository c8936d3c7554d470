"""A tiny pipeline with its call, and an evaluator of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastercache.tuner import Evaluator

STEPS = 6
CALL = {
    "height": 32,
    "width": 32,
    "video_length": 4,
    "clean_caption": False,
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
}
SEARCH = ["a red seven", "a blue two"]
HELD_OUT = ["a green nine"]


@pytest.fixture
def evaluator(tiny_latte: Any, tmp_path: Path) -> Iterator[Evaluator]:
    with Evaluator(tiny_latte, CALL, store=tmp_path / "references") as made:
        yield made

"""A time limit is one of the whole command, and what a search will take is said before it starts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache.experiments.jobs import searching, study_job
from fastercache.experiments.pipelines import Subject
from fastercache.tuner.setting import References, Setting

CALL = {"num_inference_steps": 4, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}


def test_the_search_gets_what_opening_and_measuring_leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    # 10 s have passed; 4 prompts x (uncached, tuned, twice fewer steps) are counted as 3 generations each of 5 s
    assert searching.remaining(200.0, 990.0, 5.0, 4) == 200.0 - 10.0 - 4 * 3 * 5.0
    assert "of 3 min the search gets 2 min, measuring on the held-out prompts 60 s" in capsys.readouterr().err
    assert searching.remaining(15.0, 990.0, 5.0, 0) == 5.0
    with pytest.raises(
        fc.InvalidPolicy,
        match=r"--time-limit 74 leaves nothing .* took 10 s, .* 4 held-out prompts .* 60 s; allow more",
    ):
        searching.remaining(74.0, 990.0, 5.0, 4)


def test_the_first_reference_tells_how_long_a_generation_takes(tiny_latte: Any, tmp_path: Path) -> None:
    subject = Subject("tiny-latte", tiny_latte, CALL, reference=False)
    job = study_job.Job(pipe="tiny-latte", prompts=("a", "b"), budget="psnr>=30", seed=3)
    seconds = searching.timed(subject, job, tmp_path, again=False)
    setting = Setting(tiny_latte, CALL, 3)
    first, second = setting.cases(["a", "b"])
    kept = References(setting, tmp_path)
    video = kept.read(first)
    assert seconds is not None and seconds > 0 and video is not None and kept.read(second) is None
    assert torch.equal(video, setting.generate(first))
    assert searching.timed(subject, job, tmp_path, again=False) is None
    assert (searching.timed(subject, job, tmp_path, again=True) or 0) > 0

"""A small planning folder and feature profile, made once; a page of both, and a browser that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastercache import zoo
from fastercache.experiments.jobs import planning
from fastercache.experiments.jobs.recording import recorded
from fastercache.experiments.jobs.reporting import report
from fastercache.experiments.pictures.browser import CHROMIUM, DRIVER, MISSING, Browser, browser
from fastercache.experiments.pipelines import Subject
from fastercache.experiments.report.given import Given, given
from fastercache.tuner import Evaluator
from fastercache.tuner.planning.record import PlanRecord
from fastercache.tuner.planning.search import Judged

STEPS = 12
PLANS = [(0, *range(1 + skip, STEPS, 2)) for skip in range(2)] + [(0, 1, 2, 3 + k, 9 + k) for k in range(3)]


@dataclass(frozen=True)
class Made:
    """What the commands left in `folder`, and how the pipeline was called."""

    folder: Path
    subject: Subject

    @property
    def paths(self) -> list[Path]:
        return [self.folder / "planning", self.folder / "tuned.json", self.folder / "profile"]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Planned with two prompts at effort 0, with plans in its journal as a search leaves them; one prompt recorded."""
    folder = tmp_path_factory.mktemp("report")
    size = {"num_inference_steps": STEPS, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}
    subject = Subject("tiny-latte", zoo.build("latte").pipe, size, reference=False)
    study, out = folder / "planning", folder / "tuned.json"
    prompts = ["a red seven", "a blue two"]
    planning.plan(subject, prompts, speedups=[3], effort=0, held_out=["a cyan one"], folder=study, out=out, show=False)
    record = PlanRecord(study / "plans.journal", "a search's", name="searched")
    for number, plan in enumerate(PLANS):
        record.add(Judged(plan, error=-4.0 - number, spent=1.0))
    recorded(Evaluator(subject.pipe, subject.call, store=folder), prompts[:1], folder / "profile")
    return Made(folder, subject)


@pytest.fixture(scope="session")
def found(made: Made) -> Given:
    return given(made.paths)


@pytest.fixture(scope="session")
def page(made: Made) -> Path:
    out = made.folder / "report.html"
    report(made.paths, out, show=False)
    return out


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(MISSING)
    with browser(tmp_path_factory.mktemp("downloads")) as one:
        yield one


@pytest.fixture
def shown(window: Browser, page: Path) -> Browser:
    """The page as it opens, wide and light; a console error in the test fails it."""
    window.look(1200)
    window.open(page)
    return window

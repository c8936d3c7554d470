"""The sweep of other packages' caches: what is tried, chosen and measured, and that nothing runs twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache.experiments.bench import lineup, runner, swept_page, swept_picture
from fastercache.experiments.bench.grids import DEFAULT, GRIDS, Grid
from fastercache.experiments.bench.lineup import FEWER, PLANNED, Method, levels
from fastercache.experiments.bench.swept import Swept
from fastercache.experiments.jobs import swept as job
from fastercache.experiments.pipelines import Subject
from fastercache.tuner.setting import Setting

CALL = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False, "num_inference_steps": 4}
OURS = Method("planned", "planned", PLANNED, levels("speedup", 1.2, 2.0, 3.0), planned=True)
PLANS = {1.2: (0, 1, 2), 2.0: (0, 2), 3.0: (0,)}


def some(label: str, settings: Sequence[dict[str, Any]]) -> Grid:
    """A grid of a listed method with other settings, the first its default."""
    peer = next(grid.peer for grid in GRIDS if grid.peer.label == label)
    names = (DEFAULT, *map(str, range(1, len(settings))))
    return Grid(replace(peer, settings=tuple(settings), names=names))


def taylor(interval: int, order: int = 1) -> dict[str, Any]:
    return {"cache_interval": interval, "disable_cache_before_step": 2, "max_order": order}


GRID = (
    some("TaylorSeer", [taylor(5), taylor(2), taylor(3), taylor(2, 0)]),
    some("FirstBlockCache", [{"threshold": 0.1}, {"threshold": 0.2}, {"threshold": 0.3}]),
    some("SeaCache", [{"threshold": 1e-9}, {"threshold": 1e-8}]),
)


@pytest.fixture
def subject(tiny_latte: Any, monkeypatch: pytest.MonkeyPatch) -> Subject:
    plans = {speedup: fc.Planned(steps=4, computed=computed) for speedup, computed in PLANS.items()}
    monkeypatch.setattr(runner, "plans_for", lambda *a: (plans, ""))
    monkeypatch.setattr(lineup, "SHARES", (0.8, 0.5))
    monkeypatch.setattr(Subject, "captions", lambda self, split: [f"{split} {i}" for i in range(20)])
    return Subject("tiny", tiny_latte, dict(CALL), reference=False)


@pytest.mark.slow
def test_a_sweep_searches_chooses_measures_and_runs_nothing_twice(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    original = Setting.generate

    def counting(self: Setting, case: Any) -> Any:
        made.append((case.prompt, case.seed))
        return original(self, case)

    monkeypatch.setattr(Setting, "generate", counting)
    found = job.sweep(subject, tmp_path, count=2, search_count=2, seed=100, ours=OURS, grids=GRID)
    assert {prompt.split()[0] for prompt, seed in made if seed < 1000} == {"held_out"}
    assert {prompt.split()[0] for prompt, seed in made if seed >= 1000} == {"train"}
    points = {(point.method, point.level): point for point in found.points}
    assert {level for method, level in points if method == "TaylorSeer (diffusers)"} == {DEFAULT, "1", "2", "3"}
    # a method that cannot run, or skips nothing, is tried at its default and its last setting only
    refused = [point for point in found.points if point.refused]
    assert {(p.method, p.level) for p in refused} == {
        ("FirstBlockCache (diffusers)", level) for level in (DEFAULT, "2")
    }
    idle = [p for p in found.points if p.method == "SeaCache (diffusers)"]
    assert [(p.level, p.speedup, p.chosen) for p in idle] == [(DEFAULT, 1.0, False), ("1", 1.0, False)]
    assert all(point.speedup is not None and point.speedup > 1.0 for key, point in points.items() if "Taylor" in key[0])
    best = [p for p in found.points if p.chosen]
    assert best and DEFAULT in {p.level for p in best} and {p.prompts for p in best} <= {1, 2}
    # everything that was measured has a ratio, and fewer steps have none to themselves
    rows = {(row.method, row.level): row for row in found.ratios}
    assert {key for key in rows if key[0] != FEWER} == {(p.method, p.level) for p in best}
    assert [row.default for (method, level), row in rows.items() if level == DEFAULT] == [True]
    assert all((row.fewer_by_flops is None) == (row.method == FEWER) for row in found.ratios)
    assert [(goal.over, goal.by, goal.settings) for goal in found.goals] == [
        ("each default", "FLOPs", 1), ("the best swept setting", "FLOPs", len(best)),
        ("each default", "time", 1), ("the best swept setting", "time", len(best)),
    ]  # fmt: skip
    assert all(line.prompts == 2 for line in found.table.ran)

    made.clear()
    again = job.sweep(subject, tmp_path, count=2, search_count=2, seed=100, ours=OURS, grids=GRID)
    assert made == [] and again == found
    found.write(tmp_path)
    assert Swept.load(tmp_path) == found
    text = swept_page.markdown(found)
    assert "- SeaCache (diffusers): skips nothing" in text and "- FirstBlockCache (diffusers): RuntimeError" in text
    assert "**default**: " in text


def test_in_the_search_a_peer_runs_once_under_the_counter_and_is_not_timed(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = Setting.generate
    monkeypatch.setattr(Setting, "generate", lambda self, case: (made.append(case.prompt), original(self, case))[1])
    entries = {c.name: c.entry for c in job.rows_of(GRID[0].only(["1", "2"]), None)}
    untimed = job.Contest(subject, entries, ["one"], tmp_path, keep=0, timed=False)
    untimed.run()
    # a warm-up, and one run whose FLOPs are those of every uncached one; then both settings and the uncached
    assert len(made) == 1 + 1 + 2 + 1
    row = untimed.row("TaylorSeer (diffusers) 1")
    assert row.speedup_wall is None and row.speedup_flops > 1.0 and row.prompts == 1
    timed = job.Contest(subject, entries, ["one"], tmp_path, keep=0)
    assert all(name in timed.missing(0) for name in entries), "what was not timed has to run again where time counts"


def test_no_two_methods_look_the_same() -> None:
    assert len({swept_picture._look(place) for place in range(36)}) == 36

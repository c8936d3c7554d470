"""What a search found is one sentence that says what it improved on, or that it improved on nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import fastercache as fc
from fastercache.experiments.bench.rows import Row
from fastercache.experiments.jobs import searching
from fastercache.experiments.jobs.outcome import sentence
from fastercache.tuner import Budget, Outcome, Record, Seconds
from fastercache.tuner.clock import Foresight, Timekeeper


def record(number: int, source: str, ratio: float, violation: float, policy: fc.Policy | None = None) -> Record:
    return Record(
        number=number,
        outcome=Outcome.MEASURED,
        source=source,
        policy=policy or fc.FasterCache(),
        params={},
        ratio=ratio,
        values={"psnr": [50.0]},
        violation=violation,
        margin=-violation,
        seconds=1.0,
        cached_bytes=0,
        reason=None,
    )


PAPER = record(1, "default", 0.7, -1.0)
PRESET = record(2, "preset:latte", 0.8, -1.0)
TOO_MUCH = record(3, "search", 0.3, 2.0)
FOUND = record(4, "search", 0.5, -0.1, fc.FoCa())


def test_what_was_found_is_set_beside_the_best_that_was_known() -> None:
    text = sentence([PAPER, PRESET, TOO_MUCH, FOUND], FOUND)
    assert text == (
        "the search found foca with 2.00x fewer FLOPs, where fastercache as published gives 1.43x: "
        "of 4 trials that ran 3 kept the budget"
    )


def test_a_search_that_found_nothing_cheaper_says_so() -> None:
    assert sentence([PAPER, TOO_MUCH], PAPER) == (
        "the search found nothing cheaper than fastercache as published (1.43x fewer FLOPs): "
        "of 2 trials that ran 1 kept the budget"
    )
    assert "nothing cheaper than fastercache, preset latte (1.25x" in sentence([PRESET], PRESET)


def test_where_nothing_known_keeps_the_budget_the_find_stands_alone() -> None:
    missed = record(1, "default", 0.7, 1.0)
    uncached = record(0, "no_cache", 1.0, -9.0, fc.NoCache())
    assert "where no known setting keeps the budget" in sentence([uncached, missed, FOUND], FOUND)


def test_by_the_clock_the_gain_is_the_foreseen_one_and_the_best_known_is_by_it_too() -> None:
    slow = replace(PAPER, clocked=0.8)  # by FLOPs the paper's defaults save more than the preset, by the clock less
    quick = replace(PRESET, clocked=0.75)
    found = replace(FOUND, clocked=0.625, foreseen=5.0)
    assert sentence([slow, quick, found], found) == (
        "the search found foca with 1.60x by the clock as foreseen, where fastercache, preset latte gives 1.33x: "
        "of 3 trials that ran 3 kept the budget"
    )


def test_what_was_foreseen_stands_beside_what_was_measured() -> None:
    table = Seconds(5, 1.0, 0.1, 3.0, {}, "a machine")  # 8 s for an uncached call
    study: Any = SimpleNamespace(time=Timekeeper(table, None, "a machine"), foresight=Foresight(3, 0.5, 1.25))
    found = replace(FOUND, foreseen=5.0)
    row = Row("tuned", 2.0, 1.5, {}, None, None, 1, {})
    assert searching._clock(study, found, row) == [
        "by the clock, foreseen: 5 s a call, 1.60x; measured 1.50x",
        "foresight: over 3 trials the measured seconds are 1.25x the foreseen ones on average, rank correlation 0.50",
    ]
    assert searching._clock(study, found, None)[0] == "by the clock, foreseen: 5 s a call, 1.60x"
    by_flops: Any = SimpleNamespace(time=Timekeeper(None, None, "a machine"), foresight=None)
    assert searching._clock(by_flops, FOUND, row) == []


@pytest.mark.parametrize(("limit", "kept"), [("", True), (",time<=2s", True), (",time<=1.9s", False)])
def test_a_limit_of_time_is_held_to_the_held_out_seconds(limit: str, kept: bool) -> None:
    contest: Any = SimpleNamespace(
        figures=lambda name: [{"quality": {"psnr": 31.0}}], measured=lambda name: SimpleNamespace(seconds=2.0)
    )
    words = "psnr 31, 2 s a call here" if limit else "psnr 31"
    assert searching.keeps_budget(contest, Budget.parse(f"psnr>=30{limit}")) == (kept, words)

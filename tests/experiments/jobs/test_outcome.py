"""What a search found is one sentence that says what it improved on, or that it improved on nothing."""

from __future__ import annotations

import fastercache as fc
from fastercache.experiments.jobs.outcome import sentence
from fastercache.tuner import Outcome, Record


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

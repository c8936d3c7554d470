"""What a policy measures itself: which pairs of values are compared, and which runs count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastercache.analysis.policy_measures import Comparison
from fastercache.policies.errors import RecordingError
from fastercache.policies.measurements import Measure
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Role, Run, Site
from fastercache.run.trace import Observation

SITES = tuple(Site(name, Kind.MODULE, Role.SPATIAL, n, (n, n + 1)) for n, name in enumerate("ab"))
PAIRS = Measure("spatial", lambda newer, older: 100 * float(newer[0]) + float(older[0]), apart=7.0)
"""Says which two values were compared: of 3 and 2 it gives 302."""


def see(one: Comparison, run: Run, site: Site, branch: str, step: int, value: float, size: int = 2) -> None:
    one.see(Observation(site, run.steps[step], branch, torch.full((size,), value), Code.COMPUTED, run))


@pytest.mark.parametrize("lags", [1, 2, 3, 9])
def test_each_value_is_compared_with_those_up_to_so_many_steps_before(lags: int) -> None:
    run, one = Run.of(5), Comparison("mine", "pairs", PAIRS, SITES, lags)
    for step in range(5):
        see(one, run, SITES[0], COND, step, float(step))
    expected = [[0.0 if i < lag else 100.0 * i + i - lag for i in range(5)] for lag in range(1, min(lags, 4) + 1)]
    assert [list(row) for row in one.result(run)] == expected
    assert [list(row) for row in one.result(run)] == expected, "asking again changes nothing"


def test_sites_and_branches_are_compared_with_themselves_and_averaged_over_all_runs() -> None:
    one, levels = Comparison("mine", "pairs", PAIRS, SITES, 1), []
    for number, count in enumerate((3, 3)):
        run = Run.of(count)
        for step in range(count):
            for s, site in enumerate(SITES):
                for b, branch in enumerate((COND, UNCOND)):
                    level = 10.0 * number + 4.0 * s + 2.0 * b
                    see(one, run, site, branch, step, level + step)
                    levels += [101.0 * level] if step == 0 else []
    base = float(np.mean(levels))
    assert one.result(Run.of(3)) == ((0.0, base + 100.0, base + 201.0),)


def test_a_run_that_did_not_end_counts_for_nothing() -> None:
    one = Comparison("mine", "pairs", PAIRS, SITES, 9)
    broken, whole, last = Run.of(3), Run.of(3), Run.of(3)
    for step in range(2):
        see(one, broken, SITES[0], COND, step, 50.0)
    for step in range(3):
        see(one, whole, SITES[0], COND, step, float(step))
    for step in range(2):
        see(one, last, SITES[0], COND, step, 90.0)
    assert one.result(whole) == ((0.0, 100.0, 201.0), (0.0, 0.0, 200.0))


def test_steps_that_were_left_out_are_no_earlier_values() -> None:
    """A value at steps 0, 1 and 4 of 5, and of another size at 4 in the other branch."""
    run, one = Run.of(5), Comparison("mine", "pairs", PAIRS, SITES, 3)
    for step in (0, 1, 4):
        see(one, run, SITES[0], COND, step, float(step))
        see(one, run, SITES[0], UNCOND, step, step + 5.0 * (step == 4), size=3 if step == 4 else 2)
    apart = 7.0
    assert one.result(run) == ((0.0, 100.0, apart, apart, apart), (0.0, 0.0, apart, apart, apart),
                               (0.0, 0.0, 0.0, apart, 401.0))  # fmt: skip


def test_what_is_no_number_is_told() -> None:
    run = Run.of(2)
    for found, says in ((float("nan"), "gave nan"), (float("inf"), "gave inf"), ("x", "failed: ValueError")):
        one = Comparison("mine", "odd", Measure("spatial", lambda newer, older, found=found: found), SITES, 1)  # type: ignore[misc]
        see(one, run, SITES[0], COND, 0, 1.0)
        with pytest.raises(RecordingError, match=f"'odd' of mine {says}"):
            see(one, run, SITES[0], COND, 1, 1.0)


def test_a_kept_value_is_a_copy_and_can_be_dropped() -> None:
    run, one, value = Run.of(2), Comparison("mine", "pairs", PAIRS, SITES, 1), torch.zeros(2)
    one.see(Observation(SITES[0], run.steps[0], COND, value, Code.COMPUTED, run))
    value += 5.0
    see(one, run, SITES[0], COND, 1, 1.0)
    assert one.result(run) == ((0.0, 100.0),)
    see(one, run, SITES[0], COND, 0, 1.0)
    one.forget()
    assert one._past == {}

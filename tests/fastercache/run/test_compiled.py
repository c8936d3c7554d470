"""Modules inside a compiled block, by their modes alone: what is set before a call, and what is kept and told after it.

The traced form is run as it is, without compiling: a graph of it does the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastercache as fc
from fastercache.model.hooks import MERGE, PASS, REUSE, STORE, SiteForward
from fastercache.policies.errors import AttachError
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.run.calls import Call, RunState, SitePlan
from fastercache.run.compiled import collect, prepare
from fastercache.run.module_unit import ModuleUnit
from fastercache.run.store import History
from fastercache.run.trace import Observation
from fastercache.run.units import Duty
from tests.fastercache.run.test_units import MODULE, ORDER, duty

C, R, U = Code.COMPUTED, Code.REUSED, Code.UNREACHED


class Twice(nn.Module):
    """Gives twice its input; of more than one item, thrice as the second one."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.width, self.calls = width, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return 2 * x if self.width == 1 else tuple((i + 2) * x for i in range(self.width))


class Traced:
    """A module in its traced form with the unit of a schedule, and what watchers were told."""

    def __init__(self, module: Twice | None = None, watched: bool = False, **steps: str) -> None:
        self.told: list[tuple[str, list[float], Code]] = []
        given, self.run = duty(MODULE, (self._note,) * watched, **steps)
        self.unit = ModuleUnit(MODULE, MODULE.name, given, RunState(self.run), None, text_first=False)
        self.module = module or Twice()
        self.hook = SiteForward(self.module)
        self.hook.install()
        self.hook.trace(True)

    def _note(self, seen: Observation) -> None:
        self.told.append((seen.branch, seen.value.flatten().tolist(), seen.code))

    def call(self, index: int, *values: float, branches: tuple[str, ...] = ORDER, reached: bool = True) -> Any:
        call = Call(self.run.steps[index], branches, len(values))
        prepare(self.hook, self.unit, call)
        output = self.module(torch.tensor(values)[:, None]) if reached else None
        self.skipped = call.skipped
        collect(self.hook, self.unit, call)
        assert self.hook.take_traced() == (PASS, None, None), "the module lets go of what it was given"
        return output.flatten().tolist() if isinstance(output, Tensor) else output

    @property
    def kept(self) -> list[tuple[int, tuple[str, ...], list[float]]]:
        assert self.unit.history is not None
        return [(e.step.index, e.branches, e.values[0].flatten().tolist()) for e in self.unit.history.entries]

    @property
    def codes(self) -> list[list[int]]:
        return [list(row) for row in self.unit.rows]


def test_a_value_is_stored_put_in_and_dropped_as_the_plan_says() -> None:
    made = Traced(cond="CRC", uncond="CRC")
    assert made.call(0, 1.0, 2.0) == [2.0, 4.0] and made.kept == [(0, ORDER, [2.0, 4.0])]
    assert made.skipped == []
    assert made.call(1, 5.0, 6.0) == [2.0, 4.0] and made.module.calls == 1
    assert made.skipped == [(MODULE.name, 1.0)]
    made.unit.release(1)
    assert made.call(2, 5.0, 6.0) == [10.0, 12.0] and made.kept == [], "no later step reads it"
    assert made.codes == [[C, R, C]] * 2


def test_a_branch_that_is_computed_beside_a_reused_one_is_kept_for_later() -> None:
    """uncond is reused at steps 1 and 2; cond is computed at 1 and reused at 2, where its value is that of step 1."""
    made = Traced(watched=True, cond="CCR", uncond="CRR")
    made.call(0, 1.0, 2.0)
    assert made.call(1, 10.0, 20.0) == [2.0, 40.0] and made.module.calls == 2
    assert made.kept[-1] == (1, ("cond",), [40.0])
    assert made.call(2, 100.0, 200.0) == [2.0, 40.0] and made.module.calls == 2
    assert made.codes == [[C, C, R], [C, R, R]]
    assert made.told == [
        ("uncond", [2.0], C), ("cond", [4.0], C), ("uncond", [2.0], R), ("cond", [40.0], C),
        ("uncond", [2.0], R), ("cond", [40.0], R),
    ]  # fmt: skip


def test_the_reused_rows_may_come_last_and_be_several() -> None:
    made = Traced(cond="CRC", uncond="CCC")
    made.call(0, 1.0, 2.0, 3.0, 4.0)
    assert made.call(1, 10.0, 20.0, 30.0, 40.0) == [20.0, 40.0, 6.0, 8.0]
    assert made.codes == [[C, R, U], [C, C, U]]


def test_what_an_outer_site_stands_in_for_is_not_noted() -> None:
    """At step 1 the denoiser's output is reused, as planned; at step 0 the block was never called."""
    whole = Site("denoiser", Kind.DENOISER)
    run = Run.of(3, sites=[MODULE, whole])
    rows = (fc.Row(sites="denoiser", steps="CRC"), fc.Row(sites=MODULE.name, steps="CCR"))
    table = fc.compile_policy(fc.Schedule(rows=rows), run)
    plan = dict(zip(table.sites, SitePlan.all_of(table), strict=True))[MODULE]
    made = Traced(cond="CCR", uncond="CCR")
    made.run = run
    made.unit = ModuleUnit(MODULE, MODULE.name, Duty(History(fc.Hold()), plan), RunState(run), None, text_first=False)
    made.call(0, 1.0, 2.0, reached=False)
    assert made.codes == [[U, U, U]] * 2 and made.kept == []
    made.call(0, 1.0, 2.0)
    made.call(1, 1.0, 2.0, reached=False)
    assert made.codes == [[C, U, U]] * 2 and made.kept == [(0, ORDER, [2.0, 4.0])]


def test_a_tuple_is_put_in_whole_and_never_row_by_row() -> None:
    made = Traced(Twice(2), cond="CRC", uncond="CRC")
    made.call(0, 1.0, 2.0)
    output = made.call(1, 7.0, 8.0)
    assert [t.flatten().tolist() for t in output] == [[2.0, 4.0], [3.0, 6.0]]
    mixed = Traced(Twice(2), cond="CCC", uncond="CRC")
    mixed.call(0, 1.0, 2.0)
    with pytest.raises(AttachError, match="several tensors"):
        mixed.call(1, 7.0, 8.0)


def test_rules_that_decide_meanwhile_and_modules_called_twice_are_refused() -> None:
    made = Traced(cond="CC", uncond="CC")
    made.unit.turns = 2
    with pytest.raises(AttachError, match="2 times a step"):
        made.call(0, 1.0, 2.0)
    run = Run.of(2, sites=[MODULE])
    asked: Any = object()
    dynamic = ModuleUnit(
        MODULE, MODULE.name, Duty(History(fc.Hold()), jury=asked, policy="chooser"), RunState(run), None, False
    )
    with pytest.raises(AttachError, match="chooser decides inside the compiled block"):
        prepare(made.hook, dynamic, Call(run.steps[0], ORDER, 2))


@pytest.mark.parametrize(
    ("index", "branches", "mode"),
    [
        (0, ORDER, STORE),
        (0, ("uncond",), STORE),
        (0, ("cond",), PASS),
        (1, ORDER, MERGE),
        (1, ("uncond",), REUSE),
        (1, ("cond",), PASS),
        (2, ORDER, PASS),
    ],
)
def test_the_mode_of_a_call(index: int, branches: tuple[str, ...], mode: int) -> None:
    """The unconditional value of step 0 is read at step 1, and nothing else is."""
    made = Traced(cond="CCC", uncond="CRC")
    made.call(0, 1.0, 2.0)
    prepare(made.hook, made.unit, Call(made.run.steps[index], branches, len(branches)))
    assert vars(made.module)["_fc_mode"] == mode

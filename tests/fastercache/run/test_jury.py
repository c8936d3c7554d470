"""Who is asked about a call, with which rows, and what each is taught; and where a signal exists. Without any model."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.policies.errors import AttachError
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.run.signals import Jury, Sighted, leader, signal_value

STEPS = Run.of(5).steps
ORDER = ("uncond", "cond", "stg")
ROWS = torch.tensor([[1.0], [2.0], [3.0]])
MODULE = Site("blocks.1.ff", Kind.MODULE, fc.Role.FF, 1, (1, 2))


class Noting(fc.SitePolicy, fc.WatchingRule[str]):
    """Reuses where its branch's number is below a bound; notes what it is asked and taught."""

    name: ClassVar[str] = "noting"
    scope: fc.Scope = fc.Scope.BRANCH
    watches: bool = True
    bound: float = 2.5
    asked: ClassVar[list[tuple[str, int, Any]]] = []
    taught: ClassVar[list[tuple[str, int, Any]]] = []

    @property
    def query(self) -> str:
        return "all"

    @property
    def signal(self) -> fc.Signal | None:
        return fc.Signal.INPUT if self.watches else None

    @property
    def decides(self) -> fc.Scope:
        return self.scope

    def reuse(self, state: str, step: fc.Step, seen: Tensor | None) -> bool:
        self.asked.append((state, step.index, None if seen is None else seen.flatten().tolist()))
        return seen is not None and bool(seen.min() < self.bound)

    def update(self, state: str, step: fc.Step, value: Tensor) -> str:
        self.taught.append((state, step.index, value.flatten().tolist()))
        return state


def jury(site: Site = MODULE, ranks: Any = None, **fields: Any) -> Jury[str]:
    Noting.asked.clear()
    Noting.taught.clear()
    return Jury(Noting(**fields), site, {b: b for b in ORDER}, ranks)


def source(wanted: fc.Signal) -> Tensor:
    assert wanted == fc.Signal.INPUT
    return ROWS


def test_each_branch_is_asked_with_its_rows_and_taught_its_own() -> None:
    made = jury()
    assert made.ask(STEPS[0], ORDER, source) == ("uncond", "cond")
    assert Noting.asked == [("uncond", 0, [1.0]), ("cond", 0, [2.0]), ("stg", 0, [3.0])]
    made.teach(STEPS[0], ("stg", "cond"), torch.tensor([[7.0], [8.0]]))
    assert Noting.taught == [("stg", 0, [7.0]), ("cond", 0, [8.0])]
    blind = jury(watches=False)
    assert blind.ask(STEPS[0], ORDER, source) == () and Noting.asked == [(b, 0, None) for b in ORDER]


def test_a_call_is_asked_once_with_all_rows_in_the_name_of_the_conditional_branch() -> None:
    made = jury(scope=fc.Scope.CALL)
    assert made.ask(STEPS[0], ORDER, source) == ORDER and Noting.asked == [("cond", 0, [1.0, 2.0, 3.0])]
    made.teach(STEPS[0], ORDER, ROWS)
    assert Noting.taught == [("cond", 0, [1.0, 2.0, 3.0])]
    assert leader(("uncond", "stg")) == "uncond" and leader(("stg", "cond")) == "cond"
    strict = jury(scope=fc.Scope.CALL, bound=0.5)
    assert strict.ask(STEPS[0], ORDER, source) == ()


def test_the_conditional_branchs_answer_holds_for_the_step() -> None:
    made = jury(scope=fc.Scope.COND)
    assert made.ask(STEPS[0], ORDER, source) == ORDER and Noting.asked == [("cond", 0, [2.0])]
    made.teach(STEPS[0], ORDER, ROWS)
    assert Noting.taught == [("cond", 0, [2.0])]
    assert made.ask(STEPS[0], ("stg",), source) == ("stg",) and len(Noting.asked) == 1, "a later call of the step"
    strict = jury(scope=fc.Scope.COND, bound=1.5)  # the unconditional number is below it, the conditional one is not
    assert strict.ask(STEPS[0], ORDER, source) == ()
    assert strict.ask(STEPS[0], ("uncond",), lambda wanted: ROWS[:1]) == ()


@pytest.mark.parametrize("index", [0, 1])
def test_a_branch_that_comes_before_the_conditional_one_is_asked_and_taught_by_itself(index: int) -> None:
    made = jury(scope=fc.Scope.COND)
    if index:
        made.ask(STEPS[0], ("cond",), lambda wanted: ROWS[2:])
        Noting.asked.clear()
    assert made.ask(STEPS[index], ("uncond",), lambda wanted: ROWS[:1]) == ("uncond",)
    assert Noting.asked == [("uncond", index, [1.0])]
    made.teach(STEPS[index], ("uncond",), ROWS[:1])
    assert Noting.taught == [("uncond", index, [1.0])]
    assert made.ask(STEPS[index], ("cond",), lambda wanted: ROWS[2:]) == ()
    made.teach(STEPS[index], ("stg", "cond"), ROWS[:2])
    assert Noting.taught[1:] == [("cond", index, [2.0])]


def test_what_has_no_value_teaches_a_watching_rule_nothing_and_a_static_one_its_step() -> None:
    made = jury()
    made.teach(STEPS[0], ORDER, None)
    assert Noting.taught == []
    states: dict[str, int | None] = dict.fromkeys(ORDER)
    static: Jury[Any] = Jury(fc.DynamicReuse(interval=3, start=0.0), MODULE, states)
    assert static.ask(STEPS[0], ORDER, source) == ()
    static.teach(STEPS[0], ("cond", "uncond"), None)
    assert states == {"cond": 0, "uncond": 0, "stg": None}
    assert static.ask(STEPS[1], ORDER, source) == ("uncond", "cond")


class Ranks:
    """Two processes: the other one never reuses, and holds as many tokens again."""

    def __init__(self, agrees: bool) -> None:
        self.agrees, self.joined = agrees, 0

    def agreed(self, verdict: bool) -> bool:
        return verdict and self.agrees

    def whole(self, part: Tensor) -> Tensor:
        self.joined += 1
        return torch.cat([part, part], dim=1)


@pytest.mark.parametrize(
    ("site", "wanted", "joined"),
    [
        (MODULE, fc.Signal.MODULATED_INPUT, True),
        (MODULE, fc.Signal.INPUT, False),  # every process has the whole input
        (Site("denoiser", Kind.DENOISER), fc.Signal.MODULATED_INPUT, False),
        (Site("branch", Kind.BRANCH), fc.Signal.MODULATED_INPUT, False),
    ],
)
def test_processes_decide_alike_from_all_tokens(site: Site, wanted: fc.Signal, joined: bool) -> None:
    ranks = Ranks(agrees=True)
    made: Jury[str] = jury(site, ranks)
    made.signal = wanted
    assert made.ask(STEPS[0], ORDER, lambda signal: ROWS) == ("uncond", "cond")
    assert Noting.asked[0] == ("uncond", 0, [1.0, 1.0] if joined else [1.0])
    made.teach(STEPS[0], ("cond",), ROWS[:1])
    inside = site is MODULE
    assert Noting.taught == [("cond", 0, [1.0, 1.0] if inside else [1.0])] and ranks.joined == joined + inside
    made.teach(STEPS[0], ("cond",), None)
    assert len(Noting.taught) == 1
    assert jury(site, Ranks(agrees=False)).ask(STEPS[0], ORDER, source) == ()
    assert jury(site).ask(STEPS[0], ORDER, source) == ("uncond", "cond")


# -- where a signal is -------------------------------------------------------------------------------------------------
INPUT, ENTRY, FIRST = torch.full((2, 3), 10.0), torch.full((2, 3), 7.0), torch.full((2, 3), 4.0)
SIGHTED = Sighted(entry=FIRST, residual=torch.full((2, 3), 0.5), modulated=torch.full((2, 3), 0.25))
PROBE, RESIDUAL, MODULATED = fc.Signal.PROBE, fc.Signal.FIRST_BLOCK_RESIDUAL, fc.Signal.MODULATED_INPUT


def span(first: int) -> Site:
    return Site(f"stack[{first}:4]", Kind.STACK, None, first, (first, 4))


@pytest.mark.parametrize(
    ("wanted", "site", "value"),
    [
        (fc.Signal.INPUT, span(0), 10.0),
        (fc.Signal.INPUT, Site("denoiser", Kind.DENOISER), 10.0),
        (MODULATED, span(0), 0.25),
        (PROBE, span(1), 7.0),
        (PROBE, span(2), 7.0),
        (RESIDUAL, span(1), 0.5),  # what the first block added
        (RESIDUAL, span(2), 3.0),  # what all blocks before added: 7 less 4
        (PROBE, span(0), None),
        (RESIDUAL, span(0), None),
        (RESIDUAL, Site("branch", Kind.BRANCH), None),
    ],
)
def test_a_signal_at_a_site(wanted: fc.Signal, site: Site, value: float | None) -> None:
    if value is not None:
        assert signal_value(wanted, site, INPUT, SIGHTED, ENTRY).unique().tolist() == [value]
        return
    with pytest.raises(AttachError, match=f"the signal '{wanted}' is not known at"):
        signal_value(wanted, site, INPUT, SIGHTED, ENTRY)


def test_further_in_without_an_entry_the_first_blocks_own_residual_is_meant() -> None:
    assert signal_value(RESIDUAL, span(2), INPUT, SIGHTED, None).unique().tolist() == [0.5]
    bare = Sighted(residual=torch.full((2, 3), 0.5))
    assert signal_value(RESIDUAL, span(2), INPUT, bare, ENTRY).unique().tolist() == [0.5]
    for wanted in (MODULATED, RESIDUAL):
        with pytest.raises(AttachError, match="is not known"):
            signal_value(wanted, span(1), INPUT, Sighted(), ENTRY)
    with pytest.raises(AttachError, match="is not known"):
        signal_value(fc.Signal.INPUT, span(1), None, SIGHTED, ENTRY)
    assert Sighted().flops == 0

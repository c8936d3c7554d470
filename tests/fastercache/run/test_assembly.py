"""The denoiser and branch sites by themselves: which rows are asked for, put in and kept, worked out by hand.

An output is a number for each branch, as a tensor (rows, 1, 1, 1): its last two axes are height and width already.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.policies.errors import AttachError
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.run.assembly import Assembly
from fastercache.run.calls import Call, RunState, SitePlan
from fastercache.run.store import History
from fastercache.run.units import Duty, Unit
from tests.fastercache.run.test_store import Keeping

WHOLE, GUIDANCE = Site("denoiser", Kind.DENOISER), Site("branch", Kind.BRANCH)
ROWS = ("uncond", "cond")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def told_by(output: Any) -> list[float]:
    found: list[float] = output.flatten().tolist()
    return found


class Played:
    """An assembly of a run whose branches are computed and reused as the rows of a schedule say."""

    def __init__(
        self,
        rows: list[tuple[Site, str, str]],
        branches: tuple[str, ...] = ("cond", "uncond"),
        watched: tuple[Site, ...] = (),
    ) -> None:
        self.told: list[tuple[str, str, float, Code]] = []
        sites = list(dict.fromkeys(site for site, _, _ in rows))
        self.run = Run.of(len(rows[0][2]), branches=branches, sites=sites)
        policy = fc.Schedule(rows=tuple(fc.Row(sites=site.name, branch=b, steps=codes) for site, b, codes in rows))
        table = fc.compile_policy(policy, self.run)
        state = RunState(self.run)
        self.units = {
            site: Unit(site, "", Duty(History(fc.Hold()), plan, watchers=(self._note,) * (site in watched)), state)
            for site, plan in zip(table.sites, SitePlan.all_of(table), strict=True)
        }
        self.assembly = Assembly(None)
        self.assembly.begin(self.units.values())
        self.cond_last = False

    def _note(self, seen: Any) -> None:
        self.told.append((seen.site.name, seen.branch, float(seen.value), seen.code))

    def call(self, index: int, branches: tuple[str, ...], **computed: float) -> list[float]:
        """One denoiser call that gives these numbers for the branches it must compute; what it returns."""
        call = Call(self.run.steps[index], branches, len(branches), numbers(*range(len(branches))))
        self.assembly.enter(index)
        predicted = self.assembly.decide(call)
        left = tuple(b for b in branches if b not in predicted)
        assert set(left) == set(computed), "other branches were to be computed"
        output = numbers(*(computed[b] for b in left)) if left else None
        result = self.assembly.finish(call, self.run.branches, predicted, left, output, {})
        if not predicted:
            assert result is output
        return told_by(result)

    def end(self, index: int) -> None:
        self.assembly.release(index, self.cond_last)
        for unit in self.units.values():
            unit.release(index)

    def codes(self, site: Site, branch: str) -> list[int]:
        unit = self.units[site]
        return list(unit.rows[unit.position(branch)])


C, R, U = Code.COMPUTED, Code.REUSED, Code.UNREACHED


def test_a_batched_call_predicts_the_other_branch_from_the_conditional_one() -> None:
    played = Played([(GUIDANCE, "uncond", "CRCC")])
    assert played.call(0, ROWS, uncond=3.0, cond=10.0) == [3.0, 10.0]
    played.end(0)
    assert played.call(1, ROWS, cond=20.0) == [13.0, 20.0]
    played.end(1)
    assert played.units[GUIDANCE].history is not None and not played.units[GUIDANCE].history.entries
    assert played.call(2, ROWS, uncond=1.0, cond=5.0) == [1.0, 5.0]
    played.end(2)
    assert not played.units[GUIDANCE].history.entries, "no later step reads the difference"
    assert played.call(3, ROWS, uncond=1.0, cond=5.0) == [1.0, 5.0]
    assert played.codes(GUIDANCE, "uncond") == [C, R, C, C] and played.codes(GUIDANCE, "cond") == [U] * 4


def test_a_conditional_call_by_itself_comes_before_the_other() -> None:
    played = Played([(GUIDANCE, "uncond", "CRR")])
    for index, (cond, uncond) in enumerate([(10.0, 3.0), (20.0, 13.0), (5.0, -2.0)]):
        assert played.call(index, ("cond",), cond=cond) == [cond]
        given = {"uncond": uncond} if index == 0 else {}
        assert played.call(index, ("uncond",), **given) == [uncond]
        assert played.assembly.held() == {}
        played.end(index)
        assert played.assembly.held() == {}
    assert played.codes(GUIDANCE, "uncond") == [C, R, R]


def test_where_the_other_call_comes_first_the_step_before_stands_in_for_the_conditional_output() -> None:
    played = Played([(GUIDANCE, "uncond", "CRC")])
    played.cond_last = True
    assert played.call(0, ("uncond",), uncond=3.0) == [3.0]
    assert played.call(0, ("cond",), cond=10.0) == [10.0]
    played.end(0)
    assert sum(played.assembly.held().values()) == 4, "one conditional output of one number"
    assert played.call(1, ("uncond",)) == [10.0 - 7.0]
    assert played.call(1, ("cond",), cond=20.0) == [20.0]
    played.end(1)
    assert played.call(2, ("uncond",), uncond=1.0) == [1.0]
    played.assembly.clear()
    assert played.assembly.held() == {}
    fresh = Played([(GUIDANCE, "uncond", "CRC")])
    fresh.call(0, ("uncond",), uncond=3.0)
    fresh.call(0, ("cond",), cond=10.0)
    fresh.end(0)
    assert fresh.call(1, ("uncond",), uncond=4.0) == [4.0], "without a conditional output it is computed"


def test_the_conditional_output_of_the_step_is_the_base_as_soon_as_it_is_there() -> None:
    """Calls come as uncond, cond, perturbed: the step before stands in for the first one only."""
    played = Played([(GUIDANCE, "uncond", "CR"), (GUIDANCE, "perturbed", "CR")], ("cond", "uncond", "perturbed"))
    played.cond_last = True
    for branch, value in (("uncond", 3.0), ("cond", 10.0), ("perturbed", 12.0)):
        assert played.call(0, (branch,), **{branch: value}) == [value]
    played.end(0)
    assert played.call(1, ("uncond",)) == [10.0 - 7.0]
    assert played.call(1, ("cond",), cond=50.0) == [50.0]
    assert played.call(1, ("perturbed",)) == [50.0 + 2.0]


def test_a_conditional_output_is_held_over_a_step_only_where_the_next_one_needs_it() -> None:
    for steps, cond_last, held in (
        ("CCRC", True, [0, 4, 0, 0]),
        ("CRRC", True, [4, 4, 0, 0]),
        ("CRRC", False, [0] * 4),
    ):
        played = Played([(GUIDANCE, "uncond", steps)])
        played.cond_last = cond_last
        found = []
        for index in range(4):
            order = ("uncond", "cond") if cond_last else ("cond", "uncond")
            for branch in order:
                given = {} if steps[index] == "R" and branch == "uncond" else {branch: 1.0}
                played.call(index, (branch,), **given)
            played.end(index)
            found.append(sum(played.assembly.held().values()))
        assert found == held, (steps, cond_last)
    whole = Played([(WHOLE, "uncond", "CR")])
    whole.cond_last = True
    whole.call(0, ("uncond",), uncond=1.0)
    whole.call(0, ("cond",), cond=1.0)
    whole.end(0)
    assert whole.assembly.held() == {}, "without a branch site nothing is added to it"


def test_what_is_held_over_a_step_is_a_copy() -> None:
    played = Played([(GUIDANCE, "uncond", "CR")])
    played.cond_last = True
    played.call(0, ("uncond",), uncond=3.0)
    output = numbers(10.0)
    call = Call(played.run.steps[0], ("cond",), 1, numbers(0))
    played.assembly.finish(call, played.run.branches, {}, ("cond",), output, {})
    played.end(0)
    output.zero_()  # as guidance in place does
    assert played.call(1, ("uncond",)) == [3.0]


def test_what_one_step_left_is_not_taken_for_the_next_ones() -> None:
    """Where a step broke off, its conditional output is no base for the next one's difference."""
    played = Played([(GUIDANCE, "uncond", "CRR")])
    played.call(0, ROWS, uncond=3.0, cond=10.0)
    played.call(1, ("cond",), cond=20.0)
    played.assembly.enter(1)
    assert played.call(1, ("uncond",)) == [13.0]
    assert played.call(2, ("uncond",), uncond=1.0) == [1.0]


def test_the_denoisers_output_is_reused_branch_by_branch() -> None:
    played = Played([(WHOLE, "cond", "CCR"), (WHOLE, "uncond", "CRR")])
    assert played.call(0, ROWS, uncond=1.0, cond=2.0) == [1.0, 2.0]
    assert played.call(1, ROWS, cond=4.0) == [1.0, 4.0]
    assert played.call(2, ROWS) == [1.0, 4.0]
    assert (played.codes(WHOLE, "cond"), played.codes(WHOLE, "uncond")) == ([C, C, R], [C, R, R])


def test_both_sites_together() -> None:
    """The conditional output is held at the second step and the other one is it plus the difference; at the third the
    other output is held itself, so its difference is not asked for."""
    played = Played([(WHOLE, "cond", "CRC"), (WHOLE, "uncond", "CCR"), (GUIDANCE, "uncond", "CRC")])
    assert played.call(0, ROWS, uncond=3.0, cond=10.0) == [3.0, 10.0]
    played.end(0)
    assert played.call(1, ROWS) == [3.0, 10.0]
    played.end(1)
    assert played.call(2, ROWS, cond=30.0) == [3.0, 30.0]
    assert played.codes(WHOLE, "uncond") == [C, U, R] and played.codes(GUIDANCE, "uncond") == [C, R, U]


def test_watchers_are_told_outputs_and_differences_computed_or_not() -> None:
    rows = [(WHOLE, "cond", "CC"), (WHOLE, "uncond", "CC"), (GUIDANCE, "uncond", "CR")]
    played = Played(rows, watched=(WHOLE, GUIDANCE))
    played.call(0, ROWS, uncond=3.0, cond=10.0)
    played.end(0)
    played.call(1, ROWS, cond=20.0)
    assert played.told[:3] == [
        ("branch", "uncond", -7.0, C),
        ("denoiser", "uncond", 3.0, C),
        ("denoiser", "cond", 10.0, C),
    ]
    assert played.told[3] == ("branch", "uncond", -7.0, R)
    assert [one[:3] for one in played.told[4:]] == [("denoiser", "uncond", 13.0), ("denoiser", "cond", 20.0)]
    unwatched = Played(rows, watched=(WHOLE,))
    unwatched.call(0, ROWS, uncond=3.0, cond=10.0)
    assert [name for name, *_ in unwatched.told] == ["denoiser", "denoiser"]


def test_a_difference_of_two_calls_is_told_once_both_have_come() -> None:
    played = Played([(GUIDANCE, "uncond", "CC")], watched=(GUIDANCE,))
    played.call(0, ("cond",), cond=10.0)
    assert played.told == []
    played.call(0, ("uncond",), uncond=3.0)
    assert played.told == [("branch", "uncond", -7.0, C)]
    played.end(0)
    played.call(1, ("uncond",), uncond=4.0)
    assert len(played.told) == 1
    played.call(1, ("cond",), cond=10.0)
    assert played.told[1:] == [("branch", "uncond", -6.0, C)]


def test_a_step_that_keeps_nothing_is_noted_where_it_applies_and_passed_on() -> None:
    played = Played([(WHOLE, "cond", "CC"), (WHOLE, "uncond", "CC"), (GUIDANCE, "uncond", "CC")])
    output = object()
    call = Call(played.run.steps[0], ROWS, 2, numbers(0, 1))
    assert played.assembly.finish(call, played.run.branches, {}, ROWS, output, {}) is output
    assert [played.codes(WHOLE, b)[0] for b in ROWS] == [C, C]
    assert [played.codes(GUIDANCE, b)[0] for b in ROWS] == [C, U]
    none = Assembly(None)
    none.begin([])
    assert none.decide(call) == {} and none.finish(call, ROWS, {}, ROWS, output, {}) is output


def test_the_other_branches_own_rows_are_what_is_asked_about() -> None:
    """A rule that watches the input at the branch site sees that of the branches in question, not the conditional's."""
    asked: list[tuple[tuple[str, ...], int, list[float]]] = []
    played = Played([(GUIDANCE, "uncond", "CR")])
    unit = played.units[GUIDANCE]

    def decide(call: Call, source: Any) -> tuple[str, ...]:
        asked.append((call.branches, call.batch, told_by(source(fc.Signal.INPUT))))
        return ()

    unit.decide = decide  # type: ignore[method-assign]
    order = ("stg", "cond", "uncond")
    call = Call(played.run.steps[0], order, 3, numbers(7.0, 8.0, 9.0))
    assert played.assembly.decide(call) == {}
    assert asked == [(("stg", "uncond"), 3, [7.0, 9.0])]
    asked.clear()
    assert played.assembly.decide(Call(played.run.steps[0], ("cond",), 1, numbers(8.0))) == {}
    assert played.assembly.decide(Call(played.run.steps[0], ("uncond",), 1, numbers(8.0))) == {}
    assert asked == [], "nothing but the conditional branch, and no conditional output to add a difference to"
    unit.decide = lambda call, source: call.branches  # type: ignore[method-assign]
    without = Call(played.run.steps[0], order, 3)
    assert played.assembly.decide(without) == {"stg": unit, "uncond": unit}


def test_what_is_no_tensor_stays_in_its_place() -> None:
    played = Played([(GUIDANCE, "uncond", "CR")])
    for index, (cond, uncond) in enumerate([(10.0, 3.0), (20.0, 13.0)]):
        call = Call(played.run.steps[index], ROWS, 2, numbers(0, 1))
        played.assembly.enter(index)
        predicted = played.assembly.decide(call)
        output = (numbers(uncond, cond) if index == 0 else numbers(cond), "kept", None)
        left = ROWS if index == 0 else ("cond",)
        found, word, nothing = played.assembly.finish(call, played.run.branches, predicted, left, output, {})
        assert told_by(found) == [uncond, cond] and (word, nothing) == ("kept", None)


def test_of_several_outputs_the_first_is_told_and_a_difference_needs_both() -> None:
    """Video and sound: the second output has no difference where one of the calls gave none."""
    rows = [(WHOLE, "cond", "CC"), (WHOLE, "uncond", "CC"), (GUIDANCE, "uncond", "CR")]
    played = Played(rows, watched=(WHOLE, GUIDANCE))
    step = played.run.steps[0]
    outputs: dict[str, tuple[Any, Any]] = {"cond": (numbers(10.0), None), "uncond": (numbers(3.0), numbers(7.0))}
    for branch, output in outputs.items():
        call = Call(step, (branch,), 1, numbers(0))
        assert played.assembly.finish(call, played.run.branches, {}, (branch,), output, {}) is output
    assert [one[:3] for one in played.told] == [
        ("denoiser", "cond", 10.0), ("branch", "uncond", -7.0), ("denoiser", "uncond", 3.0),
    ]  # fmt: skip
    history = played.units[GUIDANCE].history
    assert history is not None and history.entries[0].values[1] is None


@pytest.mark.parametrize("output", [([numbers(1.0)],), {"sample": [numbers(1.0)]}])
def test_a_list_of_samples_is_refused(output: Any) -> None:
    played = Played([(WHOLE, "cond", "CR")])
    call = Call(played.run.steps[0], ROWS, 2, numbers(0, 1))
    with pytest.raises(AttachError, match="a list with a tensor for each sample"):
        played.assembly.finish(call, played.run.branches, {}, ROWS, output, {})


def test_a_tuple_whose_second_item_is_a_list_is_none_of_them() -> None:
    played = Played([(WHOLE, "cond", "CR"), (WHOLE, "uncond", "CR")])
    call = Call(played.run.steps[0], ROWS, 2, numbers(0, 1))
    output = (numbers(1.0, 2.0), [numbers(3.0, 4.0)])
    assert played.assembly.finish(call, played.run.branches, {}, ROWS, output, {}) is output
    later = Call(played.run.steps[1], ROWS, 2, numbers(0, 1))
    predicted = played.assembly.decide(later)
    first, (second,) = played.assembly.finish(later, played.run.branches, predicted, (), None, {})
    assert (told_by(first), told_by(second)) == ([1.0, 2.0], [3.0, 4.0])


def test_a_difference_is_kept_with_its_own_branchs_input() -> None:
    """Rows (cond 10, uncond 20) of the input: what the predictor sees of uncond's difference is 20."""
    run = Run.of(2, branches=("cond", "uncond"), sites=[GUIDANCE])
    policy = fc.Schedule(rows=(fc.Row(sites="branch", branch="uncond", steps="CR"),))
    table = fc.compile_policy(policy, run)
    history = History(Keeping())
    unit = Unit(GUIDANCE, "", Duty(history, SitePlan.all_of(table)[0]), RunState(run))
    assembly = Assembly(None)
    assembly.begin([unit])
    call = Call(run.steps[0], run.branches, 2, numbers(10, 20))
    assembly.enter(0)
    predicted = assembly.decide(call)
    assembly.finish(call, run.branches, predicted, run.branches, (numbers(4, 3),), {})
    ((value, seen),) = history.entries[0].values
    assert history.entries[0].branches == ("uncond",) and told_by(value) == [-1] and told_by(seen) == [20]

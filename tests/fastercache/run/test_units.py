"""Units by themselves: what a call computes, keeps, puts in and tells, on modules of one line worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.model.layout import BlockIO
from fastercache.policies.errors import BranchUnknown
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.run.calls import Call, RunState, SitePlan
from fastercache.run.module_unit import ModuleUnit
from fastercache.run.stack_unit import StackUnit
from fastercache.run.store import History
from fastercache.run.trace import Observation
from fastercache.run.units import Duty, Unit
from tests.fastercache.run.test_needs import KeepsInput

MODULE = Site("blocks.0.ff", Kind.MODULE, fc.Role.FF, 0, (0, 1))
STACK = Site("stack[0:2]", Kind.STACK, None, 0, (0, 2))
ORDER = ("uncond", "cond")
"""Row order of a batched call; a run names the conditional branch first."""
COND_ROW, UNCOND_ROW = 1, 0


def duty(site: Site, watchers: tuple[Any, ...] = (), **steps: str) -> tuple[Duty, Run]:
    """A plan by branch, each branch's steps as C and R, with a history that holds the newest value."""
    rows = tuple(fc.Row(sites=site.name, branch=branch, steps=codes) for branch, codes in steps.items())
    run = Run.of(len(next(iter(steps.values()))), sites=[site])
    (plan,) = SitePlan.all_of(fc.compile_policy(fc.Schedule(rows=rows), run))
    return Duty(History(fc.Hold()), plan, watchers=watchers), run


def call_of(run: Run, index: int, branches: tuple[str, ...] = ORDER, rows: int = 1) -> Call:
    return Call(run.steps[index], branches, rows * len(branches))


def unit_of(watchers: tuple[Any, ...] = (), **steps: str) -> tuple[Unit, Run]:
    given, run = duty(MODULE, watchers, **steps)
    return Unit(MODULE, MODULE.name, given, RunState(run)), run


# -- any unit ----------------------------------------------------------------------------------------------------------
def test_a_whole_value_is_kept_as_it_is_and_a_part_of_one_or_one_that_will_change_is_copied() -> None:
    unit, run = unit_of(cond="CR", uncond="CR")
    value = torch.arange(6.0).reshape(2, 3)
    unit.keep(call_of(run, 0), ORDER, [value])
    assert unit.history is not None and unit.history.entries[0].values[0] is value
    (put_in,) = unit.predict(call_of(run, 1), ORDER)
    assert put_in is value
    changed, run = unit_of(cond="CR", uncond="CR")
    changed.clones = True  # a block writes into what it is given
    changed.keep(call_of(run, 0), ORDER, [value])
    (put_in,) = changed.predict(call_of(run, 1), ORDER)
    assert changed.history is not None and put_in is not None
    kept = changed.history.entries[0].values[0]
    assert kept is not value and put_in is not kept and torch.equal(put_in, value) and torch.equal(kept, value)
    assert put_in.data_ptr() != kept.data_ptr() != value.data_ptr()
    half, run = unit_of(cond="CR", uncond="CC")
    half.keep(call_of(run, 0), ORDER, [value])
    assert half.history is not None
    (entry,) = half.history.entries
    assert entry.branches == ("cond",) and torch.equal(entry.values[0], value[1:])
    assert entry.values[0].untyped_storage().data_ptr() != value.untyped_storage().data_ptr()
    assert half.history.nbytes == 3 * 4


def test_what_a_unit_notes_is_by_branch_and_step() -> None:
    unit, run = unit_of(cond="CCR", uncond="CRR")
    assert [list(row) for row in unit.rows] == [[Code.UNREACHED] * 3] * 2
    unit.keep(call_of(run, 0), ORDER, [torch.zeros(2, 3)])
    assert unit.decide(call_of(run, 0), unit.source(call_of(run, 0))) == ()
    second = call_of(run, 1)
    assert unit.decide(second, unit.source(second)) == ("uncond",)
    unit.predict(second, ("uncond",))
    unit.mark(run.steps[1], ["cond"])
    assert unit.reuses("uncond", run.steps[1]) and not unit.reuses("cond", run.steps[1])
    assert not unit.reuses("uncond", run.steps[0]) and not unit.reuses("uncond", run.steps[2])
    assert (unit.position("cond"), unit.position("uncond")) == (0, 1)
    assert unit.rows == [
        bytearray([Code.COMPUTED, Code.COMPUTED, Code.UNREACHED]),
        bytearray([Code.COMPUTED, Code.REUSED, Code.UNREACHED]),
    ]
    unit.forget()
    third = call_of(run, 2)
    assert unit.decide(third, unit.source(third)) == (), "nothing is there to be reused"


def test_a_value_goes_with_the_last_step_that_reads_it() -> None:
    unit, run = unit_of(cond="CRRC", uncond="CCCR")
    unit.keep(call_of(run, 0), ORDER, [torch.zeros(2, 3)])
    history = unit.history
    assert history is not None and history.nbytes == 3 * 4, "nothing reads the unconditional value of the first step"
    for index, held in ((0, 12), (1, 12), (2, 0)):
        unit.release(index)
        assert history.nbytes == held, index
    unit.keep(call_of(run, 1), ORDER, [torch.zeros(2, 3)])
    assert history.nbytes == 0
    unit.keep(call_of(run, 2), ORDER, [torch.zeros(2, 3)])
    for index, held in ((2, 12), (3, 0)):
        unit.release(index)
        assert history.nbytes == held, index


def test_a_unit_is_idle_where_nothing_is_put_in_or_kept_and_nobody_watches() -> None:
    unit, run = unit_of(cond="CCRC", uncond="CCCC")
    assert [unit.idle(call_of(run, i)) for i in range(4)] == [True, False, False, True]
    assert all(unit.idle(call_of(run, i, ("uncond",))) for i in range(4))
    assert [unit.idle(call_of(run, i, ("cond",))) for i in range(4)] == [True, False, False, True]
    assert not unit.quiet
    silent, run = unit_of(cond="CC", uncond="CC")
    assert silent.quiet and silent.idle(call_of(run, 0))
    watched, run = unit_of(((lambda observation: None),), cond="CC", uncond="CC")
    assert not watched.quiet and not watched.idle(call_of(run, 0))
    bare = Unit(MODULE, MODULE.name, Duty(), RunState(run))
    assert bare.idle(call_of(run, 0)) and not bare.quiet
    dynamic = Unit(MODULE, MODULE.name, Duty(History(fc.Hold())), RunState(run))
    assert not dynamic.idle(call_of(run, 0)) and not dynamic.quiet


class Asked:
    """A jury that would reuse everything, and notes what it is asked and taught."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.taught: list[tuple[int, tuple[str, ...], Any]] = []

    def ask(self, step: fc.Step, branches: tuple[str, ...], source: Any) -> tuple[str, ...]:
        self.asked.append((step.index, branches))
        return branches

    def teach(self, step: fc.Step, branches: tuple[str, ...], value: Any) -> None:
        self.taught.append((step.index, branches, value))


def test_a_dynamic_rule_is_asked_and_taught_and_its_values_stay() -> None:
    _, run = unit_of(cond="CC", uncond="CC")
    jury: Any = Asked()
    unit = Unit(MODULE, MODULE.name, Duty(History(fc.Hold()), jury=jury), RunState(run))
    first, second = call_of(run, 0), call_of(run, 1)
    assert unit.decide(first, unit.source(first)) == (), "nothing is there yet"
    value = torch.zeros(2, 3)
    unit.keep(first, ("cond",), [None, value[:1]])
    assert unit.decide(second, unit.source(second)) == ("cond",)
    assert jury.asked == [(0, ORDER), (1, ORDER)]
    ((index, branches, taught),) = jury.taught
    assert (index, branches) == (0, ("cond",)) and taught.shape == (1, 3)
    unit.keep(first, ORDER, [None])
    assert jury.taught[1:] == [(0, ORDER, None)]
    for index in range(2):
        unit.release(index)
    assert unit.history is not None and unit.history.has("cond"), "only a plan knows what no step reads any more"
    unit.forget()
    assert unit.jury is None and not unit.history.has("cond")


def test_watchers_are_told_each_branch_its_own_rows() -> None:
    told: list[Observation] = []
    twice: list[str] = []
    unit, run = unit_of((told.append, lambda one: twice.append(one.branch)), cond="CR", uncond="CC")
    value = torch.arange(8.0).reshape(4, 2)
    call = call_of(run, 0, rows=2)
    unit.keep(call, ORDER, [value])
    unit.tell(call, None)
    assert told == []
    unit.tell(call, value)
    assert [(one.branch, one.value.tolist(), one.code) for one in told] == [
        ("uncond", [[0, 1], [2, 3]], Code.COMPUTED),
        ("cond", [[4, 5], [6, 7]], Code.COMPUTED),
    ]
    assert twice == ["uncond", "cond"]


# -- a module ----------------------------------------------------------------------------------------------------------
class Doubling:
    """A module's own forward: twice its input; remembers what it was given."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda x: x) -> None:
        self.wrap = wrap
        self.given: list[Tensor] = []

    def __call__(self, x: Tensor) -> Any:
        self.given.append(x)
        return self.wrap(2 * x)


class Block(torch.nn.Module):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Any: ...


def module_unit(io: BlockIO | None = None, watchers: tuple[Any, ...] = (), **steps: str) -> tuple[ModuleUnit, Run]:
    given, run = duty(MODULE, watchers, **steps)
    return ModuleUnit(MODULE, MODULE.name, given, RunState(run), io, text_first=False), run


def at(unit: Any, run: Run, index: int, rows: int = 1, branches: tuple[str, ...] = ORDER) -> Call:
    """The unit's call from now on."""
    unit.state.call = call_of(run, index, branches, rows)
    return unit.state.now


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,)])
def test_one_branch_is_computed_and_the_other_put_in(wrap: Callable[[Tensor], Any]) -> None:
    unit, run = module_unit(cond="CCC", uncond="CRC")
    inner = Doubling(wrap)
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0], [20.0]])
    call = at(unit, run, 0)
    assert torch.equal(torch.as_tensor(unit.handle(inner, (first,), {})[0]), wrap(2 * first)[0])
    assert call.skipped == []
    call = at(unit, run, 1)
    output = unit.handle(inner, (second,), {})
    value = output[0] if isinstance(output, tuple) else output
    assert value.tolist() == [[2.0], [40.0]] and isinstance(output, tuple) is isinstance(wrap(first), tuple)
    assert inner.given[1].tolist() == [[20.0]] and call.skipped == [(MODULE.name, 0.5)]
    at(unit, run, 2)
    unit.handle(inner, (second,), {})
    assert inner.given[2] is second


def test_a_module_that_is_reused_for_all_does_not_run() -> None:
    unit, run = module_unit(cond="CR", uncond="CR")
    inner = Doubling(lambda x: {"sample": x})
    at(unit, run, 0)
    unit.handle(inner, (torch.tensor([[1.0], [2.0]]),), {})
    call = at(unit, run, 1)
    output = unit.handle(inner, (torch.tensor([[5.0], [5.0]]),), {})
    assert output["sample"].tolist() == [[2.0], [4.0]] and len(inner.given) == 1
    assert call.skipped == [(MODULE.name, 1.0)]


def test_rows_that_belong_together_are_not_cut() -> None:
    unit, run = module_unit(cond="CC", uncond="CR")
    unit.state.coupled = True
    at(unit, run, 0)
    unit.handle(Doubling(), (torch.ones(2, 1),), {})
    at(unit, run, 1)
    with pytest.raises(BranchUnknown, match="by their place"):
        unit.handle(Doubling(), (torch.ones(2, 1),), {})


def residual_block(hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Adds 1 to a text and 10 to an image, and returns the text first, as HunyuanVideo's blocks do not."""
    return encoder_hidden_states + 1, hidden_states + 10


def test_of_a_block_the_residuals_are_kept_each_beside_its_own_input() -> None:
    """The first output is the text's, told by its shape; what watchers are told is the hidden states' residual."""
    told: list[tuple[str, list[Any]]] = []
    watcher = lambda one: told.append((one.branch, one.value.flatten().tolist()))  # noqa: E731
    unit, run = module_unit(BlockIO.of(Block()), (watcher,), cond="CR", uncond="CR")
    image, text = torch.zeros(2, 3, 1), torch.full((2, 2, 1), 5.0)
    at(unit, run, 0)
    unit.handle(residual_block, (), {"hidden_states": image, "encoder_hidden_states": text})
    assert unit.streams == [1, 0]
    at(unit, run, 1)
    new = {"hidden_states": image + 100, "encoder_hidden_states": text + 200}
    got_text, got_image = unit.handle(residual_block, (), new)
    assert got_image.unique().tolist() == [110.0] and got_text.unique().tolist() == [206.0]
    assert told == [("uncond", [10.0] * 3), ("cond", [10.0] * 3)] * 2


def test_a_stream_that_a_block_does_not_return_has_no_residual() -> None:
    """A last block without a text: the second output is None, and stays so."""
    unit, run = module_unit(BlockIO.of(Block()), cond="CR", uncond="CR")
    image, text = torch.zeros(2, 3, 1), torch.full((2, 2, 1), 5.0)

    def last(hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, None]:
        return hidden_states + 10, None

    for index in range(2):
        at(unit, run, index)
        output = unit.handle(last, (image + index, text), {})
    assert output[0].unique().tolist() == [11.0] and output[1] is None


@pytest.mark.parametrize(("steps", "computed"), [("CCR", [False, True]), ("CCC", [False, False])])
def test_a_residual_that_nobody_reads_is_not_computed(
    monkeypatch: pytest.MonkeyPatch, steps: str, computed: list[bool]
) -> None:
    unit, run = module_unit(BlockIO.of(Block()), cond=steps, uncond="CCC")
    found: list[bool] = []
    keep = unit.keep

    def noting(call: Call, branches: Any, streams: Any, seen: Any = None) -> None:
        found.append(streams[0] is not None)
        keep(call, branches, streams, seen)

    monkeypatch.setattr(unit, "keep", noting)
    for index in range(2):
        at(unit, run, index)
        unit.handle(lambda x: x + 1, (torch.ones(2, 3, 1),), {})
    assert found == computed


def test_a_residual_that_watchers_are_told_is_computed_whatever_the_plan_keeps() -> None:
    told: list[float] = []
    unit, run = module_unit(BlockIO.of(Block()), (lambda one: told.extend(one.value.unique().tolist()),), cond="CC")
    at(unit, run, 0)
    unit.handle(lambda x: x + 1, (torch.ones(2, 3, 1),), {})
    assert told == [1.0, 1.0]
    dynamic = ModuleUnit(
        MODULE, MODULE.name, Duty(History(fc.Hold()), jury=Asked()), RunState(run), BlockIO.of(Block()),  # type: ignore[arg-type]
        text_first=False,
    )  # fmt: skip
    at(dynamic, run, 0)
    dynamic.handle(lambda x: x + 1, (torch.ones(2, 3, 1),), {})
    at(dynamic, run, 1)
    assert dynamic.handle(Doubling(), (torch.full((2, 3, 1), 5.0),), {}).unique().tolist() == [6.0]


@pytest.mark.parametrize("kept", [True, False])
def test_several_calls_of_a_module_in_one_denoiser_call_are_decided_at_the_first(kept: bool) -> None:
    """CogView4 calls its feed-forward for the image, then for the text: both are put in at the second step. By hand:
    the reused branch's rows are those of the step before, call by call."""
    told: list[list[float]] = []
    watchers = ((lambda one: told.append(one.value.flatten().tolist())),) if kept else ()
    unit, run = module_unit(None, watchers, cond="CCC", uncond="CRC")
    unit.turns = 2
    inner = Doubling()
    image, text = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 3.0], [4.0, 4.0]])
    call = at(unit, run, 0)
    assert unit.handle(inner, (image,), {}).tolist() == [[2], [4]]
    assert unit.handle(inner, (text,), {}).tolist() == [[6, 6], [8, 8]]
    assert call.skipped == []
    call = at(unit, run, 1)
    assert unit.handle(inner, (10 * image,), {}).tolist() == [[2], [40]]
    assert call.skipped == [(MODULE.name, 0.5)]
    assert unit.handle(inner, (10 * text,), {}).tolist() == [[6, 6], [80, 80]]
    assert call.skipped == [(MODULE.name, 0.5)], "its share counts once, whatever is called of it"
    at(unit, run, 2)
    assert unit.handle(inner, (image,), {}).tolist() == [[2], [4]]
    assert unit.handle(inner, (text,), {}).tolist() == [[6, 6], [8, 8]]
    assert [tuple(x.shape) for x in inner.given] == [(2, 1), (2, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert told == ([[2], [4], [2], [40], [2], [4]] if kept else [])
    assert [list(row) for row in unit.rows] == [[Code.COMPUTED] * 3, [Code.COMPUTED, Code.REUSED, Code.COMPUTED]]


def test_several_calls_that_are_all_put_in() -> None:
    unit, run = module_unit(None, cond="CR", uncond="CR")
    unit.turns = 2
    inner = Doubling()
    image, text = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])
    at(unit, run, 0)
    for x in (image, text):
        unit.handle(inner, (x,), {})
    call = at(unit, run, 1)
    assert unit.handle(inner, (10 * image,), {}).tolist() == [[2], [4]]
    assert unit.handle(inner, (10 * text,), {}).tolist() == [[6], [8]]
    assert len(inner.given) == 2 and call.skipped == [(MODULE.name, 1.0)]
    assert unit.history is not None and len(unit.history.entries) == 1


def test_several_calls_of_a_block_are_put_in_beside_their_own_inputs() -> None:
    unit, run = module_unit(BlockIO.of(Block()), cond="CR", uncond="CR")
    unit.turns = 2
    a, b = torch.zeros(2, 3, 1), torch.full((2, 3, 1), 7.0)
    at(unit, run, 0)
    unit.handle(lambda x: x + 1, (a,), {})
    unit.handle(lambda x: x + 2, (b,), {})
    at(unit, run, 1)
    assert unit.handle(Doubling(), (a + 100,), {}).unique().tolist() == [101.0]
    assert unit.handle(Doubling(), (b + 100,), {}).unique().tolist() == [109.0]


# -- a run of blocks ---------------------------------------------------------------------------------------------------
class KeepsHere(KeepsInput):
    name: ClassVar[str] = "keeping_units"

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        return past[-1].value[0]  # type: ignore[no-any-return]


def stack_unit(watchers: tuple[Any, ...] = (), text_first: bool = False, **steps: str) -> tuple[StackUnit, Run]:
    given, run = duty(STACK, watchers, **steps)
    io = BlockIO.of(Block())
    layouts: Any = ["rows", "rows"]
    return StackUnit(STACK, ["blocks.0", "blocks.1"], given, RunState(run), [io, io], layouts, text_first), run


def through(
    unit: StackUnit, image: Tensor, text: Tensor, ran: list[int], between: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Both blocks: 1 and 2 are added to the image, 10 and 20 to the text. `between`: images that left the first."""

    def block(position: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def forward(hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
            ran.append(position)
            return hidden_states + 1 + position, encoder_hidden_states + 10 * (1 + position)

        return forward

    for position in range(2):
        image, text = unit.handler(position)(block(position), (image, text), {})
        if between is not None and position == 0:
            between.append(image)
    return image, text


def test_a_run_of_blocks_is_passed_through_and_its_residuals_are_added_at_its_end() -> None:
    told: list[tuple[str, list[Any], Code]] = []
    watcher = lambda one: told.append((one.branch, one.value.unique().tolist(), one.code))  # noqa: E731
    unit, run = stack_unit((watcher,), cond="CRC", uncond="CRC")
    image, text, ran = torch.zeros(2, 3, 1), torch.zeros(2, 2, 1), list[int]()
    call = at(unit, run, 0)
    through(unit, image, text, ran)
    assert ran == [0, 1] and call.skipped == []
    call = at(unit, run, 1)
    between: list[Tensor] = []
    got, got_text = through(unit, image + 100, text + 1000, ran, between)
    assert ran == [0, 1]
    assert between[0].unique().tolist() == [100.0], "blocks but the last pass on what they are given"
    assert got.unique().tolist() == [103.0] and got_text.unique().tolist() == [1030.0]
    assert call.skipped == [("blocks.0", 1.0), ("blocks.1", 1.0)]
    at(unit, run, 2)
    through(unit, image, text, ran)
    assert ran == [0, 1, 0, 1]
    both = [("uncond", [3.0]), ("cond", [3.0])]
    codes = [Code.COMPUTED, Code.REUSED, Code.COMPUTED]
    assert told == [(branch, value, code) for code in codes for branch, value in both]


def test_a_run_of_blocks_that_is_reused_for_one_branch_runs_for_both() -> None:
    """All rows are computed; the reused branch's are then what its residual says, the other's what came out."""
    told: list[tuple[str, list[Any]]] = []
    watcher = lambda one: told.append((one.branch, one.value.flatten()[:1].tolist()))  # noqa: E731
    unit, run = stack_unit((watcher,), cond="CCR", uncond="CRC")
    image, text = torch.zeros(2, 3, 1), torch.zeros(2, 2, 1)
    at(unit, run, 0)
    through(unit, image, text, [])

    def other(hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_states + 50, encoder_hidden_states + 500

    call = at(unit, run, 1)
    x, y = unit.handler(0)(other, (image, text), {})
    assert call.over == ("uncond",), "to what lies inside"
    x, y = unit.handler(1)(other, (x, y), {})
    assert x[:, 0, 0].tolist() == [3.0, 100.0] and y[:, 0, 0].tolist() == [30.0, 1000.0]
    assert call.skipped == [] and call.over == ()
    at(unit, run, 2)
    x, _ = through(unit, image, text, [])
    assert x[:, 0, 0].tolist() == [3.0, 100.0], "the residual of the step before is the conditional branch's"
    conditional = [3.0, 100.0, 100.0]  # by step; the other branch's is 3 at each
    assert told == [one for value in conditional for one in (("uncond", [3.0]), ("cond", [value]))]


def test_a_residual_that_is_computed_beside_a_reused_one_is_kept_with_its_input() -> None:
    unit, run = stack_unit(cond="CCR", uncond="CRC")
    unit.history = History(KeepsHere())
    image, text = torch.zeros(2, 3, 1), torch.zeros(2, 2, 1)
    for index in range(2):
        unit.state.call = Call(run.steps[index], ORDER, 2, torch.tensor([[5.0], [7.0]]))
        through(unit, image, text, [])
    newest = unit.history.entries[-1]
    value, seen = newest.values[0]
    assert newest.branches == ("cond",) and len(value) == 1
    assert seen.tolist() == [[(5.0, 7.0)[ORDER.index("cond")]]]


@pytest.mark.parametrize("text_first", [True, False])
def test_streams_of_one_shape_are_told_by_the_familys_order(text_first: bool) -> None:
    unit, run = stack_unit(text_first=text_first, cond="CR", uncond="CR")
    image, text = torch.zeros(2, 3, 1), torch.full((2, 3, 1), 7.0)

    def block(hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        found = hidden_states + 1, encoder_hidden_states + 10
        return found[::-1] if text_first else found

    for index in range(2):
        at(unit, run, index)
        x, y = image + index, text + index
        for position in range(2):
            output = unit.handler(position)(block, (x, y), {})
            x, y = output[::-1] if text_first else output
    assert (x.unique().tolist(), y.unique().tolist()) == ([3.0], [28.0])
    assert unit.streams == [[1, 0] if text_first else [0, 1]] * 2


def layered(layouts: list[Any], watchers: tuple[Any, ...] = (), **steps: str) -> tuple[StackUnit, Run]:
    """A run of blocks whose hidden states lie so."""
    given, run = duty(STACK, watchers, **steps)
    paths = [f"blocks.{i}" for i in range(len(layouts))]
    return StackUnit(STACK, paths, given, RunState(run), [BlockIO.of(Block())] * len(layouts), layouts, False), run


def test_blocks_of_one_stream_are_put_in_as_tensors() -> None:
    unit, run = layered(["rows"] * 3, cond="CCR", uncond="CCR")
    x = torch.zeros(2, 3, 1)
    ran: list[int] = []

    def block(position: int) -> Callable[[Tensor], Tensor]:
        return lambda hidden_states: ran.append(position) or hidden_states + 10**position  # type: ignore[func-returns-value]

    for index in range(3):
        at(unit, run, index)
        y = x + index
        for position in range(3):
            y = unit.handler(position)(block(position), (y,), {})
        assert isinstance(y, Tensor) and y.unique().tolist() == [111.0 + index]
    assert ran == [0, 1, 2] * 2


def test_between_layouts_the_residual_is_of_the_same_tokens() -> None:
    """Latte: a spatial block has (B*F, N, D), a temporal one (B*N, F, D). By hand on the grid (B, F, N): a block of
    each, and the value that the token of frame f at place n has in the end."""
    unit, run = layered(["frames", "tokens"], cond="CR", uncond="CR")
    frames, places = 3, 4
    grid = torch.arange(2.0 * frames * places).reshape(2, frames, places)
    weight = torch.arange(1.0, 1 + frames).reshape(1, frames, 1)  # what a token gains depends on its frame

    def spatial(values: Tensor) -> Tensor:
        return values.reshape(2 * frames, places, 1)

    def temporal(values: Tensor) -> Tensor:
        return values.transpose(1, 2).reshape(2 * places, frames, 1)

    def block(values: Tensor) -> Tensor:  # a temporal one
        return values + 10 * weight.reshape(1, frames, 1)

    again, again_run = layered(["tokens", "frames"], cond="CR", uncond="CR")  # and the other way round
    for index in range(2):
        given = grid + 100 * index
        at(again, again_run, index)
        x = again.handler(0)(block, (temporal(given),), {})
        x = spatial(x.reshape(2, places, frames).transpose(1, 2))
        x = again.handler(1)(lambda values: values + 1, (x,), {})
        assert torch.equal(x, spatial(given + 1 + 10 * weight))
        at(unit, run, index)
        x = unit.handler(0)(lambda values: values + 1, (spatial(given),), {})
        if index == 0:
            assert torch.equal(x, spatial(given + 1))
        x = temporal(x.reshape(2, frames, places))  # as the denoiser does between the two
        x = unit.handler(1)(block, (x,), {})
        assert torch.equal(x, temporal(given + 1 + 10 * weight))


@pytest.mark.parametrize("layout", ["joined", "joined_last"])
def test_streams_that_end_as_one_have_one_residual(layout: str) -> None:
    """The first block has image and text apart, the last one behind each other, in the order that its layout says."""
    unit, run = layered(["rows", layout], cond="CR", uncond="CR")
    image, text = torch.full((2, 3, 1), 1.0), torch.full((2, 2, 1), 5.0)

    def apart(hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_states + 1, encoder_hidden_states + 10

    for index in range(2):
        at(unit, run, index)
        x, y = unit.handler(0)(apart, (image + 100 * index, text + 1000 * index), {})
        both = torch.cat([y, x] if layout == "joined" else [x, y], dim=1)
        got = unit.handler(1)(lambda values: values + 0.5, (both,), {})
        expected = [image + 100 * index + 1.5, text + 1000 * index + 10.5]
        assert torch.equal(got, torch.cat(expected[::-1] if layout == "joined" else expected, dim=1))


def test_a_run_that_is_joined_throughout_has_one_stream() -> None:
    unit, run = layered(["joined", "joined"], cond="CR", uncond="CR")
    for index in range(2):
        at(unit, run, index)
        x = torch.full((2, 5, 1), 1.0 + index)
        for position in range(2):
            x = unit.handler(position)(lambda values: values + 2, (x,), {})
        assert x.unique().tolist() == [5.0 + index]


def test_a_last_block_without_a_text_returns_none() -> None:
    unit, run = layered(["rows", "rows"], cond="CR", uncond="CR")
    image, text = torch.zeros(2, 3, 1), torch.zeros(2, 2, 1)
    for index in range(2):
        at(unit, run, index)
        x, y = unit.handler(0)(lambda a, b: (a + 1, b + 10), (image + index, text), {})
        x, y = unit.handler(1)(lambda a, b: (a + 1, None), (x, y), {})
        assert x.unique().tolist() == [2.0 + index] and y is None


def test_a_run_of_blocks_is_asked_with_the_hidden_states_that_enter_it() -> None:
    later = Site("stack[1:3]", Kind.STACK, None, 1, (1, 3))
    run = Run.of(2, sites=[later])
    seen: list[Tensor] = []

    class Watches(Asked):
        def ask(self, step: fc.Step, branches: tuple[str, ...], source: Any) -> tuple[str, ...]:
            seen.append(source(fc.Signal.PROBE))
            return ()

    given = Duty(History(fc.Hold()), jury=Watches())  # type: ignore[arg-type]
    io = BlockIO.of(Block())
    unit = StackUnit(later, ["blocks.1", "blocks.2"], given, RunState(run), [io, io], ["rows", "rows"], False)
    at(unit, run, 0)
    image, text = torch.zeros(2, 3, 1), torch.ones(2, 2, 1)
    through(unit, image, text, [])
    assert len(seen) == 1 and torch.equal(seen[0], image)

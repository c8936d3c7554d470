"""What is kept of a site is what each branch reads, whoever shared the call: beside plain lists, branch by branch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastercache as fc
from fastercache.policies.schedule import last_reads
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.run.memory import ValueShapes, bound_dynamic
from fastercache.run.rows import Rows
from fastercache.run.store import History, map_tensors, storages, tensors_in
from tests.fastercache.run.test_needs import KeepsInput

BRANCHES = ("cond", "uncond", "perturbed")
COUNT = 9
STEPS = Run.of(COUNT).steps
ROWS = 2
"""Rows of one branch."""


class Weighted(fc.Predictor):
    """The newest values weighted by their steps, the oldest least, plus the step asked for."""

    name: ClassVar[str] = "weighted"
    reach: int

    @property
    def depth(self) -> int:
        return self.reach

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        total: Tensor = sum(one.value * (one.step.index + 10**k) for k, one in enumerate(past)) + now.step.index
        return total


VALUES = torch.randint(-9, 10, (COUNT, 3, 2, ROWS, 3), generator=torch.Generator().manual_seed(0)).double()


def value(step: int, branch: str, stream: int) -> Tensor:
    return VALUES[step, BRANCHES.index(branch), stream]


def together(step: int, branches: Sequence[str], stream: int) -> Tensor:
    return torch.cat([value(step, b, stream) for b in branches])


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[list[tuple[str, ...]], dict[str, str]]]:
    """By step: how the branches are grouped into calls, and a letter for each."""
    found = []
    for i in range(COUNT):
        order = draw(st.permutations(BRANCHES))
        cuts = sorted(draw(st.lists(st.integers(1, 2), max_size=2, unique=True)))
        groups = [tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, 3], strict=True)]
        found.append((groups, {b: "C" if i == 0 else draw(st.sampled_from("CR")) for b in BRANCHES}))
    return found


@settings(max_examples=20)
@given(runs(), st.integers(1, 3), st.booleans())
def test_each_branch_is_predicted_from_its_own_newest_values(run: Any, depth: int, released: bool) -> None:
    """Also where what no later reuse reads is dropped at once: an entry stays while one of its branches reads it."""
    history = History(Weighted(reach=depth))
    by_hand: dict[str, list[int]] = {b: [] for b in BRANCHES}  # computed steps
    codes = {b: ["CR".index(letters[b]) for _, letters in run] for b in BRANCHES}
    last = {b: last_reads(codes[b], depth) for b in BRANCHES}
    for i, (groups, letters) in enumerate(run):
        for group in groups:
            computed = tuple(b for b in group if letters[b] == "C")
            reused = tuple(b for b in group if letters[b] == "R")
            if reused:
                assert all(history.has(b) for b in reused)
                for stream, got in enumerate(history.predict(STEPS[i], reused)):
                    rows = []
                    for b in reused:
                        newest = by_hand[b][-depth:]
                        rows.append(sum(value(j, b, stream) * (j + 10**k) for k, j in enumerate(newest)) + i)
                    assert got is not None and torch.equal(got, torch.cat(rows))  # type: ignore[arg-type]
            kept = tuple(b for b in computed if i in last[b]) if released else computed
            if kept:
                history.add(STEPS[i], kept, [together(i, kept, 0), together(i, kept, 1)], own=True)
            for b in computed:
                by_hand[b].append(i)
        if released:
            history.release(lambda step, b, now=i: last[b].get(step, -1) <= now)
        else:
            assert {b for b in BRANCHES if history.has(b)} == {b for b in BRANCHES if by_hand[b]}
    if released:
        assert history.nbytes == 0 and not history.entries
    else:
        newest = {(j, b) for b in BRANCHES for j in by_hand[b][-depth:]}
        for entry in history.entries:
            assert any((entry.step.index, b) in newest for b in entry.branches), "nothing is kept that no branch reads"
        assert history.nbytes == sum(len(e.branches) * ROWS * 3 * 8 * 2 for e in history.entries)


def test_a_stream_that_is_none_stays_none_and_an_entry_is_copied_where_it_is_not_the_caches_own() -> None:
    history = History(fc.Hold())
    given = torch.ones(4, 3)
    history.add(STEPS[0], ("cond", "uncond"), [given, None], own=False)
    given.zero_()
    first, second = history.predict(STEPS[1], ("uncond",))
    assert first is not None and second is None and torch.equal(first, torch.ones(2, 3))
    owned = torch.ones(4, 3)
    history.add(STEPS[1], ("cond", "uncond"), [owned, None], own=True)
    (kept,) = history.entries  # one value deep: the older entry went
    assert kept.values[0] is owned and history.nbytes == owned.nbytes
    history.clear()
    assert not history.has("cond") and history.nbytes == 0
    history.add(STEPS[2], ("uncond",), [torch.ones(2, 3)], own=True)
    assert history.has("uncond") and not history.has("cond")


@given(st.permutations(BRANCHES), st.permutations(BRANCHES), st.integers(1, 2))
def test_rows_are_cut_and_joined_by_branch(order: list[str], others: list[str], cut: int) -> None:
    whole = Rows(tuple(order))
    tensor = together(0, order, 0)
    some = tuple(others[:cut])
    assert torch.equal(whole.of(tensor, some), together(0, some, 0))
    rest = tuple(others[cut:])
    assert torch.equal(whole.join({some: together(0, some, 0), rest: together(0, rest, 0)}), tensor)
    streams = whole.join_streams({some: [together(0, some, 0), None], rest: [together(0, rest, 0), tensor], (): []})
    assert streams[0] is not None and torch.equal(streams[0], tensor) and streams[1] is None


class Watching(fc.SitePolicy, fc.WatchingRule[None]):
    """Watches the denoiser's input and says that it remembers four values."""

    name: ClassVar[str] = "watching"

    @property
    def query(self) -> str:
        return "all"

    @property
    def signal(self) -> fc.Signal:
        return fc.Signal.INPUT

    @property
    def remembers(self) -> int:
        return 4

    def reuse(self, state: None, step: fc.Step, seen: Tensor | None) -> bool:
        return False


def test_the_bound_of_a_dynamic_policy_is_its_predictors_past_and_what_its_rule_remembers() -> None:
    """Values of 2 x 5 floats a branch, an input of 2 x 7: the larger one is what a remembered value may be."""
    module, branch = Site("blocks.0.ff", Kind.MODULE, fc.Role.FF, 0, (0, 1)), Site("branch", Kind.BRANCH)
    shapes = ValueShapes(lambda site: [((2, 5), torch.float32)], ((2, 7), torch.float32))
    assigned = {site: fc.Assigned(Watching(), fc.Taylor(order=2)) for site in (module, branch)}
    bound = bound_dynamic(assigned, BRANCHES, shapes, None, COUNT)
    own, seen, past, remembered = 2 * 5 * 4, 2 * 7 * 4, 3, 4
    assert not bound.exact and bound.by_site == {
        "blocks.0.ff": own * past * 3 + seen * remembered * 3,
        "branch": own * past * 2 + seen * remembered * 3,  # the conditional branch has no difference to itself
    }
    assert bound.per_step == [sum(bound.by_site.values())] * COUNT
    half = bound_dynamic(assigned, BRANCHES, shapes, torch.float16, COUNT)
    assert half.by_site["blocks.0.ff"] == own // 2 * past * 3 + seen * remembered * 3
    static = bound_dynamic({module: fc.Assigned(fc.StaticInterval(), fc.Hold())}, BRANCHES, shapes, None, COUNT)
    assert static.peak == own * 3


class Keeping(KeepsInput):
    """Gives what was seen with the newest value plus ten times what is seen now; the value itself where nothing is."""

    name: ClassVar[str] = "keeping_store"

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        value, seen = past[-1].value
        assert (seen is None) is (now.seen is None)
        found: Tensor = value if seen is None or now.seen is None else seen + 10 * now.seen
        return found


def column(*rows: float) -> Tensor:
    return torch.tensor(rows)[:, None]


@pytest.mark.parametrize("by_first", [True, False])
def test_what_is_seen_belongs_to_the_first_stream_alone_where_it_is_said(by_first: bool) -> None:
    """Branch by branch: of the rows (cond 1, uncond 2) seen then and (uncond 3, cond 4) seen now."""
    history = History(Keeping(), seen_by_first=by_first)
    seen = column(1.0, 2.0)
    history.add(STEPS[0], ("cond", "uncond"), [column(5.0, 6.0), column(7.0, 8.0)], own=True, seen=seen)
    seen.zero_()  # what was seen is not the cache's own
    first, second = history.predict(STEPS[1], ("uncond", "cond"), column(3.0, 4.0))
    assert first is not None and first.flatten().tolist() == [2 + 30, 1 + 40]
    assert second is not None and second.flatten().tolist() == ([8, 7] if by_first else [2 + 30, 1 + 40])
    one_row = 4
    assert history.nbytes == 2 * one_row * 3, "two streams and, once for both, what was seen"


class KeepsView(Keeping):
    """Keeps a view of what was seen."""

    name: ClassVar[str] = "keeping_view"

    def keep(self, value: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return value, None if seen is None else seen.view(-1, 1)


@pytest.mark.parametrize("predictor", [Keeping(), KeepsView()], ids=["itself", "a view"])
def test_what_was_seen_may_change_afterwards(predictor: fc.Predictor) -> None:
    history = History(predictor)
    seen, value = column(1.0, 2.0), column(5.0, 6.0)
    history.add(STEPS[0], ("cond", "uncond"), [value], own=True, seen=seen)
    seen.mul_(7.0)
    (found,) = history.predict(STEPS[1], ("cond", "uncond"), column(0.0, 0.0))
    assert found is not None and found.flatten().tolist() == [1, 2]
    assert history.entries[-1].values[0][0] is value, "a value of the cache's own is not copied"


def test_a_slice_is_kept_without_what_it_was_cut_from() -> None:
    """The text's part of a joint attention: 2 of 10 tokens, and the cache holds no more."""
    joint = torch.arange(20.0).reshape(1, 10, 2)
    history = History(fc.Hold())
    history.add(STEPS[0], ("cond",), [joint[:, :2]], own=True)
    assert history.nbytes == 4 * 4
    joint.zero_()
    (found,) = history.predict(STEPS[1], ("cond",))
    assert found is not None and found.flatten().tolist() == [0, 1, 2, 3]


def test_values_are_kept_in_the_caches_dtype_and_on_its_device_and_come_back_as_they_were() -> None:
    history = History(fc.Linear(), torch.float16)
    for i in range(2):
        history.add(STEPS[i], ("cond",), [column(1.0 + i / 3).double(), None], own=True)
    kept = history.entries[-1].values[0]
    assert kept.dtype == torch.float16 and history.nbytes == 2 * 2
    assert history.entries[-1].origin == [[(torch.float64, torch.device("cpu"))], []]
    found, nothing = history.predict(STEPS[2], ("cond",))
    halves = [float(torch.tensor(1.0 + i / 3, dtype=torch.float16)) for i in range(2)]
    assert nothing is None and found is not None and found.dtype == torch.float64
    assert float(found) == pytest.approx(2 * halves[1] - halves[0], rel=1e-12)
    elsewhere = History(fc.Hold(), device=torch.device("meta"))
    elsewhere.add(STEPS[0], ("cond",), [column(1.0)], own=True)
    assert (
        elsewhere.entries[0].values[0].device.type == "meta" and elsewhere.entries[0].values[0].dtype == torch.float32
    )
    plain = History(fc.Hold())
    plain.add(STEPS[0], ("cond",), [column(1.0)], own=True)
    assert plain.entries[0].values[0].device.type == "cpu"


def test_a_stream_that_the_newest_call_did_not_give_is_not_put_in() -> None:
    history = History(fc.Linear())
    history.add(STEPS[0], ("cond",), [column(1.0), column(2.0)], own=True)
    history.add(STEPS[1], ("cond",), [column(3.0), None], own=True)
    found, nothing = history.predict(STEPS[2], ("cond",))
    assert found is not None and found.tolist() == [[5.0]] and nothing is None


@pytest.mark.parametrize("predictor", [fc.Hold(), fc.Linear()], ids=lambda one: one.name)
def test_rows_are_given_in_the_order_that_is_asked_for(predictor: fc.Predictor) -> None:
    """What was stored of (cond, uncond) is asked for as (uncond, cond), and one branch at a time."""
    history = History(predictor)
    for i in range(2):
        history.add(STEPS[i], ("cond", "uncond"), [column(10.0, 20.0)], own=True)
    for asked, rows in ((("cond", "uncond"), [10, 20]), (("uncond", "cond"), [20, 10]), (("uncond",), [20])):
        (found,) = history.predict(STEPS[2], asked)
        assert found is not None and found.flatten().tolist() == rows


def test_an_entry_goes_once_all_of_its_branches_are_unread() -> None:
    history = History(fc.Linear())
    history.add(STEPS[0], ("cond", "uncond"), [column(1.0, 2.0)], own=True)
    history.add(STEPS[1], ("cond",), [column(3.0)], own=True)
    history.release(lambda step, branch: branch == "cond" and step == 0)
    assert [entry.step.index for entry in history.entries] == [0, 1], "one of its branches is read yet"
    history.release(lambda step, branch: step == 0)
    assert [entry.step.index for entry in history.entries] == [1]
    assert history.has("cond") and not history.has("uncond")


@dataclass
class Holder:
    first: Tensor
    rest: Any


def test_tensors_are_found_and_replaced_wherever_they_lie() -> None:
    a, b, c = (torch.full((2,), float(i)) for i in range(3))
    nested = {"x": [a, (b, "word")], "y": Holder(c, deque([a, None]))}
    assert [float(t[0]) for t in tensors_in(nested)] == [0.0, 1.0, 2.0, 0.0]
    assert (
        tensors_in(Holder) == [] and tensors_in("word") == [] and tensors_in({a}) == [a] == tensors_in(frozenset({a}))
    )
    assert sum(storages(nested).values()) == 3 * 2 * 4, "a storage counts once"
    assert storages([a, a[:1]]) == storages(a)
    doubled = map_tensors({"x": [b, (c, "word")], "n": None}, lambda t: 2 * t)
    assert doubled["x"][0].tolist() == [2.0, 2.0] and doubled["n"] is None
    assert isinstance(doubled["x"], list) and isinstance(doubled["x"][1], tuple) and doubled["x"][1][1] == "word"

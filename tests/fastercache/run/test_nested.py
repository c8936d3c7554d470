"""Random schedules of every kind of site and branch at once, beside a recursion over sites, branches and steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import fastercache as fc
from fastercache.policies.base import Assigned, Hold
from fastercache.policies.schedule import LETTERS, Code
from fastercache.policies.signals import Signal
from tests.fastercache.toy import TIMES, Toy, given, loop, near

GAINS = (0.25, -0.5, 0.125)
STACKS = {"stack": (0, 3), "stack[0:2]": (0, 2), "stack[1:3]": (1, 3), "stack[1:2]": (1, 2)}
SITES = ("denoiser", "branch", *STACKS, *(f"blocks.{i}" for i in range(3)), *(f"blocks.{i}.attn" for i in range(3)))
Lines = dict[str, dict[str, str]]  # site -> branch -> letters


class ByHand:
    """One run by a recursion from the outermost site inwards; a value is kept whenever its site is computed."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.kept: dict[tuple[str, str], float] = {}
        self.codes: dict[tuple[str, str], list[str]] = {}

    def reused(self, site: str, branch: str, step: int) -> bool:
        """Whether it is, noted; the first time there is nothing to reuse."""
        asked = self.lines.get(site, {}).get(branch, "C" * len(TIMES))[step] == "R"
        found = asked and (site, branch) in self.kept
        self.codes.setdefault((site, branch), ["-"] * len(TIMES))[step] = "R" if found else "C"
        return found

    def block(self, x: float, i: int, branch: str, step: int) -> float:
        name = f"blocks.{i}"
        if self.reused(name, branch, step):
            return x + self.kept[name, branch]
        if not self.reused(f"{name}.attn", branch, step):
            self.kept[f"{name}.attn", branch] = GAINS[i] * x**2
        self.kept[name, branch] = self.kept[f"{name}.attn", branch]
        return x + self.kept[name, branch]

    def stack(self, x: float, span: tuple[int, int], wider: tuple[str, ...], branch: str, step: int) -> float:
        """The blocks of a span; `wider` are the stacks that are decided about already."""
        start, stop = span
        at = start
        while at < stop:
            inner = [
                name
                for name in self.lines
                if name in STACKS and name not in wider and STACKS[name][0] == at and STACKS[name][1] <= stop
            ]
            if not inner:
                x, at = self.block(x, at, branch, step), at + 1
                continue
            name = max(inner, key=lambda one: STACKS[one][1])
            if self.reused(name, branch, step):
                x += self.kept[name, branch]
            else:
                before = x
                x = self.stack(x, STACKS[name], (*wider, name), branch, step)
                self.kept[name, branch] = x - before
            at = STACKS[name][1]
        return x

    def run(self) -> list[dict[str, float]]:
        found: list[dict[str, float]] = []
        for step, time in enumerate(TIMES):
            outputs: dict[str, float] = {}
            for branch in ("cond", "uncond"):
                if self.reused("denoiser", branch, step):
                    outputs[branch] = self.kept["denoiser", branch]
                    continue
                if branch == "uncond" and self.reused("branch", branch, step):
                    self.codes["denoiser", branch][step] = "-"
                    outputs[branch] = outputs["cond"] + self.kept["branch", branch]
                    continue
                entry = given(step, branch) + time / 1000
                self.kept["denoiser", branch] = outputs[branch] = self.stack(entry, (0, 3), (), branch, step)
                if branch == "uncond":
                    self.kept["branch", branch] = outputs[branch] - outputs["cond"]
            found.append(outputs)
        return found


letters = st.text("CR", min_size=len(TIMES), max_size=len(TIMES))
APART = ({*SITES} - {"stack[1:3]"}, {*SITES} - {"stack[0:2]"})  # those two lie across each other
sites = st.sampled_from(APART).flatmap(lambda some: st.sets(st.sampled_from(sorted(some)), min_size=1, max_size=6))
everything = sites.flatmap(
    lambda names: st.fixed_dictionaries(
        {name: st.fixed_dictionaries({"cond": letters, "uncond": letters}) for name in sorted(names)}
    )
)


def policy_of(lines: Lines) -> fc.Schedule:
    return fc.Schedule(
        rows=tuple(
            fc.Row(sites=site, branch=branch, steps=steps)
            for site, by_branch in lines.items()
            for branch, steps in by_branch.items()
            if (site, branch) != ("branch", "cond")
        )
    )


class Told(fc.Policy):
    """Decides by the same letters, but while the model runs, and holds the runtime to what a rule is promised."""

    name: ClassVar[str] = "told_while_it_runs"
    lines: Lines
    codes: Lines

    @property
    def static(self) -> bool:
        return False

    def assign(self, run: fc.Run) -> Mapping[fc.Site, Assigned]:
        return {site: Assigned(Watching(self.lines, self.codes), Hold()) for site in policy_of(self.lines).assign(run)}


@dataclass(frozen=True)
class Watching(fc.WatchingRule[tuple[str, str, list[int]]]):
    """Its state: the site, the branch, and the steps at which the site was computed. `codes`: what is to happen."""

    lines: Lines
    codes: Lines

    @property
    def signal(self) -> Signal:
        return Signal.INPUT

    def begin(self, site: fc.Site, branch: str, run: fc.Run) -> tuple[str, str, list[int]]:
        return site.name, branch, []

    def reuse(self, state: tuple[str, str, list[int]], step: fc.Step, seen: Tensor | None) -> bool:
        site, branch, computed = state
        assert seen is not None
        assert computed == [i for i in range(step.index) if self.codes[site][branch][i] == "C"]
        assert seen.flatten().tolist() == [given(step.index, branch)]
        return self.lines[site].get(branch, "C" * len(TIMES))[step.index] == "R"

    def update(self, state: tuple[str, str, list[int]], step: fc.Step, value: Tensor) -> tuple[str, str, list[int]]:
        assert value.shape[0] == 1
        return *state[:2], [*state[2], step.index]


def ran(model: Toy) -> int:
    """Rows that all modules have run for."""
    return sum(block.attn.rows for block in model.blocks)  # type: ignore[misc,union-attr]


def letters_of(trace: fc.Trace) -> dict[tuple[str, str], str]:
    return {
        (site.name, branch): "".join(LETTERS[Code(code)] for code in trace.codes[s, b])
        for s, site in enumerate(trace.sites)
        for b, branch in enumerate(trace.run.branches)
    }


@pytest.mark.parametrize("groups", [[("uncond", "cond")], [("cond",), ("uncond",)]], ids=["batched", "separate"])
@settings(max_examples=80, deadline=None)
@drawn(lines=everything)
def test_sites_inside_of_one_another(groups: Any, lines: Lines) -> None:
    """Outputs, trace, compiled table and held bytes, in two runs of one session; then the same decided on the way."""
    model, hand, policy = Toy(GAINS), ByHand(lines), policy_of(lines)
    expected = hand.run()
    style: Any = "batched" if len(groups) == 1 else "separate"
    with fc.attach(model, policy, guidance=style, branches=[b for group in groups for b in group]) as session:
        near(loop(model, session, groups), expected, within=1e-5)  # the first run counts FLOPs, too
        before = ran(model)
        near(loop(model, session, groups), expected, within=1e-5)
        trace = session.last
        assert sum(trace.flops) == 2 * (ran(model) - before)
        told = letters_of(trace)
        assert told == {key: "".join(hand.codes.get(key, "-" * len(TIMES))) for key in told}
        assert trace.codes.tolist() == fc.compile_policy(policy, trace.run).codes.tolist()
        assert trace.bytes_per_step == session.plan().per_step
        codes = {site: {b: told[site, b] for b in trace.run.branches} for site in lines}
        session.use(Told(lines=lines, codes=codes))
        heard: list[tuple[str, str, int, str]] = []
        session.watch(
            "|".join(lines), lambda one: heard.append((one.site.name, one.branch, one.step.index, LETTERS[one.code]))
        )
        for _ in range(2):
            heard.clear()
            near(loop(model, session, groups), expected, within=1e-5)
        assert letters_of(session.last) == told
        assert session.last.flops == trace.flops
        at_once = [seen for seen in heard if seen[0] not in ("denoiser", "branch")]
        assert sorted(at_once) == sorted(
            (site, branch, i, letter)
            for (site, branch), letters in told.items()
            for i, letter in enumerate(letters)
            if letter != "-" and site not in ("denoiser", "branch")
        )


@pytest.mark.parametrize("names", ["stack[0:2]|stack[1:3]", "stack|stack[0:3]"])
def test_runs_of_blocks_that_lie_across_each_other_are_refused(names: str) -> None:
    model = Toy(GAINS)
    with fc.attach(model, fc.StaticInterval(sites=names), guidance="none") as session:
        session.start(TIMES)
        with pytest.raises(fc.SiteConflict, match="share blocks, and neither lies inside the other"):
            model(torch.zeros(1, 1, 1, 1), torch.zeros(1))


@pytest.fixture
def compiled() -> Iterator[Toy]:
    torch._dynamo.reset()
    model = Toy(GAINS)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)  # type: ignore[no-untyped-call]
    yield model
    torch._dynamo.reset()


def test_a_module_of_a_compiled_block_inside_a_stack_that_is_reused_for_one_branch(compiled: Toy) -> None:
    lines = {
        "stack": {"cond": "CCCC", "uncond": "CRRC"},
        "blocks.1.attn": {"cond": "CCRR", "uncond": "CCRR"},
    }
    hand = ByHand(lines)
    expected = hand.run()
    with fc.attach(compiled, policy_of(lines), guidance="batched", branches=["uncond", "cond"]) as session:
        near(loop(compiled, session, [("uncond", "cond")]), expected, within=1e-5)
        told = letters_of(session.last)
        assert told == {key: "".join(hand.codes[key]) for key in told}


def test_a_module_of_a_compiled_block_that_is_reused_for_one_branch_is_refused(compiled: Toy) -> None:
    lines = {
        "blocks.1": {"cond": "CCCC", "uncond": "CRCC"},
        "blocks.1.attn": {"cond": "CCRC", "uncond": "CCRC"},
    }
    session = fc.attach(compiled, policy_of(lines), guidance="batched", branches=["uncond", "cond"])
    with (
        session,
        pytest.raises(fc.AttachError, match=r"blocks\.1 is reused for some branches, and blocks\.1\.attn inside it"),
    ):
        loop(compiled, session, [("uncond", "cond")])

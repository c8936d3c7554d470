"""Calls of a denoiser of two blocks under policies of every kind of site, beside the numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.model.families import Family
from fastercache.policies.errors import BranchUnknown
from fastercache.policies.schedule import Code
from tests.fastercache.toy import TIMES, Toy, given, loop, near, rows

BATCHED, SEPARATE = [("uncond", "cond")], [("cond",), ("uncond",)]
C, R, U = Code.COMPUTED, Code.REUSED, Code.UNREACHED


def attached(model: Any, groups: Sequence[Sequence[str]], policy: fc.Policy, **more: Any) -> fc.Session:
    style = "batched" if len(groups[0]) > 1 else "separate"
    return fc.attach(model, policy, guidance=style, branches=[b for g in groups for b in g], **more)  # type: ignore[arg-type]


def schedule(*lines: tuple[str, str, str]) -> fc.Schedule:
    return fc.Schedule(rows=tuple(fc.Row(sites=site, branch=branch, steps=steps) for site, branch, steps in lines))


def by_hand(lines: Sequence[tuple[str, str, str]], gains: Sequence[float] = (0.25, -0.5)) -> list[dict[str, float]]:
    """The same run of the toy by a loop over branches and steps; sites are told by name, outer ones first."""
    steps = {(site, branch): codes for site, branch, codes in lines}
    kept: dict[tuple[str, str], float] = {}
    found: list[dict[str, float]] = []

    def reused(site: str, branch: str, step: int) -> bool:
        return steps.get((site, branch), "C" * len(TIMES))[step] == "R"

    for step, time in enumerate(TIMES):
        found.append({})
        for branch in ("cond", "uncond"):
            if reused("denoiser", branch, step):
                found[-1][branch] = kept["denoiser", branch]
                continue
            if branch == "uncond" and reused("branch", branch, step):
                found[-1][branch] = found[-1]["cond"] + kept["branch", branch]
                continue
            entry = x = given(step, branch) + time / 1000
            if reused("stack", branch, step):
                x = entry + kept["stack", branch]
            else:
                for i, gain in enumerate(gains):
                    name, before = f"blocks.{i}", x
                    if reused(name, branch, step):
                        x = before + kept[name, branch]
                        continue
                    if not reused(f"{name}.attn", branch, step):
                        kept[f"{name}.attn", branch] = gain * x**2
                    x = x + kept[f"{name}.attn", branch]
                    kept[name, branch] = x - before
                kept["stack", branch] = x - entry
            found[-1][branch] = kept["denoiser", branch] = x
            if branch == "uncond":
                kept["branch", branch] = x - found[-1]["cond"]
    return found


LINES: dict[str, list[tuple[str, str, str]]] = {
    "denoiser": [("denoiser", "cond", "CCRR"), ("denoiser", "uncond", "CRCR")],
    "branch": [("branch", "uncond", "CRCR")],
    "stack": [("stack", "cond", "CRCR"), ("stack", "uncond", "CRCR")],
    "stack by branch": [("stack", "cond", "CCRR"), ("stack", "uncond", "CRRC")],
    "a block": [("blocks.1", "cond", "CRRC"), ("blocks.1", "uncond", "CCRC")],
    "a module": [("blocks.0.attn", "cond", "CCRC"), ("blocks.0.attn", "uncond", "CRRC")],
    "a block over its module": [
        ("blocks.0", "cond", "CRCC"), ("blocks.0", "uncond", "CRCC"),
        ("blocks.0.attn", "cond", "CCRR"), ("blocks.0.attn", "uncond", "CCRC"),
    ],
    "a stack over a module": [
        ("stack", "cond", "CRCC"), ("stack", "uncond", "CRCC"),
        ("blocks.1.attn", "cond", "CCRR"), ("blocks.1.attn", "uncond", "CCRR"),
    ],
    "a stack over its blocks": [
        ("stack", "cond", "CRCC"), ("stack", "uncond", "CRCC"),
        ("blocks.1", "cond", "CCRR"), ("blocks.1", "uncond", "CCCR"),
    ],
    "everything": [
        ("denoiser", "cond", "CCCR"), ("denoiser", "uncond", "CCCR"), ("branch", "uncond", "CCRC"),
        ("stack", "cond", "CRCC"), ("stack", "uncond", "CRCC"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("groups", [BATCHED, SEPARATE], ids=["batched", "separate"])
@pytest.mark.parametrize("name", LINES)
def test_every_kind_of_site_gives_what_is_worked_out_by_hand(name: str, groups: Any) -> None:
    """Two runs in one session, so that nothing of the first is left in the second."""
    model = Toy()
    expected = by_hand(LINES[name])
    with attached(model, groups, schedule(*LINES[name])) as session:
        for _ in range(2):
            near(loop(model, session, groups), expected)
            assert session.last.complete
        table = fc.compile_policy(schedule(*LINES[name]), session.last.run)
        assert session.last.codes.tolist() == table.codes.tolist()
        assert session.last.bytes_per_step == session.plan().per_step


def test_a_branch_that_is_left_out_is_not_computed() -> None:
    model = Toy()
    lines = [("denoiser", "cond", "CCCR"), ("denoiser", "uncond", "CRCR")]
    with attached(model, BATCHED, schedule(*lines)) as session:
        sizes: list[int] = []
        model.blocks[0].register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0]))
        loop(model, session, BATCHED)
        full = session.last.flops_full
        assert model.calls == 3 and sizes == [2, 1, 2]
        assert full == [2 * 2 * 2] * 4 and session.last.flops == [8, 4, 8, 0]


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("inseparable", [True, False])
def test_a_family_whose_rows_cannot_be_told_apart_computes_all_of_a_call(inseparable: bool) -> None:
    class Bound(Toy):
        pass

    fc.register_family(Bound, Family("batched", inseparable=inseparable))
    model = Bound()
    alike = [("denoiser", "cond", "CRCR"), ("denoiser", "uncond", "CRCR")]
    with fc.attach(model, schedule(*alike)) as session:
        near(loop(model, session, BATCHED), by_hand(alike))
    apart = [("denoiser", "cond", "CCCR"), ("denoiser", "uncond", "CRCR")]
    with fc.attach(model, schedule(*apart)) as session:
        if inseparable:
            with pytest.raises(BranchUnknown, match="rows along another axis"):
                loop(model, session, BATCHED)
        else:
            near(loop(model, session, BATCHED), by_hand(apart))


@pytest.mark.parametrize("sites", ["denoiser", "blocks.0.attn"])
def test_rows_of_an_order_that_is_only_assumed_are_not_cut(sites: str) -> None:
    model = Toy()
    by_branch = schedule((sites, "cond", "CCCC"), (sites, "uncond", "CRCR"))
    with (
        fc.attach(model, by_branch, guidance="batched") as session,
        pytest.raises(BranchUnknown, match="is the conditional one"),
    ):
        loop(model, session, BATCHED)
    alike = [(sites, "cond", "CRCR"), (sites, "uncond", "CRCR")]
    with fc.attach(model, schedule(*alike), guidance="batched") as session:
        near(loop(model, session, BATCHED), by_hand(alike))


class Overwriting(Toy):
    """Writes into what its first attention returned."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = hidden_states + timestep.reshape(-1, 1, 1, 1) / 1000
        for block in self.blocks:
            found = block.attn(x)
            x = x + found
            found.mul_(7.0)
        return x


@pytest.mark.parametrize("hooked", ["", "before", "after"])
def test_a_value_that_is_written_into_is_a_copy_of_what_is_kept(hooked: str) -> None:
    """By the model itself, or by a hook of the user's on a block that is given it."""
    model = Overwriting() if not hooked else Toy()
    lines = [(f"blocks.{i}.attn", b, "CRRR") for i in range(2) for b in ("cond", "uncond")]
    kept: list[float] = []
    if hooked == "after":
        model.blocks[0].attn.register_forward_hook(lambda module, args, output: output.mul_(7.0) / 7.0)
    if hooked == "before":
        model.blocks[0].register_forward_pre_hook(lambda module, args: None)
    with attached(model, BATCHED, schedule(*lines)) as session:
        session.watch("blocks.0.attn", lambda seen: kept.append(float(seen.value)) if seen.branch == "cond" else None)
        loop(model, session, BATCHED)
    entry = given(0, "cond") + TIMES[0] / 1000
    assert kept == pytest.approx([0.25 * entry**2] * 4, rel=1e-6)


class Bold(fc.SitePolicy, fc.WatchingRule[list[float]]):
    """Reuses at odd steps; notes what it is shown of the first block."""

    name: ClassVar[str] = "bold_here"
    sites: str = "stack[1:]"
    wanted: fc.Signal = fc.Signal.FIRST_BLOCK_RESIDUAL
    seen: ClassVar[list[tuple[int, list[float]]]] = []

    @property
    def query(self) -> str:
        return self.sites

    @property
    def signal(self) -> fc.Signal:
        return self.wanted

    @property
    def decides(self) -> fc.Scope:
        return fc.Scope.CALL

    def begin(self, site: fc.Site, branch: str, run: fc.Run) -> list[float]:
        return []

    def reuse(self, state: list[float], step: fc.Step, seen: Tensor | None) -> bool:
        assert seen is not None
        self.seen.append((step.index, seen.flatten().tolist()))
        return step.index % 2 == 1


@pytest.mark.parametrize("sites", ["stack[1:]", "blocks.1", "blocks.1.attn"])
def test_what_a_rule_is_shown_of_the_first_block_is_of_the_present_step(sites: str) -> None:
    """Also where no site lies in that block, and with a watcher on it."""
    Bold.seen.clear()
    model = Toy()
    watched: list[float] = []
    with attached(model, BATCHED, Bold(sites=sites)) as session:
        session.watch("blocks.0", lambda one: watched.append(float(one.value)))
        for _ in range(2):
            loop(model, session, BATCHED)
    entries = [[given(i, b) + t / 1000 for b in ("uncond", "cond")] for i, t in enumerate(TIMES)]
    added = [[0.25 * x**2 for x in both] for both in entries]
    assert [step for step, _ in Bold.seen] == [0, 1, 2, 3] * 2
    for (step, found), expected in zip(Bold.seen, added * 2, strict=True):
        assert found == pytest.approx(expected, rel=1e-5), step
    assert watched == pytest.approx([x for both in added * 2 for x in both], rel=1e-5)


def test_what_a_dynamic_policy_holds_is_counted_with_what_its_rule_remembers() -> None:
    """Each branch holds a value of 4 bytes at the site, and one in its state."""

    class Remembering(fc.SitePolicy, fc.WatchingRule[list[Tensor]]):
        name: ClassVar[str] = "remembering_here"

        @property
        def query(self) -> str:
            return "denoiser"

        @property
        def signal(self) -> fc.Signal:
            return fc.Signal.INPUT

        @property
        def remembers(self) -> int:
            return 1

        def begin(self, site: fc.Site, branch: str, run: fc.Run) -> list[Tensor]:
            return []

        def reuse(self, state: list[Tensor], step: fc.Step, seen: Tensor | None) -> bool:
            assert seen is not None
            state[:] = [seen.clone()]
            return step.index % 2 == 1

    model = Toy()
    with attached(model, SEPARATE, Remembering()) as session:
        loop(model, session, SEPARATE)
        assert session.last.bytes_per_step == [16] * 4 and session.plan().peak == 16
        assert session.last.codes[0].tolist() == [[C, R, C, R]] * 2


def test_three_branches_of_which_the_outer_two_are_left_over() -> None:
    """Rows (uncond, cond, perturbed) with the middle one reused: the others are computed from their own rows."""
    groups = [("uncond", "cond", "perturbed")]
    lines = [("denoiser", b, "CRCC" if b == "cond" else "CCCC") for b in groups[0]]
    model = Toy()
    bare: list[dict[str, float]] = []
    with attached(model, groups, fc.NoCache(sites="denoiser")) as session:
        bare = loop(model, session, groups)
    with attached(model, groups, schedule(*lines)) as session:
        found = loop(model, session, groups)
    expected = [dict(one) for one in bare]
    expected[1]["cond"] = bare[0]["cond"]
    near(found, expected)


def test_a_run_that_broke_off_leaves_nothing_for_the_next() -> None:
    """An error in the second step of a loop of one's own; then a run that is announced anew."""
    model = Toy()
    lines = LINES["everything"]
    with attached(model, SEPARATE, schedule(*lines)) as session:
        session.start(TIMES)
        for _ in range(2):
            model(rows(3.0), torch.tensor([900.0]))
        handle = model.register_forward_pre_hook(_fail)
        with pytest.raises(KeyError):
            model(rows(3.0), torch.tensor([700.0]))
        handle.remove()
        near(loop(model, session, SEPARATE), by_hand(lines))
        assert [trace.complete for trace in session.traces] == [False, True]


def _fail(module: Any, args: Any) -> None:
    raise KeyError("stop")


def test_steps_that_differ_in_length_are_followed_by_what_they_say() -> None:
    """The reuse of a linear forecast over uneven timesteps reads the steps of the run, as the trace has them."""
    times = [900.0, 850.0, 400.0, 390.0]
    model = Toy()
    row = fc.Row(sites="denoiser", steps="CCRC").model_copy(update={"predictor": fc.Linear()})
    with attached(model, BATCHED, fc.NoCache(sites="denoiser")) as session:
        bare = loop(model, session, BATCHED, times)
        assert [step.timestep for step in session.last.run.steps] == times
    with attached(model, BATCHED, fc.Schedule(rows=(row,))) as session:
        found = loop(model, session, BATCHED, times)
    past = [fc.Past(session.last.run.steps[i], torch.tensor([bare[i]["uncond"], bare[i]["cond"]])) for i in range(2)]
    expected = fc.Linear().predict(past, fc.Now(session.last.run.steps[2]))
    assert [found[2]["uncond"], found[2]["cond"]] == pytest.approx(expected.tolist(), rel=1e-6)
    assert all(a["cond"] != b["cond"] for a, b in pairwise(found))


def test_another_policy_at_other_sites_leaves_no_handler_behind() -> None:
    model = Toy()
    lines = [("blocks.0.attn", b, "CRRR") for b in ("cond", "uncond")]
    with attached(model, BATCHED, schedule(*lines)) as session:
        near(loop(model, session, BATCHED), by_hand(lines))
        session.use(fc.NoCache(sites="denoiser"))
        near(loop(model, session, BATCHED), by_hand([]))
        session.use(schedule(*LINES["stack"]))
        near(loop(model, session, BATCHED), by_hand(LINES["stack"]))
        assert session.last.flops == [8, 0, 8, 0]
        session.use(fc.NoCache(sites="blocks.1"))
        near(loop(model, session, BATCHED), by_hand([]))
        assert (session.last.codes == C).all()


@pytest.mark.parametrize("groups", [[("uncond",), ("cond",)], SEPARATE])
def test_what_is_held_of_a_conditional_output_is_in_the_trace_and_in_the_plan(groups: Any) -> None:
    """A difference of 4 bytes; and 4 more where the unconditional call comes first and the next step reuses it."""
    model = Toy()
    with attached(model, groups, schedule(("branch", "uncond", "CCRC"))) as session:
        loop(model, session, groups)
        first = groups[0] == ("uncond",)
        assert session.last.bytes_per_step == session.plan().per_step == [0, 8 if first else 4, 0, 0]


class BesideInput(fc.Predictor):
    """Keeps the denoiser's input beside each value."""

    name: ClassVar[str] = "beside_input_here"

    @property
    def needs(self) -> fc.Signal:
        return fc.Signal.INPUT

    def keep(self, value: Tensor, seen: Tensor | None) -> Any:
        return value, seen

    def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
        value, then = past[-1].value
        assert now.seen is not None
        found: Tensor = value + now.seen - then
        return found


@pytest.mark.parametrize("groups", [BATCHED, SEPARATE], ids=["batched", "separate"])
@pytest.mark.parametrize("site", ["denoiser", "blocks.0.attn"])
def test_the_input_that_a_predictor_keeps_is_counted_branch_by_branch(site: str, groups: Any) -> None:
    """A value and an input of 4 bytes each, of two branches."""
    model = Toy()
    row = fc.Row(sites=site, steps="CRCC").model_copy(update={"predictor": BesideInput()})
    with attached(model, groups, fc.Schedule(rows=(row,))) as session:
        found = loop(model, session, groups)
        assert session.last.bytes_per_step == session.plan().per_step == [16, 0, 0, 0]
    if site == "denoiser":
        bare = by_hand([])[0]
        assert found[1] == pytest.approx({b: bare[b] + given(1, b) - given(0, b) for b in bare}, abs=1e-6)


class Repeated(Toy):
    """Calls its first attention twice: of its input, and of minus half of it."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        attention = self.blocks[0].attn
        found: Tensor = attention(hidden_states) - 3 * attention(-hidden_states / 2)
        return found


def test_a_module_that_is_called_twice_a_step_gives_each_calls_own_value() -> None:
    model = Repeated()
    lines = [("blocks.0.attn", "cond", "CRCC"), ("blocks.0.attn", "uncond", "CCCC")]
    with attached(model, BATCHED, schedule(*lines)) as session:
        found = loop(model, session, BATCHED)
    newest = {"cond": [0, 0, 2, 3], "uncond": [0, 1, 2, 3]}
    value = {b: [0.25 * given(i, b) ** 2 * (1 - 3 / 4) for i in steps] for b, steps in newest.items()}
    near(found, [{b: value[b][i] for b in value} for i in range(4)])


def test_calls_by_keyword_are_cut_and_counted_too() -> None:
    model = Toy()
    lines = [("denoiser", "cond", "CCCC"), ("denoiser", "uncond", "CRCC")]
    with attached(model, BATCHED, schedule(*lines)) as session, torch.no_grad():
        session.start(TIMES)
        for time in TIMES:
            model(hidden_states=rows(1.0, 2.0), timestep=torch.full((2,), time))
        assert session.last.flops == [8, 4, 8, 8] and session.last.flops_full == [8] * 4
        assert session.last.calls == 4 and session.last.speedup_flops == 32 / 28


def test_an_aligned_predictor_is_given_what_the_first_block_sees() -> None:
    """Its signal is watched for the predictor alone: the rule of a schedule asks for none."""
    model = Toy()
    needs: list[list[float]] = []

    class Noting(BesideInput):
        name: ClassVar[str] = "noting_here"

        @property
        def needs(self) -> fc.Signal:
            return fc.Signal.FIRST_BLOCK_RESIDUAL

        def predict(self, past: Sequence[fc.Past], now: fc.Now) -> Tensor:
            assert now.seen is not None
            needs.append([*past[-1].value[1].flatten().tolist(), *now.seen.flatten().tolist()])
            found: Tensor = past[-1].value[0]
            return found

    row = fc.Row(sites="blocks.1", steps="CRCC").model_copy(update={"predictor": Noting()})
    with attached(model, SEPARATE, fc.Schedule(rows=(row,))) as session:
        loop(model, session, SEPARATE)
    expected = [
        [0.25 * (given(i, b) + TIMES[i] / 1000) ** 2 for i in range(2)] for b in ("cond", "uncond")
    ]  # fmt: skip
    for a, b in zip(needs, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


class Sounding(Toy):
    """Gives a second output, which is no number."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Any:
        return super().forward(hidden_states, timestep), hidden_states * float("nan")


def test_every_output_is_looked_at() -> None:
    model = Sounding()
    with attached(model, SEPARATE, fc.NoCache(sites="denoiser")) as session:
        session.start(TIMES[:1])
        model(rows(1.0), torch.tensor([900.0]))
        with pytest.raises(fc.NotFinite, match="step 0 of 1"):
            model(rows(1.0), torch.tensor([900.0]))

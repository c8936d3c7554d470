"""Branches of loops of one's own: batched, separate, named, three of them; and refusals where a branch is not known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import COND, UNCOND
from fastercache.testing.loop import Captured
from fastercache.testing.subject import capturing
from fastercache.zoo.specimen import Specimen

TIMES = [900.0, 700.0, 500.0, 300.0, 100.0]
POLICY = fc.StaticInterval(sites="attention", interval=2)


class Loop:
    """Calls a random Latte transformer: rows of branch b are its text times `text[b]`."""

    text = {UNCOND: 0.0, COND: 1.0, "perturbed": -1.0}  # noqa: RUF012

    def __init__(self, specimen: Specimen) -> None:
        self.model = specimen.pipe.transformer
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(1, 4, 4, 8, 8, generator=generator)
        self.prompt = torch.randn(1, 5, 12, generator=generator)

    def call(self, x: Tensor, time: float, *branches: str) -> Tensor:
        rows = len(branches)
        with torch.no_grad():
            return self.model(
                hidden_states=torch.cat([x] * rows),
                timestep=torch.full((rows,), time),
                encoder_hidden_states=torch.cat([self.prompt * self.text[b] for b in branches]),
                return_dict=False,
            )[0].clone()


@pytest.fixture
def loop(latte: Specimen) -> Loop:
    return Loop(latte)


def test_a_bare_denoiser_needs_its_guidance_only_where_no_family_tells(loop: Loop) -> None:
    class Unknown(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.TransformerEncoderLayer(8, 2)])

    with pytest.raises(fc.BranchUnknown, match='guidance="batched"'):
        fc.attach(Unknown(), fc.NoCache(sites="denoiser"))
    fc.attach(loop.model, POLICY).detach()


def test_a_loop_of_ones_own_announces_its_timesteps(loop: Loop) -> None:
    with fc.attach(loop.model, POLICY) as session:
        with pytest.raises(fc.FasterCacheError, match=r"session\.start"):
            loop.call(loop.x, 900.0, UNCOND, COND)
        session.start(TIMES)
        for time in TIMES:
            loop.call(loop.x, time, UNCOND, COND)
        assert session.last.complete and session.last.run.count == 5
        with pytest.raises(fc.FasterCacheError, match="after the last of 5 steps"):
            loop.call(loop.x, 50.0, UNCOND, COND)


def test_separate_calls_are_counted_round_and_round(loop: Loop) -> None:
    with fc.attach(loop.model, POLICY, guidance="separate") as session:
        session.start(TIMES)
        for time in TIMES:
            for branch in (COND, UNCOND):
                loop.call(loop.x, time, branch)
        assert session.last.complete
        assert (session.last.codes != Code.UNREACHED).all()


def test_guidance_off_part_way_is_told_by_the_timestep(loop: Loop) -> None:
    """A loop that calls only the conditional branch in some steps: the next step's call is not taken for the other."""
    bare = {(t, b): loop.call(loop.x, t, b) for t in TIMES for b in (COND, UNCOND)}
    seen: list[tuple[str, int]] = []
    with fc.attach(loop.model, fc.NoCache(sites="denoiser"), guidance="separate") as session:
        session.watch("denoiser", lambda o: seen.append((o.branch, o.step.index)))
        session.start(TIMES)
        for i, time in enumerate(TIMES):
            for branch in (COND, UNCOND) if i in (1, 4) else (COND,):
                assert torch.equal(loop.call(loop.x, time, branch), bare[time, branch])
    assert seen == [(COND, 0), (COND, 1), (UNCOND, 1), (COND, 2), (COND, 3), (COND, 4), (UNCOND, 4)]


@pytest.mark.parametrize("explicit", [True, False])
def test_guidance_off_at_the_end_leaves_a_whole_trace(loop: Loop, explicit: bool) -> None:
    """The last step calls one branch of two: `finish`, or the end of the session, says that no other follows."""
    with fc.attach(loop.model, POLICY, guidance="separate") as session:
        session.start(TIMES)
        for i, time in enumerate(TIMES):
            for branch in (COND, UNCOND) if i < 3 else (COND,):
                loop.call(loop.x, time, branch)
        assert not session.last.complete
        if explicit:
            session.finish()
            assert session.last.complete and session.last.bytes_per_step[-1] == 0
    assert session.last.complete and session.last.run.count == 5
    with pytest.raises(ZeroDivisionError), fc.attach(loop.model, POLICY, guidance="separate") as session:
        session.start(TIMES[-1:])
        loop.call(loop.x, TIMES[-1], COND)
        raise ZeroDivisionError
    assert not session.last.complete, "a loop that raised is not whole"


def run_three(loop: Loop, session: fc.Session, style: str) -> dict[str, list[Tensor]]:
    order = (UNCOND, COND, "perturbed")
    outputs: dict[str, list[Tensor]] = {b: [] for b in order}
    x = loop.x
    session.start(TIMES)
    for time in TIMES:
        if style == "batched":
            now = dict(zip(order, loop.call(x, time, *order).chunk(3), strict=True))
        else:
            now = {b: loop.call(x, time, b) for b in order}
        for branch, value in now.items():
            outputs[branch].append(value)
        x = x - 0.1 * (now[COND] + (now[COND] - now[UNCOND]) + (now[COND] - now["perturbed"]))[:, :4]
    return outputs


@pytest.mark.parametrize(
    "policy", [POLICY, fc.StaticInterval(sites="denoiser", interval=3)], ids=["module", "denoiser"]
)
def test_three_branches_each_have_their_state(policy: Any, loop: Loop) -> None:
    branches = (UNCOND, COND, "perturbed")
    results = {}
    for style in ("batched", "separate"):
        with fc.attach(loop.model, policy, guidance=style, branches=branches) as session:
            results[style] = run_three(loop, session, style)
            assert session.last.run.branches == (COND, UNCOND, "perturbed")
            assert session.last.share() > 0.3
    for branch in branches:
        for a, b in zip(results["batched"][branch], results["separate"][branch], strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    assert not torch.allclose(results["batched"][UNCOND][1], results["batched"]["perturbed"][1], atol=1e-3)


def test_cfg_cache_predicts_every_branch_but_the_conditional_one(loop: Loop) -> None:
    policy = fc.CFGCache(interval=2, start=0.0)
    with fc.attach(loop.model, policy, guidance="batched", branches=(UNCOND, COND, "perturbed")) as session:
        run_three(loop, session, "batched")
        codes = dict(zip(session.last.run.branches, session.last.codes[0].tolist(), strict=True))
    assert codes[UNCOND] == codes["perturbed"] == [0, 1, 0, 1, 0]


def test_branches_can_be_named(loop: Loop) -> None:
    """Calls in any order, each under its name, equal calls in the usual order."""
    outputs = {}
    for order in ((COND, UNCOND), (UNCOND, COND)):
        with fc.attach(loop.model, POLICY, guidance="separate") as session:
            session.start(TIMES)
            for time in TIMES:
                for branch in order:
                    with session.branch(branch):
                        outputs[order, branch, time] = loop.call(loop.x, time, branch)
            with pytest.raises(fc.BranchUnknown, match="perturbed"):
                session.start(TIMES)
                with session.branch("perturbed"):
                    loop.call(loop.x, 900.0, COND)
    for time in TIMES:
        for branch in (COND, UNCOND):
            assert torch.equal(outputs[(COND, UNCOND), branch, time], outputs[(UNCOND, COND), branch, time])


def test_rows_that_fit_no_branches_are_refused(loop: Loop) -> None:
    with fc.attach(loop.model, POLICY, guidance="batched") as session:
        session.start(TIMES)
        with pytest.raises(fc.BranchUnknown, match="3 rows"):
            loop.call(loop.x, 900.0, UNCOND, COND, COND)
        session.start(TIMES)
        loop.call(loop.x, 900.0, UNCOND, COND)
        with pytest.raises(fc.BranchUnknown, match="switched on"):
            loop.call(loop.x, 700.0, UNCOND, COND, UNCOND, COND)
    with pytest.raises(fc.BranchUnknown, match="different names"):
        fc.attach(loop.model, POLICY, guidance="batched", branches=(UNCOND, "perturbed"))


def test_an_extra_pass_in_a_step_is_refused() -> None:
    """Skip-layer guidance calls SD3's denoiser again with the conditional rows: it is not the conditional branch."""
    s = zoo.build("sd3")
    call = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    with fc.attach(s.pipe, POLICY), pytest.raises(fc.BranchUnknown, match="extra"):
        s.generate(**call)


def test_perturbed_attention_guidance_adds_a_branch_to_the_call() -> None:
    """PAG pipelines append perturbed rows to the call; with plain guidance off its rows are cond and perturbed."""
    s = zoo.build("pixart-pag")
    for overrides, branches in (
        ({}, (COND, UNCOND, "perturbed")),
        ({"guidance_scale": 1.0}, (COND, "perturbed")),
        ({"pag_scale": 0.0}, (COND, UNCOND)),
    ):
        bare = s.generate(**overrides)
        with fc.attach(s.pipe, POLICY) as session:
            assert not torch.equal(s.generate(**overrides), bare)
            assert session.last.run.branches == branches and session.last.share() == 0.5
            session.use(fc.NoCache(sites="all|denoiser"))
            assert torch.equal(s.generate(**overrides), bare)


@pytest.mark.parametrize("policy", [fc.CFGCache(interval=2, start=0.0), fc.FasterCache(start=0.0, cfg_start=0.0)])
@pytest.mark.parametrize("prompts", [1, 3])
def test_no_branch_is_left_out_where_attention_tells_branches_by_their_place(policy: Any, prompts: int) -> None:
    """PAG's processors cut their rows in three: three prompts' conditional rows alone would pass, and be wrong."""
    s = zoo.build("pixart-pag")
    with fc.attach(s.pipe, policy), pytest.raises(fc.BranchUnknown, match="reuses every branch at the same steps"):
        s.generate(prompts=prompts)
    s = zoo.build("pixart-pag")  # diffusers leaves its processors in the old one after an error
    with fc.attach(s.pipe, policy) as session:
        s.generate(pag_scale=0.0)
        assert session.last.share() > 0


def test_further_passes_have_their_own_branches() -> None:
    """LTX-2 calls its guided pair at once and up to two more branches by themselves: their switches decide."""
    s = zoo.build("ltx-2")
    off = {"stg_scale": 0.0, "audio_stg_scale": 0.0}
    seen: list[tuple[int, str]] = []
    with fc.attach(s.pipe, fc.StaticInterval(sites="denoiser", interval=2)) as session:
        session.watch("denoiser", lambda o: seen.append((o.step.index, o.branch)))
        s.generate(steps=2)
        assert session.last.run.branches == (COND, UNCOND, "stg", "modality")
        assert seen == [(i, b) for i in range(2) for b in (UNCOND, COND, "stg", "modality")]
        assert session.last.share() == 0.5 and session.last.speedup_flops == pytest.approx(2.0)
        s.generate(steps=2, **off)
        assert session.last.run.branches == (COND, UNCOND, "modality")
    with fc.attach(s.pipe, fc.CFGCache(interval=2, start=0.0)) as session:
        s.generate()
        codes = dict(zip(session.last.run.branches, session.last.codes[0].tolist(), strict=True))
    assert codes[UNCOND] == codes["stg"] == codes["modality"] == [0, 1, 0, 1, 0, 1]


def test_a_loop_may_call_a_pair_at_once_and_a_third_branch_alone(loop: Loop) -> None:
    """Named in row order, the mixture gives what three separate calls give."""
    outputs: dict[str, list[Tensor]] = {}
    for style, groups in {
        "mixed": ((UNCOND, COND), ("perturbed",)),
        "apart": ((UNCOND,), (COND,), ("perturbed",)),
    }.items():
        outputs[style] = []
        with fc.attach(loop.model, POLICY, guidance="separate", branches=(UNCOND, COND, "perturbed")) as session:
            session.start(TIMES)
            for time in TIMES:
                for group in groups:
                    with session.branch(*group):
                        outputs[style] += loop.call(loop.x, time, *group).chunk(len(group))
            assert session.last.complete and session.last.share() > 0.3
            with pytest.raises(fc.BranchUnknown, match="equal parts"), session.branch(UNCOND, COND):
                session.start(TIMES)
                loop.call(loop.x, TIMES[0], UNCOND, COND, "perturbed")
    for a, b in zip(outputs["mixed"], outputs["apart"], strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_two_pipelines_may_share_a_scheduler(latte: Specimen) -> None:
    """Both sessions hear the one scheduler, whichever pipeline runs; the one that does not run is not disturbed."""
    other = zoo.build("latte")
    other.pipe.scheduler = latte.pipe.scheduler
    with fc.attach(latte.pipe, POLICY) as first:
        want = latte.generate()
        with fc.attach(other.pipe, POLICY) as second:
            other.generate()
            assert second.last.complete
            assert torch.equal(latte.generate(), want)
        assert len(first.traces) == 2 and first.last.complete and len(second.traces) == 1
        assert torch.equal(latte.generate(), want)


def test_captured_calls_hold_one_row_per_branch(latte: Specimen) -> None:
    with fc.attach(latte.pipe, fc.NoCache(sites="denoiser")) as session:
        with capturing(latte) as calls:
            latte.generate()
        told = session.inspect()
        captured = Captured.of(calls[0][0], told, [call for _, call in calls])
    assert captured.order == (UNCOND, COND)
    assert all(kwargs["encoder_hidden_states"].shape[0] == 1 for _, kwargs in captured.calls.values())


def test_a_loop_without_guidance_has_one_call_a_step(loop: Loop) -> None:
    """By hand: the calls at even steps are computed, those at odd steps return the one before."""
    bare = [loop.call(loop.x * (i + 1), time, COND) for i, time in enumerate(TIMES)]
    with fc.attach(loop.model, fc.StaticInterval(sites="denoiser", interval=2, start=0.0), guidance="none") as session:
        for _ in range(2):
            session.start(TIMES)
            outputs = [loop.call(loop.x * (i + 1), time, COND) for i, time in enumerate(TIMES)]
            assert session.last.complete and session.last.run.branches == (COND,)
            for i, output in enumerate(outputs):
                assert torch.equal(output, bare[i - i % 2])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("guidance", [None, "batched"])
def test_what_derives_from_a_listed_class_has_its_family(guidance: Any, compiled: bool) -> None:
    """DiT's rows are (cond, uncond). By hand: at odd steps the second half is the first plus the difference held."""
    s = zoo.build("dit")
    model = s.pipe.transformer
    calls, difference = 0, torch.zeros(())

    def hand(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, difference
        out = type(model).forward(model, *args, **kwargs)
        cond, uncond = out.sample.chunk(2)
        if calls % 2 == 0:
            difference = uncond - cond
        calls += 1
        out.sample = torch.cat([cond, cond + difference])
        return out

    model.forward = hand
    want = s.generate()
    del model.forward
    model.__class__ = type("Extended", (type(model),), {})
    if compiled:
        s.pipe.transformer = torch.compile(model, backend="eager")
    with fc.attach(s.pipe, fc.GuidanceReuse(start=0.0, interval=2, stand_in=fc.Hold()), guidance=guidance):
        assert torch.allclose(s.generate(), want, atol=1e-5)


def test_what_derives_from_a_listed_class_has_its_blocks(latte: Specimen) -> None:
    policy = fc.StaticInterval(sites="stack", interval=2)
    with fc.attach(latte.pipe, policy):
        want = latte.generate()
    model = latte.pipe.transformer
    model.__class__ = type("Extended", (type(model),), {})
    with fc.attach(latte.pipe, policy):
        assert torch.equal(latte.generate(), want)

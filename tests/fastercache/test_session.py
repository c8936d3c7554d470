"""A session over several runs, policies, watchers and denoisers: what one leaves is not taken for the other's."""

from __future__ import annotations

import threading
import warnings
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import fastercache as fc
from fastercache.model.hooks import is_hooked
from fastercache.policies.errors import AttachError, FasterCacheError, NoSiteMatched, NotFinite
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Kind
from fastercache.run.idle import NothingReused
from fastercache.run.memory import CacheTooLarge
from fastercache.testing.subject import held_bytes
from tests.fastercache.toy import TIMES, Pipe, Scheduler, Toy, call, given, loop, near, rows

SEPARATE = [("cond",), ("uncond",)]
HALF = fc.StaticInterval(sites="denoiser", interval=2, start=0.0)
"""Computed at steps 0 and 2, reused at 1 and 3."""
C, R, U = Code.COMPUTED, Code.REUSED, Code.UNREACHED


def attached(target: Any, policy: Any, **more: Any) -> fc.Session:
    return fc.attach(target, policy, guidance="separate", branches=("cond", "uncond"), **more)


def out(step: int, branch: str, times: list[float] = TIMES, shift: float = 0.0) -> float:
    """What the toy gives."""
    x = given(step, branch) + times[step] / 1000 + shift
    x = x + 0.25 * x**2
    return x - 0.5 * x**2


class Below(fc.SitePolicy, fc.StaticRule[None]):
    """Reuses below a timestep."""

    name: ClassVar[str] = "below_here"
    time: float = 600.0

    @property
    def query(self) -> str:
        return "denoiser"

    def reuse(self, state: None, step: fc.Step) -> bool:
        return step.timestep < self.time


class Always(fc.SitePolicy, fc.WatchingRule[None]):
    """Reuses whatever is there."""

    name: ClassVar[str] = "always_here"

    @property
    def query(self) -> str:
        return "denoiser"

    @property
    def signal(self) -> fc.Signal | None:
        return None

    def reuse(self, state: None, step: fc.Step, seen: Tensor | None) -> bool:
        return True


# -- runs one after the other ------------------------------------------------------------------------------------------
def test_a_run_of_other_timesteps_is_planned_anew() -> None:
    model = Toy()
    with attached(model, Below()) as session:
        for times, codes in (
            (TIMES, [C, C, R, R]),
            ([900.0, 500.0, 400.0, 300.0], [C, R, R, R]),
            ([900.0, 800.0, 700.0], [C, C, C]),
            (TIMES, [C, C, R, R]),
        ):
            found = loop(model, session, SEPARATE, times)
            assert session.last.codes[0].tolist() == [codes] * 2
            newest = [max(j for j in range(i + 1) if codes[j] == C) for i in range(len(times))]
            near(found, [{b: out(j, b, times) for b in ("cond", "uncond")} for j in newest])


def test_another_policy_is_planned_anew_and_the_old_one_stays_where_the_new_one_claims_nothing() -> None:
    model = Toy()
    with attached(model, HALF) as session:
        loop(model, session, SEPARATE)
        assert session.last.codes[0, 0].tolist() == [C, R, C, R]
        session.use(fc.StaticInterval(sites="denoiser", interval=4, start=0.0))
        loop(model, session, SEPARATE)
        assert session.last.codes[0, 0].tolist() == [C, R, R, R]
        with pytest.raises(NoSiteMatched):
            session.use(fc.StaticInterval(sites="temporal"))
        loop(model, session, SEPARATE)
        assert session.last.codes[0, 0].tolist() == [C, R, R, R]
        session.start(TIMES)
        call(model, 0, ("cond",))
        with pytest.raises(AttachError, match="a run is under way, 0 of 4 steps are done"):
            session.use(HALF)
        session.start(TIMES)
        session.use(HALF)
        assert session.policy == HALF
    with pytest.raises(AttachError, match="detached"):
        session.use(HALF)


def test_a_run_that_was_broken_off_is_closed_and_forgotten_by_the_next_start() -> None:
    model = Toy()
    with attached(model, HALF) as session:
        session.start(TIMES)
        call(model, 1, ("cond",))
        assert held_bytes(session.inspect().holders) == 4 + 4, "a value, and the sum by which it is looked at"
        session.start(TIMES)
        assert held_bytes(session.inspect().holders) == 0 and session.traces[0].seconds > 0
        near(loop(model, session, SEPARATE)[:2], [{b: out(0, b) for b in ("cond", "uncond")}] * 2)
        assert [(trace.reached, trace.complete) for trace in session.traces] == [(0, False), (4, True)]


def test_detaching_ends_a_run_that_goes_on() -> None:
    model = Toy()
    session = attached(model, HALF)
    session.start(TIMES)
    call(model, 0, ("cond",))
    session.detach()
    seconds = session.last.seconds
    assert seconds > 0 and not session.attached and held_bytes(session.inspect().holders) == 0
    assert not any(is_hooked(module) for module in model.modules())
    session.detach()
    assert session.last.seconds == seconds


def test_only_so_many_traces_are_kept() -> None:
    model = Toy()
    for kept in (1, 2):
        with attached(model, HALF, keep_traces=kept) as session:
            for count in (2, 3, 4):
                loop(model, session, SEPARATE, TIMES[:count])
            assert [trace.run.count for trace in session.traces] == [2, 3, 4][-kept:]
    with pytest.raises(AttachError, match="at least 1, found 0"):
        attached(model, HALF, keep_traces=0)


def test_the_last_step_of_a_loop_ends_with_the_session_where_guidance_was_off() -> None:
    model = Toy()
    with attached(model, HALF) as session:
        session.start(TIMES[:2])
        for step, branches in ((0, ("cond", "uncond")), (1, ("cond",))):
            for branch in branches:
                call(model, step, (branch,))
        assert not session.last.complete
    assert session.last.complete and session.last.codes[0].tolist() == [[C, R], [C, U]]
    with attached(model, HALF) as session:
        session.start(TIMES[:2])
        for step, branches in ((0, ("cond", "uncond")), (1, ("cond",))):
            for branch in branches:
                call(model, step, (branch,))
        session.finish()
        assert session.last.complete


def test_a_run_that_reused_nothing_is_told_of_once() -> None:
    """A loop of one's own that is broken off after one step, told when the session's block is left; an error is not."""
    model = Toy()

    def broken_off(raises: bool) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with attached(model, fc.StaticInterval(sites="denoiser", interval=2, start=0.6)) as session:
                    session.start(TIMES)
                    for step in range(2):
                        for branch in ("cond", "uncond"):
                            call(model, step, (branch,))
                    if raises:
                        raise KeyError
            except KeyError:
                pass
        return [str(one.message) for one in caught if issubclass(one.category, NothingReused)]

    (line,) = broken_off(False)
    assert "static_interval reused nothing in 4 denoiser calls" in line and "1 of 4 steps" in line
    assert broken_off(True) == []


# -- limits ------------------------------------------------------------------------------------------------------------
def test_a_limit_may_be_reached_and_is_refused_at_every_call_of_a_run_above_it() -> None:
    """Two branches of one float each are held at the denoiser."""
    model = Toy()
    with attached(model, HALF, max_cache_bytes=8) as session:
        loop(model, session, SEPARATE)
        assert session.last.bytes_per_step == [8, 0, 8, 0] == session.plan().per_step
    with attached(model, HALF, max_cache_bytes=7) as session:
        session.start(TIMES)
        for _ in range(2):
            with pytest.raises(CacheTooLarge, match="max_cache_bytes=7"):
                call(model, 0, ("cond",))
        assert session.traces == [] and model.calls == 4
        session.use(fc.NoCache(sites="denoiser"))
        near(loop(model, session, SEPARATE), [{b: out(i, b) for b in ("cond", "uncond")} for i in range(4)])


def test_values_are_kept_in_the_dtype_that_was_asked_for() -> None:
    model = Toy()
    with attached(model, HALF, cache_dtype=torch.bfloat16) as session:
        found = loop(model, session, SEPARATE)
        assert session.last.bytes_per_step == [4, 0, 4, 0] == session.plan().per_step
    for step, newest in ((1, 0), (3, 2)):
        for branch in ("cond", "uncond"):
            assert found[step][branch] == torch.tensor(found[newest][branch]).bfloat16().float().item()


def test_a_dry_run_leaves_nothing_behind() -> None:
    model = Toy()
    pipe = Pipe([("transformer", [["cond"], ["uncond"]])] * 4, transformer=model)
    pipe.between = lambda step: pytest.fail("the pipeline was stopped at its first denoiser call")

    class Given(Pipe):
        def __call__(self, times: int = 1) -> list[dict[str, float]]:
            return super().__call__()

    pipe.__class__ = Given
    with attached(pipe, HALF) as session:
        assert session.plan(times=2).per_step == [8, 0, 8, 0]
        assert session.traces == [] and model.calls == 0
        pipe.between = lambda step: None
        near(pipe()[:2], [{b: out(0, b) for b in ("cond", "uncond")}] * 2)
        assert session.last.complete
    with attached(model, HALF) as bare, pytest.raises(FasterCacheError, match="needs a pipeline"):
        bare.plan(times=2)


# -- watchers ----------------------------------------------------------------------------------------------------------
def test_watchers_of_one_site_are_told_each_and_are_closed_by_themselves() -> None:
    model = Toy()
    first: list[tuple[str, int, str]] = []
    second: list[tuple[str, int, str]] = []

    def note(seen: Any) -> None:
        first.append((seen.site.name, seen.step.index, seen.branch))

    with attached(model, HALF) as session:
        block = session.watch("blocks.0", note)
        session.watch("denoiser", note)
        other = session.watch("blocks.0", lambda seen: second.append((seen.site.name, seen.step.index, seen.branch)))
        loop(model, session, SEPARATE)
        both = [(i, b) for i in range(4) for b in ("cond", "uncond")]
        computed = [("blocks.0", i, b) for i, b in both if i in (0, 2)]
        assert second == computed
        assert sorted(first) == sorted([*computed, *(("denoiser", i, b) for i, b in both)])
        first.clear()
        second.clear()
        block.close()
        loop(model, session, SEPARATE)
        assert second == computed and first == [("denoiser", i, b) for i, b in both]
        first.clear()
        second.clear()
        other.close()
        loop(model, session, SEPARATE)
        assert second == [] and first == [("denoiser", i, b) for i, b in both]


def test_watchers_are_told_of_a_dynamic_policys_sites_too() -> None:
    model = Toy()
    told: list[Any] = []
    with attached(model, Always()) as session:
        session.watch("denoiser", lambda one: told.append((one.step.index, one.branch, float(one.value), one.code)))
        loop(model, session, SEPARATE, TIMES[:2])
    expected = [(b, pytest.approx(out(0, b), abs=1e-6)) for b in ("cond", "uncond")]
    assert told == [(i, *one, code) for i, code in ((0, C), (1, R)) for one in expected]


def test_part_of_the_stack_is_watched_though_no_policy_claims_it() -> None:
    model = Toy()
    told: list[float] = []
    with attached(model, fc.NoCache(sites="denoiser")) as session:
        session.watch("stack[1:]", lambda seen: told.append(float(seen.value)))
        loop(model, session, SEPARATE, TIMES[:1])
    expected = []
    for branch in ("cond", "uncond"):
        x = given(0, branch) + TIMES[0] / 1000
        expected.append(-0.5 * (x + 0.25 * x**2) ** 2)
    assert told == pytest.approx(expected, rel=1e-5)


# -- pipelines ---------------------------------------------------------------------------------------------------------
BOTH = [["cond"], ["uncond"]]


def two(**more: Any) -> Pipe:
    """Steps 0 and 1 call `transformer`, the others, below a timestep of 700, `transformer_2`, which adds 1 before."""
    plan = [(name, BOTH) for name in ("transformer", "transformer", "transformer_2", "transformer_2")]
    pipe = Pipe(plan, transformer=Toy(), transformer_2=Toy(shift=1.0), config={"boundary_ratio": 0.7}, **more)
    pipe.scheduler.config = SimpleNamespace(num_train_timesteps=1000)  # type: ignore[attr-defined]
    return pipe


def test_the_first_call_after_a_run_that_stopped_in_its_first_step_is_the_conditional_one() -> None:
    class Stops(Toy):
        stop = True

        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            if self.stop:
                raise KeyboardInterrupt
            return super().forward(hidden_states, timestep)

    model = Stops()
    pipe = Pipe([("transformer", [["cond"], ["uncond"]])] * 4, transformer=model)
    with attached(pipe, HALF) as session:
        with pytest.raises(KeyboardInterrupt):
            pipe()
        model.stop = False
        near(pipe(), [{b: out(step // 2 * 2, b) for b in ("cond", "uncond")} for step in range(4)])
        assert session.last.complete


def test_two_denoisers_hold_their_own_values_and_are_counted_together() -> None:
    pipe = two()
    with attached(pipe, HALF) as session:
        for _ in range(2):
            found = pipe()
            for step, shift in ((0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0)):
                near([found[step]], [{b: out(step // 2 * 2, b, shift=shift) for b in ("cond", "uncond")}])
            assert session.last.complete and session.last.bytes_per_step == session.plan().per_step
            owners = [step.denoiser for step in session.last.run.steps]
            assert owners == ["transformer"] * 2 + ["transformer_2"] * 2
        names = [site.name for site in session.last.sites]
        assert names == ["transformer/denoiser", "transformer_2/denoiser"]
        assert session.last.codes[:, 0].tolist() == [[C, R, U, U], [U, U, C, R]]
        shares = session.flop_shares()
        assert {name: share for name, share in shares.items() if name.endswith(".attn")} == {
            f"{owner}/blocks.{i}.attn": 0.5 for owner in ("transformer", "transformer_2") for i in range(2)
        }
    assert not any(is_hooked(m) for d in (pipe.transformer, pipe.transformer_2) for m in d.modules())  # type: ignore[attr-defined]


def test_what_both_denoisers_hold_adds_up() -> None:
    """Each is computed once and held to the end: 8 bytes of the first from step 0 on, 8 of the second from step 1."""
    plan = [("transformer", BOTH), ("transformer_2", BOTH), ("transformer", BOTH), ("transformer_2", BOTH)]
    pipe = Pipe(plan, transformer=Toy(), transformer_2=Toy(shift=1.0))
    with attached(pipe, Always()) as session:
        found = pipe()
        assert session.last.bytes_per_step == [8, 16, 16, 16]
    near(found[2:], [{b: out(i, b, shift=i) for b in ("cond", "uncond")} for i in (0, 1)])


def test_a_run_without_guidance_is_so_for_every_denoiser() -> None:
    pipe = two()
    session = fc.attach(pipe, fc.Compose([HALF, fc.GuidanceReuse(start=0.0)]), guidance="separate")
    with session:
        pipe()
        assert session.last.run.branches == ("cond", "uncond")
        assert any(site.kind is Kind.BRANCH for site in session.last.run.sites)
        pipe.do_classifier_free_guidance = False
        pipe.plan = [(name, [["cond"]]) for name, _ in pipe.plan]
        found = pipe()
        assert session.last.run.branches == ("cond",) and session.last.complete
        assert not any(site.kind is Kind.BRANCH for site in session.last.run.sites)
    near(found[2:], [{"cond": out(2, "cond", shift=1.0)}] * 2)


def test_branches_that_are_named_are_those_of_every_denoiser() -> None:
    pipe = two()
    told: list[Any] = []
    with fc.attach(pipe, fc.NoCache(sites="denoiser"), guidance="separate", branches=("cond", "uncond")) as session:
        session.watch("denoiser", lambda seen: told.append((seen.site.denoiser, seen.branch, float(seen.value))))
        session.start(TIMES[:2])
        for step, name in enumerate(("transformer", "transformer_2")):
            with session.branch("uncond", "cond"):
                call(getattr(pipe, name), step, ("uncond", "cond"))
        expected = [
            (name, b, pytest.approx(out(step, b, shift=step), abs=1e-6))
            for step, name in enumerate(("transformer", "transformer_2"))
            for b in ("uncond", "cond")
        ]
        assert told == expected
        told.clear()
        session.start(TIMES[:1])
        call(pipe.transformer_2, 0, ("cond",))  # type: ignore[attr-defined]
        assert [one[:2] for one in told] == [("transformer_2", "cond")], "after the block the order tells"


def test_another_scheduler_of_the_pipeline_is_followed() -> None:
    pipe = Pipe([("transformer", BOTH)] * 4, transformer=Toy())
    other = [800.0, 600.0, 400.0, 200.0]
    with attached(pipe, HALF) as session:
        pipe()
        old, pipe.scheduler = pipe.scheduler, Scheduler(other)
        found = pipe()
        assert [step.timestep for step in session.last.run.steps] == other and session.last.complete
        near(found, [{b: out(i // 2 * 2, b, other) for b in ("cond", "uncond")} for i in range(4)])
        pipe()
        assert session.last.complete and len(session.traces) == 3
    assert not vars(old).keys() & {"step", "set_timesteps"} and not vars(pipe.scheduler).keys() & {"step"}


def test_hooks_that_were_dropped_between_runs_are_put_back() -> None:
    """accelerate puts its hooks on anew after each call, which takes others away."""
    model = Toy()
    pipe = Pipe([("transformer", BOTH)] * 4, transformer=model)
    policy = fc.Compose([HALF, fc.StaticInterval(sites="blocks.0.attn", interval=2, offset=0, start=0.0)])
    with attached(pipe, policy) as session:
        want = pipe()
        for module in (model, model.blocks[0].attn):
            del vars(module)["forward"]
        assert pipe() == want and session.last.share() == session.traces[0].share()


class Wrapped(nn.Module):
    """What a library puts around a denoiser."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


def test_a_denoiser_may_be_wrapped_and_not_exchanged_under_a_session() -> None:
    model = Toy()
    pipe: Any = Pipe([("transformer", BOTH)] * 4, transformer=model)
    with attached(pipe, HALF) as session:
        want = pipe()
        pipe.transformer = Wrapped(model)
        assert pipe() == want and session.last.complete
        pipe.transformer = Toy()
        with pytest.raises(AttachError, match="has another denoiser now"):
            pipe()


def test_an_output_that_is_no_number_ends_the_run_and_leaves_nothing() -> None:
    model = Toy()
    with attached(model, HALF) as session:
        handle = model.blocks[1].register_forward_hook(lambda module, args, output: output * float("nan"))
        session.start(TIMES)
        with pytest.raises(NotFinite, match="step 0 of 4"):
            for step in range(2):
                for branch in ("cond", "uncond"):
                    call(model, step, (branch,))
        assert held_bytes(session.inspect().holders) == 0
        handle.remove()
        near(loop(model, session, SEPARATE)[:2], [{b: out(0, b) for b in ("cond", "uncond")}] * 2)


def test_the_last_steps_output_is_looked_at_before_the_run_is_over() -> None:
    model = Toy()
    with attached(model, HALF) as session:
        session.start(TIMES[:1])
        call(model, 0, ("cond",))
        model.blocks[1].register_forward_hook(lambda module, args, output: output * float("inf"))
        with pytest.raises(NotFinite, match="step 0 of 1"):
            call(model, 0, ("uncond",))


def test_a_loop_that_is_over_leaves_the_denoiser_to_other_threads() -> None:
    """Also while the thread that made it lives on; a run that goes on belongs to its thread."""
    model = Toy()
    with attached(model, HALF) as session:
        made, go = threading.Event(), threading.Event()

        def work(complete: bool) -> None:
            if complete:
                loop(model, session, SEPARATE)
            else:
                session.start(TIMES)
                call(model, 0, ("cond",))
            made.set()
            go.wait()

        for complete in (True, False):
            made.clear()
            go.clear()
            thread = threading.Thread(target=work, args=(complete,))
            thread.start()
            made.wait()
            try:
                if complete:
                    near(loop(model, session, SEPARATE)[:1], [{b: out(0, b) for b in ("cond", "uncond")}])
                else:
                    with pytest.raises(fc.FasterCacheError, match="another thread"):
                        session.start(TIMES)
                    with pytest.raises(fc.FasterCacheError, match="another thread"):
                        call(model, 0, ("uncond",))
            finally:
                go.set()
                thread.join()


def test_a_value_of_one_denoisers_state_is_shared_by_its_sites_and_not_by_others() -> None:
    """Two rows of input in float64: nothing is cast on the way."""
    model = Toy().double()
    with attached(model, HALF) as session:
        session.start(TIMES[:2])
        x, t = rows(1.0, 2.0).double(), torch.tensor([900.0, 900.0], dtype=torch.float64)
        with torch.no_grad():
            first: Tensor = model(x, t)
            model(-x, t)
            again: Tensor = model(3 * x, t)
        assert again.dtype == torch.float64 and torch.equal(again, first)
        assert session.last.latent == (1, 1, 1)

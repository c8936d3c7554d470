"""NaN or infinity in the denoiser's output ends the run, with the step and where it came from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache.run.finite import Sent
from fastercache.testing.subject import held_bytes
from tests.fastercache.naive import specimen


def spoiled(module: torch.nn.Module, at: int, value: float) -> Any:
    """A hook that puts `value` in one number of the output of the module's call number `at`."""
    calls = 0

    def after(_: Any, args: Any, output: Any) -> None:
        nonlocal calls
        if calls == at:
            (output if isinstance(output, torch.Tensor) else output[0]).flatten()[3] = value
        calls += 1

    return module.register_forward_hook(after)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "at", "branches"), [("latte", 4, "uncond, cond"), ("wan", 9, "uncond")])
def test_a_model_that_returns_nan_is_told(name: str, at: int, branches: str, value: float) -> None:
    """Wan calls twice a step: its call number 9 is the unconditional one of step 4."""
    s = specimen(name)
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        want = s.generate()
        handle = spoiled(s.pipe.transformer.proj_out, at, value)
        with pytest.raises(fc.NotFinite, match=rf"step 4 of 6 .*branches {branches}, as the model computed it"):
            s.generate()
        handle.remove()
        assert held_bytes(session.inspect().holders) == 0
        assert torch.equal(s.generate(), want)


def test_a_value_reused_is_named() -> None:
    class Spoil(fc.Hold):
        def predict(self, past: Any, now: Any) -> Any:
            return super().predict(past, now) / (now.step.index != 3)

    s = specimen("latte")
    site = "transformer_blocks.1.attn1"
    policy = fc.StaticInterval(sites=site, interval=2, start=0.0, stand_in=Spoil())
    with fc.attach(s.pipe, policy), pytest.raises(fc.NotFinite, match=rf"step 3 of 6 .*reused at {site}"):
        s.generate()


def test_half_precision_does_not_overflow_the_sum() -> None:
    from fastercache.policies.vocabulary import Step
    from fastercache.run.finite import FiniteWatch

    watch = FiniteWatch()
    big = torch.full((8,), 60000.0, dtype=torch.float16)
    watch.see(Step(0, 1, 900.0), ("cond",), [], [big, None, torch.ones(2, dtype=torch.int64)])
    watch.check(last=True)


class Slow:
    """The mark of a device that is two steps behind, and what was asked of it."""

    def __init__(self, journal: list[str]) -> None:
        self.journal, self.asked = journal, 0

    def query(self) -> bool:
        self.asked += 1
        return self.asked > 2

    def synchronize(self) -> None:
        self.journal.append("waited")


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every sum is on its way for two steps; `waited` is noted for each that was waited for."""
    sent, noted = Sent.of, list[str]()
    monkeypatch.setattr(Sent, "of", lambda parts: replace(sent(parts), arrived=Slow(noted)))
    return noted


@pytest.mark.parametrize(("at", "told", "waited"), [(1, [False] * 5, 0), (4, [*[False] * 5, True], 3)])
def test_a_device_that_is_behind_is_waited_for_at_the_end_only(
    at: int, told: list[bool], waited: int, journal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark is asked for twice before it has arrived: step 1 is read at step 4, step 4 at the run's end."""
    s = specimen("latte")
    ended: list[bool] = []
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        monkeypatch.setattr(session, "_check_finite", heard(session._check_finite, ended))
        handle = spoiled(s.pipe.transformer.proj_out, at, math.nan)
        with pytest.raises(fc.NotFinite, match=rf"step {at} of 6 "):
            s.generate()
        handle.remove()
        assert ended == told
    assert journal.count("waited") == waited


def heard(check: Any, ended: list[bool]) -> Any:
    def noted(last: bool) -> None:
        ended.append(last)
        check(last)

    return noted


def test_a_call_that_ends_early_is_still_checked(journal: list[str]) -> None:
    """What was on its way when the pipeline returned before its last step is read then."""
    s = specimen("wan")

    def interrupt(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return kwargs

    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")):
        handle = spoiled(s.pipe.transformer.proj_out, 4, math.nan)
        with pytest.raises(fc.NotFinite, match=r"step 2 of 6 .*branches cond"):
            s.generate(callback_on_step_end=interrupt)
        handle.remove()
    assert journal == ["waited"] * 2  # step 0 had arrived


def test_a_session_keeps_the_last_few_traces() -> None:
    s = specimen("latte")
    with fc.attach(s.pipe, fc.NoCache(), keep_traces=2) as session:
        for steps in (1, 2, 3):
            s.generate(steps=steps)
        assert [t.run.count for t in session.traces] == [2, 3]
    with pytest.raises(fc.AttachError, match="keep_traces"):
        fc.attach(s.pipe, fc.NoCache(), keep_traces=0)

"""Who calls the denoiser: only the pipeline of the session, in one thread at a time; nothing outlives its call."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from diffusers import LattePipeline, StableDiffusionXLPipeline

import fastercache as fc
from fastercache.model.hooks import is_hooked
from fastercache.policies.errors import ForeignCall
from fastercache.testing.subject import held_bytes
from fastercache.zoo.specimen import Specimen
from tests.fastercache.naive import specimen

POLICY = fc.FasterCache(start=0.0, cfg_start=0.0)


def held(session: Any) -> int:
    return held_bytes(session.inspect().holders)


def in_thread(work: Any) -> BaseException | None:
    """What `work` raises in a thread of its own."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.mark.parametrize("after_a_run", [True, False])
@pytest.mark.parametrize("own_scheduler", [True, False])
def test_another_pipeline_with_the_same_denoiser_is_refused(after_a_run: bool, own_scheduler: bool) -> None:
    """Its two unguided prompts are no (uncond, cond): row 0 must not be predicted from row 1."""
    s = specimen("sdxl")
    other = StableDiffusionXLPipeline.from_pipe(s.pipe)
    other.set_progress_bar_config(disable=True)
    if own_scheduler:
        other.scheduler = copy.deepcopy(s.pipe.scheduler)
    call = {"prompts": 2, "guidance_scale": 1.0}
    bare = other(**s.call(**call))[0]
    with fc.attach(s.pipe, POLICY) as session:
        want = s.generate()
        if not after_a_run:
            session.use(POLICY)
            session._forget_run()
        with pytest.raises(ForeignCall, match="outside a call of the StableDiffusionXLPipeline"):
            other(**s.call(**call))
        assert torch.equal(s.generate(), want)
    assert torch.equal(other(**s.call(**call))[0], bare)
    with fc.attach(other, POLICY) as session:
        other(**s.call(**call))
        assert session.last.run.branches == ("cond",)


def test_a_loop_of_ones_own_over_an_attached_pipeline_announces_itself(latte: Specimen) -> None:
    p = latte.pipe
    x, text = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 7, p.transformer.config.caption_channels)
    with fc.attach(p, fc.NoCache()) as session, torch.no_grad():
        with pytest.raises(ForeignCall, match=r"session\.start"):
            p.transformer(x, encoder_hidden_states=text, timestep=torch.tensor([900, 900]))
        session.start([900.0])
        p.transformer(x, encoder_hidden_states=text, timestep=torch.tensor([900, 900]))
        assert session.last.complete


def test_a_denoiser_serves_one_thread_at_a_time(latte: Specimen) -> None:
    """A second thread is refused, whether it comes by the pipeline or by the denoiser; the first one's run goes on."""
    want: list[torch.Tensor] = []
    errors: list[BaseException | None] = []

    def midway(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2 and len(want) == 1:
            other = LattePipeline(**pipe.components)
            other.set_progress_bar_config(disable=True)
            other.scheduler = copy.deepcopy(pipe.scheduler)
            errors.append(in_thread(lambda: latte.pipe(**latte.call(steps=2))))
            errors.append(in_thread(lambda: other(**latte.call(steps=2))))
        return kwargs

    with fc.attach(latte.pipe, POLICY) as session:
        for _ in range(2):
            want.append(latte.generate(callback_on_step_end=midway))
        assert torch.equal(want[0], want[1])
        assert [type(e) for e in errors] == [ForeignCall, ForeignCall]
        assert in_thread(latte.generate) is None, "one thread after the other is served"
        assert session.last.complete


def test_after_an_exception_nothing_is_held(latte: Specimen) -> None:
    def fail(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise KeyError("stop")
        return kwargs

    with fc.attach(latte.pipe, POLICY) as session:
        want = latte.generate()
        with pytest.raises(KeyError, match="stop"):
            latte.generate(callback_on_step_end=fail)
        assert held(session) == 0
        assert torch.equal(latte.generate(), want)


def test_after_an_exception_in_a_loop_of_ones_own_nothing_is_held(latte: Specimen) -> None:
    model = latte.pipe.transformer
    x, text = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 7, model.config.caption_channels)
    with fc.attach(model, fc.StaticInterval(interval=2, start=0.0)) as session, torch.no_grad():
        session.start([900.0, 800.0, 700.0])
        model(x, encoder_hidden_states=text, timestep=torch.tensor([900, 900]))
        assert held(session) > 0
        with pytest.raises(RuntimeError):
            model(x, encoder_hidden_states=text[..., 1:], timestep=torch.tensor([800, 800]))
        assert held(session) == 0


def test_the_pipelines_class_is_given_back(latte: Specimen) -> None:
    with fc.attach(latte.pipe, POLICY):
        assert isinstance(latte.pipe, LattePipeline) and type(latte.pipe).__name__ == "LattePipeline"
        copied, loaded = copy.deepcopy(latte.pipe), pickle.loads(pickle.dumps(latte.pipe))
        assert type(copied) is type(loaded) is LattePipeline
    assert type(latte.pipe) is LattePipeline


def test_a_module_is_saved_under_a_session(latte: Specimen) -> None:
    """What is loaded is a bare module with the same weights, and loading touches no session."""
    want = latte.generate()
    with fc.attach(latte.pipe, fc.StaticInterval(interval=2)):
        file = io.BytesIO()
        torch.save(latte.pipe.transformer, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert not any(is_hooked(module) for module in loaded.modules())
    original, latte.pipe.transformer = latte.pipe.transformer, loaded
    for parameter in original.parameters():
        parameter.data.zero_()
    assert torch.equal(latte.generate(), want)


@pytest.mark.parametrize("bare", [True, False])
def test_a_lost_session_can_be_ended(latte: Specimen, bare: bool) -> None:
    want = latte.generate()
    target = latte.pipe.transformer if bare else latte.pipe
    fc.attach(target, fc.StaticInterval(interval=2, start=0.0))
    with pytest.raises(fc.AttachError, match=r"fastercache\.detach"):
        fc.attach(latte.pipe, POLICY)
    assert fc.detach(latte.pipe) == 1 and fc.detach(latte.pipe) == 0
    assert type(latte.pipe) is LattePipeline and not any(is_hooked(m) for m in latte.pipe.transformer.modules())
    assert torch.equal(latte.generate(), want)
    fc.attach(latte.pipe, POLICY).detach()

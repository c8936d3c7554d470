"""Generations side by side equal separate ones, and end cleanly whatever happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.model.hooks import is_hooked
from fastercache.policies.errors import AttachError, FasterCacheError
from fastercache.tuner.planning.lockstep import Generate, Lockstep
from fastercache.zoo.specimen import Specimen
from tests.tuner.planning.bare import STEPS, Pipe


def of(specimen: Specimen, seed: int, steps: int = 4) -> Generate:
    def generate(pipe: Any) -> Tensor:
        return Specimen(specimen.name, pipe, specimen.inputs).generate(steps=steps, seed=seed)

    return generate


def threads() -> int:
    """Live threads, without the one that progress bars start."""
    return sum("monitor" not in thread.name for thread in threading.enumerate())


def clean(pipe: Any, before: int) -> bool:
    """No thread is left, no module hooked, and the scheduler untouched."""
    hooked = any(is_hooked(module) for module in pipe.transformer.modules())
    return threads() == before and not hooked and "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("family", ["latte", "wan", "wan-2.2"])
def test_results_equal_separate_calls(family: str) -> None:
    specimen, before = zoo.build(family), threads()
    alone = [specimen.generate(steps=4, seed=seed) for seed in (0, 1, 2)]
    with Lockstep(specimen.pipe, [of(specimen, seed) for seed in (0, 1, 2)]) as lock:
        lock.start()
        steps = [lock.advance() for _ in range(4)]
        together = lock.results()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert [[s.index for s in row] for row in steps] == [[k] * 3 for k in range(4)]
    calls = sum(len(s.calls) for row in steps for s in row)
    assert lock.computed == calls
    assert clean(specimen.pipe, before)


def test_a_step_that_was_heard_does_not_change_when_the_pipeline_writes_over_its_latents() -> None:
    """Kandinsky 5 assigns the next latents into the tensor that the denoiser was given."""
    specimen = zoo.build("kandinsky5")
    seen: list[Tensor] = []
    handle = specimen.pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    with Lockstep(specimen.pipe, [of(specimen, 0)]) as lock:
        lock.start()
        (first,) = lock.advance()
        (second,) = lock.advance()
        lock.results()
    handle.remove()
    assert torch.equal(first.calls[0].input, seen[0])
    assert torch.equal(first.after, second.latent) and not torch.equal(first.latent, second.latent)


def test_an_answer_stands_in_for_a_call_and_is_not_counted() -> None:
    pipe = Pipe()
    with Lockstep(pipe, [lambda p: p(0), lambda p: p(1)]) as lock:
        lock.start()
        (first, _) = lock.advance()
        lock.advance(lambda run, call, denoiser, source: (torch.full_like(source, 1.0 + run),))
        assert lock.computed == 2
        assert [float(s.output.mean()) for s in lock.advance(lambda r, c, d, x: (torch.full_like(x, r),))] == [0.0, 1.0]
        assert torch.equal(first.calls[0].input, first.latent) and first.calls[0].computed


def test_an_exception_in_one_generation_ends_all_of_them() -> None:
    pipe, before = Pipe(), threads()

    def broken(p: Any) -> Tensor:
        p(0, steps=3)
        raise RuntimeError("out of prompts")

    with pytest.raises(RuntimeError, match="out of prompts"), Lockstep(pipe, [lambda p: p(1), broken]) as lock:
        lock.start()
        for _ in range(STEPS):
            lock.advance()
    assert clean(pipe, before)
    assert torch.equal(pipe(5), Pipe()(5))


def test_leaving_early_ends_waiting_generations() -> None:
    pipe, before = Pipe(), threads()
    swallowed: list[str] = []

    def wary(p: Any) -> Any:
        try:
            return p(0)
        except Exception as error:
            swallowed.append(str(error))

    with Lockstep(pipe, [wary, lambda p: p(1)]) as lock:
        lock.start()
        lock.advance()
    assert clean(pipe, before) and not swallowed
    with Lockstep(pipe, [wary]):
        pass
    assert clean(pipe, before)


def test_a_generation_that_ends_too_soon_is_told() -> None:
    pipe, before = Pipe(), threads()
    with Lockstep(pipe, [lambda p: p(0, steps=2)]) as lock:
        lock.start()
        lock.advance()
        lock.advance()
        with pytest.raises(FasterCacheError, match="ended before its last step"):
            lock.advance()
    assert clean(pipe, before)


def test_an_attached_session_is_refused(latte: Specimen) -> None:
    with (
        fc.attach(latte.pipe, fc.StaticInterval(sites="denoiser")),
        pytest.raises(AttachError, match="detach it first"),
    ):
        Lockstep(latte.pipe, [of(latte, 0)])
    with (
        fc.attach(latte.pipe, fc.StaticInterval(sites="attention")),
        pytest.raises(AttachError, match="detach it first"),
    ):
        Lockstep(latte.pipe, [of(latte, 0)])
    with pytest.raises(AttachError, match="no scheduler to follow"):
        Lockstep(latte.pipe.transformer, [])

"""Pipelines whose run is not the scheduler's whole list, or that step copies of it; runs that end early; idle runs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXConditionPipeline, SkyReelsV2DiffusionForcingPipeline

import fastercache as fc
from fastercache.policies.errors import ClockError
from fastercache.run.idle import NothingReused
from fastercache.testing.subject import held_bytes
from fastercache.zoo.specimen import assembled
from tests.fastercache.naive import Naive, replaced, specimen

HALF = fc.StaticInterval(sites="denoiser", interval=2, start=0.0)
POLICY = fc.FasterCache(start=0.0, cfg_start=0.0)


def held(session: Any) -> int:
    return held_bytes(session.inspect().holders)


def interrupt(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = step == 2
    return kwargs


@pytest.mark.parametrize("name", ["sdxl", "wan"])
def test_an_interrupted_run_holds_nothing_and_says_how_far_it_came(name: str) -> None:
    s = specimen(name)
    with fc.attach(s.pipe, POLICY) as session:
        s.generate(callback_on_step_end=interrupt)
        trace = session.last
        assert held(session) == 0 and trace.seconds > 0
        assert (trace.reached, trace.complete, trace.run.count) == (3, False, 6)
        assert "3 of 6 steps" in session.summary()


def test_a_run_that_stops_short_of_the_schedulers_list_is_complete() -> None:
    """By hand: denoising_end=0.5 of 8 steps makes 4 calls; every second one returns the output before."""
    s = specimen("sdxl")
    call = {"steps": 8, "denoising_end": 0.5}
    denoiser = s.pipe.unet
    naive = Naive(denoiser, key=lambda call: None, reuse=lambda call: call % 2 == 1)
    with replaced(denoiser, naive):
        want = s.generate(**call)
    assert naive.calls == 4
    with fc.attach(s.pipe, HALF) as session:
        assert torch.equal(s.generate(**call), want)
        assert session.last.complete and session.last.run.count == 4 and held(session) == 0


def test_a_run_that_starts_inside_the_list_without_saying_so() -> None:
    """LTXCondition slices the list itself; its timesteps differ from token to token."""
    s = specimen("ltx")
    p = s.pipe
    four, five = (8,) * 4, (1,) * 5  # of these only the autoencoder's sizes matter: 20 x 24 x 3 latents
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=four,
        decoder_block_out_channels=four,
        layers_per_block=five,
        decoder_layers_per_block=five,
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    ).eval()
    pipe = assembled(LTXConditionPipeline, transformer=p.transformer, vae=vae, scheduler=p.scheduler)
    latents = torch.randn(1, 4, 3, 20, 24, generator=torch.Generator().manual_seed(0))

    def run() -> torch.Tensor:
        return pipe(**s.call(steps=10, denoise_strength=0.6, latents=latents))[0]

    naive = Naive(p.transformer, key=lambda call: None, reuse=lambda call: call % 2 == 1)
    with replaced(p.transformer, naive):
        want = run()
    with fc.attach(pipe, HALF) as session:
        got = run()
        assert session.last.complete and session.last.run.count == naive.calls == 6
        assert torch.equal(got, want)


def forcing() -> tuple[Any, Any]:
    """A pipeline of diffusion forcing on the zoo's SkyReels-V2, and its call: latents of 5 frames."""
    s = specimen("skyreels-v2")
    p = s.pipe
    pipe = assembled(
        SkyReelsV2DiffusionForcingPipeline,
        transformer=p.transformer,
        scheduler=p.scheduler,
        vae=getattr(p, "vae", None),
    )

    def run(**more: Any) -> torch.Tensor:
        return pipe(**{**s.call(steps=4), "prompt": None, **more})[0]

    return pipe, run


LONG = {"num_frames": 17, "base_num_frames": 9, "overlap_history": 5}  # 5 latent frames: 3, then 1 more twice


@pytest.mark.parametrize("more", [{}, LONG])
def test_diffusion_forcing_steps_copies_of_the_scheduler(more: dict[str, Any]) -> None:
    """By hand: calls come in pairs (cond, uncond); every second pair returns the outputs of the pair before. A long
    video is made in several generations of as many steps, each a run of its own."""
    pipe, run = forcing()
    naive = Naive(pipe.transformer, key=lambda call: call % 2, reuse=lambda call: call // 2 % 2 == 1)
    with replaced(pipe.transformer, naive):
        want = run(**more)
    bare = run(**more)
    with fc.attach(pipe, HALF) as session:
        assert torch.equal(run(**more), want)
        assert naive.calls == 2 * 4 * len(session.traces) and len(session.traces) == (3 if more else 1)
        assert all(trace.complete and trace.share() == 0.5 for trace in session.traces)
    with fc.attach(pipe, fc.NoCache()) as session:
        assert torch.equal(run(**more), bare) and session.last.complete


def test_asynchronous_diffusion_forcing_is_refused_at_its_first_call() -> None:
    """Each frame lags behind the one before: there are more steps than timesteps, and a call has several of these."""
    pipe, run = forcing()
    bare = run(num_frames=17)
    with fc.attach(pipe, HALF) as session:
        with pytest.raises(ClockError, match=r"takes \d+ steps for 4 timesteps.*ar_step=0"):
            run(num_frames=17, ar_step=2)
        assert session.traces == []
    assert torch.equal(run(num_frames=17), bare)


class Deaf:
    """A pipeline whose loop never steps its scheduler."""

    def __init__(self, pipe: Any) -> None:
        self.transformer, self.scheduler = pipe.transformer, pipe.scheduler

    @torch.no_grad()
    def __call__(self) -> None:
        self.scheduler.set_timesteps(6)
        text = torch.zeros(1, 5, 12)
        for i in range(3):
            x = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(i))
            for branch in ("cond", "uncond"):
                with self.transformer.cache_context(branch):
                    self.transformer(x, encoder_hidden_states=text, timestep=torch.tensor([900]))


@pytest.mark.parametrize(
    ("policy", "told"), [(HALF, True), (fc.FirstBlockCache(), True), (fc.NoCache(), False), (POLICY, True)]
)
def test_a_run_that_reused_nothing_says_so(policy: Any, told: bool) -> None:
    pipe = Deaf(specimen("wan").pipe)
    with warnings.catch_warnings(record=True) as caught, fc.attach(pipe, policy):
        warnings.simplefilter("always")
        pipe()
    messages = [str(w.message) for w in caught if isinstance(w.message, NothingReused)]
    assert len(messages) == told and all("6 denoiser calls, of which 0 of 6 steps" in m for m in messages)


def test_a_run_that_reuses_is_silent(latte: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingReused)
        for policy in (HALF, POLICY, fc.NoCache()):
            with fc.attach(latte.pipe, policy):
                latte.generate()

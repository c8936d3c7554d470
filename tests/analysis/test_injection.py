"""An error put in at one step does at the end what a few lines of hooks make of it, and what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import fastercache as fc
from fastercache import zoo
from fastercache.analysis import ranking, record
from fastercache.analysis.consequence import consequence
from fastercache.analysis.injection import Error, Injected, inject, price, spread
from fastercache.analysis.ranking import ranked
from fastercache.policies.errors import RecordingError
from fastercache.policies.predictors.history import Taylor
from fastercache.policies.vocabulary import Kind, Run, Site
from fastercache.zoo.specimen import Specimen

STEPS = 6


@pytest.fixture(scope="module")
def latte() -> Specimen:
    return zoo.build("latte")


def groups(specimen: Specimen) -> dict[str, list[Site]]:
    """The denoiser, and the spatial attentions."""
    found: dict[str, list[Site]] = {}
    for site in fc.find_sites(specimen.pipe):
        if site.kind is Kind.DENOISER or site.role is fc.Role.SPATIAL:
            found.setdefault(str(site.role or site.kind), []).append(site)
    return found


def injected(specimen: Specimen, steps: tuple[int, ...] = (1, 4), **settings: Any) -> Injected:
    return inject(specimen.pipe, lambda: specimen.generate(steps=STEPS), groups(specimen), steps, **settings)


def rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


@contextmanager
def spoiled(specimen: Specimen, sites: list[Site], step: int, size: float, seed: int) -> Iterator[None]:
    """By hand: noise on each module's output at one step, in the order of the calls; steps end with the scheduler's."""
    generator, now, original = torch.Generator().manual_seed(seed), [0], specimen.pipe.scheduler.step

    def stepped(*args: Any, **kwargs: Any) -> Any:
        now[0] += 1
        return original(*args, **kwargs)

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if now[0] != step:
            return output
        return output + size * rms(output) * torch.randn(output.shape, generator=generator)

    modules = [specimen.pipe.transformer.get_submodule(site.name) for site in sites]
    handles = [module.register_forward_hook(hook) for module in modules]
    specimen.pipe.scheduler.step = stepped
    try:
        yield
    finally:
        del specimen.pipe.scheduler.step
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("error", ["noise", "hold"])
def test_the_sampler_alone_passes_on_what_its_impulse_response_says(latte: Specimen, error: Error) -> None:
    """Later outputs as they were: measured and computed are one number, at the denoiser and inside of it."""
    found = injected(latte, error=error, follow=False)
    assert found.computed is not None
    np.testing.assert_allclose(found.passed, np.broadcast_to(found.computed, (2, 2)), rtol=2e-3)
    assert found.runs == 4 and not found.followed


def test_an_injected_run_is_what_hooks_make_of_it(latte: Specimen) -> None:
    """The denoisers that follow are computed on the latent that is off."""
    found = injected(latte, size=0.02, seed=5)
    clean = latte.generate(steps=STEPS)
    place = found.groups.index("spatial")
    for k, step in enumerate(found.steps):
        with spoiled(latte, groups(latte)["spatial"], step, 0.02, seed=6 + place * 2 + k):
            wrong = latte.generate(steps=STEPS)
        assert found.video[place, k] == pytest.approx(rms(wrong - clean), rel=1e-3)
    np.testing.assert_allclose(found.relative, 0.02, rtol=0.1)
    assert found.computed is not None
    whole = found.groups.index("denoiser")
    assert abs(found.passed[whole, 0] / found.computed[0] - 1.0) > 1e-3  # the denoiser has answered
    last = injected(latte, (STEPS - 1,))
    assert last.computed is not None  # nothing follows the last step
    assert last.passed[whole, 0] == pytest.approx(last.computed[0], rel=2e-3)


def test_held_values_are_those_of_the_step_before(latte: Specimen) -> None:
    """As a cache that reuses the denoiser at that step alone."""
    found = injected(latte, (3,), error="hold")
    clean = latte.generate(steps=STEPS)
    for group, query in (("denoiser", "denoiser"), ("spatial", "spatial")):
        letters = "".join("R" if step == 3 else "C" for step in range(STEPS))
        with fc.attach(latte.pipe, fc.Schedule(rows=({"sites": query, "steps": letters},))):
            cached = latte.generate(steps=STEPS)
        assert found.video[found.groups.index(group), 0] == pytest.approx(rms(cached - clean), rel=1e-3)


def test_it_is_the_derivative(latte: Specimen) -> None:
    once, twice = injected(latte, size=0.005), injected(latte, size=0.01)
    np.testing.assert_allclose(twice.video, 2.0 * once.video, rtol=0.05)
    np.testing.assert_allclose(twice.per_site, once.per_site, rtol=0.05)
    count = len(groups(latte)["spatial"])
    spatial = once.groups.index("spatial")
    expected = once.video[spatial] / once.relative[spatial] / count**0.5
    np.testing.assert_allclose(once.factors(STEPS)["spatial"][[1, 4]], expected)


def test_a_finding_names_the_psnr_that_holding_its_steps_leaves(
    latte: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "LIMIT", 10.0)  # random weights repeat little from one of six steps to the next
    with record(latte.pipe, "spatial|branch") as recorder:
        clean = latte.generate(steps=STEPS)
    held = injected(latte, spread(STEPS, STEPS), error="hold")
    findings = {one.group: one for one in ranked(recorder.profile(), injected=held)}
    assert findings["branch"].psnr is None and ranked(recorder.profile())[0].psnr is None
    one = findings["spatial"]
    letters = "".join("R" if step in one.skipped else "C" for step in range(STEPS))
    assert letters.count("R") >= 2
    with fc.attach(latte.pipe, fc.Schedule(rows=({"sites": "spatial", "steps": letters},))):
        cached = latte.generate(steps=STEPS)
    assert one.psnr == pytest.approx(-20.0 * np.log10(rms(cached - clean)), abs=1.5)
    assert f"leaves the video at {one.psnr:.0f} dB" in str(one)


@pytest.mark.parametrize("error", ["noise", "hold"])
def test_the_price_is_what_it_takes(latte: Specimen, error: Error) -> None:
    found = injected(latte, error=error)
    assert found.generations == pytest.approx(price(groups(latte), (1, 4), STEPS, error))


def test_a_sampler_that_is_not_affine_has_no_computed_curve() -> None:
    specimen = zoo.build("latte")
    specimen.pipe.scheduler = DDIMScheduler.from_config(
        specimen.pipe.scheduler.config, clip_sample=True, clip_sample_range=0.3
    )
    found = injected(specimen)
    assert found.computed is None and bool((found.video > 0.0).all())


def test_what_cannot_be_injected_is_refused_by_name(latte: Specimen) -> None:
    for steps in ((0,), (STEPS,)):
        with pytest.raises(RecordingError, match=f"steps 1 to {STEPS - 1} of this run, found {steps[0]}"):
            injected(latte, steps)
    with pytest.raises(RecordingError, match="above 0, found -1"):
        injected(latte, size=-1.0)
    block = [site for site in fc.find_sites(latte.pipe) if site.kind is Kind.BLOCK]
    with pytest.raises(RecordingError, match="'blocks' holds block"):
        inject(latte.pipe, lambda: latte.generate(steps=STEPS), {"blocks": block}, (1,))


def test_no_error_where_the_step_before_had_the_same_value(latte: Specimen) -> None:
    none = np.zeros((2, 2))
    same = replace(injected(latte), relative=none, output=none, latent=none, video=none)
    assert not same.gain.any() and not same.per_site.any() and np.isnan(same.passed).all()


def test_steps_are_spread_from_the_second_to_the_last() -> None:
    assert spread(50, 4) == (1, 17, 33, 49)
    assert spread(4, 9) == (1, 2, 3)


def test_a_consequence_is_the_square_of_the_summed_errors() -> None:
    """On made-up values, with the errors of each step added as vectors."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 40)).cumsum(axis=0)
    steps, computed, factors = Run.of(8).steps, (0, 1, 4, 6), rng.uniform(0.5, 2.0, 8)
    gram = values @ values.T / 40
    held = sum(factors[m] * (values[max(s for s in computed if s < m)] - values[m]) for m in (2, 3, 5, 7))
    assert consequence(gram, steps, computed, factors) == pytest.approx(float(np.mean(held**2)))
    pairs = ((2, 1, 0), (3, 1, 0), (5, 4, 1), (7, 6, 4))
    times = [step.timestep for step in steps]
    grown = sum(
        factors[m] * (values[a] + (values[a] - values[b]) * (times[m] - times[a]) / (times[a] - times[b]) - values[m])
        for m, a, b in pairs
    )
    assert consequence(gram, steps, computed, factors, Taylor(order=1)) == pytest.approx(float(np.mean(grown**2)))


def test_between_the_injected_steps_the_effect_is_geometric() -> None:
    """Steps 1 and 5 of 8; groups of 4 and 1 sites, whose errors add as squares."""
    relative, video = np.array([[0.1, 0.2], [0.5, 0.5]]), np.array([[0.8, 0.4], [1.0, 0.25]])
    none = np.zeros((2, 2))
    found = Injected(("many", "one"), (4, 1), (1, 5), "noise", True, relative, none, none, video, np.arange(8.0), 3.0)
    assert found.gain.tolist() == [[8.0, 2.0], [2.0, 0.5]] and found.per_site.tolist() == [[4.0, 1.0], [2.0, 0.5]]
    factors = found.factors(8)
    many = [4.0, 4.0, 4.0 * 0.25**0.25, 2.0, 4.0 * 0.25**0.75, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(factors["many"], many)
    np.testing.assert_allclose(factors["one"], np.array(many) / 2)
    assert found.computed is not None and found.computed.tolist() == [1.0, 5.0] and found.runs == 4
    assert np.isnan(found.passed).all()


def test_the_price_counts_what_is_computed_after_the_error() -> None:
    """Of 10 steps, an error at steps 2 and 9 of modules is computed from that step on, of the denoiser from the next;
    a held value of modules takes the step before too."""
    sites = fc.find_sites(zoo.build("latte").pipe)
    whole = [site for site in sites if site.kind is Kind.DENOISER]
    inner = [site for site in sites if site.role is fc.Role.SPATIAL]
    assert price({"inner": inner}, (2, 9), 10) == pytest.approx((10 + 8 + 1) / 10)
    assert price({"inner": inner}, (2, 9), 10, "hold") == pytest.approx((10 + 9 + 2) / 10)
    for error in ("noise", "hold"):
        assert price({"whole": whole}, (2, 9), 10, error) == pytest.approx((10 + 7 + 0) / 10)  # type: ignore[arg-type]
    assert price({"inner": inner, "whole": whole}, (2,), 10) == pytest.approx((10 + 8 + 7) / 10)


def test_sites_of_unlike_kinds_and_no_sites_are_refused(latte: Specimen) -> None:
    sites = fc.find_sites(latte.pipe)
    mixed = [site for site in sites if site.kind is Kind.DENOISER or site.role is fc.Role.SPATIAL]
    for group, says in ((mixed, "denoiser, module"), ([], "no site")):
        with pytest.raises(RecordingError, match=f"'group' holds {says}"):
            inject(latte.pipe, lambda: latte.generate(steps=STEPS), {"group": group}, (1,))
    with pytest.raises(RecordingError, match="above 0, found 0"):
        inject(latte.pipe, lambda: latte.generate(steps=STEPS), groups(latte), (1,), size=0.0)


def test_where_a_step_has_two_calls_each_holds_the_value_of_its_own_branch() -> None:
    """As a cache that reuses the modules at that step alone, in both branches."""
    wan = zoo.build("wan")
    sites = {"cross": [site for site in fc.find_sites(wan.pipe) if site.role is fc.Role.CROSS]}
    found = inject(wan.pipe, lambda: wan.generate(steps=4), sites, (2,), error="hold")
    clean = wan.generate(steps=4)
    with fc.attach(wan.pipe, fc.Schedule(rows=({"sites": "cross", "steps": "CCRC"},))):
        cached = wan.generate(steps=4)
    assert found.video[0, 0] == pytest.approx(rms(cached - clean), rel=1e-3) and found.video[0, 0] > 0.0


def test_a_call_that_makes_two_runs_is_refused(latte: Specimen) -> None:
    with pytest.raises(RecordingError, match="made 2 complete runs"):
        inject(latte.pipe, lambda: latte.generate(steps=2) + latte.generate(steps=2), groups(latte), (1,))

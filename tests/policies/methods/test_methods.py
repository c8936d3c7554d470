"""Each published method follows its rule: static ones by their compiled tables, forecasts by hand-written numpy."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite import hermval

from fastercache.policies import (
    FORA,
    PLANS,
    ABCache,
    DeepCache,
    DeltaDiT,
    Difference,
    DMDCache,
    DynamicReuse,
    ERTACache,
    FoCa,
    HiCache,
    InvalidPolicy,
    Kind,
    MagCache,
    MeanCache,
    NoSiteMatched,
    Now,
    Past,
    Policy,
    PyramidAttentionBroadcast,
    Ramp,
    RecordingError,
    Role,
    Run,
    Signal,
    Site,
    SmoothCache,
    Spectrum,
    Step,
    Taylor,
    TaylorSeer,
    TeaCache,
    TGate,
    UnknownPolicy,
    compile_policy,
    known_policies,
)
from fastercache.policies.base import Hold
from fastercache.policies.methods.calibrated import lagged, nearest
from fastercache.policies.methods.planned import Planned
from fastercache.policies.predictors.forecasts import (
    Aligned,
    AverageVelocity,
    FoCaForecast,
    Hermite,
    Relative,
    Zero,
    hermite,
)

RNG = np.random.default_rng(3)
BLOCKS = 8


def sites() -> tuple[Site, ...]:
    found = []
    for d in range(BLOCKS):
        span = (d, d + 1)
        found.append(Site(f"blocks.{d}", Kind.BLOCK, None, d, span))
        role = Role.TEMPORAL if d % 2 else Role.SPATIAL
        found.append(Site(f"blocks.{d}.attn1", Kind.MODULE, role, d, span))
        found.append(Site(f"blocks.{d}.attn2", Kind.MODULE, Role.CROSS, d, span))
        found.append(Site(f"blocks.{d}.ff", Kind.MODULE, Role.FF, d, span))
    found += [Site("stack", Kind.STACK, None, 0, (0, BLOCKS)), Site("denoiser", Kind.DENOISER)]
    return (*found, Site("branch", Kind.BRANCH))


def table(policy: Policy, count: int) -> dict[str, str]:
    """Letters of the last branch by site."""
    compiled = compile_policy(policy, Run.of(count, sites=sites()))
    return {s.name: "".join("CR-"[c] for c in compiled.codes[i, -1]) for i, s in enumerate(compiled.sites)}


# -- static rules ------------------------------------------------------------------------------------------------------
def test_pab_reuses_each_role_at_its_own_range_inside_the_window() -> None:
    policy = PyramidAttentionBroadcast.preset("latte")
    got = table(policy, 50)
    times = [step.timestep for step in Run.of(50).steps]
    for name, interval in (("blocks.0.attn1", 2), ("blocks.1.attn1", 3), ("blocks.0.attn2", 6)):
        expected = "".join("R" if i % interval and 100 < t < 800 else "C" for i, t in enumerate(times))
        assert got[name] == expected
    assert not any(name.endswith("ff") for name in got)
    exact = PyramidAttentionBroadcast(spatial=2, temporal=1, cross=1, low=times[41], high=times[7])
    letters = "".join("R" if i % 2 and 7 < i < 41 else "C" for i in range(50))
    assert table(exact, 50)["blocks.0.attn1"] == letters, "a step at either end of the window is computed"


def test_pab_passes_over_roles_the_model_lacks_but_not_over_all() -> None:
    spatial = [s for s in sites() if s.role is not Role.TEMPORAL]
    assert {s.role for s in PyramidAttentionBroadcast().claims(spatial)} == {Role.SPATIAL, Role.CROSS}
    with pytest.raises(NoSiteMatched):
        PyramidAttentionBroadcast().claims([s for s in sites() if s.role in (None, Role.FF)])
    idle = PyramidAttentionBroadcast(spatial=1, temporal=1, cross=1, joint=1)
    assert compile_policy(idle, Run.of(9, sites=sites())).share() == 0.0
    with pytest.raises(UnknownPolicy, match="'open-sora'"):
        PyramidAttentionBroadcast.preset("opensora")


def test_fora_holds_every_module() -> None:
    got = table(FORA(interval=3), 7)
    assert len(got) == 3 * BLOCKS and set(got.values()) == {"CRRCRRC"}


def test_taylorseer_family_computes_the_warm_up_and_then_every_nth() -> None:
    for policy in (TaylorSeer(interval=3), HiCache(interval=3), FoCa(interval=3)):
        assert set(table(policy, 50).values()) == {"CCC" + ("CRR" * 16)[:47]}


def test_ab_cache_and_dmd_compute_a_warm_up_and_then_every_nth_step() -> None:
    for policy, site in ((ABCache(interval=3), "denoiser"), (DMDCache(interval=3, start=5 / 49), "stack")):
        assert table(policy, 50) == {site: "CCCCC" + ("CRR" * 16)[:45]}


def test_spectrum_lets_its_gaps_grow() -> None:
    """The published settings compute 14 of 50 steps: gaps of floor(2 + 0.75 m) after a warm-up of 5 [2603.01623]."""
    got = table(Spectrum(), 50)
    computed = [i for i, letter in enumerate(got["stack"]) if letter == "C"]
    assert computed == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46] and set(got) == {"stack"}
    assert table(Spectrum(growth=0.0, interval=3, start=0.0), 8)["stack"] == "CRRCRRCR"
    assert table(Spectrum(growth=1.0, start=0.0, offset=3), 10)["stack"] == "CCCCRCRRCR"
    assert table(Spectrum(growth=1.0, interval=1), 10)["stack"] == "C" * 10


def test_delta_dit_caches_the_rear_first_and_the_front_after_the_gate() -> None:
    got = table(DeltaDiT(share=0.25, gate=0.5, interval=2), 9)
    assert got == {"stack[6:8]": "CRCRCCCCC", "stack[0:2]": "CCCCCRCRC"}
    whole = table(DeltaDiT(share=0.5), 3)
    assert set(whole) == {"stack[0:4]", "stack[4:8]"}


def test_tgate_freezes_cross_attention_and_reuses_self_attention_before() -> None:
    got = table(TGate(gate=0.5, self_interval=2, start=0.25), 9)
    assert got["blocks.0.attn2"] == "CCCCRRRRR"
    assert got["blocks.0.attn1"] == "CCCRCCCCC"
    assert set(table(TGate(gate=0.5, self_interval=1), 9)) == {f"blocks.{d}.attn2" for d in range(BLOCKS)}


def test_deepcache_keeps_the_outer_blocks() -> None:
    assert table(DeepCache(interval=2), 5) == {"stack[1:7]": "CRCRC"}
    assert set(table(DeepCache(depth=3), 5)) == {"stack[3:5]"}
    assert set(table(DeepCache(sites="stack[2:]"), 5)) == {"stack[2:8]"}
    levels = [site for site in sites() if site.kind is not Kind.STACK]  # as a U-Net's: no residual over several blocks
    assert [site.depth for site in DeepCache(depth=2).claims(levels)] == [2, 3, 4, 5]
    with pytest.raises(NoSiteMatched):
        DeepCache(depth=4).claims(sites())


def test_meancache_computes_its_plan_or_every_nth_step() -> None:
    for name, plan in PLANS.items():
        computed = {i for i, letter in enumerate(table(MeanCache.published(name), 50)["denoiser"]) if letter == "C"}
        assert computed == set(plan)
    assert table(MeanCache.published("qwen-image-10"), 8)["denoiser"] == "CCCCCCCC"
    assert table(MeanCache(plan=(0.0, 0.5, 1.0)), 9)["denoiser"] == "CRRRCRRRC"
    assert table(MeanCache(interval=3, start=0.25), 9)["denoiser"] == "CCCRRCRRC"
    assert MeanCache(span=4).predictor(sites()[0], Run.of(9)) == AverageVelocity(span=4)
    with pytest.raises(UnknownPolicy, match="qwen-image-25"):
        MeanCache.published("flux")


def magcache_by_hand(ratios: list[float], count: int, threshold: float, limit: int, retention: float) -> str:
    letters, product, error, skipped = "", 1.0, 0.0, 0
    for i in range(count):
        if i >= int(retention * count + 0.5):
            product *= ratios[i]
            error += abs(1 - product)
            skipped += 1
            if error <= threshold and skipped <= limit:
                letters += "R"
                continue
            product, error, skipped = 1.0, 0.0, 0
        letters += "C"
    return letters


def test_magcache_accumulates_expected_drift() -> None:
    ratios = [float(r) for r in RNG.uniform(0.9, 1.05, size=20)]
    for threshold, limit in ((0.05, 3), (0.2, 2), (0.4, 6)):
        policy = MagCache(ratios={"*": tuple(ratios)}, threshold=threshold, max_skip=limit)
        got = table(policy, 20)["stack"]
        assert got == magcache_by_hand(ratios, 20, threshold, limit, 0.2) and "R" in got
    apart = MagCache(ratios={"cond": (1.0,) * 20, "uncond": (2.0,) * 20})
    codes = compile_policy(apart, Run.of(20, sites=sites())).codes[0]
    assert (codes[0] == 1).any() and not (codes[1] == 1).any()
    both = MagCache(ratios={"*": (1.0,) * 20, "uncond": (2.0,) * 20})  # a branch's own ratios come first
    assert (compile_policy(both, Run.of(20, sites=sites())).codes[0] == codes).all()


def test_smoothcache_computes_at_an_error_of_exactly_alpha() -> None:
    errors = ((0.1,) * 8, (0.1,) * 8)
    assert table(SmoothCache(curves={"ff": errors}, alpha=0.1), 8)["blocks.0.ff"] == "C" * 8
    assert "R" in table(SmoothCache(curves={"ff": errors}, alpha=0.1001), 8)["blocks.0.ff"]


@pytest.mark.parametrize(
    ("start", "interval", "first"),
    [(0.0, 2, 1), (0.5, 3, 6), (0.4, 2, 5), (1.0, 2, 9), (0.9, 1, 9)],
    ids=["at once", "after its anchor", "from the middle", "at the last step", "never"],
)
def test_the_ramp_of_dynamic_reuse_begins_with_the_first_reused_step(start: float, interval: int, first: int) -> None:
    """Ten steps; the step at `start` is computed, unless it is the last one."""
    run = Run.of(10, sites=sites())
    predictor = DynamicReuse(start=start, interval=interval).predictor(sites()[0], run)
    assert isinstance(predictor, Difference) and isinstance(predictor.weight, Ramp)
    assert predictor.weight.start == run.steps[first].progress


def test_teacache_needs_more_changes_than_coefficients() -> None:
    """A polynomial of degree 4 has 5 coefficients: 5 changes determine it, 4 do not."""
    x = [0.1, 0.2, 0.3, 0.4, 0.5]
    truth = (2.0, -1.0, 0.5, 3.0, 0.25)
    y = [float(np.polyval(truth, v)) for v in x]
    five: Any = SimpleNamespace(inputs=(x[:2], x[2:]), outputs=(y[:2], y[2:]))
    np.testing.assert_allclose(TeaCache.calibrated(five).coefficients, truth, rtol=1e-6)
    four: Any = SimpleNamespace(inputs=(x[:4],), outputs=(y[:4],))
    with pytest.raises(RecordingError, match="4 changes cannot determine"):
        TeaCache.calibrated(four)


def test_magcache_lets_each_branch_go_by_its_own_ratios_unless_told_otherwise() -> None:
    measured: Any = SimpleNamespace(ratios={"cond": (1.0, 0.9), "uncond": (1.0, 0.7)}, mean_ratios=(1.0, 0.8))
    assert MagCache.calibrated(measured).ratios == {"cond": (1.0, 0.9), "uncond": (1.0, 0.7)}
    assert MagCache.calibrated(measured, together=True).ratios == {"*": (1.0, 0.8)}


def test_smoothcache_reuses_while_the_calibrated_error_is_small() -> None:
    errors = (
        (0.0, 0.5, 0.05, 0.05, 0.05, 0.05, 0.3, 0.05),
        (0.0, 0.0, 0.6, 0.08, 0.12, 0.08, 0.4, 0.4),
        (0.0, 0.0, 0.0, 0.09, 0.3, 0.09, 0.3, 0.3),
    )
    got = table(SmoothCache(curves={"ff": errors}, alpha=0.1, lookahead=3), 8)
    # 1 is too far from 0; 2 and 3 near 1; 4 is three steps from 1 and too far; 5 near 4; 6 too far; 7 near 6
    assert got["blocks.0.ff"] == "CCRRCRCR" and len(got) == BLOCKS
    assert table(SmoothCache(curves={"ff": errors}, alpha=0.1, lookahead=1), 8)["blocks.0.ff"] == "CCRCRCCR"


def test_ertacache_plans_from_profiled_errors() -> None:
    errors = ((0.0, 0.05, 0.05, 0.5, 0.05), (0.0, 0.0, 0.3, 0.5, 0.3))
    assert table(ERTACache(errors=errors, threshold=0.1, start=0.0), 5)["stack"] == "CRCCR"
    predictor = ERTACache(errors=errors, gains=((1.0, 0.9, 0.9, 0.9, 1.5),)).predictor(sites()[0], Run.of(5))
    steps = Run.of(5).steps
    value = torch.tensor([2.0])
    assert predictor.predict([Past(steps[3], value)], Now(steps[4])).item() == pytest.approx(3.0)
    assert predictor.predict([Past(steps[1], value)], Now(steps[4])).item() == 2.0  # not measured: held
    shifted = ERTACache(errors=errors, gains=((1.0, 0.9, 0.9, 0.9, 1.5),), offsets=((0.0, 0.0, 0.0, 0.0, 0.25),))
    predicted = shifted.predictor(sites()[0], Run.of(5)).predict([Past(steps[3], value)], Now(steps[4]))
    assert predicted.item() == pytest.approx(3.25)


def test_calibrated_curves_resample_by_progress() -> None:
    assert [nearest((0, 1, 2, 3, 4), i, 3) for i in range(3)] == [0, 2, 4]
    assert [nearest((5, 6), i, 4) for i in range(4)] == [5, 5, 6, 6]
    curves = tuple(tuple(float(100 * lag + i) for i in range(50)) for lag in (1, 2, 3))
    assert lagged(curves, 10, 1, 50) == 110.0
    assert lagged(curves, 12, 1, 25) == 224.0  # one step of 25 is two of 50
    assert lagged(curves, 12, 2, 25) is None  # four steps were not measured
    assert lagged(curves, 0, 1, 50) is None


def test_smoothcache_takes_the_measured_curves_of_the_roles_asked_for() -> None:
    curves = {role: ((0.25, level), (0.5, level)) for role, level in (("spatial", 1.0), ("cross", 2.0), ("ff", 3.0))}
    measured: Any = SimpleNamespace(curves=curves)
    assert SmoothCache.calibrated(measured).curves == curves
    some = SmoothCache.calibrated(measured, roles="ff|spatial", alpha=0.3, lookahead=2)
    assert some == SmoothCache(curves={"ff": curves["ff"], "spatial": curves["spatial"]}, alpha=0.3, lookahead=2)
    with pytest.raises(RecordingError, match="no curve of 'joint' was recorded; there are spatial, cross, ff"):
        SmoothCache.calibrated(measured, roles="ff|joint")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SmoothCache(curves={}), "measure them"),
        (lambda: SmoothCache(curves={"ff": ((0.1,), (0.1, 0.2))}), "one list per lag"),
        (lambda: MagCache(ratios={}), "measure them"),
        (lambda: MagCache(), "needs the field 'ratios'"),
        (lambda: Planned(), "needs the field 'computed'; make one with `fastercache plan`"),
        (lambda: ERTACache(errors=()), "one list per lag"),
    ],
)
def test_missing_calibration_is_one_clear_line(build: object, message: str) -> None:
    with pytest.raises(InvalidPolicy, match=message):
        build()  # type: ignore[operator]


# -- forecasts ---------------------------------------------------------------------------------------------------------
def history(indices: list[int], count: int = 20) -> tuple[list[np.ndarray], list[Past]]:
    steps = Run.of(count).steps
    arrays = [RNG.normal(size=(2, 4)) for _ in indices]
    return arrays, [Past(steps[i], torch.from_numpy(a)) for i, a in zip(indices, arrays, strict=True)]


def test_hermite_polynomials_are_the_physicists() -> None:
    for order in range(5):
        for x in (-1.3, 0.0, 0.7, 2.0):
            assert hermite(order, x) == pytest.approx(hermval(x, [0] * order + [1]))


def test_hicache_is_taylor_in_a_scaled_hermite_basis() -> None:
    (c, b, a), past = history([2, 5, 7])
    d1, d1_before = (a - b) / 2, (b - c) / 3
    d2 = (d1 - d1_before) / 2
    k, s = 3, 0.5
    expected = a + d1 * s * hermval(s * k, [0, 1]) + d2 * s**2 * hermval(s * k, [0, 0, 1]) / math.factorial(2)
    got = Hermite(order=2, scale=s).predict(past, Now(Run.of(20).steps[10])).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    # the sign convention does not matter: H_i(-x) with differences taken backwards is the same number
    backward = a + (-d1) * s * hermval(-s * k, [0, 1]) + d2 * s**2 * hermval(-s * k, [0, 0, 1]) / 2
    np.testing.assert_allclose(got, backward, rtol=1e-12)


def test_foca_averages_the_anchor_slope_with_the_local_one() -> None:
    (c, b, a), past = history([2, 5, 8])
    before = b + (b - c) / 3 * 2  # the line's value at step 7, which was skipped
    anchor = (a - b) / 3
    p1 = a + 0.5 * (anchor + a - before)
    p2 = a + 1.0 * (anchor + p1 - a)
    p3 = a + 1.5 * (anchor + p2 - p1)
    steps = Run.of(20).steps
    for k, expected in ((1, p1), (2, p2), (3, p3), (6, a + (p3 - a) * 3 / 6)):
        np.testing.assert_allclose(FoCaForecast().predict(past, Now(steps[8 + k])).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("predictor", [Hermite(order=2), FoCaForecast(), AverageVelocity(span=3), Taylor(order=1)])
def test_forecasts_keep_a_constant_and_hold_a_single_value(predictor: Hermite) -> None:
    steps = Run.of(20).steps
    value = torch.ones(2, 3)
    for indices in ([4], [2, 4], [1, 2, 4]):
        torch.testing.assert_close(predictor.predict([Past(steps[i], value) for i in indices], Now(steps[6])), value)


@pytest.mark.parametrize("timed", ["timestep", "sigma"])
def test_average_velocity_is_meancaches_correction(timed: str) -> None:
    sigmas = [1.0, 0.93, 0.82, 0.7, 0.55]
    steps = [Step(i, 5, 1000 * s, s if timed == "sigma" else None) for i, s in enumerate(sigmas)]
    v0, v1, v2 = (RNG.normal(size=(3,)) for _ in range(3))
    past = [Past(step, torch.from_numpy(v)) for step, v in zip(steps, (v0, v1, v2), strict=False)]
    widths = [b - a for a, b in pairwise(sigmas[:4])]
    whole = sum(widths)
    average = (v0 * widths[0] + v1 * widths[1] + v2 * widths[2]) / whole
    jvp = (v0 - average) / whole
    got = AverageVelocity(span=3).predict(past, Now(steps[3])).numpy()
    np.testing.assert_allclose(got, v2 - jvp * widths[2], rtol=1e-9)


def test_average_velocity_moves_on_by_one_step_however_far_ahead_it_is_asked() -> None:
    sigmas = [1.0, 0.93, 0.82, 0.7, 0.55, 0.3]
    steps = [Step(i, 6, 1000 * s, s) for i, s in enumerate(sigmas)]
    first, last = (RNG.normal(size=(3,)) for _ in range(2))
    past = [Past(steps[0], torch.from_numpy(first)), Past(steps[2], torch.from_numpy(last))]
    for i in (3, 4, 5):
        whole = sigmas[i] - sigmas[0]
        average = (first * (sigmas[2] - sigmas[0]) + last * (sigmas[i] - sigmas[2])) / whole
        one_step = (sigmas[i] - sigmas[2]) / (i - 2)
        got = AverageVelocity(span=2).predict(past, Now(steps[i])).numpy()
        np.testing.assert_allclose(got, last - (first - average) / whole * one_step, rtol=1e-9)


def test_dicache_moves_along_the_last_change_as_far_as_the_probe_did() -> None:
    steps = Run.of(20).steps
    p2, p1, p0, q2, q1 = (torch.from_numpy(RNG.normal(size=(2, 3))) for _ in range(5))
    past = [Past(steps[3], (q2, p2)), Past(steps[5], (q1, p1))]
    gain = ((p0 - p2).abs().mean() / (p1 - p2).abs().mean()).clamp(1.0, 2.0)
    r2, r1 = q2 + p2, q1 + p1  # residuals of probe and site together
    expected = r2 + gain * (r1 - r2) - p0
    torch.testing.assert_close(Aligned().predict(past, Now(steps[6], p0)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Aligned().predict(past[1:], Now(steps[6], p0)), r1 - p0)
    far = Aligned(limit=1.5).predict(past, Now(steps[6], p2 + 100 * (p1 - p2)))
    torch.testing.assert_close(far, r2 + 1.5 * (r1 - r2) - (p2 + 100 * (p1 - p2)), rtol=1e-5, atol=1e-5)
    near = p2 + 0.25 * (p1 - p2)  # the probe went back: no less than the last change is made
    torch.testing.assert_close(Aligned().predict(past, Now(steps[6], near)), r1 - near, rtol=1e-5, atol=1e-5)
    text = [Past(steps[3], (torch.zeros(2, 7), p2)), Past(steps[5], (torch.ones(2, 7), p1))]
    torch.testing.assert_close(Aligned().predict(text, Now(steps[6], p1)), torch.ones(2, 7))


def test_zero_and_relative() -> None:
    steps = Run.of(5).steps
    past = [Past(steps[0], torch.full((2, 3), 4.0))]
    torch.testing.assert_close(Zero().predict(past, Now(steps[1])), torch.zeros(2, 3))
    difference = Relative(inner=Taylor(order=2))
    assert difference.depth == 3 and difference.needs is Signal.INPUT and Hold().needs is None
    moved = [
        Past(step, difference.keep(torch.full((2,), 5.0 * i), torch.full((2,), 3.0 * i)))
        for i, step in enumerate(steps[:3])
    ]
    # output - input is 0, 2, 4, so 6 at the next step, plus the input of then
    torch.testing.assert_close(difference.predict(moved, Now(steps[3], torch.full((2,), 7.0))), torch.full((2,), 13.0))


def test_every_method_cites_its_paper() -> None:
    ours = {"no_cache", "compose", "schedule", "warm_up", "window", "max_consecutive", "guidance_reuse"}
    ours |= {"adaptive_guidance", "branch_reuse"}
    for name, cls in known_policies().items():
        if name in ours or not cls.__module__.startswith("fastercache.policies."):
            continue
        cited = cls.citation
        assert cited is not None, name
        of_ours = name == "planned" and (Path(__file__).parents[3] / cited.url).is_file()
        assert cited.url.startswith("https://") or of_ours, name
        assert 2015 < cited.year < 2030 and cited.reuses and cited.authors


def test_a_value_older_than_the_interval_is_not_reused() -> None:
    """Where a step that was due was not reached, since an outer site was reused then: 4 is not due, 3 was."""
    policy = DynamicReuse(interval=3, start=0.0)
    step = Run.of(9).steps[4]
    assert [policy.reuse(state, step) for state in (None, 0, 1, 2, 3)] == [False, False, False, True, True]

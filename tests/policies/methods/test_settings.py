"""Methods at other settings than their defaults, and at the ends of their windows, bounds and measured curves."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.policies.errors import InvalidPolicy
from fastercache.policies.methods.adacache import CODEBOOKS
from fastercache.policies.methods.calibrated import lagged, nearest
from fastercache.policies.methods.dynamic import Memo
from fastercache.policies.methods.meancache import PLANS
from fastercache.policies.methods.seacache import noise_level
from fastercache.policies.methods.static_interval import anchor
from fastercache.policies.predictors.frequency import wiener
from fastercache.policies.rules import begin_all
from fastercache.policies.schedule import compile_policy
from fastercache.policies.vocabulary import Kind, Role, Run, Scope, Site, Step


def model(blocks: int, denoiser: str = "") -> list[Site]:
    """A stack of blocks with a spatial attention and a feed-forward each, the denoiser and the other branch."""
    at = f"{denoiser}/" if denoiser else ""
    found = [Site(f"{at}stack", Kind.STACK, None, 0, (0, blocks), denoiser)]
    for d in range(blocks):
        span = (d, d + 1)
        found.append(Site(f"{at}b.{d}", Kind.BLOCK, None, d, span, denoiser))
        found.append(Site(f"{at}b.{d}.attn", Kind.MODULE, Role.SPATIAL, d, span, denoiser))
        found.append(Site(f"{at}b.{d}.cross", Kind.MODULE, Role.CROSS, d, span, denoiser))
        found.append(Site(f"{at}b.{d}.ff", Kind.MODULE, Role.FF, d, span, denoiser))
    found.append(Site(f"{at}denoiser", Kind.DENOISER, denoiser=denoiser))
    return [*found, Site(f"{at}branch", Kind.BRANCH, denoiser=denoiser)]


SITES = tuple(model(4))


def letters(policy: fc.Policy, count: int, sites: tuple[Site, ...] = SITES) -> dict[str, str]:
    """By site, the row of the last branch."""
    table = compile_policy(policy, Run.of(count, sites=sites))
    return {s.name: "".join("CR-"[c] for c in table.codes[i, -1]) for i, s in enumerate(table.sites)}


def drive(policy: fc.Policy, signals: list[Tensor] | None, values: list[Tensor], name: str = "") -> str:
    """Decisions of a watching rule at one of its sites in one branch, asked and told as the runtime does it."""
    run = Run.of(len(values), branches=("cond",), sites=SITES)
    assigned = {site.name: one.rule for site, one in policy.assign(run).items()}
    rule: Any = assigned[name or next(iter(assigned))]
    state, found = rule.begin(SITES[0], "cond", run), ""
    for i, step in enumerate(run.steps):
        wanted = rule.reuse(state, step, None if signals is None else signals[i]) and "C" in found
        if not wanted:
            state = rule.update(state, step, values[i])
        found += "R" if wanted else "C"
    return found


def grown(*factors: float) -> list[Tensor]:
    """Values each of which is so many times the one before."""
    return [torch.full((1, 2, 4), math.prod(factors[: i + 1])) for i in range(len(factors))]


# -- windows and intervals ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("start", "count", "first"),
    [(0.14, 51, 7), (7 / 49, 50, 7), (0.5, 9, 4), (0.5, 10, 5), (0.51, 9, 5), (0.0, 9, 0), (1.0, 9, 8)],
)
def test_an_interval_is_counted_from_the_first_step_at_its_start(start: float, count: int, first: int) -> None:
    """0.14 * 50 is a little more than 7 in floating point."""
    assert anchor(count, start) == first
    row = letters(fc.StaticInterval(sites="stack", interval=3, start=start), count)["stack"]
    assert row == "C" * first + ("CRR" * count)[: count - first]


@pytest.mark.parametrize("stop", [0.1 + 0.2, 0.3])
def test_what_stops_at_a_step_computes_it(stop: float) -> None:
    """Ten steps from 0 to 1 and one more; each of these rules reuses every step but the first until its stop."""
    for policy in (
        fc.StaticInterval(sites="stack", interval=12, stop=stop),
        fc.DeltaDiT(interval=12, stop=stop, gate=1.0),
        fc.CFGCache(interval=12, start=0.0, stop=stop),
        fc.GuidanceReuse(interval=12, start=0.0, stop=stop),
        fc.BranchReuse(interval=12, other_interval=12, start=0.0, stop=stop),
    ):
        assert "CRRCCCCCCCC" in letters(policy, 11).values(), policy.name


def test_dynamic_reuse_counts_from_its_offset_and_stops() -> None:
    policy = fc.DynamicReuse(sites="spatial", interval=3, start=0.2, stop=0.8, offset=1)
    assert letters(policy, 11)["b.0.attn"] == "CCRRCRRCCCC"
    predictor = policy.predictor(SITES[2], Run.of(11))
    assert predictor == fc.Difference(weight=fc.Ramp(start=0.2), order=1, gap=3), "step 2 is the first one reused"
    at_once = fc.DynamicReuse(interval=3, start=0.4, offset=1, order=2).predictor(SITES[2], Run.of(11))
    assert at_once == fc.Difference(weight=fc.Ramp(start=0.5), order=2, gap=3), "step 4 is due"
    constant = fc.DynamicReuse(weight=0.4, interval=5).predictor(SITES[2], Run.of(11))
    assert constant == fc.Difference(weight=0.4, order=1, gap=5)


def test_fastercache_is_its_two_parts_with_the_fields_of_each() -> None:
    policy = fc.FasterCache(
        sites="spatial", interval=3, start=0.1, stop=0.9, weight=0.7, order=2, offset=4, cfg_interval=6, cfg_start=0.2,
        cfg_stop=0.8, alpha_low=0.11, alpha_high=0.22, switch=0.33, switch_high=0.44, weighting="repo", radius=7,
        divisor=9, cfg_offset=5,
    )  # fmt: skip
    assert policy.parts() == (
        fc.DynamicReuse(sites="spatial", interval=3, start=0.1, stop=0.9, weight=0.7, order=2, offset=4),
        fc.CFGCache(
            interval=6, start=0.2, stop=0.8, alpha_low=0.11, alpha_high=0.22, switch=0.33, switch_high=0.44,
            weighting="repo", radius=7, divisor=9, offset=5,
        ),
    )  # fmt: skip
    assert policy.parts()[1].assign(Run.of(9, sites=SITES))[SITES[-1]].predictor == fc.GuidanceDelta(
        alpha_low=0.11, alpha_high=0.22, switch=0.33, switch_high=0.44, weighting="repo", radius=7, divisor=9
    )


def test_every_forecast_is_made_with_the_fields_of_its_policy() -> None:
    run = Run.of(9, sites=SITES)
    for policy, predictor in (
        (fc.TaylorSeer(order=3), fc.Taylor(order=3)),
        (fc.HiCache(order=3, scale=0.7), fc.Hermite(order=3, scale=0.7)),
        (fc.FoCa(horizon=5), fc.FoCaForecast(horizon=5)),
        (fc.ABCache(order=2), fc.AdamsBashforth(order=2)),
        (fc.DMDCache(history=8), fc.Exponential(history=8)),
        (fc.Spectrum(degree=2, ridge=0.3, blend=0.8), fc.Chebyshev(degree=2, ridge=0.3, blend=0.8)),
        (fc.MeanCache(span=3), fc.AverageVelocity(span=3)),
        (fc.GuidanceInterval(), fc.Zero()),
        (fc.DiCache(), fc.Aligned()),
        (fc.SeaCache(), fc.Linear()),
    ):
        assert {one.predictor for one in policy.assign(run).values()} == {predictor}, policy.name


def test_meancache_with_an_interval_of_one_reuses_nothing_whatever_its_plan() -> None:
    policy = fc.MeanCache(plan=(0.0, 0.5, 1.0), interval=1)
    assert letters(policy, 9) == {"denoiser": "C" * 9}
    off = fc.MeanCache.published("qwen-image-10", span=4).switched_off()
    assert isinstance(off, fc.MeanCache) and len(off.plan) == 10 and off.span == 4
    assert letters(off, 50) == {"denoiser": "C" * 50}


def test_spectrum_stops() -> None:
    assert letters(fc.Spectrum(interval=3, growth=0.0, start=0.0, stop=0.5), 9)["stack"] == "CRRCCCCCC"


@pytest.mark.parametrize(("interval", "tenths"), [(2, 1), (1, 1), (3, 2), (2, 3), (2, 7), (4, 9)])
def test_spectrums_gaps_grow_by_exact_tenths(interval: int, tenths: int) -> None:
    """In whole numbers: ten times a tenth is one, though not in floating point."""
    step, expected = 1, {0, 1}
    for m in range(100):
        step += (10 * interval + m * tenths * (interval > 1)) // 10
        expected.add(step)
    computed = fc.Spectrum(interval=interval, growth=tenths / 10, offset=1).computed(60)
    assert {i for i in computed if i < 60} == {i for i in expected if i < 60}


def test_tgate_holds_cross_attention_from_the_gate_on_and_self_attention_inside_its_window() -> None:
    """The gate is at step 4 of 9, whose progress is 0.5: a step at the gate is held, one at the start may be."""
    found = letters(fc.TGate(gate=0.5, self_interval=3, start=0.125), 9)
    assert (found["b.1.cross"], found["b.1.attn"]) == ("CCCCRRRRR", "CRRCCCCCC")
    assert letters(fc.TGate(gate=1.0, self_interval=2, start=0.0), 5)["b.0.cross"] == "CCCCC"


def test_pab_takes_each_roles_own_range() -> None:
    found = letters(fc.PyramidAttentionBroadcast(spatial=2, cross=3, temporal=4, ff=5, low=0.0, high=1000.0), 11)
    assert (found["b.0.attn"], found["b.0.cross"], found["b.0.ff"]) == ("CRCRCRCRCRC", "CRRCRRCRRCC", "CRRRRCRRRRC")


@pytest.mark.parametrize("sites", ["block[2:-1]", "b.2", "denoiser"])
def test_deepcache_reuses_the_sites_it_is_given_where_there_is_no_stack_too(sites: str) -> None:
    levels = [site for site in SITES if site.kind is not Kind.STACK]
    named = {"block[2:-1]": "b.2"}.get(sites, sites)
    for among in (SITES, levels):
        assert [site.name for site in fc.DeepCache(sites=sites).claims(among)] == [named]


def test_delta_dit_divides_each_denoiser_by_itself() -> None:
    """Half of five blocks are two, of three one; the middle one is always computed."""
    both = (*model(5, "high"), *model(3, "low"))
    assert {site.name: site.span for site in fc.DeltaDiT(share=0.5).claims(both)} == {
        "high/stack[0:2]": (0, 2),
        "high/stack[3:5]": (3, 5),
        "low/stack[0:1]": (0, 1),
        "low/stack[2:3]": (2, 3),
    }
    assert [site.name for site in fc.DeltaDiT(share=0.1).claims(SITES)] == ["stack[0:1]", "stack[3:4]"]


def test_every_branch_but_the_conditional_one_has_the_others_interval() -> None:
    policy = fc.BranchReuse(interval=2, other_interval=4, start=0.0)
    table = compile_policy(policy, Run.of(9, branches=("cond", "uncond", "perturbed"), sites=SITES))
    assert ["".join("CR"[c] for c in row) for row in table.codes[0]] == ["CRCRCRCRC", "CRRRCRRRC", "CRRRCRRRC"]
    assert policy.switched_off() == fc.BranchReuse(interval=1, other_interval=1, start=0.0)


def test_delta_dit_changes_over_with_the_step_at_its_gate() -> None:
    """The gate is at step 3 of 9, which is not due: the front rests there and the rear does not."""
    found = letters(fc.DeltaDiT(share=0.5, gate=0.375, interval=2), 9)
    assert found == {"stack[0:2]": "CCCRCRCRC", "stack[2:4]": "CRCCCCCCC"}


@pytest.mark.parametrize("count", [5, 7])
def test_a_plan_serves_no_other_number_of_steps(count: int) -> None:
    policy = fc.Planned(steps=6, computed=(0, 2, 5), stand_in=fc.Linear())
    assert letters(policy, 6) == {"denoiser": "CRCRRC"}
    with pytest.raises(fc.ScheduleMismatch, match=f"for 6 steps, the run has {count}"):
        compile_policy(policy, Run.of(count, sites=SITES))


# -- measured constants ------------------------------------------------------------------------------------------------
def test_constants_that_are_given_go_before_those_that_were_measured() -> None:
    lags = ((0.5, 0.5),)
    measured: Any = SimpleNamespace(
        ratios={"*": (1.0, 2.0)}, mean_ratios=(1.0, 2.0), errors=lags, gains=lags, offsets=lags, curves={"ff": lags},
        inputs=((0.1,) * 6,), outputs=((0.2,) * 6,),
    )  # fmt: skip
    mine = {"cond": (0.9, 0.8)}
    assert fc.MagCache.calibrated(measured, ratios=mine).ratios == mine
    assert fc.MagCache.calibrated(measured, ratios=mine, together=True).ratios == mine
    assert fc.SmoothCache.calibrated(measured, curves={"all": ((0.25,),)}).curves == {"all": ((0.25,),)}
    assert fc.TeaCache.calibrated(measured, coefficients=(3.0, 1.0), threshold=0.4) == fc.TeaCache(
        coefficients=(3.0, 1.0), threshold=0.4
    )
    found = fc.ERTACache.calibrated(measured, gains=((0.75, 1.0),), max_skip=2)
    assert found == fc.ERTACache(errors=lags, gains=((0.75, 1.0),), offsets=lags, max_skip=2)


def test_each_measured_constant_is_the_field_of_its_name() -> None:
    measured: Any = SimpleNamespace(errors=((0.1,),), gains=((0.2,),), offsets=((0.3,),))
    found = fc.ERTACache.calibrated(measured)
    assert (found.errors, found.gains, found.offsets) == (((0.1,),), ((0.2,),), ((0.3,),))


def test_teacache_fits_the_output_to_the_input_with_the_degree_it_is_given() -> None:
    x = (0.1, 0.2, 0.3, 0.4)
    measured: Any = SimpleNamespace(inputs=(x[:3], x[3:]), outputs=(tuple(0.5 + 3 * v for v in x[:3]), (1.7,)))
    assert fc.TeaCache.calibrated(measured, degree=1, threshold=0.3).coefficients == pytest.approx((3.0, 0.5))
    assert fc.TeaCache.calibrated(measured, degree=1, threshold=0.3).threshold == 0.3


def test_curves_of_a_run_of_other_length_are_read_at_the_same_progress_and_span() -> None:
    """Measured over 11 steps, entry [k - 1][i] being 100 k + i."""
    curves = tuple(tuple(100.0 * lag + i for i in range(11)) for lag in (1, 2, 3))
    assert lagged(curves, 12, 1, 21) == 106.0, "half a step is read as one"
    assert lagged(curves, 12, 6, 21) == 306.0 and lagged(curves, 12, 8, 21) is None
    assert lagged(curves, 3, 1, 6) == 206.0 and lagged(curves, 3, 2, 6) is None
    assert lagged(curves, 2, 2, 11) == 202.0 and lagged(curves, 2, 3, 11) is None, "a value of before the run"
    assert lagged(curves, 1, 3, 11) is None and lagged(curves, 6, 2, 17) == 104.0, "3.75 steps of ten, 1.25 apart"
    assert lagged(((5.0, 6.0),), 0, 1, 1) == 6.0 and nearest((5, 6, 7), 0, 1) == 7
    assert [nearest((0, 1, 2, 3, 4), i, 9) for i in (0, 2, 4, 6, 8)] == [0, 1, 2, 3, 4]


def test_smoothcache_gives_a_site_the_last_curves_that_name_it() -> None:
    good, bad = ((0.05,) * 6,) * 3, ((0.5,) * 6,) * 3
    found = letters(fc.SmoothCache(curves={"all": bad, "ff": good}), 6)
    assert (found["b.0.ff"], found["b.0.attn"]) == ("CRRRCR", "CCCCCC")
    found = letters(fc.SmoothCache(curves={"ff": bad, "all": good}), 6)
    assert (found["b.0.ff"], found["b.0.attn"]) == ("CRRRCR", "CRRRCR")


def test_smoothcache_looks_at_the_error_of_the_lag_it_has() -> None:
    """Fine one step after a computed one and two, too much after three."""
    curves: dict[str, Any] = {"ff": ((0.05,) * 9, (0.09,) * 9, (0.11,) * 9)}
    assert letters(fc.SmoothCache(curves=curves, lookahead=3), 9)["b.0.ff"] == "CRRCRRCRR"
    assert letters(fc.SmoothCache(curves=curves, lookahead=1), 9)["b.0.ff"] == "CRCRCRCRC"
    assert letters(fc.SmoothCache(curves=curves, lookahead=3, alpha=0.0), 9)["b.0.ff"] == "C" * 9
    short = {"ff": curves["ff"][:2]}  # three steps apart was not measured
    assert letters(fc.SmoothCache(curves=short, lookahead=6), 9)["b.0.ff"] == "CRRCRRCRR"


def test_ertacache_at_its_bounds() -> None:
    """Errors of 0.25 at every lag: at a threshold of 0.25 all is computed; reuse begins at the start itself."""
    errors = ((0.25,) * 9,) * 4
    assert letters(fc.ERTACache(errors=errors, threshold=0.25, start=0.0), 9)["stack"] == "C" * 9
    policy = fc.ERTACache(errors=errors, threshold=0.26, start=0.25, max_skip=2)
    assert letters(policy, 9)["stack"] == "CCRRCRRCR"
    assert letters(policy.model_copy(update={"max_skip": 6}), 9)["stack"] == "CCRRRRCRR", "five steps were not measured"


def test_a_rectified_value_takes_gain_and_offset_of_its_own_lag() -> None:
    gains, offsets = ((2.0,) * 5, (3.0,) * 5), ((0.25,) * 5, (0.5,) * 5)
    steps, value = Run.of(5).steps, torch.tensor([4.0])
    predictor = fc.ERTACache(errors=gains, gains=gains, offsets=offsets).predictor(SITES[0], Run.of(5))
    found = [predictor.predict([fc.Past(steps[s], value)], fc.Now(steps[3])).item() for s in (2, 1, 0)]
    assert found == [4 * 2 + 0.25, 4 * 3 + 0.5, 4.0]


def test_magcache_at_its_bounds() -> None:
    """A ratio of 0.75 leaves an error of exactly 0.25; three tenths of 15 steps and a half are five."""
    policy = fc.MagCache(ratios={"*": (0.75,) * 15}, threshold=0.25, max_skip=3, retention=0.3)
    assert letters(policy, 15)["stack"] == "CCCCC" + "RC" * 5
    still = fc.MagCache(ratios={"*": (1.0,) * 15}, threshold=0.0, max_skip=2, retention=0.3)
    assert letters(still, 15)["stack"] == "CCCCC" + ("RRC" * 4)[:10]
    assert letters(still.model_copy(update={"retention": 0.2}), 13)["stack"] == "CCC" + ("RRC" * 4)[:10], "2.6 steps"


def test_magcache_reads_its_ratios_at_the_progress_of_the_step() -> None:
    """Five ratios serve nine steps: the calm ones are the middle of the run."""
    ratios: dict[str, Any] = {"*": (2.0, 2.0, 1.0, 2.0, 2.0)}
    found = letters(fc.MagCache(ratios=ratios, threshold=0.1, retention=0.0), 9)["stack"]
    assert found == "".join("R" if round(i / 2) == 2 else "C" for i in range(9)) and found.count("R") == 3


def test_magcache_forgets_the_drift_when_it_computes() -> None:
    """Products 0.9, 0.81: errors of 0.1 and 0.29 in all; the sum begins anew at each computed step."""
    policy = fc.MagCache(ratios={"*": (0.9,) * 9}, threshold=0.28, retention=0.0, max_skip=12)
    assert letters(policy, 9)["stack"] == "CR" * 4 + "C"
    assert letters(policy.model_copy(update={"threshold": 0.3}), 9)["stack"] == "CRR" * 3


def test_curves_of_unequal_lengths_are_refused_in_every_field() -> None:
    uneven, even = ((0.1,), (0.1, 0.2)), ((0.1, 0.2),)
    for fields in ({"errors": uneven}, {"errors": even, "gains": uneven}, {"errors": even, "offsets": uneven}):
        with pytest.raises(InvalidPolicy, match="one list per lag"):
            fc.ERTACache(**fields)
    for curves in ({"ff": even, "spatial": uneven}, {"ff": even, "spatial": ()}, {"ff": ((),)}):
        with pytest.raises(InvalidPolicy, match="one list per lag"):
            fc.SmoothCache(curves=curves)  # type: ignore[arg-type]
    with pytest.raises(InvalidPolicy, match="magnitude ratios by branch"):
        fc.MagCache(ratios={"cond": (1.0,), "uncond": ()})


# -- rules that watch --------------------------------------------------------------------------------------------------
def test_dual_block_cache_compares_with_the_last_computed_step_not_with_the_step_before() -> None:
    """A twentieth more at each step: one step after a computed one it is 5 %, two steps after it 10.25 %."""
    policy = fc.DualBlockCache(threshold=0.08, warm_up=2)
    assert drive(policy, grown(*[1.05] * 9), grown(*[1.0] * 9)) == "CCRCRCRCR"
    assert drive(policy, grown(*[1.03] * 9), grown(*[1.0] * 9)) == "CCRRCRRCR"


@pytest.mark.parametrize("cls", [fc.FirstBlockCache, fc.DualBlockCache, fc.TeaCache, fc.DiCache, fc.BWCache])
def test_a_change_of_exactly_the_threshold_is_computed(cls: Any) -> None:
    """1, 1.25, 1.5625, ...: each a quarter more than the one before."""
    others: dict[Any, Any] = {fc.DualBlockCache: {"warm_up": 0}, fc.DiCache: {"start": 0.0}, fc.BWCache: {"tail": 0.0}}
    fields = others.get(cls, {})
    signals = grown(1.0, *[1.25] * 5)
    assert drive(cls(threshold=0.25, **fields), signals, signals) == "C" * 6
    assert "R" in drive(cls(threshold=0.26, **fields), signals, signals)


def test_dual_block_cache_counts_its_reuses_anew_after_each_computed_step() -> None:
    policy = fc.DualBlockCache(threshold=1.0, warm_up=0, max_consecutive=2)
    assert drive(policy, grown(*[1.0] * 9), grown(*[1.0] * 9)) == "CRRCRRCRR"


def test_a_sum_of_changes_begins_anew_at_a_computed_step_and_counts_skipped_ones() -> None:
    """A tenth more at each step is too much at the third: 0.1, 0.2, 0.3."""
    signals = grown(*[1.1] * 11)
    assert drive(fc.TeaCache(threshold=0.25), signals, signals) == "CRRCRRCRRCC"
    assert drive(fc.DiCache(threshold=0.25, start=0.0), signals, signals) == "CRRCRRCRRCC"


def test_seacache_leaves_its_first_and_last_steps_and_limits_its_reuses() -> None:
    still = [torch.zeros(1, 1, 4, 4)] * 14
    policy = fc.SeaCache(threshold=1.0, warm_up=3, cool_down=4, max_consecutive=2)
    assert drive(policy, still, still) == "CCC" + "RRCRRCR" + "CCCC"
    open_ended = fc.SeaCache(threshold=1.0, warm_up=0, cool_down=0, max_consecutive=12)
    assert drive(open_ended, still, still) == "C" + "R" * 12 + "C"


def test_the_noise_level_of_a_sigma_of_one_is_one() -> None:
    found = [noise_level(Step(0, 2, 700.0, sigma)) for sigma in (0.0, 1.0, 1.5, 3.0)]
    assert found == [0.0, 1.0, 0.6, 0.75]
    assert noise_level(Step(0, 2, 1000.0)) == 1.0 and noise_level(Step(0, 2, 250.0)) == 0.25


def test_adacache_at_its_bounds() -> None:
    """Powers of two, so that a change of exactly a bound is known: it takes the next entry."""
    policy = fc.AdaCache(codebook=((0.25, 5), (0.5, 3), (1.0, 2)), cool_down=0)
    run = Run.of(20)

    def due(mean: float, scale: float = 1.0, cool_down: int = 0) -> int:
        rule = policy.model_copy(update={"scale": scale, "cool_down": cool_down})
        (site, *_) = model(2)
        watch = rule.begin(site, "cond", run).watch
        watch.step = 7
        return rule.due(watch, mean, 20)

    assert [due(mean) - 7 for mean in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 4.0)] == [5, 3, 3, 2, 2, 2, 2]
    assert [due(0.375, scale) - 7 for scale in (0.5, 1.0, 2.0)] == [2, 3, 5]
    assert [due(0.125, cool_down=n) for n in (7, 8, 9, 12)] == [12, 12, 11, 8]


def test_adacache_divides_by_the_steps_since_the_blocks_own_last_value() -> None:
    """A block grows by a half in two steps, a quarter a step."""
    policy = fc.AdaCache(codebook=((0.2, 6), (0.3, 2), (1.0, 4)), cool_down=0)
    values = grown(1.0, 1.25, 1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.0)
    assert drive(policy, None, values, "b.0") == "CCRCRCRCR"


def test_a_block_that_is_computed_twice_in_a_step_changed_since_the_step_before_alone() -> None:
    rule, steps = fc.AdaCache(), Run.of(9).steps
    block: Any = rule.begin(SITES[1], "cond", Run.of(9))
    for i, value in ((0, 1.0), (0, 2.0), (3, 5.0), (3, 7.0)):
        block = rule.update(block, steps[i], torch.full((1, 2), value))
    assert block.watch.changes == [(5.0 - 2.0) / 2.0 / 3] and (block.watch.step, block.step) == (3, 3)


@pytest.mark.parametrize(
    ("rest", "tail", "expected"),
    [
        (0.1, 0.5, "CCRRCRRCRRC" + "C" * 9),
        (0.08, 0.5, "CCRRCRRCRRC" + "C" * 9),
        (0.12, 0.0, "CC" + "RRC" * 6),
        (0.13, 0.0, "CC" + "RRRC" * 4 + "RR"),
        (0.01, 0.0, "CC" + "RC" * 9),
        (0.15, 0.5, "CC" + "RRRC" * 2 + "R" + "C" * 9),
        (0.2, 0.25, "CC" + "RRRRC" * 2 + "RRR" + "CCCCC"),
        (0.1, 1.0, "C" * 20),
    ],
)
def test_bwcache_rests_for_a_share_of_the_run_and_leaves_a_share_of_what_was_left(
    rest: float, tail: float, expected: str
) -> None:
    """Calm from the second step on, of twenty: 18 are left, of which the share at the end is rounded up."""
    values = [torch.ones(1, 2)] * 20
    assert drive(fc.BWCache(threshold=0.5, rest=rest, tail=tail), None, values, "b.0") == expected


def test_bwcache_stays_triggered_when_its_blocks_grow_wild() -> None:
    values = grown(1.0, 1.0, *[4.0] * 10)
    assert drive(fc.BWCache(threshold=0.5, rest=0.1, tail=0.0), None, values, "b.0") == "CC" + "RC" * 5


def test_a_block_rule_decides_for_each_branch_by_its_own_blocks() -> None:
    """One branch is calm and the other is not."""
    rule: Any = fc.BWCache(threshold=0.5, rest=0.5, tail=0.0)
    run = Run.of(6, sites=SITES)
    states = begin_all(rule, SITES[1], run, {})
    found = dict.fromkeys(run.branches, "")
    for step in run.steps:
        for branch, rate in (("cond", 1.0), ("uncond", 2.0)):
            wanted = rule.reuse(states[branch], step, None)
            found[branch] += "CR"[wanted]
            if not wanted:
                states[branch] = rule.update(states[branch], step, torch.full((1, 2), rate**step.index))
    assert found == {"cond": "CCRRRC", "uncond": "CCCCCC"}


def test_easycache_divides_by_the_output_of_the_last_computed_step() -> None:
    """Input and output move by 1 a step, so k is 1; the output stands at 4 when it is computed: 1/4 a step."""
    moved = [torch.full((1, 2), 3.0 + i) for i in range(9)]
    for threshold, expected in ((0.25, "C" * 2), (0.26, "CCR"), (0.51, "CCRR")):
        found = drive(fc.EasyCache(threshold=threshold, start=0.0), moved, moved, "denoiser")
        assert found.startswith(expected) and found[len(expected)] == "C", threshold


def test_easycache_measures_between_computed_steps_of_one_shape() -> None:
    """A latent of another size: the rate of change is not known until two of them were computed."""
    small, large = [torch.full((1, 2), 3.0 + i) for i in range(4)], [torch.full((1, 4), 9.0 + i) for i in range(5)]
    found = drive(fc.EasyCache(threshold=1.0, start=0.0), [*small, *large], [*small, *large], "denoiser")
    assert found == "CCRR" + "CCRRC"


def test_easycache_of_what_stands_still_and_of_nothing() -> None:
    """An input that did not move tells no rate; an output of zeros does not change at all."""
    still, moved = [torch.ones(1, 2)] * 6, grown(*[1.5] * 6)
    policy = fc.EasyCache(threshold=0.5, start=0.0)
    assert drive(policy, still, moved, "denoiser") == "CCCCCC"
    assert drive(policy, moved, [torch.zeros(1, 2)] * 6, "denoiser") == "CCRRRC"


def test_easycache_reuses_the_difference_only_of_the_whole_denoiser() -> None:
    policy = fc.EasyCache(sites="stack|denoiser", stand_in=fc.Linear())
    found = {site.name: one.predictor for site, one in policy.assign(Run.of(4, sites=SITES)).items()}
    assert found == {"stack": fc.Linear(), "denoiser": fc.Relative(inner=fc.Linear())}


def test_a_memo_holds_the_step_before_and_the_last_computed_step() -> None:
    """Reused steps are seen too; what is computed becomes the anchor and sets the counts back."""
    rule = fc.FirstBlockCache(threshold=1.0)
    steps, signals = Run.of(6).steps, grown(*[1.01] * 6)
    memo = Memo()
    assert not rule.reuse(memo, steps[0], signals[0])
    memo = rule.update(memo, steps[0], signals[0])
    for i in (1, 2):
        assert rule.reuse(memo, steps[i], signals[i]) and memo.skipped == i
        assert memo.seen is signals[i - 1] and memo.anchor is signals[0] and memo.now is signals[i]
    memo.total = 0.5
    memo = rule.update(memo, steps[2], signals[2])
    assert (memo.total, memo.skipped) == (0.0, 0) and memo.anchor is signals[2]


@pytest.mark.parametrize("scope", list(Scope))
def test_a_rule_decides_for_those_that_its_scope_says(scope: Scope) -> None:
    assert fc.TeaCache(scope=scope).decides is scope and fc.AdaCache(scope=scope).decides is scope


@pytest.mark.parametrize(
    "name",
    [
        "adacache", "adaptive_guidance", "branch_reuse", "bwcache", "delta_dit", "dicache", "dual_block_cache",
        "easycache", "first_block_cache", "guidance_reuse", "magcache", "planned", "seacache", "static_interval",
        "teacache",
    ],
)  # fmt: skip
def test_a_stand_in_that_is_given_is_taken_as_it_is(name: str) -> None:
    given: dict[str, Any] = {"easycache": {"relative": False}, "planned": {"steps": 6, "computed": (0, 2)}}
    policy = made(name, stand_in=fc.Taylor(order=3), **given.get(name, {}))
    assert {one.predictor for one in policy.assign(Run.of(6, sites=SITES)).values()} == {fc.Taylor(order=3)}


def test_how_many_values_a_rule_that_watches_remembers() -> None:
    names = [name for name, cls in fc.known_policies().items() if cls.__module__.startswith("fastercache.policies")]
    found = {name: getattr(made(name), "remembers", None) for name in names if name not in OF_OTHERS}
    assert {name: number for name, number in found.items() if number is not None} == {
        "adacache": 1, "adaptive_guidance": 1, "bwcache": 1, "dicache": 3, "dual_block_cache": 3, "easycache": 6,
        "first_block_cache": 3, "seacache": 3, "teacache": 3,
    }  # fmt: skip


def test_seacache_filters_what_it_watches_at_the_steps_noise_level() -> None:
    x = torch.randn(1, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    step = Step(3, 9, 700.0, 0.25)
    for fields, (power, channels) in (({}, (3.0, 1)), ({"power": 1.5, "channels": 2}, (1.5, 2))):
        memo = Memo()
        fc.SeaCache(**fields).reuse(memo, step, x)  # type: ignore[arg-type]
        assert memo.now is not None and torch.equal(memo.now, wiener(x, 0.25, power, channels))


# -- what is allowed ---------------------------------------------------------------------------------------------------
def test_published_settings_take_other_fields_too() -> None:
    ada = fc.AdaCache.published("open-sora-30-fast", scale=2.0, cool_down=3)
    assert ada == fc.AdaCache(codebook=CODEBOOKS["open-sora-30-fast"], scale=2.0, cool_down=3)
    tea = fc.TeaCache.published("latte", threshold=0.3)
    assert tea == fc.TeaCache(coefficients=fc.COEFFICIENTS["latte"], threshold=0.3)
    mean = fc.MeanCache.published("qwen-image-10", span=3)
    assert mean == fc.MeanCache(plan=tuple(i / 49 for i in PLANS["qwen-image-10"]), span=3)


OF_OTHERS = {"compose", "planned", "schedule"}
PROGRESS = {"start", "stop", "cfg_start", "cfg_stop", "gate", "switch", "switch_high", "retention", "tail", "blend"}
COUNTS = {"interval", "cfg_interval", "other_interval", "self_interval", "max_skip", "lookahead", "horizon", "divisor"}


def made(name: str, **fields: Any) -> fc.Policy:
    cls = fc.policy_class(name)
    inner = {"inner": fc.FORA()} if "inner" in cls.model_fields else {}
    return cls(**{**dict(cls.constants), **inner, **fields})


@pytest.mark.parametrize("name", sorted(set(fc.known_policies()) - OF_OTHERS))
def test_points_of_the_run_lie_between_its_ends_and_counts_begin_at_one(name: str) -> None:
    for field in fc.policy_class(name).model_fields.keys() & PROGRESS:
        for value in (0.0, 1.0):
            assert getattr(made(name, **{field: value}), field) == value
        for value in (-0.001, 1.001):
            with pytest.raises(InvalidPolicy, match=field):
                made(name, **{field: value})
    for field in fc.policy_class(name).model_fields.keys() & COUNTS:
        assert getattr(made(name, **{field: 1}), field) == 1
        for count in (0, -1, 1.5):
            with pytest.raises(InvalidPolicy, match=field):
                made(name, **{field: count})


@pytest.mark.parametrize("name", sorted(set(fc.known_policies()) - OF_OTHERS))
def test_no_number_of_a_policy_is_without_bounds(name: str) -> None:
    for field in fc.policy_class(name).model_fields:
        value = getattr(made(name), field)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            for far in (10**6, -(10**6)):
                with pytest.raises(InvalidPolicy, match=field):
                    made(name, **{field: far})


@pytest.mark.parametrize(
    "make",
    [
        lambda: fc.AdaCache(codebook=()),
        lambda: fc.TeaCache(coefficients=()),
        lambda: fc.Planned(steps=3, computed=()),
        lambda: fc.Fitted(stretches=(), variance=None),
        lambda: fc.Stretch(after=0, start=1, outputs=(), input=0.0),
        lambda: fc.Stretch(after=-1, start=1, outputs=(1.0,), input=0.0),
        lambda: fc.Stretch(after=0, start=1, outputs=(1.0,) * 17, input=0.0),
        lambda: fc.Planned(steps=3, computed=(0, 3)),
        lambda: fc.Planned(steps=3, computed=(1, 2)),
        lambda: fc.Planned(steps=3, computed=(0, 2, 1)),
    ],
)
def test_what_would_hold_nothing_or_out_of_order_is_refused(make: Any) -> None:
    with pytest.raises(InvalidPolicy):
        make()

"""Dynamic rules take the decisions of their formulas, written out by hand, on sequences of random tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fastercache.policies import (
    COEFFICIENTS,
    AdaCache,
    AdaptiveGuidance,
    BWCache,
    CFGCache,
    Compose,
    DiCache,
    DualBlockCache,
    EasyCache,
    FirstBlockCache,
    Hold,
    InvalidPolicy,
    Kind,
    Linear,
    MaxConsecutive,
    Policy,
    Relative,
    Run,
    Scope,
    SeaCache,
    Signal,
    Site,
    Taylor,
    TeaCache,
    UnknownPolicy,
    WarmUp,
    compile_policy,
    dump,
    load_policy,
)
from fastercache.policies.methods.dynamic import Memo, relative_l1
from fastercache.policies.methods.seacache import _mean_relative_l1, noise_level
from fastercache.policies.methods.teacache import polynomial
from fastercache.policies.predictors.frequency import wiener
from fastercache.policies.rules import WatchingRule, begin_all
from fastercache.policies.vocabulary import Step
from fastercache.policies.wrappers import citations_of

STACK = Site("stack[1:4]", Kind.STACK, None, 1, (1, 4))
COUNT = 24


def walk(rate: float, count: int = COUNT, shape: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> list[Tensor]:
    """A random walk whose steps vary in size, so that thresholds bite here and there."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator)]
    for i in range(count - 1):
        size = rate * (0.3 + (i * 7 % 5) / 2)
        values.append(values[-1] + size * torch.randn(shape, generator=generator))
    return values


STACK_OF_4 = Site("stack", Kind.STACK, None, 0, (0, 4))


def drive(
    policy: Policy,
    signals: Sequence[Tensor] | None = None,
    values: Sequence[Tensor] | None = None,
    sites: Sequence[Site] = (STACK,),
) -> str:
    """Decisions at the first of `sites`, asked and told as the runtime does it."""
    model = (*blocks(4), STACK_OF_4, Site("denoiser", Kind.DENOISER), Site("branch", Kind.BRANCH))
    run = Run.of(COUNT, branches=("cond",), sites=model)
    (rule, *_) = (one.rule for one in policy.assign(run).values())
    assert isinstance(rule, WatchingRule)
    firsts: dict[tuple[int, str], dict[str, Any]] = {}
    states = {site: begin_all(rule, site, run, firsts)["cond"] for site in sites}
    letters, seen = "", False
    for i, step in enumerate(run.steps):
        answers = []
        for site in sites:
            wanted = rule.reuse(states[site], step, None if signals is None else signals[i]) and seen
            answers.append(wanted)
            if not wanted:
                states[site] = rule.update(states[site], step, torch.zeros(1) if values is None else values[i])
        assert len(set(answers)) == 1, "sites of one policy must agree here"
        seen = seen or not answers[0]
        letters += "R" if answers[0] else "C"
    return letters


def l1(new: Tensor, old: Tensor) -> float:
    a, b = new.double().numpy(), old.double().numpy()
    return float(np.abs(a - b).mean() / np.abs(b).mean())


def test_relative_change_is_relative_to_the_older_value() -> None:
    a, b = walk(0.5, 2)
    assert relative_l1(a, b) == pytest.approx(l1(a, b), rel=1e-6)
    assert relative_l1(a, torch.zeros_like(a)) == float("inf")
    assert relative_l1(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_l1(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert relative_l1(torch.full((2,), float("nan")), torch.ones(2)) == float("inf")


@pytest.mark.parametrize("coefficients", [(1.0, 0.0), (0.5, 2.0, 0.01)])
def test_teacache_accumulates_the_rescaled_change(coefficients: tuple[float, ...]) -> None:
    m = walk(0.05)
    threshold, total, expected = 0.15, 0.0, ""
    for i in range(COUNT):
        if i > 0:
            total += float(np.poly1d(coefficients)(l1(m[i], m[i - 1])))
        reuse = 0 < i < COUNT - 1 and total < threshold
        if not reuse:
            total = 0.0
        expected += "R" if reuse else "C"
    assert drive(TeaCache(threshold=threshold, coefficients=coefficients), m) == expected
    assert 3 < expected.count("R") < COUNT - 5


def test_teacache_polynomials_are_the_published_ones() -> None:
    for name, coefficients in COEFFICIENTS.items():
        assert TeaCache.published(name).coefficients == coefficients
        assert polynomial(coefficients, 0.03) == pytest.approx(float(np.poly1d(coefficients)(0.03)))
    assert COEFFICIENTS["latte"][0] == -2464.34137 and COEFFICIENTS["open-sora"][-1] == 0.048442624


def test_first_block_cache_compares_with_the_last_computed_step() -> None:
    r = walk(0.1)
    anchor, expected = r[0], "C"
    for i in range(1, COUNT):
        reuse = l1(r[i], anchor) < 0.25
        anchor = anchor if reuse else r[i]
        expected += "R" if reuse else "C"
    assert drive(FirstBlockCache(threshold=0.25), r) == expected
    assert 3 < expected.count("R") < COUNT - 3


def test_dual_block_cache_adds_warm_up_and_a_limit() -> None:
    r = walk(0.02)
    got = drive(DualBlockCache(threshold=1.0, warm_up=4, max_consecutive=3), r)
    assert got == "CCCC" + ("RRRC" * 6)[: COUNT - 4]
    sites = [Site("stack", Kind.STACK, None, 0, (0, 8))]
    sites += [Site(f"b.{d}", Kind.BLOCK, None, d, (d, d + 1)) for d in range(8)]
    assert [s.name for s in DualBlockCache(front=2, back=3).claims(sites)] == ["stack[2:5]"]
    assert [s.name for s in DualBlockCache(front=1, back=0).claims(sites)] == ["stack[1:8]"]


def test_easycache_predicts_the_change_of_the_output() -> None:
    x, v = walk(0.03, seed=1), walk(0.05, seed=2)
    threshold, start = 0.2, 0.2
    computed: list[int] = []
    k, total, expected = None, 0.0, ""
    for i in range(COUNT):
        reuse = False
        if k is not None:
            total += k * float((x[i] - x[i - 1]).abs().mean()) / float(v[computed[-1]].abs().mean())
            reuse = i / (COUNT - 1) >= start and i < COUNT - 1 and total < threshold
        if not reuse:
            if computed:
                last = computed[-1]
                k = float((v[i] - v[last]).abs().mean()) / float((x[i] - x[last]).abs().mean())
            computed.append(i)
            total = 0.0
        expected += "R" if reuse else "C"
    policy = EasyCache(threshold=threshold, start=start)
    assert drive(policy, x, v, [Site("denoiser", Kind.DENOISER)]) == expected
    assert 3 < expected.count("R") < COUNT - 5
    assert policy.decides is Scope.COND
    site = Site("denoiser", Kind.DENOISER)
    assert policy.predictor(site, Run.of(3)) == Relative(inner=Hold())
    assert EasyCache(relative=False).predictor(site, Run.of(3)) == Hold()


def test_easycache_computes_the_last_step_whatever_the_threshold() -> None:
    x, v = walk(0.001), walk(0.001, seed=1)
    assert drive(EasyCache(threshold=1.0, start=0.0), x, v, [Site("denoiser", Kind.DENOISER)]) == (
        "CC" + "R" * (COUNT - 3) + "C"
    )


def blocks(count: int = 3) -> list[Site]:
    return [Site(f"blocks.{d}", Kind.BLOCK, None, d, (d, d + 1)) for d in range(count)]


def adacache_by_hand(values: Sequence[Tensor], codebook: Sequence[tuple[float, int]], scale: float, last: int) -> str:
    letters, computed, due = "", [], 0
    for i in range(COUNT):
        if i < min(due, COUNT - last):
            letters += "R"
            continue
        if computed:
            rate = l1(values[i], values[computed[-1]]) / (i - computed[-1])
            due = i + next((gap for bound, gap in codebook if rate < bound * scale), codebook[-1][1])
        computed.append(i)
        letters += "C"
    return letters


def test_adacache_maps_the_rate_of_change_to_the_next_gap() -> None:
    v = walk(0.2)
    codebook = ((0.05, 5), (0.1, 3), (0.2, 2))
    for cool_down in (0, 2):
        expected = adacache_by_hand(v, codebook, 2.0, cool_down)
        policy = AdaCache(codebook=codebook, scale=2.0, cool_down=cool_down)
        assert drive(policy, None, v, blocks()) == expected
        assert 3 < expected.count("R") < COUNT - 3


def test_adacache_beyond_the_codebook_takes_its_last_entry() -> None:
    """The published code's last branch has no bound: at 100 steps even a rate above 1 waits three steps."""
    wild = [torch.full((2, 3), (-10.0) ** i) for i in range(COUNT)]
    assert drive(AdaCache(cool_down=2), None, wild, blocks()) == "CC" + ("RRC" * 7)[: COUNT - 4] + "CC"
    assert drive(AdaCache.published("open-sora-30-slow"), None, wild, blocks()) == "C" * COUNT
    still = [torch.ones(2, 3)] * COUNT
    assert drive(AdaCache.published("open-sora-30-fast"), None, still, blocks()) == "CC" + ("RRRRRC" * 5)[:20] + "CC"
    with pytest.raises(UnknownPolicy, match="open-sora-100"):
        AdaCache.published("open-sora")


def test_bwcache_alternates_from_the_first_calm_step_on_and_computes_the_tail() -> None:
    v = walk(0.1, COUNT + 1)[1:]
    trigger = next(i for i in range(1, COUNT) if l1(v[i], v[i - 1]) < 0.05)
    rest, tail = round(0.1 * COUNT), math.ceil(0.5 * (COUNT - 1 - trigger))
    period = ("R" * rest + "C") * COUNT
    expected = "C" * (trigger + 1) + period[: COUNT - 1 - trigger - tail] + "C" * tail
    assert trigger > 1 and rest == 2
    assert drive(BWCache(threshold=0.05), None, v, blocks()) == expected
    assert drive(BWCache(threshold=0.0), None, v, blocks()) == "C" * COUNT
    whole = drive(BWCache(threshold=1.0, rest=0.01, tail=0.0), None, v, blocks())
    assert whole == "CC" + ("RC" * COUNT)[: COUNT - 2]


def test_dicache_sums_the_change_of_the_probe() -> None:
    p = walk(0.05)
    total, expected = 0.0, ""
    for i in range(COUNT):
        reuse = False
        if i and i / (COUNT - 1) >= 0.2 and i < COUNT - 1:
            total += l1(p[i], p[i - 1])
            reuse = total < 0.3
        if not reuse:
            total = 0.0
        expected += "R" if reuse else "C"
    assert drive(DiCache(threshold=0.3), p) == expected
    assert 3 < expected.count("R") < COUNT - 5


@pytest.mark.parametrize("index", [1, 4, 8])
@pytest.mark.parametrize("cls", [DiCache, EasyCache, FirstBlockCache])
def test_a_rule_begins_with_the_step_at_its_start(cls: Any, index: int) -> None:
    """A start that is exactly the progress of a step lets that step be reused, and none before it."""
    if cls is FirstBlockCache:  # its start is a wrapper's
        policy: Policy = WarmUp(inner=cls(threshold=1.0), steps=index)
    else:
        policy = cls(threshold=1.0, start=Run.of(COUNT).steps[index].progress)
    letters = drive(policy, walk(0.001))
    # EasyCache knows no rate of change before two steps were computed.
    assert letters.index("R") == (max(index, 2) if cls is EasyCache else index)


def test_a_rule_without_its_signal_computes() -> None:
    """Of a probe that a model does not give, nothing can be said."""
    policy = DiCache(threshold=1.0, start=0.0)
    steps = Run.of(COUNT).steps
    memo = Memo(seen=torch.ones(2))
    assert not policy.judge(memo, steps[3], None) and memo.total == 0.0
    assert not policy.judge(Memo(), steps[3], torch.ones(2))
    assert policy.judge(memo, steps[3], torch.ones(2)) and not policy.judge(memo, steps[-1], torch.ones(2))


def test_the_denoisers_input_is_copied_since_pipelines_write_over_it_and_other_signals_are_not() -> None:
    class Watching(DiCache):
        name: ClassVar[str] = "watching"

        @property
        def signal(self) -> Signal:
            return Signal.INPUT

    step, value = Run.of(4).steps[1], torch.ones(2, 3, 4, 4)
    of_input, of_probe = Memo(), Memo()
    Watching().reuse(of_input, step, value)
    DiCache().reuse(of_probe, step, value)
    assert of_input.now is not None and of_input.now.data_ptr() != value.data_ptr()
    assert torch.equal(of_input.now, value) and of_probe.now is value


def test_citations_are_those_of_every_part_and_of_what_is_wrapped_each_once() -> None:
    tea, cfg = TeaCache(), CFGCache()
    assert tea.citation is not None and cfg.citation is not None and tea.citation != cfg.citation
    assert citations_of(tea) == [tea.citation]
    both = [tea.citation, cfg.citation]
    assert citations_of(Compose([tea, cfg])) == both
    assert citations_of(Compose([WarmUp(inner=tea, steps=2), cfg, WarmUp(inner=TeaCache(threshold=0.3))])) in (
        both,
        both[::-1],
    )


def filtered(x: Tensor, noise: float) -> np.ndarray:
    """SeaCache's filter in numpy, over every axis but the first two."""
    array = x.double().numpy()
    gain = np.ones(array.shape[2:])
    for axis, size in enumerate(array.shape[2:]):
        clean = 1.0 / (np.abs(np.fft.fftfreq(size)) ** 3 + 1e-16)
        factor = (1 - noise) * clean / ((1 - noise) ** 2 * clean + noise**2 + 1e-16)
        gain = gain * factor.reshape([-1 if a == axis else 1 for a in range(gain.ndim)])
    axes = tuple(range(2, array.ndim))
    return np.fft.ifftn(np.fft.fftn(array, axes=axes) * gain / gain.mean(), axes=axes).real


def test_the_wiener_filter_passes_signal_at_its_noise_level() -> None:
    x = walk(0.1, 1, (2, 3, 4, 6, 5))[0]
    for noise in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(wiener(x, noise).numpy(), filtered(x, noise), atol=1e-3 * filtered(x, noise).std())
    swapped = wiener(x.transpose(1, 2), 0.4, channels=2).transpose(1, 2)
    torch.testing.assert_close(swapped, wiener(x, 0.4), rtol=1e-4, atol=1e-4)
    levels = [noise_level(Step(0, 2, 700.0, sigma)) for sigma in (0.3, 4.0, None)]
    assert levels == pytest.approx([0.3, 0.8, 0.7])


def test_seacache_accumulates_the_filtered_change() -> None:
    x = walk(0.2, shape=(1, 2, 3, 4, 4))
    steps = Run.of(COUNT).steps
    seen = [filtered(x[i], steps[i].timestep / 1000) for i in range(COUNT)]
    total, row, expected = 0.0, 0, ""
    for i in range(COUNT):
        reuse = False
        if 1 <= i < COUNT - 1 and row < 2:
            total += np.abs(seen[i] - seen[i - 1]).mean() / np.abs(seen[i - 1]).mean()
            reuse = total < 0.5
        total, row = (total, row + 1) if reuse else (0.0, 0)
        expected += "R" if reuse else "C"
    assert drive(SeaCache(threshold=0.5), x) == expected
    assert 3 < expected.count("R") < COUNT - 3
    swapped = [value.transpose(1, 2) for value in x]  # channels behind the frames
    assert drive(SeaCache(threshold=0.5, channels=2), swapped) == expected != drive(SeaCache(threshold=0.5), swapped)


def test_adaptive_guidance_follows_the_drift() -> None:
    v = walk(0.1, shape=(1, 2, 8, 8))
    policy = AdaptiveGuidance(threshold=0.3, start=0.0, max_interval=6, band="all")
    expected, computed, due = "", [], 0
    for i in range(COUNT):
        if i < due:
            expected += "R"
            continue
        due = i + 1
        if computed:
            drift = l1(v[i], v[computed[-1]]) / (i - computed[-1])
            due = i + min(max(int(0.3 / drift), 1), 6)
        computed.append(i)
        expected += "C"
    branch = Site("branch", Kind.BRANCH)
    assert drive(policy, None, v, [branch]) == expected
    assert expected.count("R") > 3
    slow = [torch.ones(1, 2, 8, 8) * (1 + i / 1000) for i in range(COUNT)]
    assert drive(policy, None, slow, [branch]) == "CC" + ("RRRRRC" * 5)[: COUNT - 2]
    low = AdaptiveGuidance(threshold=0.3, start=0.0, band="low")
    still = [torch.ones(1, 2, 8, 8) + 0.9 * (-1) ** i * (torch.arange(8) % 2 * 2 - 1) for i in range(COUNT)]
    assert drive(low, None, still, [branch]).count("R") > drive(policy, None, still, [branch]).count("R")


def test_adaptive_guidance_rests_outside_its_window() -> None:
    still = [torch.ones(1, 2, 8, 8)] * COUNT
    policy = AdaptiveGuidance(threshold=0.3, start=0.3, stop=0.7, max_interval=4)
    inside = [0.3 <= i / (COUNT - 1) < 0.7 for i in range(COUNT)]
    expected, due = "", 0
    for i in range(COUNT):
        reuse = inside[i] and i < due
        due = due if reuse else i + (4 if i else 1)
        expected += "R" if reuse else "C"
    assert drive(policy, None, still, [Site("branch", Kind.BRANCH)]) == expected
    assert expected.count("R") > 4 and expected.startswith("C" * 7) and expected.endswith("C" * 6)


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: Compose([p]), lambda p: WarmUp(inner=p, steps=1)])
def test_blocks_decide_by_their_mean_change_whatever_their_policy_stands_in(wrap: Callable[[Policy], Policy]) -> None:
    """One block hardly changes, one changes much; only the mean of both, 0.3, lies between the codebook's bounds."""
    policy = wrap(AdaCache(codebook=((0.2, 6), (0.4, 3), (1.0, 1)), cool_down=0))
    assigned = policy.assign(Run.of(COUNT, branches=("cond",), sites=blocks(2)))
    firsts: dict[tuple[int, str], dict[str, Any]] = {}
    states = [
        begin_all(one.rule, site, Run.of(COUNT, branches=("cond",)), firsts)["cond"] for site, one in assigned.items()
    ]
    rates, values, letters = (0.0, 0.6), [torch.ones(2), torch.ones(2)], ""
    for step in Run.of(COUNT).steps:
        answers = []
        for b, one in enumerate(assigned.values()):
            assert isinstance(one.rule, WatchingRule)
            answers.append(one.rule.reuse(states[b], step, None))
            if not answers[b]:  # grown by its rate for each step since the last value
                values[b] = values[b] * (1 + rates[b] * (1 if step.index < 2 else 3))
                states[b] = one.rule.update(states[b], step, values[b])
        assert answers[0] == answers[1]
        letters += "CR"[answers[0]]
    assert letters == "CC" + ("RRC" * COUNT)[: COUNT - 2]


def test_a_vetoed_reuse_counts_as_computed() -> None:
    r = walk(0.02)
    inner = FirstBlockCache(threshold=1.0)
    assert drive(WarmUp(inner=inner, steps=5), r) == "C" * 5 + "R" * (COUNT - 5)
    assert drive(MaxConsecutive(inner=inner, limit=2), r) == ("CRR" * 8)
    m = walk(0.05)
    first = drive(WarmUp(inner=TeaCache(threshold=0.3), steps=6), m)
    assert first.startswith("CCCCCC") and "R" in first


@pytest.mark.parametrize(
    "policy",
    [TeaCache(), FirstBlockCache(), DualBlockCache(), EasyCache(), AdaCache(), BWCache(), DiCache(), SeaCache()],
)
def test_rule_value_and_predictor_are_separate_parts(policy: Policy) -> None:
    changed = type(policy)(sites="stack", stand_in=Taylor(order=2))
    sites = [Site("stack", Kind.STACK, None, 0, (0, 8))]
    assert not changed.static and [s.name for s in changed.claims(sites)] == ["stack"]
    predictor = changed.predictor(sites[0], Run.of(5))
    assert predictor.depth == 3
    assert load_policy(dump(changed)) == changed
    with pytest.raises(InvalidPolicy, match="decides while the model runs"):
        compile_policy(policy, Run.of(5, sites=[*sites, *blocks(8), Site("denoiser", Kind.DENOISER)]))


def test_a_composition_watches_each_parts_own_signal() -> None:
    a, b = FirstBlockCache(sites="stack[1:4]"), SeaCache(sites="denoiser", stand_in=Linear())
    sites = [Site("stack", Kind.STACK, None, 0, (0, 4)), *blocks(4), Site("denoiser", Kind.DENOISER)]
    policy = Compose([WarmUp(inner=a), b])
    rules = {site.kind: one.rule for site, one in policy.assign(Run.of(5, sites=sites)).items()}
    signals = {kind: rule.signal for kind, rule in rules.items() if isinstance(rule, WatchingRule)}
    assert signals == {Kind.STACK: Signal.FIRST_BLOCK_RESIDUAL, Kind.DENOISER: Signal.INPUT}


def test_a_change_from_nothing_is_without_bound() -> None:
    """A row of zeros that becomes anything has changed by more than any threshold; one that stays has not."""
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    assert _mean_relative_l1(ones, zeros) > 1e9 and _mean_relative_l1(zeros, zeros) == 0.0
    assert _mean_relative_l1(zeros, ones) == 1.0 and _mean_relative_l1(torch.ones(2, 4), ones) == float("inf")
    rows = torch.tensor([[1.0, 1.0], [4.0, 4.0]])  # changed by 1 of 1 and by 1 of 4
    assert _mean_relative_l1(rows + 1, rows) == pytest.approx((1 + 0.25) / 2)


def test_what_has_added_up_to_the_threshold_is_computed() -> None:
    """Reuse as long as less than the threshold has added up (DiCache, eq. 6; EasyCache, algorithm 1)."""
    probe = DiCache(threshold=0.5, start=0.0)
    step = Run.of(COUNT).steps[3]
    assert not probe.judge(Memo(seen=torch.full((2,), 2.0)), step, torch.full((2,), 3.0))  # |3 - 2| / 2
    assert probe.judge(Memo(seen=torch.full((2,), 2.0)), step, torch.full((2,), 2.875))

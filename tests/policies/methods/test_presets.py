"""The published code's settings, step by step: the presets' tables equal the rules on its own counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from fastercache.policies import PRESETS, Difference, FasterCache, Kind, Role, Run, Site, UnknownPolicy, compile_policy
from fastercache.policies.predictors.frequency import GuidanceDelta

SITES = (
    Site("blocks.0.attn1", Kind.MODULE, Role.SPATIAL, 0, (0, 1)),
    Site("denoiser", Kind.DENOISER),
    Site("branch", Kind.BRANCH),
)


@dataclass(frozen=True)
class Published:
    """The rules as the official code states them, on its counter c (1-based, but Mochi's, which starts at 0)."""

    steps: int
    attention: Callable[[int], bool]
    weight: Callable[[int], float]
    uncond: Callable[[int], bool]
    low: Callable[[int], float]
    high: Callable[[int], float]
    base: int = 1


RULES = {
    "open-sora": Published(
        30, lambda c: c > 7 and c % 2 == 0, lambda c: 0.9 * (c - 7) / 20, lambda c: c > 11 and c % 5 != 0,
        lambda c: 1.15 if c <= 25 else 1.0, lambda c: 1.15 if c >= 20 else 1.0,
    ),
    "latte": Published(
        50, lambda c: c >= 16 and c % 2 == 0, lambda c: 0.5, lambda c: c >= 18 and c % 5 != 0,
        lambda c: 1.1 if c < 45 else 1.0, lambda c: 1.1 if c >= 45 else 1.0,
    ),
    "open-sora-plan": Published(
        150, lambda c: c >= 45 and c % 3 != 0, lambda c: 0.3, lambda c: c >= 40 and c % 6 != 0,
        lambda c: 1.1 if c <= 130 else 1.0, lambda c: 1.2 if c > 130 else 1.0,
    ),
    "cogvideox": Published(
        50, lambda c: c >= 18 and c % 3 != 0, lambda c: 0.3, lambda c: c >= 18 and c % 5 != 0,
        lambda c: 1.1 if c <= 40 else 1.0, lambda c: 1.1 if c >= 30 else 1.0,
    ),
    "mochi": Published(
        64, lambda c: c >= 20 and c % 2 == 0, lambda c: max(0.5, c / 63), lambda c: c >= 22 and c % 5 != 0 and c != 63,
        lambda c: 1.15 if c <= 50 else 1.0, lambda c: 1.25 if c >= 30 else 1.0, base=0,
    ),
    "vchitect": Published(
        100, lambda c: c > 30 and c % 2 == 0, lambda c: 0.0, lambda c: c > 30 and c % 5 != 0,
        lambda c: 1.05 if c < 80 else 1.0, lambda c: 1.1 if c > 60 else 1.0,
    ),
}  # fmt: skip


def table(name: str) -> tuple[Published, list[str], list[str], GuidanceDelta]:
    rules = RULES[name]
    run = Run.of(rules.steps, sites=SITES)
    compiled = compile_policy(FasterCache.preset(name), run)
    names = [s.name for s in compiled.sites]
    delta = compiled.predictors[names.index("branch")]
    assert isinstance(delta, GuidanceDelta)
    attention = ["CR-"[c] for c in compiled.codes[names.index("blocks.0.attn1"), 0]]
    return rules, attention, ["CR-"[c] for c in compiled.codes[names.index("branch"), 1]], delta


def test_every_published_row_is_there() -> None:
    assert set(RULES) == set(PRESETS)


@pytest.mark.parametrize("name", RULES)
def test_the_conditional_attention_is_reused_at_the_published_steps(name: str) -> None:
    rules, attention, _, _ = table(name)
    expected = ["R" if rules.attention(i + rules.base) else "C" for i in range(rules.steps)]
    assert attention == expected


@pytest.mark.parametrize("name", RULES)
def test_the_unconditional_branch_is_reused_at_the_published_steps(name: str) -> None:
    rules, _, branch, _ = table(name)
    assert branch == ["R" if rules.uncond(i + rules.base) else "C" for i in range(rules.steps)]


@pytest.mark.parametrize("name", RULES)
def test_band_weights_compound_as_published(name: str) -> None:
    rules, _, branch, delta = table(name)
    steps = Run.of(rules.steps).steps
    low = high = 1.0
    since = steps[0]
    for i, letter in enumerate(branch):
        if letter == "C":
            low = high = 1.0
            since = steps[i]
            continue
        low *= rules.low(i + rules.base)
        high *= rules.high(i + rules.base)
        assert delta.weights(since, steps[i]) == pytest.approx((low, high)), f"step {i}"


@pytest.mark.parametrize("name", ["latte", "open-sora-plan", "cogvideox", "vchitect"])
def test_attention_weights_are_the_published_constants(name: str) -> None:
    rules = RULES[name]
    predictor = FasterCache.preset(name).assign(Run.of(rules.steps, sites=SITES))[SITES[0]].predictor
    assert isinstance(predictor, Difference)
    assert predictor.weight == rules.weight(40)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownPolicy, match="did you mean 'latte'"):
        FasterCache.preset("late")

"""Every method keeps the runtime's laws on real (small, random) pipelines, batched and separate."""

from __future__ import annotations

import random

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from fastercache.attachment import find_sites
from fastercache.policies import (
    FORA,
    ABCache,
    AdaCache,
    AdaptiveGuidance,
    BranchReuse,
    BWCache,
    CFGCache,
    Compose,
    DeepCache,
    DeltaDiT,
    DiCache,
    DMDCache,
    DualBlockCache,
    EasyCache,
    ERTACache,
    FirstBlockCache,
    FoCa,
    GuidanceInterval,
    GuidanceReuse,
    HiCache,
    MagCache,
    MeanCache,
    NoSiteMatched,
    Policy,
    PyramidAttentionBroadcast,
    SeaCache,
    SmoothCache,
    Spectrum,
    Taylor,
    TaylorSeer,
    TeaCache,
    TGate,
    dump,
    load_policy,
)
from fastercache.testing import check_policy
from fastercache.tuner import Parameter, SearchSpace
from fastercache.zoo import build
from fastercache.zoo.specimen import Specimen

FLAT = tuple(tuple([0.0] * lag + [0.05] * (6 - lag)) for lag in (1, 2, 3))
POLICIES: dict[str, Policy] = {
    "pab": PyramidAttentionBroadcast(low=0, high=1000),
    "fora": FORA(),
    "delta_dit": DeltaDiT(),
    "tgate": TGate(),
    "taylorseer": TaylorSeer(interval=2, start=0.0, order=2),
    "hicache": HiCache(interval=2, start=0.0),
    "foca": FoCa(interval=2, start=0.0),
    "ab_cache": ABCache(interval=2, start=0.0),
    "spectrum": Spectrum(start=0.0),
    "dmd": DMDCache(interval=2, start=0.0),
    "deepcache": DeepCache(),
    "smoothcache": SmoothCache(curves={"attention": FLAT}),
    "magcache": MagCache(ratios={"*": (1.0,) * 6}),
    "ertacache": ERTACache(errors=FLAT, gains=FLAT),
    "teacache": TeaCache(threshold=1.0),
    "teacache_taylor_cfg": Compose([TeaCache(threshold=1.0, stand_in=Taylor()), CFGCache(interval=2, start=0.0)]),
    "first_block_cache": FirstBlockCache(threshold=0.5),
    "dual_block_cache": DualBlockCache(threshold=0.5, warm_up=1, back=1),
    "easycache": EasyCache(threshold=1.0, relative=False, start=0.0),
    "adacache": AdaCache(),
    "bwcache": BWCache(threshold=1.0),
    "dicache": DiCache(threshold=1.0),
    "seacache": SeaCache(threshold=1.0),
    "meancache": MeanCache(interval=2, start=0.0),
    "branch_reuse": BranchReuse(start=0.0, interval=2, other_interval=3),
    "guidance_reuse": GuidanceReuse(start=0.0, interval=3),
    "adaptive_guidance": AdaptiveGuidance(start=0.0, threshold=1.0),
    "guidance_interval": GuidanceInterval(start=0.2, stop=0.7),
}
WATCHING = ("teacache", "dicache", "easycache", "adacache", "adaptive_guidance")
"""One of each way of watching; the rest share theirs."""


@pytest.fixture(scope="module")
def specimens() -> dict[str, Specimen]:
    return {name: build(name) for name in ("latte", "wan")}


@pytest.mark.parametrize("family", ["latte", "wan"])
@pytest.mark.parametrize("name", WATCHING)
def test_flops_replay_and_bytes(specimens: dict[str, Specimen], name: str, family: str) -> None:
    """Laws 6, 7 and 9, on which watching has most to break."""
    report = check_policy(POLICIES[name], specimens[family], laws=(6, 7, 9)).raise_if_broken()
    assert report.reused > 0


@pytest.mark.slow
def test_all_laws_of_deepcache_on_a_unet() -> None:
    report = check_policy(DeepCache(interval=2), build("sdxl")).raise_if_broken()
    assert report.reused > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["latte", "wan", "cogvideox"])
@pytest.mark.parametrize("name", POLICIES)
def test_all_laws(name: str, family: str) -> None:
    specimen = build(family)
    try:
        POLICIES[name].claims(find_sites(specimen.pipe))
    except NoSiteMatched as reason:
        pytest.skip(str(reason))  # two blocks have none between the first and the last; no cross-attention
    report = check_policy(POLICIES[name], specimen).raise_if_broken()
    assert report.reused > 0


@pytest.mark.parametrize("name", POLICIES)
def test_every_point_within_the_bounds_is_a_policy(name: str) -> None:
    """The bounds of a method's fields are its search space: each draw builds, and survives a file."""
    space = SearchSpace.of(POLICIES[name])
    rng = random.Random(0)

    def draw(parameter: Parameter) -> object:
        d = parameter.distribution
        if isinstance(d, CategoricalDistribution):
            return rng.choice(d.choices)
        if isinstance(d, IntDistribution):
            return rng.randint(d.low, d.high)
        return rng.uniform(d.low, d.high)

    for _ in range(30):
        policy = space.build(space.draw(draw))
        assert load_policy(dump(policy)) == policy

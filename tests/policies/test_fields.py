"""Every field of every policy and predictor does something: with another value other steps are computed, or other
values predicted. A field that is handed on wrongly, or to nobody, is noticed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.policies.base import Now, Past, Policy, Predictor
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.registry import known_policies, policy_class, predictors
from fastercache.policies.rules import WatchingRule, begin_all
from fastercache.policies.vocabulary import Kind, Role, Run, Site

COUNT, BLOCKS = 24, 6
BRANCHES = ("cond", "uncond")
ROLES = (Role.SPATIAL, Role.TEMPORAL, Role.CROSS, Role.JOINT, Role.FF)
SITES = (
    Site("denoiser", Kind.DENOISER),
    Site("branch", Kind.BRANCH),
    Site("stack", Kind.STACK, None, 0, (0, BLOCKS)),
    *(Site(f"blocks.{d}", Kind.BLOCK, None, d, (d, d + 1)) for d in range(BLOCKS)),
    *(Site(f"blocks.{d}.{role}", Kind.MODULE, role, d, (d, d + 1)) for d in range(BLOCKS) for role in ROLES),
)
CURVE = tuple(0.02 * (1 + k % 5) for k in range(COUNT))
LAGS = tuple(tuple(lag * value for value in CURVE) for lag in (1, 2, 3))
BASES: dict[str, list[Mapping[str, Any]]] = {
    "adacache": [{"codebook": ((0.03, 6), (0.05, 4), (0.1, 2)), "stand_in": fc.Linear()}],
    "adaptive_guidance": [{"start": 0.1, "stop": 0.9, "band": "low", "threshold": 0.4}, {"threshold": 1.0}],
    "branch_reuse": [{"start": 0.1, "interval": 3, "stand_in": fc.Linear()}],
    "bwcache": [{"threshold": 0.06}],
    "cfg_cache": [{"start": 0.2, "interval": 3, "alpha_high": 0.3}, {"radius": 2, "weighting": "repo"}],
    "compose": [{"policies": (fc.FORA(interval=3), fc.CFGCache(interval=2))}],
    "dicache": [{"threshold": 0.3, "start": 0.1}],
    "dual_block_cache": [{"threshold": 0.2}],
    "dynamic_reuse": [{"start": 0.1, "weight": 0.5}, {"start": 0.1, "order": 2, "interval": 3}],
    "easycache": [{"threshold": 0.2, "start": 0.1}],
    "ertacache": [{"errors": LAGS, "gains": LAGS, "offsets": LAGS, "threshold": 0.9, "max_skip": 2}],
    "fastercache": [{"weight": 0.5}, {"start": 0.1, "interval": 3, "order": 2, "alpha_high": 0.4, "radius": 1}],
    "first_block_cache": [{"threshold": 0.1}],
    "guidance_interval": [{"start": 0.25, "stop": 0.75}],
    "hicache": [{"interval": 4, "order": 2}],
    "magcache": [{"ratios": {"*": tuple(1 - 0.03 * (k % 4) for k in range(COUNT))}, "threshold": 0.15}],
    "max_consecutive": [{"inner": fc.FORA(interval=6), "limit": 3}],
    "meancache": [{"interval": 4, "span": 2}],
    "planned": [{"steps": COUNT, "computed": tuple(range(0, COUNT, 3)), "stand_in": fc.Linear()}],
    "schedule": [{"rows": (fc.Row(sites="ff", steps="CR" * (COUNT // 2)),)}],
    "seacache": [{"threshold": 0.6, "max_consecutive": 4}],
    "smoothcache": [{"curves": {"ff": LAGS}, "alpha": 0.1}],
    "spectrum": [{"interval": 2, "growth": 0.5, "start": 0.1}],
    "teacache": [{"threshold": 0.3}],
    "warm_up": [{"inner": fc.FORA(interval=2), "steps": 5}],
    "window": [{"inner": fc.FORA(interval=2), "start": 0.2, "stop": 0.8}],
}
"""Settings under which a policy both computes and reuses; where one of its fields shuts another off, more than one."""
VALUES: dict[str, tuple[Any, ...]] = {
    "codebook": (((0.05, 3),), ((0.5, 3), (0.9, 1))),
    "curves": ({"ff": (CURVE,) * 3}, {"spatial": LAGS}),
    "errors": ((CURVE,),),
    "gains": ((CURVE,) * 3,),
    "offsets": ((CURVE,) * 3,),
    "ratios": ({"cond": (0.9,) * COUNT}, {"*": (0.9,) * COUNT}),
    "policies": ((fc.FORA(interval=3),),),
    "computed": ((0, 5, 6), tuple(range(0, COUNT, 2))),
    "plan": ((0.0, 0.3, 0.5, 0.9),),
    "rows": ((fc.Row(sites="spatial", steps="CR" * (COUNT // 2)),),),
    "inner": (fc.FORA(interval=4), fc.Linear(), fc.Taylor(order=2)),
    "coefficients": ((2.0, 0.0), (0.5, 1.0, 0.0)),
    "stand_in": (fc.Hold(), fc.Linear(), fc.Taylor(order=2), fc.GuidanceDelta(alpha_low=0.5)),
    "sites": ("ff", "spatial", "temporal", "block", "stack", "stack[1:4]", "denoiser", "cross|joint"),
    "start": (0.0, 0.3, 0.7),
    "stop": (0.5, 0.8, 1.0),
}


@cache
def walk(name: str, rate: float) -> list[Tensor]:
    """A random walk of latents (2, 3, 4, 10, 8) that drifts and swings, another one for each name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    value = torch.randn(2, 3, 4, 10, 8, generator=generator)
    drift = torch.randn(2, 3, 4, 10, 8, generator=generator)
    found = []
    for i in range(COUNT):
        size = rate * (0.5 + i % 4)
        value = value + size * torch.randn(2, 3, 4, 10, 8, generator=generator) + size * drift
        found.append(value)
    return found


def done(policy: Policy) -> list[Any]:
    """What a policy does at each site, branch and step of a run: nothing where it computes, else what it predicts."""
    run = Run.of(COUNT, branches=BRANCHES, sites=SITES)
    found: list[Any] = []
    firsts: dict[tuple[int, str], dict[str, Any]] = {}
    for site, one in policy.assign(run).items():
        rule, predictor = one.rule, one.predictor
        watched = isinstance(rule, WatchingRule)
        found.append((site.name, rule.decides if isinstance(rule, WatchingRule) else None))
        states = begin_all(rule, site, run, firsts) if watched else {b: rule.begin(site, b, run) for b in BRANCHES}
        for branch in BRANCHES[site.kind is Kind.BRANCH :]:
            values, signals = walk(f"{site.name} {branch}", 0.03), walk(f"{site.name} {branch} signal", 0.03)
            state, past = states[branch], list[Past]()
            for i, step in enumerate(run.steps):
                wanted = rule.reuse(state, step, signals[i]) if watched else rule.reuse(state, step)
                if wanted and past:
                    seen = None if predictor.needs is None else signals[i]
                    value = predictor.predict(past[-predictor.depth :], Now(step, seen)).double()
                    found.append((site.name, branch, i, float(value.sum()), float(value.square().sum())))
                    continue
                state = rule.update(state, step, values[i]) if watched else rule.update(state, step)
                past.append(Past(step, predictor.keep(values[i], None if predictor.needs is None else signals[i])))
    return found


def others(cls: type[Any], name: str, value: Any) -> Iterator[Any]:
    """Other values of a field."""
    yield from (one for one in VALUES.get(name, ()) if one != value)
    annotation = cls.model_fields[name].annotation
    choices = [annotation, *get_args(annotation)]
    yield from (one for c in choices if get_origin(c) is Literal for one in get_args(c) if one != value)
    if isinstance(value, Enum):
        yield from (one for one in type(value) if one != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + change for change in (-3, -2, -1, 1, 2, 4, 8) if value + change >= 0)
    elif isinstance(value, float):
        yield from (value * factor for factor in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0))
        yield from (one for one in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0) if one != value)
    elif value is None:
        yield from (1, 2, 3, 0.25, 0.5, 0.75)


def settings(name: str) -> list[Mapping[str, Any]]:
    return BASES.get(name, [{}])


WITHOUT = {
    ("no_cache", "sites"): "nothing is reused anywhere",
    ("fitted", "variance"): "the outputs here have no learned variance; see test_fitted.py",
    ("planned", "steps"): "a plan is for as many steps as the run has",
}
"""Fields that do nothing here, and why."""
FIELDS = [(name, field) for name in known_policies() for field in policy_class(name).model_fields]


def acts(make: Any, base: Mapping[str, Any], cls: type[Any], field: str) -> bool:
    first = make(base)
    before = done(first)
    value = getattr(cls(**base), field)
    more = (stretches(0.3),) if field == "stretches" else ()
    for other in (*more, *others(cls, field, value)):
        try:
            after = done(make({**base, field: other}))
        except FasterCacheError:
            continue
        if after != before:
            return True
    return False


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=map(".".join, FIELDS))
def test_every_field_of_a_policy_does_something(name: str, field: str) -> None:
    cls = policy_class(name)
    if not cls.__module__.startswith("fastercache.policies") or (name, field) in WITHOUT:
        pytest.skip(WITHOUT.get((name, field), "a plug-in"))
    assert any(len(cell) > 2 for base in settings(name) for cell in done(cls(**base))), "nothing is reused"
    assert any(acts(lambda given: cls(**given), base, cls, field) for base in settings(name))


def stretches(source: float) -> tuple[fc.Stretch, ...]:
    starts = range(0, COUNT, 4)
    return tuple(fc.Stretch(after=k, start=k + 1, outputs=(0.7, 0.3)[: 1 + (k > 0)], input=source) for k in starts)


STAND_INS: dict[str, Mapping[str, Any]] = {
    "chebyshev": {"history": 4, "degree": 2},
    "fitted": {"stretches": stretches(0.2)},
}
"""What a predictor needs, or needs to be told so that all of its fields count."""
PREDICTED = [(name, field) for name, cls in predictors().items() for field in cls.model_fields]


@pytest.mark.parametrize(("name", "field"), PREDICTED, ids=map(".".join, PREDICTED))
def test_every_field_of_a_predictor_does_something(name: str, field: str) -> None:
    cls: type[Predictor] = predictors()[name]
    if not cls.__module__.startswith("fastercache.policies") or (name, field) in WITHOUT:
        pytest.skip(WITHOUT.get((name, field), "a plug-in"))

    def make(given: Mapping[str, Any]) -> Policy:
        return fc.StaticInterval(interval=4, sites="branch", stand_in=cls(**given))

    assert acts(make, STAND_INS.get(name, {}), cls, field)

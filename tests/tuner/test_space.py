"""Every point of a search space is a valid policy, and every policy inside it is a point."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import optuna
import pytest
from pydantic import Field

import fastercache as fc
from fastercache.policies.errors import InvalidPolicy
from fastercache.tuner import SearchSpace, default_seeds
from fastercache.tuner.fields import from_unit, to_unit

SITES = (
    fc.Site("b.0.attn1", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1)),
    fc.Site("stack", fc.Kind.STACK, span=(0, 1)),
    fc.Site("denoiser", fc.Kind.DENOISER),
    fc.Site("branch", fc.Kind.BRANCH),
)


class Custom(fc.SitePolicy, fc.StaticRule[None]):
    """A third party's policy, not even registered."""

    name: ClassVar[str] = "custom"
    unsearched: ClassVar[frozenset[str]] = frozenset({"phase"})
    every: Annotated[int, Field(gt=0, lt=6)] = 2
    soft: bool = False
    how: Literal["hold", "taylor"] = "hold"
    level: Annotated[float, Field(ge=0.5, le=2.0)] | None = None
    blocks: Annotated[int, Field(ge=1, le=1000)] = 10
    phase: Annotated[int, Field(ge=0, le=3)] = 0
    frames: Annotated[int, Field(ge=0, le=12, multiple_of=4)] = 4
    unbounded: float = 1.0
    label: str = "x"

    @property
    def query(self) -> str:
        return "attention"

    def reuse(self, state: None, step: fc.Step) -> bool:
        return False


def draws(space: SearchSpace, count: int = 200) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [space.draw(lambda p: from_unit(p, rng.random())) for _ in range(count)]


def test_all_fields_of_fastercache_are_searched_but_those_that_others_cover() -> None:
    space = SearchSpace.of("fastercache")
    searched = {p.name.removesuffix(":kind") for p in space.parameters}
    assert (
        set(fc.FasterCache.model_fields) - searched == {"sites", "offset", "cfg_offset", "divisor"} == set(space.fixed)
    )


@pytest.mark.parametrize("policy", ["fastercache", "static_interval", "cfg_cache", "dynamic_reuse", Custom])
def test_every_draw_builds_and_encodes_back(policy: Any) -> None:
    space = SearchSpace.of(policy)
    for params in draws(space):
        built = space.build(params)
        encoded = space.encode(built)
        assert encoded.changed == ()
        assert encoded.params == pytest.approx(params)
        assert space.build(encoded.params) == built


def test_bounds_come_from_the_fields_of_any_policy() -> None:
    space = SearchSpace.of(Custom)
    found = space.distributions
    assert (found["every"].low, found["every"].high) == (1, 5)  # exclusive bounds
    assert found["soft"].choices == (False, True)
    assert found["how"].choices == ("hold", "taylor")
    assert found["blocks"].log
    assert (found["frames"].low, found["frames"].high, found["frames"].step) == (0, 12, 4)
    assert found["level:kind"].choices == ("None", "value")
    assert (found["level"].low, found["level"].high) == (0.5, 2.0)
    assert set(space.fixed) == {"phase", "unbounded", "label"}


def test_bounds_bring_back_a_field_that_others_cover() -> None:
    assert "divisor" not in SearchSpace.of("fastercache").distributions
    found = SearchSpace.of("fastercache", bounds={"divisor": (2, 9)}).distributions["divisor"]
    assert (found.low, found.high) == (2, 9)


def test_conditional_parameters_exist_only_where_they_mean_something() -> None:
    for params in draws(SearchSpace.of("fastercache")):
        assert ("weight" in params) == (params["weight:kind"] == "value")


def test_nested_policies_are_searched_under_dotted_names() -> None:
    base = fc.Compose([fc.WarmUp(inner=fc.StaticInterval(sites="spatial", stand_in=fc.Taylor())), fc.CFGCache()])
    space = SearchSpace.of(base, bounds={"policies.0.steps": (0, 5)}, fixed={"policies.1.interval": 4})
    names = {p.name for p in space.parameters}
    assert {"policies.0.inner.interval", "policies.0.inner.stand_in.order", "policies.0.steps"} <= names
    assert "policies.1.interval" not in names
    built = space.build(draws(space, 1)[0])
    assert built.policies[0].inner.sites == "spatial" and built.policies[1].interval == 4  # type: ignore[attr-defined]


def test_presets_enter_the_space_and_say_what_was_lost() -> None:
    space = SearchSpace.of("fastercache", bounds={"radius": (0, 4)})
    for name, preset in fc.PRESETS.items():
        encoded = space.encode(preset)
        assert {"offset", "cfg_offset"} <= set(encoded.changed), name
        near = space.build(encoded.params)
        assert near == preset.model_copy(update={"offset": None, "cfg_offset": None, "divisor": 5})
    exact = space.encode(fc.FasterCache(alpha_low=-0.1, radius=3, weight=0.7))
    assert exact.changed == ()
    assert space.encode(fc.FasterCache(radius=300)).changed == ("radius",)


def test_suggesting_to_optuna_and_enqueueing_agree() -> None:
    space = SearchSpace.of("fastercache")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.encode(fc.FasterCache(weight=0.3)).params)
    assert space.build(space.suggest(study.ask())) == fc.FasterCache(weight=0.3)
    for _ in range(20):
        space.build(space.suggest(study.ask()))


def test_unit_cube_is_the_space() -> None:
    for parameter in SearchSpace.of(Custom).parameters:
        for place in (0.0, 0.3, 1.0):
            value = from_unit(parameter, place)
            assert from_unit(parameter, to_unit(parameter, value)) == pytest.approx(value)


def test_seeds_start_with_no_reuse_and_the_papers_defaults() -> None:
    seeds = default_seeds(SearchSpace.of("fastercache"), SITES)
    assert seeds["default"] == fc.FasterCache()
    assert seeds["no_cache"] == fc.FasterCache(interval=1, cfg_interval=1)
    assert {f"preset:{name}" for name in fc.PRESETS} <= set(seeds)
    assert list(default_seeds(SearchSpace.of("static_interval"), SITES)) == ["no_cache", "default"]
    held = default_seeds(SearchSpace.of("fastercache", fixed={"order": 0}), SITES)
    assert all(isinstance(seed, fc.FasterCache) and seed.order == 0 for seed in held.values())


class FromTwo(fc.StaticInterval):
    """As the tutorial's policy: an interval of 1 cannot be asked of it."""

    interval: Annotated[int, Field(ge=2, le=6)] = 2


class Stubborn(fc.StaticInterval):
    """Reuses whatever its interval."""

    def reuse(self, state: Any, step: fc.Step) -> bool:
        return step.index > 0


@pytest.mark.parametrize("policy", [FromTwo(), Stubborn()])
def test_where_no_interval_reuses_nothing_the_reference_stands_for_it(policy: fc.Policy) -> None:
    assert list(default_seeds(SearchSpace.of(policy), SITES)) == ["default"]


def test_the_seed_that_reuses_nothing_sets_every_interval() -> None:
    assert default_seeds(SearchSpace.of("branch_reuse"), SITES)["no_cache"] == fc.BranchReuse(
        interval=1, other_interval=1
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fixed": {"intervall": 2}}, "did you mean 'interval'"),
        ({"fixed": {"interval": 99}}, "interval"),
        ({"bounds": {"intervall": (1, 2)}}, "did you mean 'interval'"),
        ({"bounds": {"interval": (1, 99)}}, "must be ordered and lie within"),
        ({"bounds": {"weighting": (0, 1)}}, "has no range"),
    ],
)
def test_what_cannot_be_searched_is_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidPolicy, match=says):
        SearchSpace.of("fastercache", **arguments)


def test_a_policy_without_bounds_is_refused() -> None:
    with pytest.raises(InvalidPolicy, match="no field to search"):
        SearchSpace.of("no_cache")

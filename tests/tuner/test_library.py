"""Every registered policy can be tuned, alone and beside the others, with its constants measured where needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.calibrate import Calibration
from fastercache.policies.errors import FasterCacheError, InvalidPolicy
from fastercache.tuner import Evaluator, JointSpace, Outcome, SearchSpace, Setting, Study, default_seeds, tune
from fastercache.tuner.fields import from_unit
from fastercache.tuner.library import ANY, Library, check
from fastercache.tuner.record import SPENT
from fastercache.tuner.space import METHOD
from fastercache.zoo.videos import latte
from tests.tuner.conftest import CALL, SEARCH

WRAPPERS = {"warm_up", "window", "max_consecutive"}
NOTHING = {"no_cache", "schedule", "planned", "compose"} | WRAPPERS
"""What holds no field of its own to search: they repeat or contain something else, or `plan` makes them."""
LOOSE = "psnr>=5"


def study(pipe: Any, out: Path, policy: Any, trials: int = 2, **changes: Any) -> Study:
    return tune(
        pipe, SEARCH, **{"budget": LOOSE, "call": CALL, "out": out, "policy": policy, "trials": trials} | changes
    )


def library(evaluator: Evaluator, **given: Any) -> Library:
    return Library(evaluator, evaluator.cases(SEARCH), evaluator.references.store.parent / "calibration.json", **given)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One pipeline, and the folder of its uncached references, for studies that differ in the policy alone."""
    return zoo.build("latte").pipe, tmp_path_factory.mktemp("references")


@pytest.mark.parametrize("name", sorted(set(fc.known_policies()) - NOTHING))
def test_every_policy_is_tuned_through_its_bounds(name: str, shared: tuple[Any, Path], tmp_path: Path) -> None:
    fixed = {"relative": False} if name == "easycache" else {}  # this model's output has more channels than its input
    pipe, references = shared
    tried = study(pipe, tmp_path, name, fixed=fixed, references=references)
    ran = [r for r in tried.records if r.outcome in SPENT]
    assert ran and {r.policy.name for r in tried.records} == {name}
    assert any(r.outcome is Outcome.MEASURED for r in ran)
    if constants := fc.policy_class(name).constants:
        assert all(getattr(ran[0].policy, field) != stub for field, stub in constants.items())
        assert Calibration.load(tmp_path / "calibration.json").runs == len(SEARCH)


@pytest.mark.parametrize("name", sorted(NOTHING))
def test_what_cannot_be_tuned_says_why(name: str, evaluator: Evaluator) -> None:
    with pytest.raises(InvalidPolicy, match=r"needs|no field to search") as error:
        library(evaluator).space(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_a_wrapper_is_tuned_with_what_it_wraps(name: str, evaluator: Evaluator) -> None:
    space = library(evaluator, fixed={"inner": {"policy": "static_interval", "sites": "all"}}).space(name)
    assert "inner.interval" in space.distributions
    assert space.bases[name].inner.sites == "all"  # type: ignore[attr-defined]


def test_given_constants_are_not_measured(evaluator: Evaluator) -> None:
    made = library(evaluator, fixed={"ratios": {"*": [1.0, 0.9]}})
    assert made.space("magcache").bases["magcache"].ratios == {"*": (1.0, 0.9)}  # type: ignore[attr-defined]
    assert not made.path.exists()


def test_constants_are_measured_once_and_kept(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library(evaluator).space("teacache").bases
    monkeypatch.setattr(Setting, "generate", lambda *_: pytest.fail("measured again"))
    assert library(evaluator).space("teacache").bases == first


@pytest.mark.usefixtures("own_registry")
def test_what_a_policy_measures_itself_is_added_to_the_constants_that_are_kept(evaluator: Evaluator) -> None:
    class Gap(fc.MagCache):
        name: ClassVar[str] = "gap"
        measures: ClassVar[dict[str, fc.Measure]] = {"ratio": fc.Measure("stack", lambda a, b: a.norm() / b.norm())}

        @classmethod
        def calibrated(cls, measured: fc.Measurements, **fields: Any) -> Any:
            return cls(ratios={"*": measured.own("gap")["ratio"][0]}, **fields)

    fc.register(Gap)
    made = library(evaluator)
    made.space("teacache")
    before = Calibration.load(made.path)
    assert "further" not in made.path.read_text()
    found = library(evaluator).space("gap").bases["gap"]
    after = Calibration.load(made.path)
    assert after.model_copy(update={"further": {}}) == before and found == Gap.calibrated(after)


def test_constants_that_cannot_be_read_are_put_aside_and_measured_again(evaluator: Evaluator) -> None:
    made = library(evaluator)
    first = made.space("teacache").bases
    whole = made.path.read_text()
    made.path.write_text(whole[: len(whole) // 2])
    assert library(evaluator).space("teacache").bases == first and made.path.read_text() == whole
    assert made.path.with_name(made.path.name + ".unreadable-1").read_text() == whole[: len(whole) // 2]


def test_a_radius_beyond_the_latent_is_not_searched(evaluator: Evaluator) -> None:
    """The latent is 8 x 8: beyond 4 bins every frequency is low, whatever the field's own bound."""
    assert library(evaluator).space("fastercache").distributions["radius"].high == 4
    both = library(evaluator, bounds={"cfg_cache.radius": (1, 3)}).space(["cfg_cache", "fastercache"]).distributions
    assert (both["cfg_cache.radius"].high, both["fastercache.radius"].high) == (3, 4)


def test_any_searches_all_that_the_pipeline_allows_and_says_what_it_leaves_out(evaluator: Evaluator) -> None:
    space = library(evaluator).space(ANY)
    assert isinstance(space, JointSpace)
    assert set(space.left_out) | set(space.bases) == set(fc.known_policies())
    assert set(space.left_out) >= NOTHING and all(space.left_out.values())
    assert {"fastercache", "foca", "magcache", "teacache", "easycache", "tgate"} <= set(space.bases)


def test_a_policy_without_a_site_on_this_model_is_refused(tmp_path: Path) -> None:
    """SD3 has no cross-attention of its own, which TGate freezes; under `any` it would be left out."""
    evaluator = Evaluator(zoo.build("sd3").pipe, store=tmp_path)
    with pytest.raises(fc.NoSiteMatched, match="cross"):
        library(evaluator).space(["fora", "tgate"])


def test_a_policy_of_another_kind_is_no_point_of_the_space() -> None:
    with pytest.raises(InvalidPolicy, match="not of fora"):
        joint().encode(fc.FORA())


def joint() -> JointSpace:
    names = ("static_interval", "fastercache", "teacache")
    return JointSpace.of({name: SearchSpace.of(name) for name in names})


def test_a_draw_has_the_chosen_methods_fields_and_no_others() -> None:
    rng, space = np.random.default_rng(0), joint()
    drawn = [space.draw(lambda p: from_unit(p, rng.random())) for _ in range(60)]
    assert {params[METHOD] for params in drawn} == set(space.bases)
    for params in drawn:
        assert {name.split(".")[0] for name in params} - {METHOD} == {params[METHOD]}
        assert ("fastercache.weight" in params) == (params.get("fastercache.weight:kind") == "value")
        policy = space.build(params)
        assert policy.name == params[METHOD] and space.encode(policy).params == pytest.approx(params)


def test_each_method_has_an_axis_of_its_own() -> None:
    """No method lies between two others, whatever order they are listed in."""
    space = joint()
    places = [space.position(space.encode(base).params) for base in space.bases.values()]
    assert [list(place[:3]) for place in places] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert len({len(place) for place in places}) == 1


SITES = (
    fc.Site("b.0.attn1", fc.Kind.MODULE, fc.Role.SPATIAL, 0, (0, 1)),
    fc.Site("b.0", fc.Kind.BLOCK, None, 0, (0, 1)),
    fc.Site("stack", fc.Kind.STACK, span=(0, 1)),
)


def test_a_joint_search_tries_each_methods_default_first() -> None:
    assert list(default_seeds(joint(), SITES)) == ["no_cache", *(f"default:{name}" for name in joint().bases)]
    off = default_seeds(joint(), SITES)["no_cache"]
    assert off == fc.StaticInterval(interval=1)


def test_several_methods_are_searched_and_the_search_resumes(tiny_latte: Any, tmp_path: Path) -> None:
    """Both kinds of method are proposed beyond their defaults, and a resumed study repeats nothing."""
    names = ["foca", "static_interval", "easycache"]
    fixed = {"static_interval.sites": "all", "easycache.start": 0.0, "easycache.relative": False}
    first = study(tiny_latte, tmp_path, names, trials=4, budget="psnr>=95", fixed=fixed)
    told = [(r.source, r.policy, r.outcome) for r in first.records]
    again = study(tiny_latte, tmp_path, names, trials=10, budget="psnr>=95", fixed=fixed)
    assert [(r.source, r.policy, r.outcome) for r in again.records][: len(told)] == told
    searched = [r.policy for r in again.records if r.source == "search"]
    assert any(p.static for p in searched) and any(not p.static for p in searched)
    assert len({str(fc.dump(p)) for p in searched}) == len(searched)
    assert all(p.sites == "all" for p in searched if isinstance(p, fc.StaticInterval))


def test_a_method_that_cannot_run_is_one_candidate_less(
    tiny_latte: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Evaluator.run

    def broken(self: Evaluator, policy: fc.Policy, case: Any) -> Any:
        if isinstance(policy, fc.FoCa):
            raise fc.AttachError("no such value here")
        return original(self, policy, case)

    monkeypatch.setattr(Evaluator, "run", broken)
    tried = study(tiny_latte, tmp_path, ["foca", "static_interval"], trials=3)
    assert any(r.outcome is Outcome.INVALID and r.reason == "no such value here" for r in tried.records)
    assert isinstance(tried.best().policy, fc.StaticInterval)
    with pytest.raises(fc.AttachError):
        study(tiny_latte, tmp_path / "alone", "foca")


@pytest.mark.parametrize(
    ("names", "fixed", "says"),
    [
        (["foca", "foca"], {}, "once"),
        (["foca", "fora"], {"sites": "all"}, "written policy.field, found 'sites'"),
        (["foca", "fora"], {"focca.sites": "all"}, "did you mean 'foca'"),
        (["foca", "pabb"], {}, "did you mean 'pab'"),
        (["foca", "no_cache"], {}, "no field to search"),
        (["foca", "tgate"], {"tgate.self_intervall": 3}, "did you mean 'self_interval'"),
    ],
)
def test_what_cannot_be_searched_together_is_named(
    evaluator: Evaluator, names: list[str], fixed: dict[str, Any], says: str
) -> None:
    with pytest.raises(FasterCacheError, match=says) as error:
        library(evaluator, fixed=fixed).space(names)
    assert "\n" not in str(error.value)


def test_any_stands_alone() -> None:
    with pytest.raises(InvalidPolicy, match="'any' already stands for every policy"):
        check(["any", "fora"], {})


def test_three_of_the_prompts_calibrate(evaluator: Evaluator) -> None:
    path = evaluator.references.store.parent / "calibration.json"
    made = Library(evaluator, evaluator.cases(["one", "two", "three", "four"]), path)
    made.space("teacache")
    assert Calibration.load(path).runs == 3


def test_constants_of_another_model_are_refused(evaluator: Evaluator, tmp_path: Path) -> None:
    library(evaluator).space("teacache")
    other = Evaluator(latte(layers=3).build("deeper").pipe, CALL, store=tmp_path / "references")
    with pytest.raises(fc.ConfigMismatch):
        library(other).space("teacache")


def test_a_joint_draw_of_one_policy_leaves_the_others_alone() -> None:
    space = JointSpace.of({"fora": SearchSpace.of("fora"), "foca": SearchSpace.of("foca")})
    params = space.encode(fc.FORA(interval=4)).params
    policy = space.build({**params, "foca.interval": 9})
    assert isinstance(policy, fc.FORA) and policy.interval == 4 and not any(n.startswith("foca.") for n in params)
    with pytest.raises(InvalidPolicy, match="no policy is left to search: fora: why; foca: because"):
        JointSpace.of({}, {"fora": "why"} | {"foca": "because"})

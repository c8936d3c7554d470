"""What is registered under a name, what a class may say of itself, and what is refused when it is read."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, model_validator
from torch import Tensor

import fastercache as fc
from fastercache.policies import registry
from fastercache.policies.base import Config, Now, Past, Predictor
from fastercache.policies.documents import MAX_DEPTH
from fastercache.policies.errors import InvalidPolicy, UnknownPolicy
from fastercache.policies.registry import dump, known_policies, load_policy, load_predictor, policy_class, register
from fastercache.policies.vocabulary import Kind, Run, Site

pytestmark = pytest.mark.usefixtures("own_registry")
SITES = (Site("stack", Kind.STACK, None, 0, (0, 1)), Site("denoiser", Kind.DENOISER), Site("branch", Kind.BRANCH))


def named(qualname: str, module: str, name: str, base: type[Any] = fc.FORA) -> type[Any]:
    return type(qualname, (base,), {"name": name, "__module__": module, "__annotations__": {"name": ClassVar[str]}})


def test_a_class_of_the_same_name_in_another_module_does_not_take_a_policys_place() -> None:
    with pytest.raises(
        InvalidPolicy, match=r"'teacache' is taken by fastercache\.policies\.methods\.teacache\.TeaCache"
    ):
        register(named("TeaCache", "mine", "teacache"))
    assert policy_class("teacache") is fc.TeaCache
    first = register(named("Mine", "mine", "mine"))
    with pytest.raises(InvalidPolicy, match=r"'mine' is taken by mine\.Mine"):
        register(named("Other", "mine", "mine"))
    assert policy_class("mine") is first
    again = register(named("Mine", "mine", "mine"))
    assert policy_class("mine") is again, "as when a module is imported anew"


def test_policies_and_predictors_have_names_of_their_own() -> None:
    class Odd(fc.Hold):
        name: ClassVar[str] = "fora"

    register(Odd)
    assert policy_class("fora") is fc.FORA and registry.predictors()["fora"] is Odd
    assert load_predictor({"predictor": "fora"}) == Odd() and load_policy({"policy": "fora"}) == fc.FORA()
    assert dump(Odd()) == {"predictor": "fora"}


def test_known_names_are_in_order() -> None:
    assert list(known_policies()) == sorted(known_policies())
    assert list(registry.predictors()) == sorted(registry.predictors())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"predictor": "fora"}, UnknownPolicy, "no predictor is called 'fora'"),
        ({"policy": "taylor"}, InvalidPolicy, "with the key 'predictor'"),
        ({"predictor": 3}, InvalidPolicy, "with the key 'predictor'"),
        ([], InvalidPolicy, "with the key 'predictor'"),
        ({"predictor": "taylor", "order": 9}, InvalidPolicy, "taylor.order: input should be less than or equal to 4"),
        ({"predictor": "taylor", "order": "1"}, InvalidPolicy, "taylor.order: input should be a number"),
        ({"predictor": "taylor", "depth": 1}, InvalidPolicy, "no field 'depth'"),
    ],
)
def test_what_is_no_predictor_is_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_predictor(data)


@pytest.mark.parametrize("data", [{"policy": 3}, {"predictor": "taylor"}, ["fora"], "fora", None])
def test_what_is_no_policy_is_refused(data: Any) -> None:
    with pytest.raises(InvalidPolicy, match="expected a policy as an object with the key 'policy'"):
        load_policy(data)


def test_configurations_are_read_down_to_a_depth_and_no_deeper() -> None:
    def nested(levels: int) -> dict[str, Any]:
        """As many objects inside one another."""
        data: dict[str, Any] = {"predictor": "hold"}
        for _ in range(levels - 1):
            data = {"predictor": "relative", "inner": data}
        return data

    with pytest.raises(InvalidPolicy, match=f"more than {MAX_DEPTH} levels"):
        load_predictor(nested(MAX_DEPTH + 1))
    data: dict[str, Any] = {"policy": "fora"}
    for _ in range(MAX_DEPTH - 1):
        data = {"policy": "warm_up", "inner": data}
    assert dump(load_policy(data))["steps"] == 1
    with pytest.raises(InvalidPolicy, match=f"more than {MAX_DEPTH} levels"):
        load_policy({"policy": "warm_up", "inner": data})


def test_what_a_policys_own_constructor_meets_is_told_as_a_fault_of_its_fields() -> None:
    class Picky(fc.FORA):
        name: ClassVar[str] = "picky"

        def __init__(self, **fields: Any) -> None:
            if fields.pop("trouble", False):
                raise KeyError("trouble")
            super().__init__(**fields)

    register(Picky)
    assert load_policy({"policy": "picky", "interval": 3}) == Picky(interval=3)
    with pytest.raises(InvalidPolicy, match="picky cannot be made of these fields: KeyError"):
        load_policy({"policy": "picky", "trouble": True})
    with pytest.raises(InvalidPolicy, match="less than or equal to 12"):
        load_policy({"policy": "picky", "interval": 13})


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, IndexError, ZeroDivisionError, RecursionError])
def test_what_a_check_of_fields_meets_is_told_in_a_line(error: type[Exception]) -> None:
    class Checked(fc.FORA):
        name: ClassVar[str] = "checked"

        @model_validator(mode="after")
        def _check(self) -> Checked:
            raise error("odd")

    with pytest.raises(InvalidPolicy, match=f"checked cannot be made of these fields: {error.__name__}"):
        Checked()


def test_what_is_not_finite_is_refused_wherever_it_stands() -> None:
    far = float("inf")
    for make in (
        lambda: fc.TeaCache(coefficients=(1.0, far)),
        lambda: fc.StaticInterval(start=float("nan")),
        lambda: fc.MagCache(ratios={"*": (1.0, -far)}),
        lambda: fc.Stretch(after=0, start=1, outputs=(1.0,), input=far),
        lambda: fc.AdaCache(codebook=((far, 2),)),
    ):
        with pytest.raises(InvalidPolicy, match=r"finite number|greater than or equal"):
            make()


@pytest.mark.parametrize("plan", [(False, "0.5", True), ("0", 0.5), (0.0, True), ["0.5"]])
def test_a_number_in_a_tuple_is_no_text_and_no_boolean(plan: Any) -> None:
    with pytest.raises(InvalidPolicy, match=r"meancache\.plan\.\d: input should be a number"):
        fc.MeanCache(plan=plan)
    assert fc.MeanCache(plan=(0, 0.5, 1)).plan == (0.0, 0.5, 1.0)


def test_a_boolean_is_no_text() -> None:
    with pytest.raises(InvalidPolicy, match=r"easycache\.relative: input should be a boolean, found 'false'"):
        fc.EasyCache(relative="false")  # type: ignore[arg-type]


# -- what a class says of itself ---------------------------------------------------------------------------------------
def test_a_field_that_changes_a_default_alone_keeps_its_description() -> None:
    class Slow(fc.FORA):
        interval: Annotated[int, Field(ge=1, le=12)] = 7

    class Told(fc.FORA):
        interval: int = Field(default=7, description="mine")

    inherited = fc.StaticInterval.model_fields["interval"].description
    assert Slow.model_fields["interval"].description == inherited and Slow().interval == 7
    assert Told.model_fields["interval"].description == "mine"


@pytest.mark.parametrize("field", ["begin", "begin_beside", "reuse", "update", "signal", "decides", "remembers"])
@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
def test_a_field_is_not_called_as_a_question_of_the_rule(field: str) -> None:
    with pytest.raises(InvalidPolicy, match=f"Odd has a field '{field}', which is a rule's method"):
        type("Odd", (fc.FORA,), {field: 1, "__annotations__": {field: int}, "__module__": __name__})


@pytest.mark.parametrize("field", ["off", "constants", "measures"])
@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
def test_a_field_is_not_called_as_what_a_policy_says_of_itself(field: str) -> None:
    with pytest.raises(InvalidPolicy, match=f"Odd has a field '{field}'"):
        type("Odd", (fc.FORA,), {field: 1, "__annotations__": {field: int}, "__module__": __name__})


def test_a_default_out_of_bounds_is_refused() -> None:
    class Bad(fc.FORA):
        interval: Annotated[int, Field(ge=1, le=12)] = 99

    with pytest.raises(InvalidPolicy, match="interval: input should be less than or equal to 12, found 99"):
        Bad()
    assert Bad(interval=3).interval == 3


def test_which_constants_have_to_be_measured() -> None:
    class Two(fc.FORA):
        name: ClassVar[str] = "two"
        constants: ClassVar[dict[str, Any]] = {"a": 0.0, "b": 0.0, "c": 0.0}
        a: float
        b: float
        c: float = 0.5

        @classmethod
        def calibrated(cls, measured: Any, **fields: Any) -> Any:
            return cls(**fields)

    assert Two.unmeasured(()) == ("a", "b") and Two.unmeasured({"a"}) == ("b",) and Two.unmeasured({"a", "b"}) == ()
    assert Two.unmeasured({"c", "interval"}) == ("a", "b")

    class Optional(Two):
        a: float = 1.0
        b: float = 2.0

    assert Optional.unmeasured({"interval"}) == ("a", "b", "c") and Optional.unmeasured({"b", "interval"}) == ()


def test_a_policy_without_constants_is_calibrated_to_the_fields_it_is_given() -> None:
    assert fc.FORA.calibrated(None, interval=5) == fc.FORA(interval=5)  # type: ignore[arg-type]


def test_what_is_switched_off_keeps_its_other_fields() -> None:
    policy = fc.DynamicReuse(sites="stack", interval=4, start=0.25, stop=0.75, weight=0.3, order=2, offset=1)
    expected = fc.DynamicReuse(sites="stack", interval=1, start=0.25, stop=0.75, weight=0.3, order=2, offset=1)
    assert policy.switched_off() == expected
    assert fc.NoCache(sites="stack").switched_off() == fc.NoCache(sites="stack")


def test_a_policy_claims_what_it_governs_in_a_guided_run() -> None:
    policy = fc.Compose([fc.CFGCache(), fc.StaticInterval(sites="stack")])
    assert set(policy.claims(SITES)) == {SITES[0], SITES[2]}
    assert fc.SmoothCache(curves={"stack": ((0.1,),)}).claims(SITES) == (SITES[0],)


def test_each_site_has_the_predictor_that_its_policy_makes_for_it() -> None:
    class Own(fc.FORA):
        sites: str = "stack|denoiser"

        def predictor(self, site: Site, run: Run) -> Predictor:
            return fc.Taylor(order=run.count if site.kind is Kind.STACK else 1)

    run = Run.of(3, sites=SITES)
    found = {site.name: one.predictor for site, one in Own().assign(run).items()}
    assert found == {"stack": fc.Taylor(order=3), "denoiser": fc.Taylor(order=1)}


def test_a_predictor_holds_one_value_and_needs_nothing_unless_it_says_so() -> None:
    class Half(fc.Predictor):
        name: ClassVar[str] = "half"

        def predict(self, past: Any, now: Now) -> Tensor:
            value: Tensor = past[-1].value / 2
            return value

    value = Past(Run.of(2).steps[0], None)
    assert (Half().depth, Half().needs) == (1, None) and value.value is None
    kept: Any = object()
    assert Half().keep(kept, None) is kept


def test_a_configuration_that_cannot_be_is_told_field_by_field_up_to_five() -> None:
    class Many(Config):
        name: ClassVar[str] = "many"
        made_with: ClassVar[str] = "`fastercache plan`"
        a: int
        b: int = Field(default=1, ge=0)

    with pytest.raises(InvalidPolicy) as raised:
        Many(**{"b": -1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1})
    told = str(raised.value)
    assert "many needs the field 'a'" in told
    assert [name in told for name in ("field 'c'", "field 'd'", "field 'e'", "field 'f'")] == [True, True, True, False]
    assert "many.b: input should be greater than or equal to 0, found -1" in told
    assert "and 2 more" in told and told.endswith("make one with `fastercache plan`")
    with pytest.raises(InvalidPolicy) as raised:
        Many(**{"b": -1, "c": 1, "d": 1, "e": 1})
    assert "field 'e'" in str(raised.value) and " more" not in str(raised.value), "five in all"
    with pytest.raises(InvalidPolicy) as raised:
        Many(a=1, b=-1)
    assert "make one with" not in str(raised.value) and "more" not in str(raised.value)


def test_a_policy_shows_every_field_that_is_not_at_its_default() -> None:
    assert repr(fc.MagCache(ratios={"*": (1.0,)})) == "MagCache(ratios={'*': (1.0,)})"
    assert repr(fc.StaticInterval(stop=0.5, stand_in=fc.Taylor(order=2))) == (
        "StaticInterval(stop=0.5, stand_in=Taylor(order=2))"
    )
    assert repr(fc.StaticInterval(interval=2, stand_in=fc.Hold())) == "StaticInterval()"

"""The contract of a policy: where (site query), when (reuse or compute) and how (predictor).

A policy is frozen, validated configuration. All state of a run is held by the runtime (see `rules`), so one policy can
serve many runs, threads and pipelines at once, and the bounds on its fields are its default search space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from fastercache.policies.errors import InvalidPolicy, printable, shown, suggest, told
from fastercache.policies.measurements import Measure, Measurements
from fastercache.policies.notebook import shortened, table
from fastercache.policies.rules import StaticRule, WatchingRule
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Run, Site, Step, select


class Config(BaseModel):
    """Frozen configuration; unknown keys and values out of bounds are refused with one clear line."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    name: ClassVar[str] = ""
    made_with: ClassVar[str] = ""  # what makes one that nobody writes by hand

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise InvalidPolicy(f"{cls.__name__} must implement {', '.join(missing)} before it can be used")
        return super().__new__(cls)

    def __init__(self, **fields: Any) -> None:
        label = type(self).name or type(self).__name__
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InvalidPolicy(explain(type(self), error)) from None
        except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            # What a validator meets in a value of a type that it does not expect; pydantic lets it through.
            raise InvalidPolicy(f"{label} cannot be made of these fields: {told(error)}") from None
        for name, raw in fields.items():
            _refuse_coerced(f"{label}.{name}", raw, getattr(self, name, raw))

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A field that only changes a default keeps what its base says about it."""
        super().__pydantic_init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            known: dict[str, FieldInfo] = getattr(base, "model_fields", {})
            for name in known:
                cls.model_fields[name].description = cls.model_fields[name].description or known[name].description

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What differs from the defaults; long values (fitted weights) in short."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or value != field.get_default(call_default_factory=True, validated_data={}):
                yield name, _Text(shortened(value))

    def _repr_html_(self) -> str:
        fields = type(self).model_fields.items()
        rows = [(name, shortened(getattr(self, name)), field.description or "") for name, field in fields]
        return table(type(self).__name__, rows, ("field", "value", "meaning") if rows else ())


class _Text(str):
    """Text that is shown without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def _refuse_coerced(where: str, raw: Any, value: Any) -> None:
    """Refuse what pydantic turned into a number silently: `true` into 1, and `"3"` into 3.

    Raises:
        InvalidPolicy: naming the place.
    """
    if isinstance(value, (int, float)) and isinstance(raw, (bool, str)) and type(raw) is not type(value):
        kind = "a boolean" if isinstance(value, bool) else "a number"
        raise InvalidPolicy(f"{where}: input should be {kind}, found {shown(raw)}")
    if isinstance(value, Mapping) and isinstance(raw, Mapping):
        for key in value.keys() & raw.keys():
            _refuse_coerced(f"{where}.{key}", raw[key], value[key])
    elif isinstance(value, (list, tuple)) and isinstance(raw, (list, tuple)) and len(value) == len(raw):
        for i, (old, new) in enumerate(zip(raw, value, strict=True)):
            _refuse_coerced(f"{where}.{i}", old, new)


LISTED = 5
"""How many faults of one configuration are listed in a message."""


def explain(cls: type[BaseModel], error: ValidationError) -> str:
    """One line for a pydantic error: each offending field, what was found and what is allowed."""
    label = getattr(cls, "name", "") or cls.__name__
    lines = []
    found = error.errors(include_url=False)
    for item in found[:LISTED]:
        where = printable(".".join(str(part)[:80] for part in item["loc"]) or "value", 200)
        if item["type"] == "extra_forbidden":
            lines.append(f"{label} has no field '{where}'{suggest(where, cls.model_fields)}")
        elif item["type"] == "missing":
            lines.append(f"{label} needs the field '{where}'")
        else:
            message = item["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            # What a check of several fields has to say needs no copy of all of them.
            whole = item["type"] == "value_error" and isinstance(item["input"], dict)
            name = f"{label}.{where}" if item["loc"] else label
            lines.append(f"{name}: {message}" + ("" if whole else f", found {shown(item['input'])}"))
    more = [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
    if (made := getattr(cls, "made_with", "")) and any(item["type"] == "missing" for item in found):
        more.append(f"make one with {made}")
    return "; ".join(dict.fromkeys(lines + more))


@dataclass(frozen=True, slots=True)
class Past:
    """One computed value in a predictor's past: the step it was computed at, and what `keep` made of it."""

    step: Step
    value: Any


@dataclass(frozen=True, slots=True)
class Now:
    """What is predicted: the step, and what the predictor's `needs` names at that step; None where it needs nothing."""

    step: Step
    seen: Tensor | None = None


class Predictor(Config, ABC):
    """Stands in for a skipped value. A subclass implements `predict`.

    Predictors are pure: the prediction depends only on what is given. `past` and `now` hold one branch's rows, or those
    of all branches of a call together where nothing is needed and all were computed together: a predictor that measures
    its values over all rows therefore names what it needs.
    """

    @property
    def depth(self) -> int:
        """How many past values the prediction can use, so that memory is known before the run."""
        return 1

    @property
    def needs(self) -> Signal | None:
        """What the predictor is given besides past values, at the computed steps (`keep`) and now (`predict`).

        `Signal.INPUT` is the denoiser's main input, as the denoiser gets it: scaled, with whatever channels the
        pipeline appends, packed to tokens where the model takes tokens. Whether it fits the value is the predictor's
        to judge. A denoiser's further outputs (LTX-2's sound) have no such input: `seen` is None for them.
        """
        return None

    def keep(self, value: Tensor, seen: Tensor | None) -> Any:
        """What is kept of a computed value: by default itself. Tensors, or tuples and lists of them.

        `seen` is what `needs` names at the step of the value. What is kept of it counts as cached memory.
        """
        return value

    @abstractmethod
    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        """The stand-in for `now`, in the shape of the values; `past` is chronological, newest last, never empty."""


class Hold(Predictor):
    """The newest computed value, unchanged: F(t) = F_a."""

    name: ClassVar[str] = "hold"

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        value: Tensor = past[-1].value
        return value


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a method comes from. `reuses` says in a few words what is skipped."""

    title: str
    authors: str
    year: int
    url: str
    reuses: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """What governs one site: when it is reused, and what stands in for it."""

    rule: StaticRule[Any] | WatchingRule[Any]
    predictor: Predictor


class Policy(Config, ABC):
    """Which rule and which predictor govern which sites. Most policies are a `SitePolicy`, which is its own rule."""

    citation: ClassVar[Citation | None] = None
    unsearched: ClassVar[frozenset[str]] = frozenset()
    """Fields the tuner leaves alone unless asked, because others cover what they do."""

    off: ClassVar[Mapping[str, Any]] = {}
    """Field values at which nothing is reused, whatever the other fields are; empty where no such values are known."""
    constants: ClassVar[Mapping[str, Any]] = {}
    """Fields that are measured on the model, each with a value to check the other fields with where no model is."""
    measures: ClassVar[Mapping[str, Measure]] = {}
    """What its constants are made of, by name, beyond what every calibration measures."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Raises InvalidPolicy where what the class says of itself does not fit its fields."""
        super().__pydantic_init_subclass__(**kwargs)
        for said in ("off", "constants", "measures"):
            if said in cls.model_fields:
                raise InvalidPolicy(
                    f"{cls.__name__} has a field '{said}', which a policy says of itself: name it otherwise"
                )
        for said in ("off", "constants"):
            for name in getattr(cls, said):
                if name not in cls.model_fields:
                    raise InvalidPolicy(
                        f"{cls.__name__}.{said} names '{name}', which is no field{suggest(name, cls.model_fields)}"
                    )
        implemented = next(base for base in cls.__mro__ if "calibrated" in vars(base))
        if (cls.constants or cls.measures) and implemented is Policy:
            raise InvalidPolicy(
                f"{cls.__name__} has constants: implement the class method calibrated(measured, **fields)"
            )

    @abstractmethod
    def assign(self, run: Run) -> Mapping[Site, Assigned]:
        """The sites of `run.sites` this policy governs, in execution order, each with its rule and predictor.

        Sites that are not named are computed at every step. Raises NoSiteMatched where a site query matches nothing.
        """

    @property
    @abstractmethod
    def static(self) -> bool:
        """Whether all its rules are static, so that every decision is known before the run."""

    @final
    def claims(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The sites of a model this policy would govern in a run with guidance. Raises NoSiteMatched."""
        return tuple(self.assign(Run.of(50, sites=sites)))

    @classmethod
    def calibrated(cls, measured: Measurements, **fields: Any) -> Self:
        """This policy with the constants of the model that was measured, and other fields as given.

        A class with `constants` implements it: `return cls(**{"ratios": measured.ratios} | fields)`, where constants
        that are given go before those measured. What its `measures` gave stands in `measured.own(cls.name)`.
        """
        return cls(**fields)

    @final
    @classmethod
    def unmeasured(cls, given: Collection[str]) -> tuple[str, ...]:
        """The constants that have to be measured where the fields `given` are set.

        Those without a default, or, where all have one, all of them unless one is given.
        """
        required = [name for name in cls.constants if cls.model_fields[name].is_required()]
        if required:
            return tuple(name for name in required if name not in given)
        return () if set(cls.constants) & set(given) else tuple(cls.constants)

    def switched_off(self) -> Policy | None:
        """This policy at the setting that reuses nothing; None where no such setting is known or allowed."""
        if not self.off:
            return None
        try:
            return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | dict(self.off))
        except InvalidPolicy:  # a subclass with tighter bounds
            return None


class SitePolicy(Policy):
    """One rule and one kind of predictor at the sites of a query: a policy that is its own rule.

    Subclass it together with a `StaticRule` or a `WatchingRule`, set `name`, add bounded fields, and implement `query`
    and the rule's `reuse`.
    """

    @property
    @abstractmethod
    def query(self) -> str:
        """The governed sites, as a site query."""

    def where(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The governed sites among those of a model; those of `query` unless overridden. Raises NoSiteMatched."""
        return select(self.query, sites)

    def predictor(self, site: Site, run: Run) -> Predictor:
        """What stands in for the site's skipped values in this run."""
        return Hold()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Raises InvalidPolicy for a field named as a question of the rule, which would take its place."""
        super().__pydantic_init_subclass__(**kwargs)
        taken = sorted(
            {"begin", "begin_beside", "reuse", "update", "signal", "decides", "remembers"} & {*cls.model_fields}
        )
        if taken:
            raise InvalidPolicy(f"{cls.__name__} has a field '{taken[0]}', which is a rule's method: name it otherwise")

    @final
    def assign(self, run: Run) -> Mapping[Site, Assigned]:
        if not isinstance(self, (StaticRule, WatchingRule)):
            raise InvalidPolicy(
                f"{type(self).__name__} has no rule: let the class inherit from StaticRule or WatchingRule too, and "
                "implement reuse"
            )
        return {site: Assigned(self, self.predictor(site, run)) for site in self.where(run.sites)}

    @property
    def static(self) -> bool:
        return isinstance(self, StaticRule)

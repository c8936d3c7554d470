"""The contract of a policy: where (site query), when (reuse or compute) and how (predictor).

A policy is frozen, validated configuration. All state of a run is held by the runtime (see `rules`), so one policy can
serve many runs, threads and pipelines at once, and the bounds on its fields are its default search space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fastercache.policies.errors import InvalidPolicy, suggest
from fastercache.policies.rules import StaticRule, WatchingRule
from fastercache.policies.vocabulary import Run, Signal, Site, Step, select


class Config(BaseModel):
    """Frozen configuration; unknown keys and values out of bounds are refused with one clear line."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, arbitrary_types_allowed=False)
    name: ClassVar[str] = ""

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise InvalidPolicy(f"{cls.__name__} must implement {', '.join(missing)} before it can be used")
        return super().__new__(cls)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InvalidPolicy(explain(type(self), error)) from None


def explain(cls: type[BaseModel], error: ValidationError) -> str:
    """One line for a pydantic error: each offending field, what was found and what is allowed."""
    label = getattr(cls, "name", "") or cls.__name__
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "value"
        if item["type"] == "extra_forbidden":
            lines.append(f"{label} has no field '{where}'{suggest(where, cls.model_fields)}")
        elif item["type"] == "missing":
            lines.append(f"{label} needs the field '{where}'")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{label}.{where}: {message[:1].lower() + message[1:]}, found {item['input']!r}")
    return "; ".join(dict.fromkeys(lines))


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

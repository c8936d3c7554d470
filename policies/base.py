"""The contract of a policy: where (site query), when (reuse or compute) and how (predictor).

A policy is frozen, validated configuration. All state of a run lives in the object `init` returns, so one policy
can serve many runs, threads and pipelines at once, and the bounds on its fields are its default search space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from fastercache.policies.errors import InvalidPolicy, printable, shown, suggest, told
from fastercache.policies.vocabulary import Branch, Run, Scope, Signal, Site, Step, select


class Config(BaseModel):
    """Frozen configuration; unknown keys and values out of bounds are refused with one clear line."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, arbitrary_types_allowed=False)
    name: ClassVar[str] = ""

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
            lines.append(f"{label}.{where}: {message[:1].lower() + message[1:]}, found {shown(item['input'])}")
    more = [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
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


class Policy(Config):
    """Where, when and how to reuse. Subclass it, set `name`, add bounded fields, implement `reuse`.

    `reuse` is asked only for sites the policy claims and that are reached: inside a block that is reused as a whole
    no attention is asked about. A policy with `signal is None` must decide from its arguments and state alone; it is
    then static, and compiled to a schedule before the run.
    """

    citation: ClassVar[Citation | None] = None
    unsearched: ClassVar[frozenset[str]] = frozenset()
    """Fields the tuner leaves alone unless asked, because others cover what they do."""

    @property
    def query(self) -> str:
        """The sites this policy claims, as a site query."""
        raise NotImplementedError(f"{type(self).__name__} must say which sites it claims: implement the property query")

    @property
    def signal(self) -> Signal | None:
        """The value a dynamic policy watches; None for a static policy."""
        return None

    @property
    def static(self) -> bool:
        """Whether every decision is known before the run. False too for a rule that learns from computed values."""
        return self.signal is None

    @property
    def decides(self) -> Scope:
        """Who decides for whom in a dynamic policy.

        With `branch`, `reuse` and `observe` are called for each branch with its own rows. With `call` they are called
        once a denoiser call, with the rows of all its branches, under the conditional branch's name if it is among
        them. With `cond` they are called for the conditional branch alone, and the answer holds for the whole step; a
        branch that is called before the conditional one is asked by itself.
        """
        return Scope.BRANCH

    def claims(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The sites of a model this policy decides about, in execution order. Raises NoSiteMatched."""
        return select(self.query, sites)

    def owner(self, site: Site, sites: Sequence[Site]) -> Policy:
        """The policy that decides about a claimed site: itself, or one of its parts in a composition."""
        return self

    def init(self, run: Run) -> Any:
        """The state of one run."""
        return None

    def reuse(self, state: Any, site: Site, step: Step, branch: Branch, signal: Tensor | None) -> bool:
        """Whether to reuse (True) or compute (False). `signal`: this branch's rows of what `self.signal` names."""
        return False

    def observe(self, state: Any, site: Site, step: Step, branch: Branch, value: Tensor | None) -> None:
        """Called after a claimed site was computed; `value` is its value for this branch (None while compiling)."""

    def predictor(self, site: Site, run: Run) -> Predictor:
        """What stands in for the site's skipped values in this run."""
        return Hold()

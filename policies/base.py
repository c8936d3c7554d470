"""The contract of a policy: where (site query), when (reuse or compute) and how (predictor).

A policy is frozen, validated configuration. All state of a run lives in the object `init` returns, so one policy
can serve many runs, threads and pipelines at once, and the bounds on its fields are its default search space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from fastercache.policies.errors import InvalidPolicy, suggest
from fastercache.policies.vocabulary import Branch, Run, Scope, Signal, Site, Step, select


class Config(BaseModel):
    """Frozen configuration; unknown keys and values out of bounds are refused with one clear line."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, arbitrary_types_allowed=False)
    name: ClassVar[str] = ""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InvalidPolicy(explain(type(self), error)) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A field that only changes a default keeps what its base says about it."""
        super().__pydantic_init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            known: dict[str, FieldInfo] = getattr(base, "model_fields", {})
            for name in known:
                cls.model_fields[name].description = cls.model_fields[name].description or known[name].description


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
    """One computed value in a predictor's history: the step it was computed at, and what `encode` made of it.

    `signal` is what an aligned predictor watched at that step; None for others.
    """

    step: Step
    value: Any
    signal: Tensor | None = None


class Predictor(Config):
    """Stands in for a skipped value.

    Predictors are pure: the prediction depends only on the history given and the step asked for.
    """

    @property
    def history(self) -> int:
        """How many past values the prediction can use, so that memory is known before the run."""
        return 1

    @property
    def signal(self) -> Signal | None:
        """For a predictor that is aligned with something the run gives at every step: what. It implements `align`."""
        return None

    @property
    def relative(self) -> bool:
        """Whether, at a denoiser site, its values are the output less the denoiser's input instead of the output."""
        return False

    def encode(self, value: Tensor) -> Any:
        """What is kept of a computed value (any shape); by default the value itself."""
        return value

    def predict(self, history: Sequence[Past], step: Step) -> Tensor:
        """The stand-in at `step`, in the shape of the values; `history` is chronological, newest last, never empty."""
        raise NotImplementedError(f"{type(self).__name__} must implement predict(history, step)")

    def align(self, history: Sequence[Past], step: Step, signal: Tensor) -> Tensor:
        """As `predict`, given what `self.signal` names, now and (in `history`) at the computed steps."""
        return self.predict(history, step)


class Hold(Predictor):
    """The newest computed value, unchanged: F(t) = F_a."""

    name: ClassVar[str] = "hold"

    def predict(self, history: Sequence[Past], step: Step) -> Tensor:
        value: Tensor = history[-1].value
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

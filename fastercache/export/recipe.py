"""What a policy does at the denoiser and the guidance branch, step by step, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from fastercache.model.branches import DEFAULT_ORDER
from fastercache.model.families import ORDERS, family_of
from fastercache.policies.base import Now, Past, Policy, Predictor
from fastercache.policies.errors import FasterCacheError, NoSiteMatched
from fastercache.policies.predictors.fitted import Fitted
from fastercache.policies.schedule import Code, Table, compile_policy
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import COND, UNCOND, Branch, Kind, Run, Site
from fastercache.tuned import TunedConfig

OUTPUT, INPUT = 0, 1
"""What a term weighs: a computed output, or the denoiser's input at the same step."""

How = Literal["hold", "lerp", "sum", "wide"]


class NotExportable(FasterCacheError):
    """A policy that a target has no words for.

    Symptom: `fastercache export` writes nothing and says what the target cannot express.
    Cause: The policy decides while the model runs, works inside the blocks, or needs branches that cannot be told
        apart without this toolkit.
    Fix: Export a plan, choose another target (`hub` takes every policy), or freeze a run with
        `session.last.schedule()` first.
    """


@dataclass(frozen=True)
class Exported:
    """One export.

    Attributes:
        files: name -> text; one file, or those of a folder.
        lost: what the target does otherwise than the tuned config, one line each.
    """

    files: dict[str, str]
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How one skipped output is put together, by the same operations in the same order as here.

    Attributes:
        of: `whole`, the branch's output, or `difference`, what is added to the conditional output.
        how: `hold` a value; `lerp` from the first term to the second by the second's weight; `sum` of the terms;
            `wide`, that sum in float32 at least.
        terms: (computed step, OUTPUT or INPUT, weight), in the order in which they are added.
    """

    of: Literal["whole", "difference"]
    how: How
    terms: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Recipes:
    """A whole run: for each branch the steps that are not computed.

    Attributes:
        steps: denoising steps of a run. by_branch: branch -> step -> recipe.
        order: the branches in the order of a batched call's rows or of a step's calls.
        variance: whether inputs are added to a prediction that has a learned variance behind it.
    """

    steps: int
    by_branch: dict[Branch, dict[int, Recipe]]
    order: tuple[Branch, ...]
    variance: bool = True

    @property
    def uniform(self) -> bool:
        """Whether every branch does the same, so that a call's branches need not be told apart."""
        first, *others = self.by_branch.values()
        return all(other == first for other in others) and all(r.of == "whole" for r in first.values())


def recipes(config: TunedConfig) -> Recipes:
    """The recipes of a tuned config whose policy governs the denoiser and the branch sites only.

    Raises:
        NotExportable: if it governs blocks or modules, decides while the model runs, or its predictor measures values;
            and where the calls of this pipeline cannot be told apart by their order.
    """
    policy = config.policy
    guided = config.guidance != "none"
    run = Run.of(config.steps, (COND, UNCOND) if guided else (COND,), _sites(guided))
    table = outer_table(policy, run)
    by_branch: dict[Branch, dict[int, Recipe]] = {branch: {} for branch in run.branches}
    for s, site in enumerate(table.sites):
        for b, branch in enumerate(run.branches):
            by_branch[branch].update(_of_row(table, s, b, site))
    found = Recipes(config.steps, by_branch, run.branches, _variance(config, table))
    experts = "transformer_2" in config.model.denoiser.config
    if experts and not all(isinstance(p, Fitted) for p in table.predictors):
        raise NotExportable(
            "this pipeline has two transformers, and the file does not say at which step the second takes over: only "
            "fitted plans, whose weights know it, can be exported"
        )
    if not found.uniform:
        found = replace(found, order=_order(config, experts))
    return found


def _variance(config: TunedConfig, table: Table) -> bool:
    """Whether the input's weights serve a denoiser with a learned variance. Raises NotExportable if nothing says."""
    fitted = [p for p in table.predictors if isinstance(p, Fitted) and p.needs]
    shape = config.model.denoiser.config
    if any(p.variance is None for p in fitted) and shape.get("out_channels") == 2 * (shape.get("in_channels") or 0):
        raise NotExportable(
            "the weights do not say whether they add the denoiser's input to an output that holds a learned variance "
            'too: plan again, or write "variance": false beside "stretches" to export an old file as it was measured'
        )
    return all(p.variance is not False for p in fitted)


def outer_table(policy: Policy, run: Run) -> Table:
    """The decisions of a policy of outer sites. Raises NotExportable."""
    if not policy.static:
        raise NotExportable(f"{policy.name} decides while the model runs, so no list of steps says what it does")
    try:
        return compile_policy(policy, run)
    except NoSiteMatched:
        raise NotExportable(
            f"{policy.name} governs blocks or modules inside the denoiser: only policies of the sites denoiser and "
            "branch become a file of their own"
        ) from None


def _sites(guided: bool) -> tuple[Site, ...]:
    whole = Site(str(Kind.DENOISER), Kind.DENOISER)
    return (whole, Site(str(Kind.BRANCH), Kind.BRANCH)) if guided else (whole,)


def _of_row(table: Table, s: int, b: int, site: Site) -> dict[int, Recipe]:
    """The recipes of one site and branch."""
    codes, predictor, run = table.codes[s, b].tolist(), table.predictors[s], table.run
    found: dict[int, Recipe] = {}
    for i, code in enumerate(codes):
        if code == Code.REUSED:
            computed = [k for k in range(i) if codes[k] == Code.COMPUTED][-predictor.depth :]
            how, terms = mixture(predictor, run, computed, i)
            found[i] = Recipe("difference" if site.kind is Kind.BRANCH else "whole", how, terms)
    return found


def mixture(
    predictor: Predictor, run: Run, computed: Sequence[int], step: int
) -> tuple[How, tuple[tuple[int, int, float], ...]]:
    """The operations of a prediction, read off by giving the predictor symbols instead of tensors.

    Raises:
        NotExportable: if it does anything but weigh what was computed.
    """
    if predictor.needs not in (None, Signal.INPUT):
        raise _measures(predictor)
    try:
        past = [Past(run.steps[k], predictor.keep(_Symbol(k, OUTPUT), _Symbol(k, INPUT))) for k in computed]  # type: ignore[arg-type]
        told: Any = predictor.predict(past, Now(run.steps[step]))
        return told.how, tuple(told.terms)
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError):  # it does what a symbol cannot
        raise _measures(predictor) from None


def _measures(predictor: Predictor) -> NotExportable:
    return NotExportable(
        f"the predictor {predictor.name} does more than weigh computed outputs, so it cannot be written as numbers"
    )


class _Symbol:
    """Stands for a computed output or input, and notes what is done with it: the operations of `history`."""

    dtype, shape = torch.float32, ()

    def __init__(self, step: int = -1, which: int = OUTPUT, how: How = "hold", terms: Sequence[Any] = ()) -> None:
        self.step, self.which, self.how = step, which, how
        self.terms = list(terms) or [(step, which, 1.0)]

    def to(self, dtype: torch.dtype) -> _Symbol:
        """Wide where a value is about to be summed; the end of a sum goes back to the value's own type."""
        return _Symbol(self.step, self.which, "wide" if self.how == "hold" else self.how, self.terms)

    def __mul__(self, weight: float) -> _Symbol:
        if self.how not in ("hold", "wide"):
            raise TypeError("a sum is not weighed again")
        how: How = "wide" if self.how == "wide" else "sum"
        return _Symbol(how=how, terms=[(self.step, self.which, float(weight))])

    def add_(self, other: _Symbol, *, alpha: float) -> _Symbol:
        self.terms.append((*other._leaf(), float(alpha)))
        return self

    def lerp(self, other: _Symbol, weight: float) -> _Symbol:
        return _Symbol(how="lerp", terms=[(*self._leaf(), 1.0 - weight), (*other._leaf(), float(weight))])

    def _leaf(self) -> tuple[int, int]:
        if self.how != "hold":
            raise TypeError("only values are weighed")
        return self.step, self.which


def _order(config: TunedConfig, experts: bool) -> tuple[Branch, ...]:
    """The branches in the order of rows or calls, for a plan that treats them differently. Raises NotExportable."""
    kind, pipeline = config.model.denoiser.kind, str(config.model.pipeline)
    family = family_of(kind)
    if family is None:
        raise NotExportable(f"the order of the branches in a call of {kind} is not known")
    order = ORDERS.get(pipeline, family.order)
    if family.guidance != config.guidance:
        order = DEFAULT_ORDER[config.guidance]
    if set(order) != {COND, UNCOND} or experts or family.inseparable or family.passes or "PAG" in pipeline:
        raise NotExportable(f"the branches of {pipeline} cannot be told apart without this toolkit")
    if config.guidance == "separate" and order[0] != COND:
        raise NotExportable(f"{pipeline} calls the unconditional branch first, before what it would be made from")
    return order

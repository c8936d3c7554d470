"""The quality demanded, as text (see `fastercache.bounds`), judged by the metrics that are known.

>>> str(Budget.parse("psnr >= 30, p90:ssim >= 0.95"))
'psnr>=30,p90:ssim>=0.95'
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastercache.analysis.metrics import Metric, known_metrics, metric_called
from fastercache.bounds import (
    CACHE,
    TIME,
    InvalidBudget,
    Limit,
    parts,
    read_bound,
    read_limit,
    statistic,
    wrong_direction,
)
from fastercache.policies.errors import NotFinite, suggest


@dataclass(frozen=True)
class Term:
    """`statistic(metric)` compared with `bound`: the mean, a `quantile`, or what a `share` of the prompts reaches."""

    metric: Metric
    bound: float
    quantile: float | None = None
    share: float | None = None

    def statistic(self, values: Sequence[float]) -> float:
        """What the term bounds of one value for each prompt, see `fastercache.bounds.statistic`."""
        if not values:
            raise InvalidBudget(f"{self} cannot be judged without a single value")
        if not all(math.isfinite(v) for v in values):
            raise NotFinite(f"{self.metric.name} is not finite for one of {len(values)} prompts: {list(values)!r:.120}")
        return statistic(values, self.metric.higher_is_better, self.quantile, self.share)

    def violation(self, values: Sequence[float]) -> float:
        """How far the statistic lies beyond the bound, in the metric's own units; at most 0 where the term holds."""
        return self.shortfall(self.statistic(values))

    def shortfall(self, statistic: float) -> float:
        """As `violation`, for a statistic already computed."""
        return self.bound - statistic if self.metric.higher_is_better else statistic - self.bound

    @property
    def asked(self) -> float | None:
        """The share of prompts that must meet the bound; None where the mean is bounded."""
        if self.quantile is None:
            return self.share
        return 1.0 - self.quantile if self.metric.higher_is_better else self.quantile

    @property
    def words(self) -> str:
        """`psnr at least 45 for at least 90 % of the prompts`."""
        bound = f"at {'least' if self.metric.higher_is_better else 'most'} {self.bound:.10g}"
        if self.asked is None:
            return f"{self.metric.name} {bound} on average over the prompts"
        return f"{self.metric.name} {bound} for at least {100 * self.asked:.10g} % of the prompts"

    @property
    def lenient(self) -> str | None:
        """A warning where a quantile asks something of less than half of the prompts, or a share is as good as none:
        both are seldom meant."""
        if self.asked is None or self.asked >= (0.5 if self.share is None else 0.0101):
            return None
        sign = ">=" if self.metric.higher_is_better else "<="
        percent = 100.0 * self.asked
        most = 100.0 * percent if self.share is not None else 100.0 - percent  # 0.9 for 90
        meant = f"p{most:g}:{self.metric.name}{sign}{self.bound:.10g}"
        return f"{self} asks this of {percent:.10g} % of the prompts only; if you mean most of them, write {meant}"

    def __str__(self) -> str:
        name = self.metric.name if self.quantile is None else f"q{self.quantile:g}({self.metric.name})"
        if self.share is not None:
            name = f"p{100 * self.share:.10g}:{self.metric.name}"
        return f"{name}{'>=' if self.metric.higher_is_better else '<='}{self.bound:.10g}"


@dataclass(frozen=True)
class Budget:
    """One or more terms, all of which must hold, and perhaps limits: of the cache, which is known before any run, and
    of a call's seconds on this machine.

    >>> Budget.parse("psnr>=30").violation({"psnr": [29.0, 30.0]})
    0.5
    """

    terms: tuple[Term, ...]
    cache: Limit | None = None
    time: Limit | None = None

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read a budget. Raises InvalidBudget, saying which term is wrong and what to write instead."""
        if isinstance(text, Budget):
            return text
        limits = [(part, read_limit(part)) for part in parts(text)]
        found: dict[str, Limit] = {}
        for _, limit in limits:
            if limit is not None and limit.what in found:
                raise InvalidBudget(f"the budget '{text}' limits the {limit.what} twice: keep one")
            if limit is not None:
                found[limit.what] = limit
        terms = tuple(_parse_term(part) for part, limit in limits if limit is None)
        if not terms:
            raise InvalidBudget(f"the budget '{text}' asks for no quality: add what to keep, {text},psnr>=30")
        seen = [(t.metric.name, t.quantile, t.share) for t in terms]
        for term, key in zip(terms, seen, strict=True):
            if seen.count(key) > 1:
                raise InvalidBudget(f"the budget '{text}' bounds {str(term).partition('=')[0][:-1]} twice: keep one")
        return cls(terms, found.get(CACHE), found.get(TIME))

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Those that there are."""
        return tuple(limit for limit in (self.cache, self.time) if limit is not None)

    @property
    def words(self) -> str:
        """What is demanded, as a sentence's part; several terms are joined by `and`."""
        return " and ".join([*(term.words for term in self.terms), *(limit.words for limit in self.limits)])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What in it is seldom meant."""
        return tuple(term.lenient for term in self.terms if term.lenient)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics to measure, each once."""
        return tuple(dict.fromkeys(term.metric.name for term in self.terms))

    def violations(self, values: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Per term, by its text, how far it is violated in its metric's units (at most 0 where it holds)."""
        return {str(term): term.violation(values[term.metric.name]) for term in self.terms}

    def violation(self, values: Mapping[str, Sequence[float]]) -> float:
        """The largest violation over terms, positive where the budget is missed, in dB of PSNR or what counts as much.

        Args:
            values: per metric one value per prompt.

        Raises:
            NotFinite: if a value is NaN or infinite.
        """
        return max(term.violation(values[term.metric.name]) / term.metric.unit for term in self.terms)

    def margin(self, values: Mapping[str, Sequence[float]]) -> float:
        """The smallest slack over terms on each metric's decibel scale; negative where the budget is missed."""
        return min(
            term.metric.to_decibel(term.statistic(values[term.metric.name])) - term.metric.to_decibel(term.bound)
            for term in self.terms
        )

    def can_still_be_met(
        self,
        values: Mapping[str, Sequence[float]],
        total: int,
        ceiling: Mapping[str, Sequence[float]] | None = None,
    ) -> bool:
        """Whether some outcome on the remaining prompts meets the budget.

        Args:
            values: what is known so far, per metric.
            total: number of prompts in all.
            ceiling: per metric the best value that can be expected on each prompt that remains; by default the end of
                the metric's range, which makes a "no" certain.
        """
        return self.violation(self.completed(values, total, ceiling)) <= 0.0

    def completed(
        self,
        values: Mapping[str, Sequence[float]],
        total: int,
        ceiling: Mapping[str, Sequence[float]] | None = None,
    ) -> dict[str, list[float]]:
        """`values` with the remaining prompts at their best: the outcome whose violation bounds the true one below."""
        filled = {}
        for name in self.metrics:
            known = list(values.get(name, ()))
            left = total - len(known)
            filled[name] = known + ([metric_called(name).best] * left if ceiling is None else list(ceiling[name]))
        return filled

    def describe(self, values: Mapping[str, Sequence[float]]) -> str:
        """The statistics the budget bounds, as text: `psnr 29.51`."""
        return ", ".join(
            f"{str(term).split('>=')[0].split('<=')[0]} {term.statistic(values[term.metric.name]):.4g}"
            for term in self.terms
        )

    def __str__(self) -> str:
        return ",".join(map(str, [*self.terms, *self.limits]))


def _parse_term(text: str) -> Term:
    compact = re.sub(r"\s+", "", text.lower())
    if compact in known_metrics():
        example = f"{compact}>=40" if known_metrics()[compact].higher_is_better else f"{compact}<=0.05"
        raise InvalidBudget(
            f"the budget term '{text}' has no bound: write for example {example}; on the command line quote it, "
            f"'{example}', for the shell takes an unquoted > as the name of a file to write"
        )
    found = read_bound(text)
    known = known_metrics()
    if found.name not in known:
        raise InvalidBudget(f"no quality metric is called '{found.name}' in '{text}'{suggest(found.name, known)}")
    metric = known[found.name]
    if (found.sign == ">=") != metric.higher_is_better:
        raise wrong_direction(found, metric.higher_is_better)
    if not metric.low <= found.value <= metric.high:
        high = "any number" if math.isinf(metric.high) else f"{metric.high:g}"
        raise InvalidBudget(f"{found.name} ranges from {metric.low:g} to {high}, no run can be judged by '{text}'")
    return Term(metric, found.value, found.quantile, found.share)

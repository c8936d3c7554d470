"""The quality demanded, as text: `psnr>=30`, `ssim>=0.95,q0.1(psnr)>=28`, `mean(lpips)<=0.05`.

A term is a statistic over prompts of one metric, a comparison and a number; several are joined by commas and all must
hold. Without a statistic the mean is meant. `p90:psnr>=45` asks 45 of at least 90 % of the prompts. `q0.1(psnr)>=28`
says that the 0.1-quantile over prompts is at least 28, which asks it of all but the lowest tenth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastercache.analysis.metrics import Metric, known_metrics, metric_called
from fastercache.policies.errors import FasterCacheError, NotFinite, suggest


class InvalidBudget(FasterCacheError):
    """A budget that cannot be read, or cannot be judged.

    Symptom: `the budget term 'psnr' has no bound: write for example psnr>=30`.
    Cause: The metric is unknown, the sign points the wrong way, a bound is missing or there twice, or the shell
        took an unquoted `>` for itself.
    Fix: Write `'psnr>=30'`, `'p90:psnr>=28'` or several joined by commas, in quotes.
    """


_TERM = re.compile(
    r"^(?:(?P<stat>mean|q(?P<q>[0-9.]+))\((?P<inner>[a-z][a-z0-9_]*)\)"
    r"|(?:p(?P<p>[0-9.]+):)?(?P<bare>[a-z][a-z0-9_]*))"
    r"(?P<sign>>=|<=)(?P<bound>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?)$"
)
EXAMPLES = (
    "write for example psnr>=30, ssim>=0.95, lpips<=0.05 or p90:psnr>=28 (for 90 % of the prompts), several joined by "
    "commas"
)


@dataclass(frozen=True)
class Term:
    """`statistic(metric)` compared with `bound`: the mean, a `quantile`, or what a `share` of the prompts reaches."""

    metric: Metric
    bound: float
    quantile: float | None = None
    share: float | None = None

    def statistic(self, values: Sequence[float]) -> float:
        """Mean, or the quantile as an order statistic: the ceil(q n)-th smallest of the n values.

        That is the smallest value which at least a share q of the values do not exceed; nothing is interpolated. Of a
        `share` it is the worst value among the best ceil(share n).
        """
        if not values:
            raise InvalidBudget(f"{self} cannot be judged without a single value")
        if not all(math.isfinite(v) for v in values):
            raise NotFinite(f"{self.metric.name} is not finite for one of {len(values)} prompts: {list(values)!r:.120}")
        if self.share is not None:
            best = sorted(values, reverse=self.metric.higher_is_better)
            return best[max(math.ceil(self.share * len(values) - 1e-9), 1) - 1]
        if self.quantile is None:
            return math.fsum(values) / len(values)
        rank = max(math.ceil(self.quantile * len(values) - 1e-9), 1)
        return sorted(values)[rank - 1]

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
        """A warning where a quantile asks something of less than half of the prompts, which is seldom meant."""
        if self.quantile is None or self.asked is None or self.asked >= 0.5:
            return None
        sign = ">=" if self.metric.higher_is_better else "<="
        meant = f"p{100 - 100 * self.asked:g}:{self.metric.name}{sign}{self.bound:.10g}"
        few = f"{100 * self.asked:.10g} % of the prompts only"
        return f"{self} asks this of {few}; if you mean most of them, write {meant}"

    def __str__(self) -> str:
        name = self.metric.name if self.quantile is None else f"q{self.quantile:g}({self.metric.name})"
        if self.share is not None:
            name = f"p{100 * self.share:.10g}:{self.metric.name}"
        return f"{name}{'>=' if self.metric.higher_is_better else '<='}{self.bound:.10g}"


@dataclass(frozen=True)
class Budget:
    """One or more terms, all of which must hold.

    >>> Budget.parse("psnr>=30").violation({"psnr": [29.0, 30.0]})
    0.5
    """

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read a budget. Raises InvalidBudget, saying which term is wrong and what to write instead."""
        if isinstance(text, Budget):
            return text
        terms = tuple(_parse_term(part.strip()) for part in text.split(","))
        seen = [(t.metric.name, t.quantile, t.share) for t in terms]
        for term, key in zip(terms, seen, strict=True):
            if seen.count(key) > 1:
                raise InvalidBudget(f"the budget '{text}' bounds {str(term).partition('=')[0][:-1]} twice: keep one")
        return cls(terms)

    @property
    def words(self) -> str:
        """What is demanded, as a sentence's part; several terms are joined by `and`."""
        return " and ".join(term.words for term in self.terms)

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
        return ",".join(str(term) for term in self.terms)


def _parse_term(text: str) -> Term:
    compact = re.sub(r"\s+", "", text.lower())
    match = _TERM.match(compact)
    if compact in known_metrics():
        example = f"{compact}>=40" if known_metrics()[compact].higher_is_better else f"{compact}<=0.05"
        raise InvalidBudget(
            f"the budget term '{text}' has no bound: write for example {example}; on the command line quote it, "
            f"'{example}', for the shell takes an unquoted > as the name of a file to write"
        )
    if match is None:
        raise InvalidBudget(f"cannot read the budget term '{text}': {EXAMPLES}")
    name = match["inner"] or match["bare"]
    known = known_metrics()
    if name not in known:
        raise InvalidBudget(f"no quality metric is called '{name}' in '{text}'{suggest(name, known)}")
    metric = known[name]
    sign = ">=" if metric.higher_is_better else "<="
    if match["sign"] != sign:
        direction = "higher" if metric.higher_is_better else "lower"
        raise InvalidBudget(f"{name} is better when {direction}: write {name}{sign}{match['bound']}, found '{text}'")
    try:
        bound = float(match["bound"])
        quantile = None if match["q"] is None else float(match["q"])
        percent = None if match["p"] is None else float(match["p"])
    except ValueError:
        raise InvalidBudget(f"cannot read a number in the budget term '{text}': {EXAMPLES}") from None
    if quantile is not None and not 0.0 < quantile <= 1.0:
        raise InvalidBudget(f"the quantile in '{text}' must lie in (0, 1], found {quantile:g}")
    if percent is not None and not 0.0 < percent <= 100.0:
        raise InvalidBudget(f"the share in '{text}' is a percentage and must lie in (0, 100], found {percent:g}")
    if not metric.low <= bound <= metric.high:
        high = "any number" if math.isinf(metric.high) else f"{metric.high:g}"
        raise InvalidBudget(f"{name} ranges from {metric.low:g} to {high}, no run can be judged by '{text}'")
    return Term(metric, bound, quantile, None if percent is None else percent / 100)

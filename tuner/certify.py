"""Guarantees from finite samples: how sure a budget holds on prompts never seen.

Clopper and Pearson 1934; fixed-sequence testing and the Hoeffding-Bentkus p-value as in "Learn then Test"
(Angelopoulos et al. 2021, arXiv 2110.01052) and Bates et al. 2021, arXiv 2101.02703.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import beta, binom

from fastercache.policies.errors import FasterCacheError
from fastercache.tuned import Certificate
from fastercache.tuner.budget import Budget, Term


class InvalidCertificate(FasterCacheError):
    """Counts, levels or losses that no certificate can be made from.

    Symptom: A line with the numbers that were found.
    Cause: More misses than prompts, no prompt at all, or a rate or level that is not between 0 and 1.
    Fix: Write shares as fractions, `0.05` for 5 %, and count the prompts that were run.
    """


def clopper_pearson(violations: int, n: int, confidence: float = 0.95) -> float:
    """Upper bound on the violation rate that holds with probability `confidence`, one-sided and exact.

    The p with P(Binomial(n, p) <= violations) = 1 - confidence; with no violation, 1 - (1 - confidence)^(1/n), so
    59 prompts without one certify a rate below 5 % at 95 %.
    """
    if not 0 <= violations <= n or n < 1:
        raise InvalidCertificate(f"needs 0 <= violations <= n and n >= 1, found {violations} of {n}")
    _level(confidence, "confidence")
    return 1.0 if violations == n else float(beta.ppf(confidence, violations + 1, n - violations))


def prompts_needed(rate: float, confidence: float = 0.95, violations: int = 0) -> int:
    """The fewest prompts that certify a violation rate of at most `rate` if `violations` of them miss the budget."""
    _level(rate, "rate")
    n = violations + 1
    while clopper_pearson(violations, n, confidence) > rate:
        n += 1
    return n


def hoeffding_bentkus(mean_loss: float, n: int, bound: float, maximum: float = 1.0) -> float:
    """p-value for "the expected loss exceeds `bound`" from the mean of n independent losses in [0, maximum].

    min(exp(-n h1(r, a)), e P(Binomial(n, a) <= ceil(n r))) with r and a the mean and bound over `maximum`, r capped
    at a, and h1(r, a) = r log(r / a) + (1 - r) log((1 - r) / (1 - a)). Small values certify the bound.
    """
    if n < 1 or maximum <= 0 or not 0.0 <= mean_loss <= maximum:
        raise InvalidCertificate(f"needs n >= 1 and a mean loss in [0, {maximum:g}], found {mean_loss:g} of n={n}")
    risk, level = mean_loss / maximum, bound / maximum
    _level(level, "bound / maximum")
    capped = min(risk, level)
    divergence = (1 - capped) * math.log((1 - capped) / (1 - level))  # capped at the level, which is below 1
    if capped > 0:
        divergence += capped * math.log(capped / level)
    hoeffding = math.exp(-n * divergence)
    bentkus = math.e * float(binom.cdf(math.ceil(n * risk - 1e-12), n, level))
    return min(hoeffding, bentkus)  # the first is at most 1


def fixed_sequence(p_values: Sequence[float], level: float = 0.05) -> int:
    """How many hypotheses of a list ordered beforehand are rejected: those before the first p-value above `level`.

    Order candidates safest first, without looking at the certification data. The chance that any rejected
    hypothesis is true is at most `level`, however long the list, so the last one certified is the one to ship.
    """
    _level(level, "level")
    for i, p in enumerate(p_values):
        if not p <= level:
            return i
    return len(p_values)


def binomial_p_value(violations: int, n: int, rate: float) -> float:
    """p-value for "the violation rate exceeds `rate`" from `violations` in n prompts: P(Binomial(n, rate) <= v)."""
    _level(rate, "rate")
    if not 0 <= violations <= n or n < 1:
        raise InvalidCertificate(f"needs 0 <= violations <= n and n >= 1, found {violations} of {n}")
    return float(binom.cdf(violations, n, rate))


def certificate(missed: Sequence[bool], budget: str, confidence: float = 0.95) -> Certificate:
    """The certificate from one flag per certification prompt: did it miss the budget?"""
    violations = sum(bool(m) for m in missed)
    rate = clopper_pearson(violations, len(missed), confidence)
    return Certificate(budget=budget, prompts=len(missed), violations=violations, rate=rate, confidence=confidence)


def sequential(
    missed: Sequence[Sequence[bool]], budget: str, rate: float = 0.05, confidence: float = 0.95
) -> list[Certificate]:
    """The certificates of a list of candidates, the safest first: of those before the first that fails its test.

    Args:
        missed: per candidate one flag for each certification prompt, the same prompts for all.
        rate: the share of prompts that may miss the budget.

    With probability `confidence` over the choice of prompts every one of them is true, so the last may be shipped.
    """
    p_values = [binomial_p_value(sum(map(bool, flags)), len(flags), rate) for flags in missed]
    return [
        Certificate(budget=budget, prompts=len(flags), violations=sum(flags), rate=rate, confidence=confidence)
        for flags in missed[: fixed_sequence(p_values, 1.0 - confidence)]
    ]


def misses(budget: Budget, value: Mapping[str, float]) -> bool:
    """Whether one prompt misses a budget: its own value counts, whatever statistic over prompts was demanded."""
    return budget.violation({name: [value[name]] for name in budget.metrics}) > 0.0


def each(budget: Budget) -> str:
    """The budget as it is asked of one prompt: `psnr>=45` for `p90:psnr>=45`.

    Of several bounds of a metric the strictest: a prompt that keeps it keeps them all.
    """
    strictest: dict[str, Term] = {}
    for term in budget.terms:
        other = strictest.get(term.metric.name)
        if other is None or other.shortfall(term.bound) < 0.0:
            strictest[term.metric.name] = Term(term.metric, term.bound)
    return str(Budget(tuple(strictest.values()), budget.cache))


def _level(value: float, name: str) -> None:
    if not 0.0 < value < 1.0:
        raise InvalidCertificate(f"{name} must lie strictly between 0 and 1, found {value:g}")

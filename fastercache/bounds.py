"""Budgets as text: `psnr>=30`, `ssim>=0.95,q0.1(psnr)>=28`, `p90:psnr>=45,cache<=2GiB`, and what they bound.

A term is a statistic over prompts of one metric, a comparison and a number; several are joined by commas and all must
hold. Without a statistic the mean is meant. `p90:psnr>=45` asks 45 of at least 90 % of the prompts. `q0.1(psnr)>=28`
says that the 0.1-quantile over prompts is at least 28, which asks it of all but the lowest tenth. Which metrics there
are, and whether a higher value is better, is known to whoever reads the terms. `cache<=2GiB` is a limit: of what a run
holds in its cache, at its peak, which does not depend on the prompt. `time<=8s` is one of a call's seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastercache.policies.errors import FasterCacheError


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
UNITS = {
    "B": 1,
    **{f"{prefix}iB": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")},
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("kMGT")},
}
"""Units of a limit of the cache, in bytes: 1 KiB is 1024 B, 1 kB is 1000 B."""
TIMES = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
"""Units of a limit of time, in seconds."""
CACHE, TIME = "cache", "time"
_LIMIT = re.compile(
    r"^(?P<sign>>=|<=|[<>=]+)?(?P<number>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?)?(?P<unit>[a-z]*)$", re.IGNORECASE
)
EXAMPLES = (
    "write for example psnr>=30, ssim>=0.95, lpips<=0.05 or p90:psnr>=28 (for 90 % of the prompts), several joined by "
    "commas"
)


@dataclass(frozen=True)
class Bound:
    """One term as it was written.

    Attributes:
        name: of the metric. sign: `>=` or `<=`. value: the number.
        quantile: of the values over prompts, in (0, 1]; share: of the prompts that must meet the value, in (0, 1]. With
            neither, the mean is bounded.
        text: as it was typed.
    """

    name: str
    sign: str
    value: float
    quantile: float | None
    share: float | None
    text: str

    def holds(self, values: Sequence[float]) -> bool:
        """Whether one value for each prompt keeps it."""
        found = statistic(values, self.sign == ">=", self.quantile, self.share)
        return found >= self.value if self.sign == ">=" else found <= self.value


@dataclass(frozen=True)
class _Quantity:
    """What a limit is of. `least`: the smallest limit that leaves anything."""

    units: Mapping[str, float]
    called: str
    example: str
    of: str
    alike: str
    too_small: str
    least: float


_QUANTITIES = {
    CACHE: _Quantity(
        UNITS,
        "memory",
        "write for example cache<=2GiB or cache<=500MiB",
        "of cached values",
        "the cache is the same for every prompt, so there is no share or quantile of it",
        "leaves no byte to cache anything in",
        1.0,
    ),
    TIME: _Quantity(
        TIMES,
        "time",
        "write for example time<=8s or time<=500ms",
        "for a call of the pipeline on this machine",
        "the time is foreseen for all prompts alike, so there is no share or quantile of it",
        "leaves no time",
        1e-9,
    ),
}


@dataclass(frozen=True)
class Limit:
    """The most of what a run may take of something: bytes in its cache, or seconds.

    `text`: as it was typed, without spaces.
    """

    most: float
    text: str

    @property
    def what(self) -> str:
        """`cache` or `time`."""
        return self.text.partition("<=")[0]

    @property
    def words(self) -> str:
        """`at most 2 GiB of cached values`."""
        number = re.sub(r"(?<=[0-9.])(?=[A-Za-z]+$)", " ", self.text.partition("<=")[2])
        return f"at most {number} {_QUANTITIES[self.what].of}"

    def __str__(self) -> str:
        return self.text


def read_limit(text: str) -> Limit | None:
    """A limit; None for a term that bounds a metric.

    Raises:
        InvalidBudget: for a limit without a number or a unit, of another unit, or with another sign.
    """
    compact = re.sub(r"\s+", "", text)
    named = re.search(rf"(?:^|[:(])({CACHE}|{TIME})\b", compact, re.IGNORECASE)
    if named is None:
        return None
    what = named[1].lower()
    quantity = _QUANTITIES[what]
    example = quantity.example
    if not compact.lower().startswith(what):
        raise InvalidBudget(f"cannot read the limit '{text}': {quantity.alike}; {example}")
    match = _LIMIT.match(compact[len(what) :])
    if match is not None and match["sign"] in (">=", ">", "<"):
        raise InvalidBudget(f"the limit '{text}' must be an upper one, written with <=: {example}")
    if match is None or match["sign"] != "<=" or match["number"] is None:
        raise InvalidBudget(f"cannot read the limit '{text}': {example}")
    units = {unit.lower(): unit for unit in quantity.units}
    if match["unit"].lower() not in units:
        found = f"no unit of {quantity.called} is called '{match['unit']}'" if match["unit"] else "it has no unit"
        known = ", ".join(quantity.units)
        raise InvalidBudget(f"cannot read the limit '{text}': {found}, write one of {known}; {example}")
    unit = units[match["unit"].lower()]
    try:
        most = float(match["number"]) * quantity.units[unit]
    except ValueError:
        most = math.nan
    if not math.isfinite(most):
        raise InvalidBudget(f"cannot read a number in the limit '{text}': {example}")
    if most < quantity.least:
        raise InvalidBudget(f"the limit '{text}' {quantity.too_small}: {example}")
    return Limit(math.floor(most) if what == CACHE else most, f"{what}<={match['number']}{unit}")


def parts(text: str) -> list[str]:
    """The terms of a budget, as they were typed. Raises InvalidBudget for a decimal comma."""
    found = [part.strip() for part in text.split(",")]
    for before, after in pairwise(found):
        if before[-1:].isdigit() and re.match(r"^[0-9]+\s*[a-z]*$", after, re.IGNORECASE):
            raise InvalidBudget(
                f"cannot read the budget term '{after}': a comma begins the next term; if '{before},{after}' has a "
                f"decimal comma, write a point, {before}.{after}"
            )
    return found


def read_bound(text: str) -> Bound:
    """One term. Raises InvalidBudget, saying what is wrong and what to write instead."""
    compact = re.sub(r"\s+", "", text.lower())
    match = _TERM.match(compact)
    if match is None:
        _refuse_unit(compact, text)
        raise InvalidBudget(f"cannot read the budget term '{text}': {EXAMPLES}")
    try:
        value = float(match["bound"])
        quantile = None if match["q"] is None else float(match["q"])
        percent = None if match["p"] is None else float(match["p"])
    except ValueError:
        raise InvalidBudget(f"cannot read a number in the budget term '{text}': {EXAMPLES}") from None
    if quantile is not None and not 0.0 < quantile <= 1.0:
        raise InvalidBudget(f"the quantile in '{text}' must lie in (0, 1], found {quantile:g}")
    if percent is not None and not 0.0 < percent <= 100.0:
        raise InvalidBudget(f"the share in '{text}' is a percentage and must lie in (0, 100], found {percent:g}")
    share = None if percent is None else percent / 100
    return Bound(match["inner"] or match["bare"], match["sign"], value, quantile, share, text)


def _refuse_unit(compact: str, text: str) -> None:
    """Raises InvalidBudget if a bound has a unit, as a limit has, but is of something else."""
    typed = re.match(r"^[a-z][a-z0-9_]*[<>]=?[0-9.]+(?P<unit>[a-z]+)$", compact)
    if typed is None:
        return
    for what, quantity in _QUANTITIES.items():
        unit = next((one for one in quantity.units if one.lower() == typed["unit"]), None)
        if unit is not None:
            raise InvalidBudget(
                f"cannot read the budget term '{text}': only {what} is bounded in {unit}; {quantity.example}"
            )


def statistic(
    values: Sequence[float], higher: bool, quantile: float | None = None, share: float | None = None
) -> float:
    """The mean of one value for each prompt; or an order statistic, nothing is interpolated.

    A quantile q is the ceil(q n)-th smallest of the n values, the smallest which at least a share q of the values do
    not exceed. Of a `share` it is the worst value among the best ceil(share n); `higher`: whether higher is better.
    """
    if share is not None:
        return sorted(values, reverse=higher)[max(math.ceil(share * len(values) - 1e-9), 1) - 1]
    if quantile is None:
        return math.fsum(values) / len(values)
    return sorted(values)[max(math.ceil(quantile * len(values) - 1e-9), 1) - 1]


def wrong_direction(bound: Bound, higher: bool) -> InvalidBudget:
    """The error where a term bounds a metric from its good side."""
    sign, direction = (">=", "higher") if higher else ("<=", "lower")
    written = f"{bound.value:.10g}"
    return InvalidBudget(
        f"{bound.name} is better when {direction}: write {bound.name}{sign}{written}, found '{bound.text}'"
    )

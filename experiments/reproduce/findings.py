"""What the paper found [FasterCache, arXiv 2410.19355], as comparisons that can come out one way or the other."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from fastercache.experiments.reproduce.variants import OTHERS

FEWER = "fewer steps"
"""In place of a variant: the same solver with fewer steps, at the FLOPs of the variant that it is compared with."""
Kind = Literal["quality", "time"]


@dataclass(frozen=True)
class Claim:
    """One comparison: `better` stays closer to the uncached video than `worse`; of kind `time`, it is faster."""

    worse: str
    better: str
    kind: Kind = "quality"


def rising(*names: str, kind: Kind = "quality") -> tuple[Claim, ...]:
    """Each of the names is better than the one before it.

    >>> [(claim.worse, claim.better) for claim in rising("a", "b", "c")]
    [('a', 'b'), ('b', 'c')]
    """
    return tuple(Claim(worse, better, kind) for worse, better in itertools.pairwise(names))


@dataclass(frozen=True)
class Finding:
    """Claims that are judged together: Holm's correction is over them.

    Attributes:
        key: in results. title: the finding in a sentence. source: where the paper says it, or that it is our addition.
        claims: it holds if all of them do.
    """

    key: str
    title: str
    source: str
    claims: tuple[Claim, ...]


FINDINGS: tuple[Finding, ...] = (
    Finding(
        "adjacent",
        "Attention outputs of adjacent steps look alike, and yet holding them loses quality",
        "section 3.1; judged against fewer steps at the same FLOPs",
        (Claim("hold", FEWER),),
    ),
    Finding(
        "stand-in",
        "A difference in place of a hold helps, and more with a weight that rises",
        "eq. 5 and its ablation: LPIPS .0657, .0615, .0590",
        (*rising("hold", "constant 0.5", "ramp"), Claim("FasterCache, hold", "FasterCache")),
    ),
    Finding(
        "reuse-interval",
        "Quality falls as the interval of dynamic feature reuse grows from 2 to 5",
        "ablation of the interval: LPIPS .0590, .0698, .0751, .0897",
        rising("reuse 5", "reuse 4", "reuse 3", "ramp"),
    ),
    Finding(
        "weighting",
        "Weighting the bands of the guidance difference helps: none < high < low < both",
        "eqs. 8-11 and their ablation: LPIPS .0709, .0686, .0617, .0590",
        (*rising("no weighting", "high", "low", "both"), Claim("FasterCache, no weighting", "FasterCache")),
    ),
    Finding(
        "guidance-interval",
        "Quality falls as the interval of CFG-Cache grows from 3 to 9",
        "section 3.3; interval 1 is the uncached run",
        rising("guidance 9", "guidance 7", "both", "guidance 3"),
    ),
    Finding(
        "components",
        "Each part saves time, CFG-Cache more than dynamic reuse, and both together most",
        "ablation of the parts: 41.28 s, 33.50 s, 31.32 s, 26.12 s",
        rising("uncached", "ramp", "both", "FasterCache", kind="time"),
    ),
    Finding(
        "others",
        "FasterCache stays closer to the uncached video than PAB, Δ-DiT and T-GATE do",
        "comparison of methods, at the bench's setting nearest in speedup",
        tuple(Claim(name, "FasterCache") for name in OTHERS),
    ),
    Finding(
        "fewer-steps",
        "The same solver with fewer steps keeps more quality than these methods do at equal FLOPs",
        "not in the paper",
        tuple(Claim(name, FEWER) for name in ("ramp", "no weighting", "both", "FasterCache", *OTHERS)),
    ),
)
"""The paper's findings in its order, and ours."""

"""What is run: each variant that a finding of the paper compares, and fewer steps beside them, as data."""

from __future__ import annotations

from collections.abc import Mapping

import fastercache as fc
from fastercache.experiments.bench.entries import Entry, FewerSteps

VERSION = 1
"""Of the variants and findings; results say which they were made with."""

SHARES = (0.9, 5 / 6, 0.7334, 2 / 3, 0.6)
"""Fewer steps: 27, 25, 22, 20 and 18 of 30; they span the speedups of all variants."""

REUSE: Mapping[str, fc.Policy] = {
    "hold": fc.DynamicReuse(order=0),
    "constant 0.5": fc.DynamicReuse(weight=0.5),
    "ramp": fc.DynamicReuse(),
    "reuse 3": fc.DynamicReuse(interval=3),
    "reuse 4": fc.DynamicReuse(interval=4),
    "reuse 5": fc.DynamicReuse(interval=5),
}
"""Dynamic feature reuse alone: what stands in at every second step [eq. 5], and the interval."""

GUIDANCE: Mapping[str, fc.Policy] = {
    "no weighting": fc.CFGCache(alpha_low=0.0, alpha_high=0.0),
    "low": fc.CFGCache(alpha_high=0.0),
    "high": fc.CFGCache(alpha_low=0.0),
    "both": fc.CFGCache(),
    "guidance 3": fc.CFGCache(interval=3),
    "guidance 7": fc.CFGCache(interval=7),
    "guidance 9": fc.CFGCache(interval=9),
}
"""CFG-Cache alone: which bands are weighted [eqs. 8-11], and the interval (`both` has 5)."""

PAIR: Mapping[str, fc.Policy] = {
    "FasterCache": fc.FasterCache(),
    "FasterCache, hold": fc.FasterCache(order=0),
    "FasterCache, no weighting": fc.FasterCache(alpha_low=0.0, alpha_high=0.0),
}
"""Both parts together, as in the paper's tables, and with the worst stand-in of each."""

OTHERS: Mapping[str, fc.Policy] = {
    "PAB": fc.PyramidAttentionBroadcast(spatial=5, temporal=6, cross=8, joint=5, low=0.0, high=950.0),
    "Δ-DiT": fc.DeltaDiT(interval=3),
    "T-GATE": fc.TGate(gate=0.7, self_interval=5),
}
"""The methods of the paper's comparison, at the setting of the bench whose speedup is nearest to FasterCache's."""

POLICIES: Mapping[str, fc.Policy] = {**REUSE, **GUIDANCE, **PAIR, **OTHERS}


def fewer(steps: int) -> dict[str, FewerSteps]:
    """The baseline's entries for a run of `steps`, by name, the most steps first."""
    counts = sorted({max(1, round(share * steps)) for share in SHARES} - {steps}, reverse=True)
    return {f"{count} steps": FewerSteps(count) for count in counts}


def entries(steps: int) -> dict[str, Entry]:
    """Everything that is run, by name."""
    return {**POLICIES, **fewer(steps)}

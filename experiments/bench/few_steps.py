"""The bench's line-up for few-step models, as data: what can skip anything in 8 steps without guidance.

`fastercache.experiments.bench.lineup` is made for 50 steps. At 8, thresholds that fit small changes between steps skip
nothing, so they are higher here, and intervals are 2 and 3. What acts on guidance (CFG-Cache, guidance reuse, adaptive
guidance, guidance interval, branch reuse) has nothing to act on; dynamic reuse does what FasterCache then does.
"""

from __future__ import annotations

from fastercache.experiments.bench.lineup import (
    CALIBRATED,
    FIXED,
    FORECAST,
    PAPER,
    PLANNED,
    PUBLISHED,
    TAYLOR,
    WATCHING,
    Method,
    levels,
)

FEW_STEPS: tuple[Method, ...] = (
    Method("planned", "planned", PLANNED, levels("speedup", 1.14, 1.33, 1.6, 2.0), planned=True),
    Method("FasterCache", "fastercache", PAPER, ({"interval": 4, "start": 0.1},)),
    Method("static interval", "static_interval", FIXED, levels("interval", 2)),
    Method("PAB", "pab", FIXED, ({"spatial": 5, "temporal": 6, "cross": 8, "joint": 5, "low": 0.0, "high": 950.0},)),
    Method("FORA", "fora", FIXED, levels("interval", 2)),
    Method("DeepCache", "deepcache", FIXED, levels("interval", 2)),
    Method("TaylorSeer", "taylorseer", FORECAST, levels("interval", 2, 3)),
    Method("HiCache", "hicache", FORECAST, levels("interval", 2)),
    Method("FoCa", "foca", FORECAST, levels("interval", 2)),
    Method("Spectrum", "spectrum", FORECAST, ({"interval": 2, "growth": 0.0, "start": 0.2},)),
    Method("AB-Cache", "ab_cache", FORECAST, levels("interval", 2)),
    Method("MeanCache", "meancache", FORECAST, levels("interval", 2)),
    Method("TeaCache", "teacache", CALIBRATED, levels("threshold", 0.15, 0.3, 0.6)),
    Method("MagCache", "magcache", CALIBRATED, ({"threshold": 0.24, "max_skip": 3, "together": True},)),
    Method("SmoothCache", "smoothcache", CALIBRATED, levels("alpha", 0.2)),
    Method("FirstBlockCache", "first_block_cache", WATCHING, levels("threshold", 0.08, 0.16, 0.3)),
    Method("DBCache + TaylorSeer", "dual_block_cache", WATCHING, levels("threshold", 0.3, stand_in=TAYLOR)),
    Method("DiCache", "dicache", WATCHING, levels("threshold", 0.2)),
    Method("SeaCache", "seacache", WATCHING, levels("threshold", 0.4)),
    Method("EasyCache, output held", "easycache", WATCHING, levels("threshold", 0.2, 0.4, relative=False)),
    Method("AdaCache", "adacache", WATCHING, ({PUBLISHED: "open-sora-30-fast"},)),
)  # fmt: skip

"""The line-up of a bench, as data: every method and every peer at three settings, and fewer steps.

The settings go from gentle over middle to strong. They are chosen for 50 steps so that the three span about 1.3x to 3x
in computed FLOPs where the method can; none was fitted to a model, beyond the constants that are calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import fastercache as fc
from fastercache.analysis.calibrate import Calibration
from fastercache.experiments.bench.entries import Entry, FewerSteps
from fastercache.experiments.bench.peers import Peer
from fastercache.policies.errors import InvalidPolicy, UnknownPolicy, suggest

VERSION = 2
"""Of the methods and settings below; results say which they were made with. 2: planned, Spectrum, AB-Cache, DMD."""
LEVELS = ("gentle", "middle", "strong")
NAMED = {1: ("default",), 2: ("gentle", "strong"), 3: LEVELS, 4: (*LEVELS, "strongest")}
"""What the settings of a method are called, by how many there are; more of them are numbered."""
FEWER = "fewer steps"
SHARES = (0.9, 0.8, 0.66, 0.5, 0.34, 0.24, 0.2)
"""Fewer steps: 45, 40, 33, 25, 17, 12 and 10 of 50."""

Fields = Mapping[str, Any]
Plans = Mapping[float, fc.Policy]
"""The planned policy for each speedup."""
PUBLISHED = "published"
"""In place of fields: the setting that a policy's `published` gives by this name."""
TAYLOR = fc.Taylor(order=1)


@dataclass(frozen=True)
class Method:
    """A method: its name in print, its registered policy, its kind, and what is set at each level.

    `planned`: it is planned on the model first, for the
    `speedup` of each level.
    """

    label: str
    policy: str
    family: str
    settings: tuple[Fields, ...]
    planned: bool = False
    package: ClassVar[str] = "fastercache"

    @property
    def calibrated(self) -> bool:
        """Whether it has constants that are measured on the model first."""
        return bool(fc.policy_class(self.policy).constants)

    @property
    def levels(self) -> tuple[str, ...]:
        """What its settings are called."""
        return named(len(self.settings))

    @property
    def speedups(self) -> tuple[float, ...]:
        """What it is planned for, level by level; empty for a method that is not planned."""
        return tuple(float(fields["speedup"]) for fields in self.settings) if self.planned else ()

    def entries(self, calibration: Calibration | None, plans: Plans | None = None) -> list[Entry]:
        """The policies of all levels; `calibration` and `plans` are needed where `calibrated` and `planned` say so."""
        if self.planned:
            return [(plans or {})[speedup] for speedup in self.speedups]
        cls: Any = fc.policy_class(self.policy)
        make = partial(cls.calibrated, calibration) if cls.constants else cls
        return [_published(cls, **fields) if PUBLISHED in fields else make(**fields) for fields in self.settings]


def _published(cls: Any, *, published: str, **fields: Any) -> fc.Policy:
    policy: fc.Policy = cls.published(published, **fields)
    return policy


@dataclass(frozen=True)
class PeerMethod:
    """Another package's cache at each level; `family` is that of our method of the same kind.

    `calibrated`: it takes MagCache's ratios. `order`: of cache-dit's TaylorSeer. `names`: what its settings are called,
    where not by how many there are.
    """

    label: str
    package: Literal["diffusers", "cache-dit"]
    method: str
    family: str
    settings: tuple[Fields, ...]
    calibrated: bool = False
    planned: ClassVar[bool] = False
    order: int | None = None
    names: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """What its settings are called."""
        return self.names or named(len(self.settings))

    def entries(self, calibration: Calibration | None, plans: Plans | None = None) -> list[Entry]:
        """The peers of all levels."""
        extra = {"mag_ratios": list(calibration.mean_ratios)} if self.calibrated and calibration is not None else {}
        return [Peer(self.package, self.method, {**fields, **extra}, self.order) for fields in self.settings]


def named(count: int) -> tuple[str, ...]:
    """What so many settings of a method are called."""
    return NAMED.get(count) or tuple(str(n) for n in range(1, count + 1))


def levels(name: str, *values: Any, **fixed: Any) -> tuple[Fields, ...]:
    """One field at three values, others fixed.

    >>> levels("interval", 2, 3, 5)
    ({'interval': 2}, {'interval': 3}, {'interval': 5})
    """
    return tuple({name: value, **fixed} for value in values)


FIXED, GUIDANCE, FORECAST = "fixed schedule", "guidance", "forecast"
PLANNED = "planned from a recording"
CALIBRATED, WATCHING, PAPER, PLUGIN = "calibrated", "watches the run", "FasterCache and its parts", "others"

METHODS: tuple[Method, ...] = (
    Method("FasterCache", "fastercache", PAPER, (
        {},
        {"interval": 3, "cfg_interval": 6, "start": 0.2, "cfg_start": 0.2},
        {"interval": 4, "cfg_interval": 8, "start": 0.1, "cfg_start": 0.1},
    )),
    Method("dynamic reuse", "dynamic_reuse", PAPER, ({}, {"interval": 3, "start": 0.2}, {"interval": 4, "start": 0.1})),
    Method("CFG-Cache", "cfg_cache", PAPER, ({}, {"interval": 6, "start": 0.2}, {"interval": 10, "start": 0.06})),
    Method("static interval", "static_interval", FIXED, levels("interval", 2, 3, 5)),
    Method("PAB", "pab", FIXED, (
        {},
        {"spatial": 3, "temporal": 4, "cross": 6, "joint": 3},
        {"spatial": 5, "temporal": 6, "cross": 8, "joint": 5, "low": 0.0, "high": 950.0},
    )),
    Method("FORA", "fora", FIXED, levels("interval", 2, 3, 4)),
    Method("DeepCache", "deepcache", FIXED, levels("interval", 2, 3, 5)),
    Method("Δ-DiT", "delta_dit", FIXED, levels("interval", 2, 3, 5)),
    Method("T-GATE", "tgate", FIXED, ({}, {"self_interval": 4}, {"gate": 0.7, "self_interval": 5})),
    Method("guidance reuse", "guidance_reuse", GUIDANCE, ({"interval": 2}, {}, {"interval": 10, "start": 0.1})),
    Method("adaptive guidance", "adaptive_guidance", GUIDANCE, levels("threshold", 0.2, 0.4, 1.0)),
    Method("branch reuse", "branch_reuse", GUIDANCE, ({"other_interval": 2}, {}, {"interval": 2, "other_interval": 4})),
    Method("guidance interval", "guidance_interval", GUIDANCE, (
        {"start": 0.0, "stop": 0.8}, {"start": 0.0, "stop": 0.6}, {"start": 0.1, "stop": 0.5},
    )),
    Method("TaylorSeer", "taylorseer", FORECAST, levels("interval", 2, 3, 4)),
    Method("HiCache", "hicache", FORECAST, levels("interval", 2, 3, 4)),
    Method("FoCa", "foca", FORECAST, levels("interval", 2, 3, 4)),
    Method("Spectrum", "spectrum", FORECAST, ({"growth": 0.0}, {"growth": 0.25}, {})),
    Method("AB-Cache", "ab_cache", FORECAST, levels("interval", 2, 3, 4)),
    Method("DMD", "dmd", FORECAST, levels("interval", 2, 3, 4)),
    Method("planned", "planned", PLANNED, levels("speedup", 2.5, 3.33, 5.0), planned=True),
    Method("MeanCache", "meancache", FORECAST, levels("interval", 2, 3, 4)),
    Method("TeaCache", "teacache", CALIBRATED, levels("threshold", 0.05, 0.1, 0.15)),
    Method("MagCache", "magcache", CALIBRATED, (
        {"threshold": 0.03, "max_skip": 1, "together": True}, {"threshold": 0.06, "max_skip": 3, "together": True},
        {"threshold": 0.24, "max_skip": 5, "together": True},
    )),
    Method("SmoothCache", "smoothcache", CALIBRATED, levels("alpha", 0.03, 0.05, 0.1)),
    Method("ERTACache", "ertacache", CALIBRATED, levels("threshold", 0.05, 0.08, 0.15)),
    Method("FirstBlockCache", "first_block_cache", WATCHING, levels("threshold", 0.03, 0.08, 0.16)),
    Method("DBCache", "dual_block_cache", WATCHING, levels("threshold", 0.03, 0.08, 0.16)),
    Method(
        "DBCache + TaylorSeer", "dual_block_cache", WATCHING, levels("threshold", 0.03, 0.08, 0.16, stand_in=TAYLOR)
    ),
    Method("DiCache", "dicache", WATCHING, levels("threshold", 0.02, 0.08, 0.2)),
    Method("SeaCache", "seacache", WATCHING, levels("threshold", 0.05, 0.15, 0.4)),
    Method("EasyCache", "easycache", WATCHING, levels("threshold", 0.03, 0.05, 0.1)),
    Method("EasyCache, output held", "easycache", WATCHING, levels("threshold", 0.03, 0.05, 0.1, relative=False)),
    Method("AdaCache", "adacache", WATCHING, (
        {PUBLISHED: "open-sora-30-slow", "scale": 0.25}, {PUBLISHED: "open-sora-30-slow"},
        {PUBLISHED: "open-sora-30-fast"},
    )),
    Method("BWCache", "bwcache", WATCHING, ({"rest": 0.02}, {}, {"threshold": 0.3, "tail": 0.2})),
)  # fmt: skip

PARTS = frozenset({"no_cache", "schedule", "compose", "warm_up", "window", "max_consecutive"})
"""Registered policies that are no methods of their own: the empty one, the explicit table, what others are built of."""


def _attention_broadcast(spatial: int, temporal: int, cross: int, low: int, high: int) -> Fields:
    """diffusers' fields for PAB: an interval for each kind of attention, one window of timesteps."""
    ranges = {"spatial": spatial, "temporal": temporal, "cross": cross}
    return {
        **{f"{role}_attention_block_skip_range": n for role, n in ranges.items()},
        **{f"{role}_attention_timestep_skip_range": (low, high) for role in ranges},
    }


def _faster_cache(every: int, guidance: int, first: int) -> Fields:
    """diffusers' fields for FasterCache: its CogVideoX settings for (2, 5, 681)."""
    return {
        "spatial_attention_block_skip_range": every,
        "temporal_attention_block_skip_range": every,
        "spatial_attention_timestep_skip_range": (-1, first),
        "temporal_attention_timestep_skip_range": (-1, first),
        "unconditional_batch_skip_range": guidance,
        "unconditional_batch_timestep_skip_range": (-1, first - 40),
        "low_frequency_weight_update_timestep_range": (99, first - 40),
        "high_frequency_weight_update_timestep_range": (-1, 301),
    }


DBCACHE = levels(
    "residual_diff_threshold", 0.03, 0.08, 0.16,
    Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=4, max_continuous_cached_steps=4,
)  # fmt: skip

PEERS: tuple[PeerMethod, ...] = (
    PeerMethod("PAB", "diffusers", "PyramidAttentionBroadcast", FIXED, (
        _attention_broadcast(2, 3, 4, 100, 800),
        _attention_broadcast(3, 4, 6, 100, 800),
        _attention_broadcast(5, 6, 8, 0, 950),
    )),
    PeerMethod("FasterCache", "diffusers", "FasterCache", PAPER, (
        _faster_cache(2, 5, 681), _faster_cache(3, 6, 800), _faster_cache(4, 8, 900),
    )),
    PeerMethod("FirstBlockCache", "diffusers", "FirstBlockCache", WATCHING, levels("threshold", 0.03, 0.08, 0.16)),
    PeerMethod("TaylorSeer", "diffusers", "TaylorSeerCache", FORECAST, levels("cache_interval", 2, 3, 4)),
    PeerMethod("MagCache", "diffusers", "MagCache", CALIBRATED, (
        {"threshold": 0.03, "max_skip_steps": 1}, {"threshold": 0.06, "max_skip_steps": 3},
        {"threshold": 0.24, "max_skip_steps": 5},
    ), calibrated=True),
    PeerMethod("SeaCache", "diffusers", "SeaCache", WATCHING, levels("threshold", 0.05, 0.15, 0.4)),
    PeerMethod("DBCache", "cache-dit", "DBCache", WATCHING, DBCACHE),
    PeerMethod("DBCache + TaylorSeer", "cache-dit", "DBCache", WATCHING, DBCACHE, order=1),
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One row of the bench.

    Attributes:
        name: unique, in words. label: the method. setting: what was set, in words. level: `gentle`, `middle`, `strong`,
            or the number of steps. family: which colour. package: whose code.
        entry: what to run; None where `refused` says why there is nothing to run.
    """

    label: str
    setting: str
    level: str
    family: str
    package: str
    entry: Entry
    refused: str | None = None

    @property
    def name(self) -> str:
        whose = "" if self.package == "fastercache" else f" ({self.package})"
        return f"{self.label}{whose} {self.level}"


def _without_default(policy: str) -> list[str]:
    """The fields that must be given: those that a calibration finds need not."""
    cls = fc.policy_class(policy)
    return [name for name, field in cls.model_fields.items() if field.is_required() and name not in cls.constants]


def chosen(names: Sequence[str]) -> tuple[Method, ...]:
    """The methods of `--policies`: `all`, or registered names. Those without settings here run with their defaults.

    Raises:
        UnknownPolicy: for a name that is no method, naming the nearest.
        InvalidPolicy: for a policy that has no defaults to run with.
    """
    listed = {method.policy for method in METHODS}
    needs = {name: _without_default(name) for name in fc.known_policies() if name not in listed | PARTS}
    others = [name for name, fields in needs.items() if not fields]
    known = (*METHODS, *(Method(name, name, PLUGIN, ({},)) for name in others))
    if list(names) == ["all"]:
        return known
    for name in names:
        if fields := needs.get(name):
            raise InvalidPolicy(f"{name} has no defaults to run with: {', '.join(fields)} must be given; leave it out")
        if name not in listed | set(others):
            raise UnknownPolicy(f"no method is called '{name}'{suggest(name, [*listed, *others, 'all'])}")
    return tuple(method for method in known if method.policy in names)


def lineup(
    methods: Sequence[Method | PeerMethod],
    steps: int,
    calibration: Calibration | None,
    why_not: str = "",
    *,
    plans: Plans | None = None,
    why_no_plans: str = "",
    peers: bool = True,
) -> list[Contender]:
    """Every row of a bench: fewer steps of `steps`, the methods, the peers.

    `why_not`, `why_no_plans`: the reasons why there are no calibration and no plans; methods that need them are then
    refused with it.
    """
    counts = sorted({max(1, round(share * steps)) for share in SHARES} - {steps}, reverse=True)
    rows = [Contender(FEWER, f"{n} of {steps}", str(n), FEWER, "fastercache", FewerSteps(n)) for n in counts]
    for part in (*methods, *(PEERS if peers else ())):
        refused = why_not if part.calibrated and calibration is None else None
        if part.planned and plans is None:
            refused = why_no_plans
        rows += rows_of(part, calibration, refused, plans)
    return rows


def rows_of(
    part: Method | PeerMethod, calibration: Calibration | None, refused: str | None = None, plans: Plans | None = None
) -> list[Contender]:
    """A row for each setting of a method; `refused` is why it cannot be run, if so."""
    entries: Sequence[Entry] = [None] * len(part.settings)
    try:
        entries = part.entries(calibration, plans) if refused is None else entries
    except fc.FasterCacheError as reason:  # what was measured does not do for it
        refused = str(reason)
    return [
        Contender(part.label, in_words(fields), level, part.family, part.package, entry, refused)
        for fields, level, entry in zip(part.settings, part.levels, entries, strict=True)
    ]


def in_words(fields: Fields) -> str:
    """A setting in words: `interval 3, start 0.2`; the defaults are said to be such."""
    return ", ".join(f"{key} {_word(value)}" for key, value in fields.items()) or "as published"


def _word(value: Any) -> str:
    if isinstance(value, fc.Predictor):
        return value.name
    return " to ".join(map(str, value)) if isinstance(value, tuple) else str(value)

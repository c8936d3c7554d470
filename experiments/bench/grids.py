"""Other packages' caches at many settings, as data: their documented defaults, and a grid of each.

The bench's own line-up has three settings of each. Here every field that decides what is skipped, and when, takes
several values, so that a method can be shown at its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from fastercache.experiments.bench.lineup import CALIBRATED, FIXED, FORECAST, PAPER, WATCHING, Fields, PeerMethod

VERSION = 1
"""Of the grids below; results say which they were made with."""
DEFAULT = "default"
"""The level of a documented default; the settings of a grid are numbered."""


@dataclass(frozen=True)
class Grid:
    """A peer method's settings.

    Attributes:
        peer: the method, with the default and then every setting of the grid.
        defaults: the level of the documented default, then of what stands for it where the model refuses that.
    """

    peer: PeerMethod
    defaults: tuple[str, ...] = (DEFAULT,)

    @property
    def scouts(self) -> tuple[str, ...]:
        """Levels with which it is tried whether the method runs at all, and skips anything: the defaults and the last
        setting, which skips much."""
        return (*self.defaults, self.peer.names[-1])

    def only(self, levels: Sequence[str]) -> PeerMethod:
        """The method at some of its settings."""
        both = zip(self.peer.settings, self.peer.names, strict=True)
        kept = {name: fields for fields, name in both if name in levels}
        return replace(self.peer, settings=tuple(kept.values()), names=tuple(kept))


def every(**values: Sequence[Any]) -> list[Fields]:
    """All combinations of the fields' values, the first field slowest.

    >>> every(a=(1, 2), b=(3,))
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _grid(
    label: str,
    package: Literal["diffusers", "cache-dit"],
    method: str,
    family: str,
    settings: Sequence[Fields],
    *,
    stands_in: bool = False,
    **more: Any,
) -> Grid:
    """Each setting once, the first is the default; `stands_in`: the second stands for it."""
    kept = [fields for n, fields in enumerate(settings) if fields not in settings[:n]]
    names = (DEFAULT, *map(str, range(1, len(kept))))
    return Grid(PeerMethod(label, package, method, family, tuple(kept), names=names, **more), names[: 1 + stands_in])


def _broadcast(ranges: tuple[int | None, int | None, int | None], window: tuple[int, int]) -> Fields:
    """diffusers' fields for PAB: an interval for each kind of attention that is skipped, one window of timesteps."""
    found: dict[str, Any] = {}
    for role, n in zip(("spatial", "temporal", "cross"), ranges, strict=True):
        if n is not None:
            found[f"{role}_attention_block_skip_range"] = n
            found[f"{role}_attention_timestep_skip_range"] = window
    return found


def _faster_cache(attention: int, guidance: int, first: int) -> Fields:
    """diffusers' fields for FasterCache: 1 as an interval skips nothing of its kind."""
    return {
        "spatial_attention_block_skip_range": attention,
        "temporal_attention_block_skip_range": attention,
        "spatial_attention_timestep_skip_range": (-1, first),
        "temporal_attention_timestep_skip_range": (-1, first),
        "unconditional_batch_skip_range": guidance,
        "unconditional_batch_timestep_skip_range": (-1, first),
    }


PAB_RANGES = (
    (None, None, 2), (None, None, 6), (2, None, None), (2, 2, 2), (2, 3, 4), (2, 4, 6), (3, 4, 6), (5, 6, 8),
)  # fmt: skip
DBCACHE = {
    "Bn_compute_blocks": 0, "max_continuous_cached_steps": -1, "max_warmup_steps": 8, "residual_diff_threshold": 0.08,
}  # fmt: skip
DBCACHE_DEFAULTS = ({"Fn_compute_blocks": 8, **DBCACHE}, {"Fn_compute_blocks": 1, **DBCACHE})
"""cache-dit's own default, which a model of at most 8 blocks refuses; and the same with one block computed first."""
DBCACHE_GRID = every(
    Fn_compute_blocks=(1,),
    Bn_compute_blocks=(0,),
    max_continuous_cached_steps=(2, -1),
    max_warmup_steps=(8, 3),
    residual_diff_threshold=(0.03, 0.08, 0.16, 0.24),
)
DBCACHE_MORE = every(
    Fn_compute_blocks=(1, 2),
    Bn_compute_blocks=(1,),
    max_continuous_cached_steps=(-1,),
    max_warmup_steps=(3,),
    residual_diff_threshold=(0.08, 0.24),
)
TAYLOR = {"use_lite_mode": False, "disable_cache_before_step": 3, "max_order": 1, "cache_interval": 5}

GRIDS: tuple[Grid, ...] = (
    _grid("PAB", "diffusers", "PyramidAttentionBroadcast", FIXED, [
        _broadcast((2, None, None), (100, 800)),
        *(_broadcast(ranges, window) for window in ((100, 800), (0, 950)) for ranges in PAB_RANGES),
    ]),
    _grid("FasterCache", "diffusers", "FasterCache", PAPER, [
        {},
        *(
            _faster_cache(attention, guidance, first)
            for first in (681, 881)
            for attention, guidance in product((1, 2, 4), (1, 2, 5, 10))
            if (attention, guidance) != (1, 1)
        ),
    ]),
    _grid("FirstBlockCache", "diffusers", "FirstBlockCache", WATCHING, every(
        threshold=(0.05, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4),
    )),
    _grid("TaylorSeer", "diffusers", "TaylorSeerCache", FORECAST, [TAYLOR, *every(
        use_lite_mode=(False, True), disable_cache_before_step=(3, 8), max_order=(1, 2), cache_interval=(2, 3, 4, 6, 8),
    )]),
    _grid("MagCache", "diffusers", "MagCache", CALIBRATED, every(
        retention_ratio=(0.2, 0.1), max_skip_steps=(3, 1, 5), threshold=(0.06, 0.03, 0.12, 0.24),
    ), calibrated=True),
    _grid("SeaCache", "diffusers", "SeaCache", WATCHING, every(
        residual_order=(1, 0), max_consecutive_cached=(2, 4), threshold=(0.25, 0.05, 0.15, 0.4, 0.6),
    )),
    _grid("DBCache", "cache-dit", "DBCache", WATCHING, [*DBCACHE_DEFAULTS, *DBCACHE_MORE, *DBCACHE_GRID],
          stands_in=True),
    _grid("DBCache + TaylorSeer", "cache-dit", "DBCache", WATCHING, [*DBCACHE_DEFAULTS, *DBCACHE_GRID],
          stands_in=True, order=1),
    _grid("DBCache + TaylorSeer of order 2", "cache-dit", "DBCache", WATCHING, [*DBCACHE_DEFAULTS, *DBCACHE_GRID],
          stands_in=True, order=2),
)  # fmt: skip

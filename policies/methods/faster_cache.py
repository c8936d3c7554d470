"""FasterCache: dynamic feature reuse and CFG-Cache as one policy, with the settings of the published code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fastercache.policies.base import Citation, Policy
from fastercache.policies.compose import Parts
from fastercache.policies.errors import UnknownPolicy, suggest
from fastercache.policies.methods.cfg_cache import (
    AlphaHigh,
    AlphaLow,
    CFGCache,
    CfgInterval,
    CfgStart,
    CfgStop,
    Divisor,
    Radius,
    Switch,
    SwitchHigh,
    Weighting,
)
from fastercache.policies.methods.dynamic_reuse import FASTERCACHE, DynamicReuse, Order, Weight
from fastercache.policies.registry import register

Progress = Annotated[float, Field(ge=0.0, le=1.0)]


@register
class FasterCache(Parts):
    """The pair of the paper: `Compose([DynamicReuse(...), CFGCache(...)])` with its fields in one place.

    The defaults are the paper's. `FasterCache.preset("latte")` gives the settings of the published code, which
    differ per model and from the paper (compounding factors, constant weights).
    """

    name: ClassVar[str] = "fastercache"
    citation: ClassVar[Citation] = FASTERCACHE
    unsearched: ClassVar[frozenset[str]] = frozenset({"offset", "cfg_offset", "divisor"})
    sites: str = Field(
        default="attention", description="site query: what is extrapolated; by default every self-attention's output"
    )
    off: ClassVar[Mapping[str, Any]] = {"interval": 1, "cfg_interval": 1}
    interval: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description=(
            "attention is computed every this many steps, extrapolated in between (the paper has 2); 1: always"
        ),
    )
    start: Progress = Field(
        default=1 / 3, description="attention is always computed before this point of the run (progress, 0 to 1)"
    )
    stop: Progress = Field(
        default=1.0,
        description="attention is always computed from this point on (progress, 0 to 1); 1 includes the last step",
    )
    weight: Weight = "ramp"
    order: Order = 1
    offset: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description=(
            "index of a step from which attention's intervals are counted; by default the first step at `start`"
        ),
    )
    cfg_interval: CfgInterval = 5
    cfg_start: CfgStart = 1 / 3
    cfg_stop: CfgStop = 1.0
    alpha_low: AlphaLow = 0.2
    alpha_high: AlphaHigh = 0.2
    switch: Switch = 2 / 3
    switch_high: SwitchHigh = None
    weighting: Weighting = "paper"
    radius: Radius = None
    divisor: Divisor = 5
    cfg_offset: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description=(
            "index of a step from which branches' intervals are counted; by default the first step at `cfg_start`"
        ),
    )

    def parts(self) -> tuple[Policy, ...]:
        return (
            DynamicReuse(
                sites=self.sites,
                interval=self.interval,
                start=self.start,
                stop=self.stop,
                weight=self.weight,
                order=self.order,
                offset=self.offset,
            ),
            CFGCache(
                interval=self.cfg_interval,
                start=self.cfg_start,
                stop=self.cfg_stop,
                alpha_low=self.alpha_low,
                alpha_high=self.alpha_high,
                switch=self.switch,
                switch_high=self.switch_high,
                weighting=self.weighting,
                radius=self.radius,
                divisor=self.divisor,
                offset=self.cfg_offset,
            ),
        )

    @classmethod
    def preset(cls, model: str) -> FasterCache:
        """The published code's settings for a model. Raises UnknownPolicy, naming those there are."""
        if model not in PRESETS:
            raise UnknownPolicy(f"FasterCache has no preset '{model}'{suggest(model, PRESETS)}")
        return PRESETS[model]


def _published(
    steps: int,
    *,
    attention_from: int,
    attention_every: int,
    attention_offset: int,
    weight: Literal["ramp"] | float,
    cfg_from: int,
    cfg_every: int,
    cfg_offset: int,
    low: float,
    low_until: int,
    high: float,
    high_from: int,
    order: Literal[0, 1] = 1,
    cfg_stop: float = 1.0,
    divisor: int = 5,
) -> FasterCache:
    """Settings given by 0-based step indices of a run of `steps`, as progress, so that they transfer."""
    last = steps - 1
    return FasterCache(
        interval=attention_every,
        start=attention_from / last,
        weight=weight,
        order=order,
        offset=attention_offset,
        cfg_interval=cfg_every,
        cfg_start=cfg_from / last,
        cfg_stop=cfg_stop,
        alpha_low=low,
        alpha_high=high,
        switch=low_until / last,
        switch_high=high_from / last,
        weighting="repo",
        divisor=divisor,
        cfg_offset=cfg_offset,
    )


# The published counters are 1-based (Mochi's 0-based): counter c is index c - 1. `low_until` is exclusive.
PRESETS: dict[str, FasterCache] = {
    # reuse when c > 7 and even; uncond when c > 11 and c % 5; LF while c <= 25, HF from c >= 20
    "open-sora": _published(
        30, attention_from=7, attention_every=2, attention_offset=0, weight="ramp", cfg_from=11, cfg_every=5,
        cfg_offset=4, low=0.15, low_until=25, high=0.15, high_from=19,
    ),
    # c >= 16 and even; c >= 18 and c % 5; LF while c < 45, else HF
    "latte": _published(
        50, attention_from=15, attention_every=2, attention_offset=0, weight=0.5, cfg_from=17, cfg_every=5,
        cfg_offset=4, low=0.1, low_until=44, high=0.1, high_from=44,
    ),
    # c >= 45 and c % 3; c >= 40 and c % 6; LF to 130, else HF
    "open-sora-plan": _published(
        150, attention_from=44, attention_every=3, attention_offset=2, weight=0.3, cfg_from=39, cfg_every=6,
        cfg_offset=5, low=0.1, low_until=130, high=0.2, high_from=130,
    ),
    # c >= 18 and c % 3; c >= 18 and c % 5; LF to 40, HF from 30
    "cogvideox": _published(
        50, attention_from=17, attention_every=3, attention_offset=2, weight=0.3, cfg_from=17, cfg_every=5,
        cfg_offset=4, low=0.1, low_until=40, high=0.1, high_from=29,
    ),
    # 0-based: c >= 20 and even; c >= 22, c % 5, c != 63; LF to 50, HF from 30
    "mochi": _published(
        64, attention_from=20, attention_every=2, attention_offset=1, weight="ramp", cfg_from=22, cfg_every=5,
        cfg_offset=0, low=0.15, low_until=51, high=0.25, high_from=30, cfg_stop=63 / 63 - 1e-6,
    ),
    # c > 30 and even, held; c > 30 and c % 5; LF below 80, HF above 60; the low band is the DC term alone
    "vchitect": _published(
        100, attention_from=30, attention_every=2, attention_offset=0, weight=0.0, order=0, cfg_from=30, cfg_every=5,
        cfg_offset=4, low=0.05, low_until=79, high=0.1, high_from=60, divisor=200,
    ),
}  # fmt: skip

"""Settings of cache-dit (a YAML file for `load_configs`) and the same for SGLang (environment variables).

Both skip all blocks but the first few at the steps of a mask, and hold or extrapolate their residual. A plan of the
whole denoiser becomes the nearest thing they have, and what that loses is said.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fastercache.export.recipe import Exported, NotExportable
from fastercache.export.words import heading
from fastercache.policies.base import Hold, Predictor
from fastercache.policies.errors import NoSiteMatched
from fastercache.policies.methods.first_block_cache import DualBlockCache, FirstBlockCache
from fastercache.policies.predictors.history import Linear, Taylor
from fastercache.policies.schedule import Code, Table, compile_policy
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Run, Scope, Site
from fastercache.tuned import TunedConfig

YAML, ENV = "cache-dit.yaml", "sglang.env"
BLOCKS = 64
"""Blocks of the model that a policy is asked about: no query of a schedule's counts more."""


@dataclass(frozen=True)
class Settings:
    """What both packages are told.

    Attributes:
        front, back: blocks that always run (Fn, Bn). order: of the Taylor series; 0 holds.
        mask: 1 for a computed step; empty where a threshold decides.
        threshold, warm_up, in_a_row: of that decision.
    """

    front: int
    back: int
    order: int
    mask: tuple[int, ...] = ()
    threshold: float = 0.08
    warm_up: int = 0
    in_a_row: int = -1


def cache_dit(config: TunedConfig) -> Exported:
    """A YAML file for `cache_dit.load_configs`. Raises NotExportable."""
    settings, lost = settings_of(config)
    fields: dict[str, Any] = {
        "Fn_compute_blocks": settings.front,
        "Bn_compute_blocks": settings.back,
        "residual_diff_threshold": settings.threshold,
        "max_warmup_steps": settings.warm_up,
        "max_continuous_cached_steps": settings.in_a_row,
    }
    if settings.mask:
        fields |= {
            "num_inference_steps": len(settings.mask),
            "steps_computation_mask": list(settings.mask),
            "steps_computation_policy": "static",
        }
    if settings.order:
        fields |= {"enable_taylorseer": "true", "taylorseer_order": settings.order}
    lines = [
        *_comments(config, "cache_dit.enable_cache(pipe, **cache_dit.load_configs('cache-dit.yaml'))", lost),
        "cache_config:",
        *(f"  {name}: {value}" for name, value in fields.items()),
    ]
    return Exported({YAML: "\n".join(lines) + "\n"}, lost)


def sglang(config: TunedConfig) -> Exported:
    """SGLang's environment variables. Raises NotExportable."""
    settings, lost = settings_of(config)
    fields: dict[str, Any] = {
        "ENABLED": "true",
        "FN": settings.front,
        "BN": settings.back,
        "WARMUP": settings.warm_up,
        "RDT": settings.threshold,
        "MC": settings.in_a_row,
    }
    if settings.order:
        fields |= {"TAYLORSEER": "true", "TS_ORDER": settings.order}
    if settings.mask:
        compute, cache = bins(settings.mask)
        fields |= {
            "SCM_COMPUTE_BINS": ",".join(map(str, compute)),
            "SCM_CACHE_BINS": ",".join(map(str, cache)),
            "SCM_POLICY": "static",
        }
    lines = [
        *_comments(config, "set -a; . ./sglang.env; set +a; sglang generate --model-path MODEL --prompt '...'", lost),
        *(f"SGLANG_CACHE_DIT_{name}={value}" for name, value in fields.items()),
    ]
    return Exported({ENV: "\n".join(lines) + "\n"}, lost)


def bins(mask: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """A mask that begins with 1 as lengths of its runs: those that are computed, and those that are not."""
    runs = [(value, len(list(group))) for value, group in groupby(mask)]
    return [n for value, n in runs if value], [n for value, n in runs if not value]


def settings_of(config: TunedConfig) -> tuple[Settings, tuple[str, ...]]:
    """The nearest settings, and what they do otherwise. Raises NotExportable."""
    policy = config.policy
    if "transformer_2" in config.model.denoiser.config:
        raise NotExportable(
            "this pipeline has two transformers, and cache-dit counts the steps of each by itself: no mask says that"
        )
    if isinstance(policy, (FirstBlockCache, DualBlockCache)):
        return _by_threshold(policy)
    if not policy.static:
        raise NotExportable(f"{policy.name} decides by a rule that cache-dit does not have")
    return _by_mask(config)


def _by_threshold(policy: FirstBlockCache | DualBlockCache) -> tuple[Settings, tuple[str, ...]]:
    order, lost = _order(policy.stand_in)
    if policy.scope is not Scope.CALL:
        lost = (*lost, "cache-dit decides once for all rows of a call")
    if isinstance(policy, FirstBlockCache):
        if policy.sites != "stack[1:]":
            raise NotExportable(f"cache-dit reuses all blocks after the first, not {policy.sites}")
        return Settings(1, 0, order, (), policy.threshold), lost
    if policy.sites:
        raise NotExportable(f"cache-dit reuses the blocks between front and back, not {policy.sites}")
    return Settings(
        policy.front, policy.back, order, (), policy.threshold, policy.warm_up, policy.max_consecutive
    ), lost


def _by_mask(config: TunedConfig) -> tuple[Settings, tuple[str, ...]]:
    policy, run = config.policy, _run(config)
    table: Table | None = None
    with suppress(NoSiteMatched):
        table = compile_policy(policy, run)
    if table is None or len(table.sites) != 1 or table.sites[0].kind not in (Kind.DENOISER, Kind.STACK):
        raise NotExportable(
            f"cache-dit skips runs of whole blocks, and {policy.name} governs other values: export it to python"
        )
    site, codes = table.sites[0], table.codes[0].tolist()
    if any(row != codes[0] for row in codes):
        raise NotExportable(f"cache-dit has one mask for all branches, and {policy.name} treats them differently")
    mask = tuple(int(code == Code.COMPUTED) for code in codes[0])
    order, lost = _order(table.predictors[0])
    front, back = (0, 0) if site.kind is Kind.DENOISER else (site.span[0], BLOCKS - site.span[1])
    if site.kind is Kind.DENOISER:
        lost = ("the residual of the blocks after the first is reused, not the denoiser's output", *lost)
    if front == 0:
        lost = ("cache-dit runs the first block at every step, so the saving is a little smaller", *lost)
    warm_up = next((i for i, one in enumerate(mask) if not one), len(mask))
    if order and warm_up < 3 + order:
        lost = (*lost, "cache-dit forms no difference before its fourth step, and one order more at each after that")
    return Settings(max(front, 1), back, order, mask, warm_up=warm_up), lost


def _run(config: TunedConfig) -> Run:
    blocks = tuple(Site(f"blocks.{i}", Kind.BLOCK, None, i, (i, i + 1)) for i in range(BLOCKS))
    outer = (Site(str(Kind.DENOISER), Kind.DENOISER), Site(str(Kind.STACK), Kind.STACK, None, 0, (0, BLOCKS)))
    branches = (COND,) if config.guidance == "none" else (COND, UNCOND)
    return Run.of(config.steps, branches, (*outer, *blocks))


def _order(predictor: Predictor) -> tuple[int, tuple[str, ...]]:
    """The order of the Taylor series that stands for a predictor, and what that loses."""
    if isinstance(predictor, Hold):
        return 0, ()
    if isinstance(predictor, Taylor):
        return predictor.order, ()
    if isinstance(predictor, Linear) and predictor.weight == 1.0:
        return 1, ()
    return 1, (f"a Taylor series of order 1 stands in for the predictor {predictor.name}",)


def _comments(config: TunedConfig, use: str, lost: tuple[str, ...]) -> list[str]:
    lines = [
        *heading(config).splitlines(),
        f"Use: {use}",
        *(f"Otherwise than in the tuned config: {line}." for line in lost),
    ]
    return [f"# {line}" for line in lines]

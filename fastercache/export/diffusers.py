"""A snippet with diffusers' own caches, for the policies that diffusers has too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastercache.export.recipe import Exported, NotExportable
from fastercache.export.words import heading
from fastercache.policies.base import Hold, Policy
from fastercache.policies.methods.faster_cache import FasterCache
from fastercache.policies.methods.first_block_cache import FirstBlockCache
from fastercache.policies.methods.magcache import MagCache
from fastercache.policies.methods.pyramid_attention_broadcast import PyramidAttentionBroadcast
from fastercache.policies.methods.seacache import SeaCache
from fastercache.policies.methods.static_interval import anchor
from fastercache.policies.methods.taylorseer import TaylorSeer
from fastercache.policies.predictors.history import Linear
from fastercache.policies.vocabulary import Scope, Step
from fastercache.tuned import TunedConfig

FILE = "diffusers_cache.py"
Fields = dict[str, str]
Made = tuple[str, Fields, tuple[str, ...]]
"""The name of diffusers' configuration, its arguments as Python source, and what it does otherwise."""

_NOW = "lambda: pipe.current_timestep"


def diffusers(config: TunedConfig) -> Exported:
    """A module with `enable(pipe)`. Raises NotExportable for a policy that diffusers does not have."""
    make = _MAKERS.get(type(config.policy))
    if make is None:
        known = ", ".join(sorted(cls.name for cls in _MAKERS))
        raise NotExportable(f"diffusers has no cache like {config.policy.name} (it has {known}): export it to python")
    if "transformer_2" in config.model.denoiser.config:
        raise NotExportable("this pipeline has two transformers, and diffusers' caches are switched on for one")
    name, fields, lost = make(config.policy, config)
    arguments = "".join(f"            {key}={value},\n" for key, value in fields.items())
    said = "".join(f"Otherwise than in the tuned config: {line}.\n" for line in lost)
    text = _TEMPLATE.replace("$NAME", name).replace("$ARGUMENTS", arguments).replace("$STEPS", str(config.steps))
    body = text.replace("$HEADING", heading(config)).replace("$LOST", f"\n{said}" if said else "")
    return Exported({FILE: body}, lost)


def _first_block(policy: Any, config: TunedConfig) -> Made:
    if policy.sites != "stack[1:]" or not isinstance(policy.stand_in, Hold):
        raise NotExportable("diffusers' FirstBlockCache holds the residual of all blocks after the first, nothing else")
    lost: tuple[str, ...] = () if policy.scope is Scope.CALL else ("diffusers decides once for all rows of a call",)
    return "FirstBlockCacheConfig", {"threshold": repr(policy.threshold)}, lost


def _seacache(policy: Any, config: TunedConfig) -> Made:
    if not isinstance(policy.stand_in, (Hold, Linear)):
        raise NotExportable("diffusers' SeaCache holds the residual or follows its line, nothing else")
    lost = []
    if policy.scope is not Scope.BRANCH and config.guidance == "separate":
        lost.append("diffusers decides in each branch by itself")
    if isinstance(policy.stand_in, Linear) and policy.stand_in.weight != 1.0:
        lost.append(f"the line's slope counts 1, not {policy.stand_in.weight:g}")
    fields = {
        "threshold": repr(policy.threshold),
        "residual_order": str(int(isinstance(policy.stand_in, Linear))),
        "retention_steps": str(policy.warm_up),
        "cache_end_steps": str(policy.cool_down),
        "max_consecutive_cached": str(policy.max_consecutive),
        "power_exp": repr(policy.power),
    }
    return "SeaCacheConfig", fields, tuple(lost)


def _magcache(policy: Any, config: TunedConfig) -> Made:
    if policy.sites not in ("stack", "stack[0:]") or not isinstance(policy.stand_in, Hold):
        raise NotExportable("diffusers' MagCache holds the residual of all blocks, nothing else")
    curves = list(policy.ratios.values())
    lost: tuple[str, ...] = ()
    if any(curve != curves[0] for curve in curves):
        lost = ("diffusers has one list of magnitude ratios for all branches: it is given their mean",)
    mean = [sum(values) / len(curves) for values in zip(*curves, strict=True)]
    fields = {
        "threshold": repr(policy.threshold),
        "max_skip_steps": str(policy.max_skip),
        "retention_ratio": repr(policy.retention),
        "num_inference_steps": "STEPS",
        "mag_ratios": repr(mean),
    }
    return "MagCacheConfig", fields, lost


def _taylorseer(policy: Any, config: TunedConfig) -> Made:
    if policy.sites not in _PATTERNS:
        raise NotExportable(
            f"diffusers' TaylorSeer is told modules by patterns, and {policy.sites} is none of {', '.join(_PATTERNS)}"
        )
    ours = [i for i in range(config.steps) if not policy.reuse(None, Step(i, config.steps, 0.0))]
    first = anchor(config.steps, policy.start)
    tried = {before: taylorseer_steps(before, policy.interval, config.steps) for before in range(1, first + 14)}
    before = min(tried, key=lambda b: (len(set(ours) ^ set(tried[b])), b))
    lost = []
    if more := sorted(set(tried[before]) - set(ours)):
        lost.append(f"it also computes the steps {', '.join(map(str, more))}")
    if fewer := sorted(set(ours) - set(tried[before])):
        lost.append(f"it does not compute the steps {', '.join(map(str, fewer))}")
    fields = {
        "cache_interval": str(policy.interval),
        "disable_cache_before_step": str(before),
        "max_order": str(policy.order),
        "taylor_factors_dtype": "torch.float32",
        "cache_identifiers": repr(_PATTERNS[policy.sites]),
    }
    return "TaylorSeerCacheConfig", fields, tuple(lost)


_PATTERNS = {
    "attention": [r".*blocks\.\d+\.attn1?"],
    "all": [r".*blocks\.\d+\.attn\d?", r".*blocks\.\d+\.ffn?"],
}
"""Site query -> what the attentions and feed-forwards of diffusers' transformers are called."""


def taylorseer_steps(before: int, interval: int, steps: int) -> list[int]:
    """The steps that diffusers' TaylorSeer computes: the first `before`, and from the one after next each
    `interval`-th."""
    return [i for i in range(steps) if i < before or (i - before - 1) % interval == 0]


def _pab(policy: Any, config: TunedConfig) -> Made:
    lost = []
    spatial = max(policy.spatial, policy.joint)
    if policy.spatial != policy.joint:
        lost.append(f"spatial and joint attention have one range, {spatial}")
    if policy.ff > 1:
        lost.append("feed-forwards are computed at every step")
    if config.guidance == "separate":
        lost.append("diffusers shares one cache between the branches of separate calls")
    window = f"({policy.low:g}, {policy.high:g})"
    fields = {}
    for role, interval in {"spatial": spatial, "temporal": policy.temporal, "cross": policy.cross}.items():
        if interval > 1:
            fields[f"{role}_attention_block_skip_range"] = str(interval)
            fields[f"{role}_attention_timestep_skip_range"] = window
    fields["current_timestep_callback"] = _NOW
    return "PyramidAttentionBroadcastConfig", fields, tuple(lost)


def _fastercache(policy: Any, config: TunedConfig) -> Made:
    if policy.sites != "attention":
        raise NotExportable(f"diffusers' FasterCache reuses every self-attention, not {policy.sites}")
    if config.guidance == "separate":
        raise NotExportable(
            "diffusers' FasterCache needs both branches in one call, and this pipeline calls each alone"
        )
    lost = [
        "diffusers never reuses attention on a step that computes both branches",
        "diffusers keeps the conditional half of attention only",
    ]
    weight = policy.weight if isinstance(policy.weight, float) else 0.5
    if policy.weight == "ramp":
        lost.append("the weight is 0.5 at every step instead of rising from 0 to 1")
    if policy.order > 1 or (policy.order == 1 and weight > 0):
        lost.append("diffusers extrapolates from pairs that its own predictions enter")
    if policy.order == 0:
        weight = 0.0
    if policy.weighting == "paper":
        lost.append("the factors on the guidance difference compound from step to step")
    if policy.offset != 0 or policy.cfg_offset != 0:
        lost.append("intervals are counted from step 0")
    if policy.stop < 1 or policy.cfg_stop < 1:
        lost.append("reuse goes on to the last step")
    if policy.radius is not None or policy.divisor != 5:
        lost.append("the low band's radius is a fifth of the latent's size")
    high = policy.switch if policy.switch_high is None else policy.switch_high
    start = _before(policy.cfg_start, config)
    layout = "BFCHW" if str(config.model.pipeline).startswith("CogVideoX") else "BCFHW"
    fields = {
        "spatial_attention_block_skip_range": str(policy.interval),
        "temporal_attention_block_skip_range": str(policy.interval),
        "spatial_attention_timestep_skip_range": f"(-1, {_before(policy.start, config)})",
        "temporal_attention_timestep_skip_range": f"(-1, {_before(policy.start, config)})",
        "unconditional_batch_skip_range": str(policy.cfg_interval),
        "unconditional_batch_timestep_skip_range": f"(-1, {start})",
        "low_frequency_weight_update_timestep_range": f"({_before(policy.switch, config)}, {start})",
        "high_frequency_weight_update_timestep_range": f"(-1, {_before(high, config)})",
        "alpha_low_frequency": repr(1 + policy.alpha_low),
        "alpha_high_frequency": repr(1 + policy.alpha_high),
        "attention_weight_callback": f"lambda _: {weight!r}",
        "tensor_format": repr(layout),
        "current_timestep_callback": _NOW,
    }
    return "FasterCacheConfig", fields, tuple(lost)


def _before(progress: float, config: TunedConfig) -> str:
    """Source of a bound just above a step's timestep: the first step below it is that at `progress`."""
    index = math.ceil(progress * (config.steps - 1) - 1e-9)
    return f"timesteps[{index}] + 0.5"


_MAKERS: dict[type[Policy], Callable[[Any, TunedConfig], Made]] = {
    FirstBlockCache: _first_block,
    SeaCache: _seacache,
    MagCache: _magcache,
    TaylorSeer: _taylorseer,
    PyramidAttentionBroadcast: _pab,
    FasterCache: _fastercache,
}

_TEMPLATE = '''\
"""$HEADING
$LOST
    from diffusers_cache import enable
    enable(pipe)                        # pipe.transformer.disable_cache() takes it off again
"""

import torch  # noqa: F401
from diffusers import $NAME

STEPS = $STEPS


def enable(pipe):
    """Switch the cache on, for runs of STEPS steps."""
    pipe.scheduler.set_timesteps(STEPS)
    timesteps = [float(t) for t in pipe.scheduler.timesteps]  # noqa: F841
    pipe.transformer.enable_cache(
        $NAME(
$ARGUMENTS        )
    )
'''

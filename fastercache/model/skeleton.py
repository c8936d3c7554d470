"""A model without anybody's hooks, for a call that nobody may notice: it shares the weights and nothing else."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from typing import Any

from torch import nn

from fastercache.model.hooks import SiteForward, is_traced

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
_OTHERS = ("_compiled_call_impl", "_diffusers_hook")
_BRINGING = ("offload", "parallel", "casting", "autocast")  # in the names of hooks without which a body cannot run


def skeleton(module: nn.Module) -> nn.Module | None:
    """A copy of the module tree that shares parameters and buffers, without hooks, caches or compiled code.

    Diffusers' caches, users' hooks and this toolkit's are left out. None where a body cannot run without its hooks,
    which bring weights or parts of tokens, or has a forward of its own, which may call the original.
    """
    made: dict[int, nn.Module] = {}
    parts = list(module.modules())
    for part in parts:
        found = _bare(part)
        if found is None:
            return None
        made[id(part)] = found
    for part in parts:
        made[id(part)]._modules = OrderedDict(
            (name, None if child is None else made[id(child)]) for name, child in part._modules.items()
        )
    return made[id(module)]


def has_hooks(module: nn.Module) -> bool:
    """Whether torch's forward hooks are on any module of the tree."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _bare(module: nn.Module) -> nn.Module | None:
    own = dict(module.__dict__)
    registry = own.get("_diffusers_hook")
    names = list(getattr(registry, "hooks", {}))
    if "_hf_hook" in own or any(mark in name for name in names for mark in _BRINGING):
        return None
    forward = own.pop("forward", None)
    if isinstance(forward, SiteForward):
        forward = forward.inner if forward.had_own else None
    if registry is not None or is_traced(module):
        forward = None  # diffusers' wrapper or the traced form, around the class's own
    if forward is not None and getattr(forward, "__self__", None) is not module:
        return None
    bare: nn.Module = type(module).__new__(type(module))
    for name in _OTHERS:
        own.pop(name, None)
    own = {name: _detached(value) for name, value in own.items() if not name.startswith("_fc_")}
    bare.__dict__.update(own, _parameters=dict(own["_parameters"]), _buffers=dict(own["_buffers"]))
    bare.__dict__.update({name: OrderedDict() for name in _HOOKS})
    if forward is not None:
        bare.__dict__["forward"] = types.MethodType(forward.__func__, bare)
    return bare


def _detached(value: Any) -> Any:
    """An attribute whose changes do not reach the original: attention processors may count or collect."""
    if isinstance(value, (list, dict, set)):
        return copy.copy(value)
    if isinstance(value, nn.Module) or not hasattr(value, "__dict__") or not callable(value) or isinstance(value, type):
        return value
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return value
    copied = copy.copy(value)
    for name, item in list(vars(copied).items()):
        if isinstance(item, (list, dict, set)):
            vars(copied)[name] = copy.copy(item)
    return copied

"""Other packages' own caches, run side by side with ours: diffusers' and cache-dit's.

A peer is switched on at a twin of the pipeline: modules of its own, the same weights. So nothing it hooks, replaces or
leaves behind reaches the pipeline that everything else is measured on; what cache-dit sets on the pipeline's class is
put back as well.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from torch import nn

import fastercache as fc
from fastercache.attachment import denoisers_of
from fastercache.model.flops import FlopTotal
from fastercache.tuned import package_versions

CONTEXT = "all"
"""Name of the cache context given to pipelines that set none of their own."""


class Refused(fc.FasterCacheError):
    """A peer that cannot run on this pipeline; the message is its own reason.

    Symptom: Another package's cache is listed below the benchmark's table under "Did not run".
    Cause: That package does not support the pipeline, is switched on already, or is not installed.
    Fix: Nothing is wrong with the pipeline: read the reason, and install the extra `peers` where a package is
        missing.
    """


@dataclass(frozen=True)
class Peer:
    """One setting of another package's cache.

    Attributes:
        package: whose implementation. method: the name of its configuration class without `Config` and `Cache`.
        fields: what is set of it; the rest are its defaults, and what it asks of the pipeline.
        order: of cache-dit's TaylorSeer calibrator; None leaves it out.
    """

    package: Literal["diffusers", "cache-dit"]
    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    order: int | None = None

    def described(self) -> dict[str, Any]:
        """As JSON values, with the package's version: figures of another one cannot be compared."""
        found = {
            "peer": self.package,
            "versions": package_versions((self.package,)),
            "method": self.method,
            **self.fields,
        }
        return found if self.order is None else found | {"taylorseer_order": self.order}

    @contextmanager
    def applied(self, pipe: Any, call: Mapping[str, Any]) -> Iterator[Any]:
        """A twin of `pipe` with this cache switched on, for one run.

        Raises:
            Refused: where the package is missing, raises, or attaches to nothing.
        """
        pair = twin(pipe)
        with ExitStack() as undo, silent(self.package):
            try:
                self._enable(pair, call, undo)
            except Refused:
                raise
            except Exception as error:  # whatever another package raises is its reason
                raise Refused(reason(error)) from error
            yield pair

    def _enable(self, pipe: Any, call: Mapping[str, Any], undo: ExitStack) -> None:
        if self.package == "cache-dit":
            self._enable_cache_dit(pipe, undo)
            return
        denoiser: Any = denoisers_of(pipe)[0][1]
        if not hasattr(denoiser, "enable_cache"):
            raise Refused(f"{type(denoiser).__name__} has no enable_cache")
        denoiser.enable_cache(_config(self.method, pipe, call, self.fields))
        undo.callback(denoiser.disable_cache)
        if not any(m._diffusers_hook.hooks for m in denoiser.modules() if hasattr(m, "_diffusers_hook")):
            raise Refused("attached to nothing")
        if not sets_contexts(pipe):
            undo.enter_context(denoiser.cache_context(CONTEXT))

    def _enable_cache_dit(self, pipe: Any, undo: ExitStack) -> None:
        try:
            cache_dit = import_module("cache_dit")
        except ImportError:
            raise Refused("cache-dit is not installed: pip install 'fastercache[peers]'") from None
        _mute(self.package)  # its loggers came with the import
        undo.enter_context(class_kept(type(pipe)))
        calibrator = None
        if self.order is not None:
            calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.order)
        config = cache_dit.DBCacheConfig(**self.fields)
        undo.callback(cache_dit.disable_cache, pipe)
        cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)


def _config(method: str, pipe: Any, call: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    """diffusers' configuration of a method, with what it asks of the pipeline filled in."""
    config = getattr(import_module("diffusers"), f"{method}Config")
    wanted = inspect.signature(config).parameters
    filled = {key: make(pipe, call) for key, make in _PIPELINE_FIELDS.items() if key in wanted and key not in fields}
    return config(**filled, **fields)


def _layout(pipe: Any, call: Mapping[str, Any]) -> str:
    (_, denoiser), *_ = denoisers_of(pipe)
    return "BFCHW" if "CogVideoX" in type(denoiser).__name__ else "BCFHW"


def _modules(pipe: Any, call: Mapping[str, Any]) -> list[str]:
    """Patterns of every attention and feed-forward: diffusers' default ones match no module of most models."""
    return [re.escape(s.name) for s in fc.find_sites(pipe) if s.kind is fc.Kind.MODULE and "/" not in s.name]


_PIPELINE_FIELDS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "current_timestep_callback": lambda pipe, call: lambda: pipe.current_timestep,
    "tensor_format": _layout,
    "cache_identifiers": _modules,
    "num_inference_steps": lambda pipe, call: call["num_inference_steps"],
    "attention_weight_callback": lambda pipe, call: lambda module: 0.3,  # what its documentation shows for CogVideoX
    "taylor_factors_dtype": lambda pipe, call: denoisers_of(pipe)[0][1].dtype,
}


def sets_contexts(pipe: Any) -> bool:
    """Whether the pipeline itself enters diffusers' cache contexts; reading its source is the only way to tell."""
    try:
        return "cache_context" in inspect.getsource(type(pipe).__call__)
    except (OSError, TypeError):
        return False


def twin(pipe: Any) -> Any:
    """A copy of a pipeline whose modules are its own and whose weights and buffers are the original's."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    shared = {id(tensor): tensor for m in modules for tensor in (*m.parameters(), *m.buffers())}
    return copy.deepcopy(pipe, shared)


@contextmanager
def class_kept(cls: type) -> Iterator[None]:
    """Whatever is set on a class inside is taken back; its own attributes return to what they were."""
    before = dict(vars(cls))
    try:
        yield
    finally:
        for name in set(vars(cls)) - set(before):
            delattr(cls, name)
        for name, value in before.items():
            if vars(cls).get(name) is not value:
                setattr(cls, name, value)


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """A list that grows by the FLOPs of each call of the pipeline's denoisers, whatever decides what they compute.

    To be entered after everything else that replaces the denoiser's forward, so that it sees what really runs.
    """
    calls: list[int] = []
    with ExitStack() as undo:
        for _, denoiser in denoisers_of(pipe):
            undo.callback(_restore, denoiser, vars(denoiser).get("forward"))
            denoiser.forward = _counting(denoiser.forward, calls)
        yield calls


def _counting(forward: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with FlopTotal() as counter:  # torch's own walks the module tree, in which cache-dit makes a circle
            output = forward(*args, **kwargs)
        calls.append(counter.total)
        return output

    return call


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


@contextmanager
def silent(package: str) -> Iterator[None]:
    """Errors only from a package's loggers while it is in use."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    _mute(package)
    try:
        yield
    finally:
        logger.setLevel(before)


def _mute(package: str) -> None:
    prefixes = ("diffusers",) if package == "diffusers" else ("cache_dit", "CACHE_DIT")
    for name in ["diffusers", *logging.root.manager.loggerDict]:
        if name.startswith(prefixes):
            logging.getLogger(name).setLevel(logging.ERROR)


def reason(error: BaseException) -> str:
    """An error in one short line."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:160] if line else type(error).__name__

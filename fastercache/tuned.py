"""The tuned config: a found policy as a JSON file that knows what it was made for and what was measured.

The file holds no code and no tensors. Only registered policies are built from it, and loading it for another model,
scheduler, step count or guidance is an error that names the difference, unless that difference is allowed by name.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from fastercache.model.families import COMPONENTS
from fastercache.policies.base import Policy
from fastercache.policies.documents import read_model, write_json
from fastercache.policies.errors import AttachError, ConfigMismatch, suggest
from fastercache.policies.registry import AnyPolicy

FORMAT: Literal["fastercache-tuned"] = "fastercache-tuned"
VERSION: Literal[1] = 1
PARTS = ("model", "scheduler", "steps", "guidance")
"""What a config is checked against; a difference in each may be allowed by name."""

Guidance = Literal["batched", "separate", "none"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Identity(_Frozen):
    """A diffusers component by class and configuration, weights and storage paths left out.

    `fingerprint` is the sha256 of the canonical JSON of `config`; the config itself is kept so that a mismatch can
    be named, not only noticed. Two are equal by class and fingerprint: a file holds no infinity, which some schedulers'
    configurations have.
    """

    kind: str
    fingerprint: str
    config: dict[str, Any]

    @classmethod
    def of(cls, kind: str, config: Mapping[str, Any]) -> Identity:
        clean = {str(k): _plain(v) for k, v in sorted(config.items()) if not str(k).startswith("_")}
        return cls(kind=kind, fingerprint=_sha256(clean), config=clean)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and (self.kind, self.fingerprint) == (other.kind, other.fingerprint)

    def __hash__(self) -> int:
        return hash((self.kind, self.fingerprint))

    def difference(self, other: Identity) -> tuple[str, str] | None:
        """How `other` differs: (what self has, what other has), at most three settings; None where equal."""
        if self.kind != other.kind:
            return self.kind, other.kind
        if self == other:
            return None
        missing = object()
        both = {**self.config, **other.config}
        keys = [k for k in both if self.config.get(k, missing) != other.config.get(k, missing)]
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        mine = ", ".join(f"{k}={self.config.get(k, 'not set')}" for k in keys[:3])
        theirs = ", ".join(f"{k}={other.config.get(k, 'not set')}" for k in keys[:3])
        if not keys:  # the file's fingerprint is not that of the config beside it
            return f"{self.kind} with fingerprint {self.fingerprint:.12}", f"fingerprint {other.fingerprint:.12}"
        return f"{self.kind} with {mine}{more}", theirs


class Model(_Frozen):
    """What a policy was tuned for: the pipeline's class (None for a bare denoiser) and its denoiser."""

    pipeline: str | None
    denoiser: Identity


class OtherConditions(UserWarning):
    """A tuned config is applied to another resolution, number of frames, dtype or LoRA than it was made for."""


ADVICE = ": its figures may not hold, so compare some outputs with uncached ones"
UNCOVERED = "its certificate is about other conditions than this run's"


class Conditions(_Frozen):
    """What a policy's quality may depend on besides what it is checked against; a difference is a warning.

    Attributes:
        latent: shape of the denoiser's main input without its batch axis; it follows resolution and frames. None where
            it is not known.
        dtype: of the denoiser's parameters. adapters: names of its active LoRA adapters.
    """

    latent: tuple[int, ...] | None = None
    dtype: str | None = None
    adapters: tuple[str, ...] = ()

    @classmethod
    def of(cls, target: Any, latent: tuple[int, ...] | None = None) -> Conditions:
        """Those of a pipeline or denoiser as it stands."""
        first = next(iter(denoisers(target).values()))
        parameter = next(first.parameters(), None)
        dtype = None if parameter is None else str(parameter.dtype).removeprefix("torch.")
        return cls(latent=latent or None, dtype=dtype, adapters=active_adapters(first))


def active_adapters(denoiser: nn.Module) -> tuple[str, ...]:
    """Names of the LoRA adapters that are switched on, in order."""
    found: set[str] = set()
    for module in denoiser.modules():
        names = getattr(module, "active_adapters", None)
        if isinstance(names, (list, tuple)) and not getattr(module, "disable_adapters", False):
            found.update(map(str, names))
    return tuple(sorted(found))


class Measured(_Frozen):
    """What was measured on one set of prompts; quality is the mean over prompts against the uncached output.

    Attributes:
        prompts: how many.
        quality: by metric's name, the mean over prompts: `{"psnr": 41.2, "ssim": 0.99}`. Files of older versions have
            the fields psnr, ssim and lpips instead, which are read into it.
        speedup_flops: uncached over computed FLOPs of the denoiser. speedup_wall: ratio of median seconds.
        seconds: median of one cached pipeline call. cached_bytes: the peak over the run.
        hardware: machine the seconds belong to.
    """

    prompts: int = Field(ge=1)
    quality: dict[str, float] = Field(default_factory=dict)
    speedup_flops: float
    speedup_wall: float | None = None
    seconds: float
    cached_bytes: int
    hardware: str

    @model_validator(mode="before")
    @classmethod
    def _of_older_file(cls, data: Any) -> Any:
        return quality_gathered(data)


def quality_gathered(data: Any) -> Any:
    """A mapping in whose older form `psnr`, `ssim` and `lpips` stood beside the rest, with them under `quality`."""
    if not isinstance(data, Mapping) or not any(name in data for name in OLD_METRICS):
        return data
    kept = {key: value for key, value in data.items() if key not in OLD_METRICS}
    old = {name: data[name] for name in OLD_METRICS if data.get(name) is not None}
    given = kept.get("quality", {})
    return kept | {"quality": {**old, **given} if isinstance(given, Mapping) else given}


OLD_METRICS = ("psnr", "ssim", "lpips")


class Certificate(_Frozen):
    """On `prompts` prompts used for nothing else, `violations` missed the budget.

    With probability `confidence` over the choice of prompts, at most `rate` of all prompts miss it.
    """

    method: Literal["clopper-pearson", "hoeffding-bentkus"] = "clopper-pearson"
    budget: str
    prompts: int = Field(ge=1)
    violations: int = Field(ge=0)
    rate: float = Field(ge=0.0, le=1.0)
    confidence: float = Field(gt=0.0, lt=1.0)

    @property
    def words(self) -> str:
        """`misses psnr>=40 on at most 5 % of prompts like these, 95 % sure; 59 prompts, 0 misses`."""
        misses = f"{self.violations} miss" + "es" * (self.violations != 1)
        return (
            f"misses {self.budget} on at most {100 * self.rate:.3g} % of prompts like these, "
            f"{100 * self.confidence:.3g} % sure; {self.prompts} prompts, {misses}"
        )


class Results(_Frozen):
    """Search prompts chose the policy, so only the held-out figures tell what to expect."""

    search: Measured | None = None
    held_out: Measured | None = None


class TunedConfig(_Frozen):
    """A policy with what it was made for and what was measured. `save`, `load`, `check`, or give it to `attach`.

    `seen` holds the hashes of the prompts it was searched and measured on, which no certificate may use again. `tried`
    holds those that certifications have looked at, by certification: another one may not use them.
    """

    format: Literal["fastercache-tuned"] = FORMAT
    version: Literal[1] = VERSION
    model: Model
    scheduler: Identity | None
    steps: int = Field(ge=1)
    guidance_scale: float | None
    guidance: Guidance
    policy: AnyPolicy
    budget: str | None = None
    measured: Results = Field(default_factory=Results)
    certificate: Certificate | None = None
    seen: tuple[str, ...] = ()
    tried: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    conditions: Conditions | None = None
    packages: dict[str, str] = Field(default_factory=lambda: package_versions())

    @classmethod
    def describe(
        cls,
        target: Any,
        policy: Policy,
        *,
        steps: int,
        guidance_scale: float | None,
        guidance: Guidance,
        latent: tuple[int, ...] | None = None,
        **fields: Any,
    ) -> TunedConfig:
        """A config of `policy` for `target` (a pipeline or denoiser) as it stands now.

        `latent`: the run's `Trace.latent`, where one was made.
        """
        return cls(
            model=model_identity(target),
            scheduler=scheduler_identity(target),
            steps=steps,
            guidance_scale=None if guidance_scale is None else float(guidance_scale),
            guidance=guidance,
            policy=policy,
            conditions=Conditions.of(target, latent),
            **fields,
        )

    def save(self, path: str | Path) -> Path:
        """Write the file whole or not at all. Raises ConfigUnreadable if it cannot be written."""
        return write_json(path, self.model_dump(mode="json"), "tuned config")

    @classmethod
    def load(cls, path: str | Path) -> TunedConfig:
        """Read a file that `save` wrote.

        Raises:
            ConfigUnreadable: in one line, if it is missing, no JSON, of a foreign format, of a newer version, or has
                unknown or ill-typed keys.
        """
        return read_model(path, cls, "tuned config")

    def check(self, target: Any, allow: Collection[str] = ()) -> None:
        """Whether this config fits a pipeline or denoiser; a bare denoiser has no scheduler to compare.

        Args:
            allow: names of `PARTS` whose difference is accepted.

        Raises:
            ConfigMismatch: naming the first difference.
        """
        allow = allowed(allow)
        found = model_identity(target)
        if "model" not in allow:
            self._refuse("model", self.model.denoiser.difference(found.denoiser))
            if None not in (self.model.pipeline, found.pipeline) and self.model.pipeline != found.pipeline:
                self._refuse("model", (str(self.model.pipeline), str(found.pipeline)))
        scheduler = scheduler_identity(target)
        if self.scheduler is not None and scheduler is not None and "scheduler" not in allow:
            self._refuse("scheduler", self.scheduler.difference(scheduler))

    def check_run(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        allow: Collection[str] = (),
        guidance: Guidance | None = None,
    ) -> None:
        """Whether a run about to start is the kind this config was tuned on; None leaves a part unchecked.

        Raises:
            ConfigMismatch: naming the first difference.
        """
        allow = allowed(allow)
        if steps is not None and steps != self.steps and "steps" not in allow:
            self._refuse("steps", (f"{self.steps} steps", f"{steps}"))
        if guidance is not None and guidance != self.guidance and "guidance" not in allow:
            self._refuse("guidance", (f"{self.guidance} guidance", guidance))
        scales = (self.guidance_scale, guidance_scale)
        if None not in scales and "guidance" not in allow and not math.isclose(*scales, abs_tol=1e-6):  # type: ignore[arg-type]
            self._refuse("guidance", (f"guidance scale {self.guidance_scale:g}", f"{guidance_scale:g}"))

    def differences(self, target: Any, latent: tuple[int, ...]) -> list[str]:
        """What a run about to start has other than what this config was made for, a warning each.

        `latent`: shape of the denoiser's main input in that run, without its batch axis.
        """
        if self.conditions is None:
            return []
        made, now = self.conditions, Conditions.of(target, latent)
        found = []
        if made.latent is not None and made.latent != now.latent:
            was, this = (" x ".join(map(str, shape)) for shape in (made.latent, latent))
            found.append(("a latent of " + was, f"one of {this} (another resolution or number of frames)"))
        if made.dtype is not None and made.dtype != now.dtype:
            found.append((str(made.dtype), str(now.dtype)))
        if made.adapters != now.adapters:
            was, this = (", ".join(names) or "none" for names in (made.adapters, now.adapters))
            found.append(("LoRA adapters: " + was, this))
        return [f"this tuned config was made for {was}, this run has {this}{ADVICE}" for was, this in found]

    @staticmethod
    def _refuse(part: str, difference: tuple[str, str] | None) -> None:
        if difference is None:
            return
        owner = "run" if part in ("steps", "guidance") else "pipeline"
        raise ConfigMismatch(
            f"this config was made for {difference[0]}, this {owner} has {difference[1]}: "
            f"tune it anew, or pass allow={{{part!r}}} to use it all the same"
        )


def denoisers(target: Any) -> dict[str, nn.Module]:
    """A pipeline's denoisers by component name; a bare denoiser under the name `denoiser`. Raises AttachError."""
    if isinstance(target, nn.Module):
        return {"denoiser": target}
    found = {name: getattr(target, name, None) for name in COMPONENTS}
    modules = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    if not modules:
        raise AttachError(f"{type(target).__name__} has no denoiser: looked for {', '.join(COMPONENTS)}")
    return modules


def model_identity(target: Any) -> Model:
    """Class and configuration of a pipeline's (or bare) denoiser; a second denoiser's settings are included.

    What `torch.compile` wrapped is what it wraps.
    """
    modules = denoisers(target)
    (_, first), *rest = modules.items()
    config = dict(getattr(first, "config", {}))
    config |= {name: dict(getattr(module, "config", {})) for name, module in rest}
    pipeline = None if isinstance(target, nn.Module) else type(target).__name__
    return Model(pipeline=pipeline, denoiser=Identity.of(type(getattr(first, "_orig_mod", first)).__name__, config))


def guidance_scale_of(pipe: Any, call: Mapping[str, Any] | None = None) -> float | None:
    """The guidance scale of a pipeline's last or current run, where it is known; the largest where each frame has one.

    Most pipelines tell it themselves. Of others (PixArt, DiT, Stable Audio) it is the argument of their call.

    Args:
        call: arguments of the call; what is not among them has its default.
    """
    scale = getattr(pipe, "guidance_scale", None)
    if scale is None and call is not None:
        parameter = inspect.signature(type(pipe).__call__).parameters.get("guidance_scale")
        scale = call.get("guidance_scale", None if parameter is None else parameter.default)
    if isinstance(scale, Tensor):
        return float(scale.max()) if scale.numel() else None
    return float(scale) if isinstance(scale, (int, float)) else None


def scheduler_identity(target: Any) -> Identity | None:
    """Class and configuration of a pipeline's scheduler; None where there is none."""
    scheduler = getattr(target, "scheduler", None)
    if scheduler is None:
        return None
    return Identity.of(type(scheduler).__name__, dict(getattr(scheduler, "config", {})))


def package_versions(names: Collection[str] = ("fastercache", "torch", "diffusers", "optuna")) -> dict[str, str]:
    """Versions of the packages a result depends on; packages that are not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def allowed(allow: Collection[str]) -> frozenset[str]:
    """The names of `PARTS` that were given. Raises ConfigMismatch for others, and for what holds no names."""
    if not isinstance(allow, Collection):
        raise ConfigMismatch(f"allow takes a set of {', '.join(PARTS)}, found {type(allow).__name__}")
    names = frozenset({allow} if isinstance(allow, str) else allow)
    for name in sorted(names - set(PARTS)):
        raise ConfigMismatch(f"cannot allow a difference in '{name}'{suggest(name, PARTS)}")
    return names


def _plain(value: Any) -> Any:
    """A config value as JSON knows it, so that a saved config compares equal to the live one."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in sorted(value.items()) if not str(k).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

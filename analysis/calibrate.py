"""What calibrated policies need to know of a model, measured on it: TeaCache's polynomial, MagCache's ratios,
SmoothCache's curves, ERTACache's errors and correction, and what a policy's own `measures` compare.

>>> with calibrate(pipe) as calibrator:                                                    # doctest: +SKIP
...     for prompt in prompts:
...         pipe(prompt)
>>> calibration = calibrator.result()                                                     # doctest: +SKIP
>>> fc.attach(pipe, fc.TeaCache.calibrated(calibration, threshold=0.2))                # doctest: +SKIP
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from torch import Tensor

import fastercache as fc
from fastercache.analysis.policy_measures import Comparison
from fastercache.analysis.profile import Component, Profile
from fastercache.analysis.record import Recorder, identity_of, record
from fastercache.policies.base import Policy, SitePolicy
from fastercache.policies.documents import read_model, write_json
from fastercache.policies.errors import ConfigMismatch, RecordingError
from fastercache.policies.measurements import Lags
from fastercache.policies.rules import WatchingRule
from fastercache.policies.schedule import Code
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Branch, Kind, Role, Site, Step, matches, select
from fastercache.tuned import scheduler_identity

FORMAT: Final = "fastercache-calibration"
ROLES = "|".join(Role)


class Listener(SitePolicy, WatchingRule[tuple[str, Branch]]):
    """Reuses nothing, and hands on what TeaCache would watch at the stack."""

    name: ClassVar[str] = "listener"
    _hear: Any = PrivateAttr(default=None)

    @property
    def query(self) -> str:
        return str(Kind.STACK)

    @property
    def signal(self) -> Signal:
        return Signal.MODULATED_INPUT

    def begin(self, site: Site, branch: Branch, run: fc.Run) -> tuple[str, Branch]:
        return site.denoiser, branch

    def reuse(self, state: tuple[str, Branch], step: Step, seen: Tensor | None) -> bool:
        if seen is not None:
            self._hear(step, *state, seen)
        return False


class Calibration(BaseModel):
    """What was measured on one model, in plain numbers, and on which model that was.

    Attributes:
        model, scheduler: class and configuration fingerprint. steps: of the recorded runs. runs: how many.
        inputs, outputs: relative L1 change of the first block's modulated input and of the denoiser's output, from each
            step to the next, one list per run of `steps - 1` values; all branches of a step together. Of two denoisers
            each is compared with itself alone, so one value is missing where the second takes over.
        ratios: by branch, mean over tokens of |r_t| / |r_{t-1}| for the stack's residual r, averaged over runs; the
            first step's is 1.
        curves: by role, relative L1 distance to the value k steps before, averaged over layers, branches and runs: list
            k - 1 belongs to lag k; steps before k are 0. The denominator is the newer value.
        errors: the same for the stack's residual. gains, offsets: the regression of its newer value on the older one,
            over all elements, branches and runs.
        further: by policy and name, what the policies' own `measures` gave, by lag and step as `curves`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["fastercache-calibration"] = FORMAT
    version: Literal[1] = 1
    model: Component | None = None
    scheduler: Component | None = None
    steps: int = Field(ge=2)
    runs: int = Field(ge=1)
    inputs: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    ratios: dict[Branch, tuple[float, ...]]
    curves: dict[str, tuple[tuple[float, ...], ...]]
    errors: tuple[tuple[float, ...], ...]
    gains: tuple[tuple[float, ...], ...]
    offsets: tuple[tuple[float, ...], ...] = ()
    further: dict[str, dict[str, tuple[tuple[float, ...], ...]]] = Field(default_factory=dict)

    @property
    def mean_ratios(self) -> tuple[float, ...]:
        """One ratio a step for all branches: their mean, which is what diffusers calibrates for a batched call."""
        return tuple(sum(step) / len(step) for step in zip(*self.ratios.values(), strict=True))

    def own(self, policy: str) -> dict[str, Lags]:
        """What the `measures` of a policy gave, by their names. Raises RecordingError if they were not taken."""
        if policy not in self.further:
            raise RecordingError(
                f"this calibration lacks what {policy} measures: calibrate with calibrate(pipe, [the policy's class])"
            )
        return self.further[policy]

    def measured_for(self, policies: Collection[type[Policy]]) -> bool:
        """Whether the `measures` of these policies were taken too."""
        return all(set(cls.measures) <= set(self.further.get(cls.name, ())) for cls in policies)

    def check(self, target: Any) -> None:
        """Raises ConfigMismatch if this was not measured on the model and scheduler of `target`."""
        pairs = {"model": (self.model, identity_of(target)), "scheduler": (self.scheduler, _scheduler(target))}
        for name, (mine, theirs) in pairs.items():
            if mine is not None and theirs is not None and mine != theirs:
                raise ConfigMismatch(
                    f"this calibration was measured on the {name} {mine.kind} ({mine.fingerprint:.12}), this one is "
                    f"{theirs.kind} ({theirs.fingerprint:.12}): calibrate it with fastercache.analysis.calibrate"
                )

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all. Raises ConfigUnreadable, and NotFinite where a constant is no number."""
        left_out = None if self.further else {"further"}
        return write_json(path, self.model_dump(mode="json", exclude=left_out), "calibration", indent=None)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote. Raises ConfigUnreadable in one line."""
        return read_model(path, cls, "calibration")


def _scheduler(target: Any) -> Component | None:
    found = scheduler_identity(target)
    return None if found is None else Component(kind=found.kind, fingerprint=found.fingerprint)


def calibrate(target: Any, policies: Collection[type[Policy]] = (), *, lags: int = 6, **attach: Any) -> Calibrator:
    """Measure a model's constants over the runs made inside the context, all of the same number of steps.

    Args:
        target: a pipeline or a denoiser.
        policies: those whose own `measures` are taken beside what every calibration measures.
        lags: how many steps apart values are compared, which bounds how long SmoothCache and ERTACache can reuse; so
            many values of every attention, feed-forward and of the stack are held.
        attach: for `fastercache.attach`.

    Raises:
        NoSiteMatched: where a policy measures at sites that this model does not have.
    """
    listener = Listener()
    session = fc.attach(target, listener, **attach)
    try:
        sites = matches(f"{ROLES}|stack", session.sites)
        recorder = record(session, "|".join(s.name for s in sites), lags=lags)
        comparisons = [
            Comparison(cls.name, name, measure, select(measure.sites, session.sites), lags)
            for cls in policies
            for name, measure in cls.measures.items()
        ]
        return Calibrator(session, listener, recorder, target, comparisons)
    except BaseException:
        session.detach()
        raise


class Calibrator:
    """A calibration going on; a context manager that detaches."""

    def __init__(
        self, session: Any, listener: Listener, recorder: Recorder, subject: Any, comparisons: Sequence[Comparison] = ()
    ) -> None:
        self.session, self.recorder, self._subject = session, recorder, subject
        self._comparisons = comparisons
        listener._hear = self._heard
        self._run: Any = None
        self._last: dict[tuple[str, str, Branch], Tensor] = {}
        self._pending: dict[str, NDArray[np.float64]] = {}
        self._done: list[dict[str, NDArray[np.float64]]] = []
        self._watches = [session.watch("stack|denoiser", self._seen)]
        for comparison in comparisons:
            self._watches.append(session.watch("|".join(s.name for s in comparison.sites), comparison.see))

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watch in self._watches:
            watch.close()
        self.recorder.close()
        self.session.detach()
        self._last.clear()
        for comparison in self._comparisons:
            comparison.forget()

    def _begin(self, run: Any) -> None:
        self._close_run()
        self._run, self._last = run, {}
        shape = (2, len(run.branches), run.count)  # mean|change| and mean|older| by branch and step
        self._pending = {name: np.full(shape, np.nan) for name in ("input", "output")}
        for name in ("ratio", "mean", "called"):
            self._pending[name] = np.full((len(run.branches), run.count), np.nan)

    def _close_run(self) -> None:
        if self._run is not None and not np.isnan(self._pending["called"]).any():
            self._done.append(self._pending)
        self._run = None

    def _heard(self, step: Step, denoiser: str, branch: Branch, signal: Tensor) -> None:
        # The stack is asked about before any site of the step is observed, so a run may begin here.
        run = self.session.last.run
        if run is not self._run:
            self._begin(run)
        self._note("input", step, denoiser, branch, signal)

    @torch.no_grad()
    def _seen(self, seen: fc.Observation) -> None:
        if seen.code is not Code.COMPUTED or seen.run is not self._run:
            return
        if seen.site.kind is Kind.DENOISER:
            self._pending["called"][self._run.branches.index(seen.branch), seen.step.index] = 1.0
            self._note("output", seen.step, seen.site.denoiser, seen.branch, seen.value)
            return
        norm = torch.linalg.vector_norm(seen.value.float(), dim=-1)
        before = self._last.get(("ratio", seen.site.denoiser, seen.branch))
        at = self._run.branches.index(seen.branch), seen.step.index
        self._pending["ratio"][at] = 1.0 if before is None else float((norm / (before + 1e-8)).mean())
        self._pending["mean"][at] = float(seen.value.float().mean())
        self._last["ratio", seen.site.denoiser, seen.branch] = norm

    def _note(self, name: str, step: Step, denoiser: str, branch: Branch, value: Tensor) -> None:
        value = value.detach().float().clone()
        before = self._last.get((name, denoiser, branch))
        if before is not None and before.shape == value.shape:
            change = (float((value - before).abs().mean()), float(before.abs().mean()))
            self._pending[name][:, self._run.branches.index(branch), step.index] = change
        self._last[name, denoiser, branch] = value

    def result(self) -> Calibration:
        """The constants of all complete runs.

        Raises:
            RecordingError: without a complete run of two steps, or where a value is constantly zero, so that no
                relative change of it exists.
        """
        self._close_run()
        if self._done and self._done[0]["output"].shape[-1] < 2:
            raise RecordingError("calibration compares steps with one another: found 1 step, expected 2 or more")
        with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of means over nothing: _finite tells instead
            return self._measured()

    def _measured(self) -> Calibration:
        profile = self.recorder.profile()
        if not self._done:
            raise RecordingError("no complete run was recorded: call the pipeline inside `with calibrate(pipe)`")
        inputs, outputs = (
            tuple(_changes(*p.sum(1)) for p in (run[name] for run in self._done)) for name in ("input", "output")
        )
        ratios = np.mean([run["ratio"] for run in self._done], axis=0)
        gains, offsets = regressions(profile, "stack", np.mean([run["mean"] for run in self._done], axis=(0, 1)))
        roles = [str(role) for role in Role if matches(role, profile.sites)]
        curves, errors = {role: distances(profile, role) for role in roles}, distances(profile, "stack")
        measured = {"the first block's input": inputs, "the denoiser's output": outputs, "the stack's residual": errors}
        for name, values in {**measured, **{f"{role} sites": curve for role, curve in curves.items()}}.items():
            if not np.isfinite(np.asarray(values)).all():
                raise RecordingError(
                    f"no relative change of {name} exists: it is zero at some step, or not finite, so this model "
                    "cannot be calibrated"
                )
        further: dict[str, dict[str, Lags]] = {}
        for comparison in self._comparisons:
            further.setdefault(comparison.policy, {})[comparison.name] = comparison.result(profile.run)
        return Calibration(
            model=identity_of(self._subject),
            scheduler=_scheduler(self._subject),
            steps=profile.run.count,
            runs=profile.runs,
            inputs=inputs,
            outputs=outputs,
            ratios={branch: tuple(ratios[b].tolist()) for b, branch in enumerate(profile.branches)},
            curves=curves,
            errors=errors,
            gains=gains,
            offsets=offsets,
            further=further,
        )


def _changes(changed: NDArray[np.float64], older: NDArray[np.float64]) -> tuple[float, ...]:
    """The relative changes of the steps that have one before them in the same denoiser."""
    known = ~np.isnan(older)
    return tuple((changed[known] / older[known]).tolist())


def _mean(values: NDArray[Any], axes: tuple[int, ...], none: float) -> NDArray[Any]:
    """The mean over what is known; `none` where nothing is."""
    count = (~np.isnan(values)).sum(axis=axes)
    return np.where(count > 0, np.nansum(values, axis=axes) / np.maximum(count, 1), none)


def distances(profile: Profile, query: str) -> tuple[tuple[float, ...], ...]:
    """Relative L1 distance by lag and step, averaged over runs, sites and branches; relative to the newer value.

    It is 1 where the two steps belong to different denoisers, neither of which can reuse what the other computed.
    """
    found = []
    for lag in range(1, min(profile.info.lags, profile.run.count - 1) + 1):
        values = np.stack([profile.lag(query, "rel_l1", lag, branch) for branch in profile.branches])
        mean = np.zeros(profile.run.count)
        mean[lag:] = _mean(values[..., lag:], (0, 1, 2), none=1.0)
        found.append(tuple(mean.tolist()))
    return tuple(found)


def regressions(
    profile: Profile, query: str, means: NDArray[np.float64]
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Gain and offset by lag and step: the line through the value k steps before that is nearest to the newer one.

    `means` (T,): mean of the value over elements, branches and runs. With second moments E[F_i F_j] of the profile,
    gain = (E[F_t F_s] - m_t m_s) / (E[F_s^2] - m_s^2) and offset = m_t - gain m_s, s being k steps before t.
    """
    places = [profile.sites.index(site) for site in select(query, profile.sites)]
    spread = _mean(profile.gram[places], (0, 1), none=np.nan) - np.outer(means, means)
    gains, offsets = [], []
    for lag in range(1, min(profile.info.lags, profile.run.count - 1) + 1):
        own, shared = np.diagonal(spread)[:-lag], np.diagonal(spread, -lag)
        gain, offset = np.zeros(profile.run.count), np.zeros(profile.run.count)
        gain[lag:] = np.where(own > 0, shared / np.where(own > 0, own, 1.0), 1.0)
        offset[lag:] = means[lag:] - gain[lag:] * means[:-lag]
        apart = np.isnan(shared)  # different denoisers: neither reads what the other computed
        gain[lag:][apart], offset[lag:][apart] = 1.0, 0.0
        gains.append(tuple(gain.tolist()))
        offsets.append(tuple(offset.tolist()))
    return tuple(gains), tuple(offsets)

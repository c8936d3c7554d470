"""A recording's statistics: a frozen result of plain arrays that knows what it was measured on, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from fastercache.analysis.measures import ORDER, from_norms, measure_of
from fastercache.analysis.predictability import INTERVALS, Predictability, predictability
from fastercache.policies.documents import read_bytes, read_model, write_atomic, write_json
from fastercache.policies.errors import ConfigUnreadable, RecordingError, suggest, told
from fastercache.policies.notebook import Framed
from fastercache.policies.vocabulary import COND, Branch, Kind, Role, Run, Site, Step, select

FORMAT: Final = "fastercache-profile"
VERSION: Final = 1
MAX_ARRAYS = 2**34
"""Bytes of the largest file of arrays that is read."""
JSON_NAME, ARRAYS_NAME = "profile.json", "profile.safetensors"


class SiteRow(BaseModel):
    """A site in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: Kind
    role: Role | None = None
    depth: int = -1
    span: tuple[int, int] = (0, 0)
    denoiser: str = ""

    @classmethod
    def of(cls, site: Site) -> SiteRow:
        return cls(**{name: getattr(site, name) for name in cls.model_fields})

    def site(self) -> Site:
        return Site(**dict(self))


class Component(BaseModel):
    """A model or scheduler: its class, and the fingerprint of its configuration as tuned configs have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    fingerprint: str


class ProfileInfo(BaseModel):
    """What a profile was recorded on, and how.

    Attributes:
        pipeline: class of the pipeline, None for a bare denoiser. model, scheduler: class and config fingerprint.
        guidance_scale: of the last run, where the pipeline tells.
        policy: the policy in force while recording, serialised; some values may be predictions (`predicted`: how many).
        query: the sites asked for. sites, branches: the axes of the arrays.
        timesteps, sigmas: per step.
        runs: complete runs averaged, one prompt (or batch of prompts) each. discarded: runs that did not end.
        values: values observed; predicted: how many of them a policy stood in for.
        lags: K, up to which lags are exact. sketch, sample: widths of the two summaries. seed: of both.
        max_bytes: what the recording was allowed to hold; None in a profile of an older version.
        tokens: site -> (kept, of how many): where a value was too large for that, statistics are those of a fixed
            sample of its tokens, norms and lags included.
        token_error: how far the root mean square of such samples was from that of the whole values: the relative
            error, root mean square over all of them. None where all values were kept whole.
        projection_error: relative standard error of an L2 distance beyond lag K, sqrt(1 / (2 sketch)).
        check: estimated against exact distances at lags up to K: relative root mean square error of L1 and L2
            distances; None where no site is wider than the summaries, so that nothing was estimated.
        bands: whether the low and high bands of the guidance similarity could be taken.
        packages: versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["fastercache-profile"] = FORMAT
    version: Literal[1] = VERSION
    pipeline: str | None = None
    model: Component | None = None
    scheduler: Component | None = None
    guidance_scale: float | None = None
    policy: dict[str, Any] = Field(default_factory=dict)
    query: str
    sites: tuple[SiteRow, ...]
    branches: tuple[Branch, ...]
    timesteps: tuple[float, ...]
    sigmas: tuple[float | None, ...]
    runs: int = Field(ge=1)
    discarded: int = Field(default=0, ge=0)
    values: int = Field(ge=0)
    predicted: int = Field(default=0, ge=0)
    lags: int = Field(ge=1)
    sketch: int = Field(ge=1)
    sample: int = Field(ge=1)
    seed: int
    max_bytes: int | None = Field(default=None, ge=1)
    tokens: dict[str, tuple[int, int]] = Field(default_factory=dict)
    token_error: float | None = None
    projection_error: float
    check: dict[Literal["rel_l1", "rel_l2"], float] | None = None
    bands: bool = True
    packages: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Profile(Framed):
    """Statistics of R runs over S sites, B branches and T steps. NaN marks what was not reached.

    Attributes:
        info: what it was measured on.
        l1, rms: mean|F_i| and root mean square, (R, S, B, T), exact.
        lag_l1, lag_rms: mean|F_i − F_{i−k}| and its root mean square, (R, S, B, T, K), exact.
        gram: mean over runs of mean F_i F_j, (S, B, T, T) float64: the mean squared error of *any* linear predictor
            sum_j c_j F_j at step i is c' G c with c_i = −1.
        matrix_mean, matrix_std: mean and standard deviation over runs of the measures of step j standing in for step i,
            (S, B, T, T, 3); denominator: the norm at step i (row). Exact for |i − j| <= K, estimated beyond.
        guidance: the conditional output standing in for each branch's, (R, B, T, bands, 3); denominator: that branch's
            norm. NaN for the conditional branch; of size (R, B, T, 0, 0) if no denoiser site was recorded.
    """

    info: ProfileInfo
    l1: NDArray[np.float32]
    rms: NDArray[np.float32]
    lag_l1: NDArray[np.float32]
    lag_rms: NDArray[np.float32]
    gram: NDArray[np.float64]
    matrix_mean: NDArray[np.float32]
    matrix_std: NDArray[np.float32]
    guidance: NDArray[np.float32]

    def _facts(self) -> dict[str, object]:
        groups = {name: len(sites) for name, sites in self.groups()}
        return {
            "pipeline": self.info.pipeline,
            "sites": groups,
            "branches": self.branches,
            "steps": len(self.info.timesteps),
            "runs": self.runs,
        }

    @property
    def sites(self) -> tuple[Site, ...]:
        """The recorded sites, the first axis of the arrays."""
        return tuple(row.site() for row in self.info.sites)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The recorded guidance branches, the second axis of the arrays."""
        return self.info.branches

    @property
    def runs(self) -> int:
        """How many complete runs the statistics are means over."""
        return self.info.runs

    @property
    def run(self) -> Run:
        """The recorded kind of run, for policies to be compiled on."""
        count = len(self.info.timesteps)
        pairs = zip(self.info.timesteps, self.info.sigmas, strict=True)
        return Run(tuple(Step(i, count, t, s) for i, (t, s) in enumerate(pairs)), self.branches, self.sites)

    def index(self, query: str) -> list[int]:
        """Positions of the sites a query names. Raises NoSiteMatched."""
        places = {site.name: i for i, site in enumerate(self.sites)}
        chosen = select(query, self.sites)
        missing = [site.name for site in chosen if site.name not in places]
        if missing:
            raise RecordingError(f"'{missing[0]}' was not recorded; recorded were {', '.join(places)}")
        return [places[site.name] for site in chosen]

    def branch(self, name: Branch) -> int:
        """Position of a branch. Raises RecordingError."""
        if name not in self.branches:
            raise RecordingError(f"the recording has no branch '{name}'{suggest(name, self.branches)}")
        return self.branches.index(name)

    def cells(self, query: str, branch: Branch | None = None) -> tuple[list[int], list[int]]:
        """Positions of the sites a query names and, for each, of its branch.

        Without a branch: the conditional one, and for a guidance difference (kind `branch`) the first other one.
        """
        sites = self.index(query)
        if branch is not None:
            return sites, [self.branch(branch)] * len(sites)
        kinds = [self.sites[i].kind for i in sites]
        others = [i for i, name in enumerate(self.branches) if name != COND]
        return sites, [others[0] if kind is Kind.BRANCH and others else self.branch(COND) for kind in kinds]

    def matrix(self, query: str, measure: str, branch: Branch | None = None) -> NDArray[np.float32]:
        """Step x step matrix (T, T) of a measure, the mean over runs and over the sites the query names.

        Row i is the step that is replaced (its norm the denominator), column j the step whose value stands in.
        `branch`: as in `cells`.
        """
        which = ORDER.index(measure_of(measure).name)
        sites, branches = self.cells(query, branch)
        mean: NDArray[np.float32] = self.matrix_mean[sites, branches][..., which].mean(axis=0)
        return mean

    def lag(self, query: str, measure: str, lag: int = 1, branch: Branch | None = None) -> NDArray[np.float32]:
        """A measure of step i − lag standing in for step i, exact: (R, sites, T), NaN for i < lag.

        The denominator is the norm at step i; `branch` as in `cells`.

        Raises:
            RecordingError: for a lag that was not recorded.
        """
        if not 1 <= lag <= self.info.lags:
            raise RecordingError(
                f"lags 1 to {self.info.lags} were recorded exactly, found {lag}: record(..., lags={lag})"
            )
        which = ORDER.index(measure_of(measure).name)
        part = (slice(None), *self.cells(query, branch))
        rms = torch.from_numpy(self.rms[part].astype(np.float64))
        before = torch.full_like(rms, torch.nan)
        before[..., lag:] = rms[..., :-lag]
        l1, l2 = (torch.from_numpy(a[part][..., lag - 1].astype(np.float64)) for a in (self.lag_l1, self.lag_rms))
        values = from_norms(l1, l2, torch.from_numpy(self.l1[part].astype(np.float64)), before, rms)
        return values[..., which].numpy().astype(np.float32)

    def rows(self) -> list[dict[str, object]]:
        """One row for each site, branch and step that was reached: its norms, and each measure of the step before
        standing in for it, means over runs; None at the first step."""
        found: list[dict[str, object]] = []
        l1, rms = self.l1.mean(axis=0), self.rms.mean(axis=0)  # (S, B, T)
        for s, site in enumerate(self.sites):
            what: dict[str, object] = {
                "site": site.name,
                "kind": str(site.kind),
                "role": None if site.role is None else str(site.role),
            }
            for b, branch in enumerate(self.branches):
                for i, timestep in enumerate(self.info.timesteps):
                    if np.isnan(l1[s, b, i]):
                        continue
                    norms = {"mean_abs": float(l1[s, b, i]), "rms": float(rms[s, b, i])}
                    before = self.matrix_mean[s, b, i, i - 1].tolist() if i else [None] * len(ORDER)
                    measures = zip(ORDER, before, strict=True)
                    found.append({**what, "branch": branch, "step": i, "timestep": timestep, **norms, **dict(measures)})
        return found

    def groups(self) -> Iterator[tuple[str, list[int]]]:
        """Recorded sites by role (module sites) or kind (others), in execution order: (name, positions)."""
        found: dict[str, list[int]] = {}
        for i, site in enumerate(self.sites):
            found.setdefault(str(site.role or site.kind), []).append(i)
        yield from found.items()

    def predictability(
        self, query: str, branch: Branch | None = None, intervals: Sequence[int] = INTERVALS
    ) -> Predictability:
        """The errors that predictors would have made at the sites a query names, root mean squares over them.

        The recording holds the mean over runs, so `fitted` is fitted on what it is judged on. Inner products of values
        wider than `info.sketch` are estimates, and errors far below `info.projection_error` are too. `branch`: as in
        `cells`.
        Raises RecordingError where a site's values were not recorded at every step.
        """
        grams = [self.gram[site, b] for site, b in zip(*self.cells(query, branch), strict=True)]
        if not np.isfinite(grams).all():
            raise RecordingError(f"'{query}' was not reached at every step: record the uncached pipeline")
        found = [predictability(gram[None], self.run.steps, intervals=intervals) for gram in grams]
        errors = np.sqrt(np.mean([one.errors**2 for one in found], axis=0))
        return replace(found[0], errors=errors, runs=self.runs)

    # -- files -------------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> Path:
        """Write `profile.json` and `profile.safetensors` into a folder, which is made where it is missing."""
        folder = Path(folder)
        arrays = {f.name: torch.from_numpy(np.ascontiguousarray(getattr(self, f.name))) for f in fields(self)[1:]}
        write_atomic(folder / ARRAYS_NAME, to_bytes(arrays), "profile")
        write_json(folder / JSON_NAME, self.info.model_dump(mode="json"), "profile")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Profile:
        """Read what `save` wrote. Raises ConfigUnreadable in one line if it is missing, damaged or foreign."""
        folder = Path(folder)
        info = read_model(folder / JSON_NAME, ProfileInfo, "profile")
        data = read_bytes(folder / ARRAYS_NAME, "file of a profile's arrays", limit=MAX_ARRAYS)
        try:
            arrays = {name: tensor.numpy() for name, tensor in from_bytes(data).items()}
        except (
            SafetensorError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:  # foreign numbers too
            raise ConfigUnreadable(
                f"the profile in {folder} is damaged or was cut off ({told(error)}): record it again"
            ) from None
        return cls._of(info, arrays, folder)

    @classmethod
    def _of(cls, info: ProfileInfo, arrays: dict[str, NDArray[Any]], folder: Path) -> Profile:
        if len(info.timesteps) != len(info.sigmas):
            raise ConfigUnreadable(f"the profile in {folder} is damaged: as many timesteps as sigmas were expected")
        r, s, b, t, k = info.runs, len(info.sites), len(info.branches), len(info.timesteps), info.lags
        shapes: dict[str, tuple[int, ...]] = {
            "l1": (r, s, b, t), "rms": (r, s, b, t), "lag_l1": (r, s, b, t, k), "lag_rms": (r, s, b, t, k),
            "gram": (s, b, t, t), "matrix_mean": (s, b, t, t, 3), "matrix_std": (s, b, t, t, 3),
            "guidance": (r, b, t, *arrays.get("guidance", np.empty((0,) * 5)).shape[3:]),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = arrays.get(name)
            if array is None or array.shape != shape or array.dtype.kind != "f":
                found = "" if array is None else f"has shape {array.shape} of {array.dtype}, expected {shape} of floats"
                what = found or "is missing"
                raise ConfigUnreadable(f"the profile in {folder} is damaged: '{name}' {what}: record it again")
        return cls(info, **{name: arrays[name] for name in shapes})

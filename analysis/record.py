"""Recording: stream the values of a pipeline's sites through `Session.watch` into a `Profile`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import fastercache as fc
from fastercache.analysis.aggregate import RunSums
from fastercache.analysis.profile import Component, Profile, ProfileInfo, SiteRow
from fastercache.analysis.sketch import projection_error
from fastercache.analysis.tape import Deck, GuidanceTape
from fastercache.policies.errors import FasterCacheError, RecordingError
from fastercache.policies.registry import dump
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Branch, Kind, Run, Site, matches, select
from fastercache.tuned import model_identity, package_versions, scheduler_identity

DEFAULT_SITES = "attention|denoiser|branch"


def record(
    target: Any,
    sites: str | None = None,
    *,
    lags: int = 4,
    sketch: int = 2048,
    sample: int = 2048,
    seed: int = 0,
    raw: str | Path | None = None,
    **attach: Any,
) -> Recorder:
    """Record what a pipeline's sites compute, as statistics that do not grow with their size times the steps.

    >>> with record(pipe, sites="attention|denoiser|branch") as recorder:                  # doctest: +SKIP
    ...     for prompt in prompts:
    ...         pipe(prompt)
    >>> profile = recorder.profile()                                                      # doctest: +SKIP

    Give one prompt per call, so that the spread over runs is that over prompts. All runs of a recording have the same
    steps.

    Args:
        target: a pipeline, a denoiser (with `guidance=...`, then `recorder.session.start(timesteps)`), or a session. A
            session attached already stays attached, and its policy may make some values predictions.
        sites: a site query; every term must match. By default all self-attentions, the denoiser's output and the
            guidance difference, as far as the model has them.
        lags: K: similarities up to this distance in steps are exact; K values of every site are held.
        sketch, sample: widths of the two random summaries that the rest is estimated from (see
        `fastercache.analysis.sketch`):
            relative standard error of an L2 distance sqrt(1 / (2 sketch)).
        seed: of the summaries.
        raw: a folder for the values themselves, one safetensors file per step: `run000/step000.safetensors` with keys
            `site|branch`. Slow, and as big as it sounds.
        **attach: passed on to `fastercache.attach`.

    Raises:
        NoSiteMatched: a term of `sites` matches nothing. RecordingError: a size below 1, or a `raw` folder in use.
        AttachError: as `fastercache.attach`.
    """
    for name, value in (("lags", lags), ("sketch", sketch), ("sample", sample)):
        if value < 1:
            raise RecordingError(f"{name} must be at least 1, found {value}")
    if isinstance(target, fc.Session):
        if attach:
            raise RecordingError(f"{', '.join(attach)} cannot be changed on a session that is attached already")
        return Recorder(target, sites, lags, sketch, sample, seed, raw, owned=False)
    query = sites or "|".join(s.name for s in matches(DEFAULT_SITES, fc.find_sites(target)))
    session = fc.attach(target, fc.NoCache(sites=query or DEFAULT_SITES), **attach)
    try:
        return Recorder(session, sites, lags, sketch, sample, seed, raw, owned=True, subject=target)
    except BaseException:
        session.detach()
        raise


class Recorder:
    """A recording going on. Made by `record`; a context manager that stops watching, and detaches what it attached."""

    def __init__(
        self,
        session: Any,
        sites: str | None,
        lags: int,
        sketch: int,
        sample: int,
        seed: int,
        raw: str | Path | None,
        *,
        owned: bool,
        subject: Any = None,
    ) -> None:
        self.session = session
        self._owned, self._subject = owned, subject if subject is not None else session.pipe
        self._lags, self._sketch, self._sample, self._seed = lags, sketch, sample, seed
        chosen = select(sites, session.sites) if sites is not None else matches(DEFAULT_SITES, session.sites)
        if not chosen:
            raise RecordingError(f"the model has none of the sites '{DEFAULT_SITES}': pass sites=...")
        self.sites: tuple[Site, ...] = chosen
        self.query = sites if sites is not None else DEFAULT_SITES
        self._raw = _Raw(Path(raw)) if raw is not None else None
        self._decks: list[Deck] = []
        self._places: dict[tuple[str, Branch], tuple[Deck, int]] = {}
        self._fresh: dict[tuple[str, Branch], Tensor] = {}  # values of this step that have no place yet
        self._guidance: GuidanceTape | None = None
        self._run: Run | None = None
        self._first: Run | None = None
        self._last_step = -1
        self._values = self._predicted = self._run_values = self._run_predicted = self._discarded = 0
        self._guidance_scale: float | None = None
        self._sums: RunSums | None = None
        self._watch = session.watch("|".join(site.name for site in chosen), self._observe)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording; what was recorded stays. Calling it again does nothing."""
        self._watch.close()
        if self._owned:
            self.session.detach()
        if self._raw is not None:
            self._raw.flush()

    @property
    def runs(self) -> int:
        """Complete runs recorded so far."""
        self._finish()
        return self._sums.runs if self._sums else 0

    # -- while a run goes on -----------------------------------------------------------------------------------------
    @torch.no_grad()
    def _observe(self, seen: fc.Observation) -> None:
        if seen.run is not self._run:
            self._begin(seen.run)
        key, step = (seen.site.name, seen.branch), seen.step.index
        if step != self._last_step and self._last_step >= 0:
            self._settle()
        self._last_step = step
        self._run_values += 1
        self._run_predicted += seen.code is not Code.COMPUTED
        place = self._places.get(key)
        if place is not None and place[0].fits(seen.value):
            place[0].put(place[1], step, seen.value)
        else:
            self._fresh[key] = seen.value.detach().clone()
        if seen.site.kind is Kind.DENOISER and self._first is not None and len(self._first.branches) > 1:
            if self._guidance is None:
                self._guidance = GuidanceTape(self._first.count, self._first.branches, seen.value.device)
            self._guidance.add(step, seen.branch, seen.value)
        if self._raw is not None:
            self._raw.add(step, f"{seen.site.name}|{seen.branch}", seen.value)

    def _begin(self, run: Run) -> None:
        self._finish()
        first = self._first or run
        if (run.count, run.branches) != (first.count, first.branches):
            raise RecordingError(
                f"this recording holds runs of {first.count} steps with branches {', '.join(first.branches)}, "
                f"a run of {run.count} steps with {', '.join(run.branches)} needs a recording of its own"
            )
        self._first, self._run, self._last_step = first, run, -1
        self._decks = list(dict.fromkeys(deck for deck, _ in self._places.values()))  # those of other sizes are dropped
        for deck in self._decks:
            deck.begin()
        if self._raw is not None:
            self._raw.begin()

    def _settle(self) -> None:
        """The values of the last step are all there: give new ones their decks, and reduce them."""
        assert self._first is not None  # set by _begin
        sizes: dict[tuple[int, torch.dtype, torch.device], list[tuple[str, Branch]]] = {}
        for key, value in self._fresh.items():
            sizes.setdefault((value.numel(), value.dtype, value.device), []).append(key)
        for keys in sizes.values():
            widths = {"lags": self._lags, "sketch": self._sketch, "sample": self._sample, "seed": self._seed}
            deck = Deck(len(keys), self._first.count, self._fresh[keys[0]], **widths)
            self._decks.append(deck)
            for row, key in enumerate(keys):
                self._places[key] = (deck, row)
                deck.put(row, self._last_step, self._fresh[key])
        self._fresh = {}
        for deck in self._decks:
            deck.settle(self._last_step)

    # -- when it ended -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _finish(self) -> None:
        """Turn the run that ended into statistics; one that did not reach its last step is only counted."""
        run, self._run = self._run, None
        if run is None:
            return
        if self._last_step == run.count - 1:
            if self._sums is None:
                self._sums = RunSums(self.sites, run)
            self._settle()
            statistics = {key: deck.close(row) for key, (deck, row) in self._places.items() if deck.recorded(row)}
            guidance = None if self._guidance is None else self._guidance.close()
            self._sums.add(statistics, guidance)
            self._values += self._run_values
            self._predicted += self._run_predicted
            scale = getattr(self.session.pipe, "guidance_scale", None)
            self._guidance_scale = float(scale) if isinstance(scale, (int, float)) else None
            self._bands = self._guidance is None or self._guidance.bands
        else:
            self._discarded += 1
        self._fresh, self._guidance = {}, None
        self._run_values = self._run_predicted = 0
        if self._raw is not None:
            self._raw.flush()

    def profile(self) -> Profile:
        """The statistics of all complete runs so far. Raises RecordingError if there is none."""
        self._finish()
        sums, run = self._sums, self._first
        if sums is None or run is None:
            raise RecordingError(
                "no complete run was recorded: call the pipeline inside `with record(pipe) as recorder:`"
                + (f" ({self._discarded} did not reach their last step)" if self._discarded else "")
            )
        model = None if self._subject is None else identity_of(self._subject)
        scheduler = None if self._subject is None else scheduler_identity(self._subject)
        info = ProfileInfo(
            pipeline=None if self.session.pipe is None else type(self.session.pipe).__name__,
            model=model,
            scheduler=None if scheduler is None else Component(kind=scheduler.kind, fingerprint=scheduler.fingerprint),
            guidance_scale=self._guidance_scale,
            policy=dump(self.session.policy),
            query=self.query,
            sites=tuple(SiteRow.of(site) for site in self.sites),
            branches=run.branches,
            timesteps=tuple(step.timestep for step in run.steps),
            sigmas=tuple(step.sigma for step in run.steps),
            runs=sums.runs,
            discarded=self._discarded,
            values=self._values,
            predicted=self._predicted,
            lags=self._lags,
            sketch=self._sketch,
            sample=self._sample,
            seed=self._seed,
            projection_error=projection_error(self._sketch),
            check=sums.check(),
            bands=self._bands,
            packages=package_versions(),
        )
        return Profile(info, **sums.arrays())


def identity_of(subject: Any) -> Component | None:
    try:
        denoiser = model_identity(subject).denoiser
    except FasterCacheError:
        return None
    return Component(kind=denoiser.kind, fingerprint=denoiser.fingerprint)


class _Raw:
    """Writes the values of each step to one safetensors file."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise RecordingError(f"the folder for raw values {folder} is not empty: give a new one")
        self._folder, self._run, self._step = folder, -1, -1
        self._values: dict[str, Tensor] = {}

    def begin(self) -> None:
        self.flush()
        self._run, self._step = self._run + 1, -1

    def add(self, step: int, key: str, value: Tensor) -> None:
        if step != self._step:
            self.flush()
            self._step = step
        self._values[key] = value.detach().to("cpu", copy=True).contiguous()

    def flush(self) -> None:
        if self._values:
            path = self._folder / f"run{self._run:03d}" / f"step{self._step:03d}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(self._values, str(path))
            self._values = {}

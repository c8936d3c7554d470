"""Recording: stream the values of a pipeline's sites through `Session.watch` into a `Profile`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor

import fastercache as fc
from fastercache.analysis.aggregate import RunSums
from fastercache.analysis.bound import MAX_BYTES, Bound, Layout
from fastercache.analysis.guidance_tape import GuidanceTape, pair_bytes
from fastercache.analysis.profile import Component, Profile, ProfileInfo, SiteRow
from fastercache.analysis.sketch import Tokens, projection_error
from fastercache.analysis.tape import Deck, TapeStatistics
from fastercache.policies.errors import FasterCacheError, RecordingError
from fastercache.policies.registry import dump
from fastercache.policies.schedule import Code
from fastercache.policies.vocabulary import Branch, Kind, Run, Site, matches, select
from fastercache.tuned import guidance_scale_of, model_identity, package_versions, scheduler_identity

DEFAULT_SITES = "attention|denoiser|branch"


def record(
    target: Any,
    sites: str | None = None,
    *,
    lags: int = 2,
    sketch: int = 2048,
    sample: int = 2048,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
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
        seed: of the summaries, and of the tokens kept.
        max_bytes: the most that the recording holds beside the model, working copies included. Where K + 1 values of
            every site and branch are more, each keeps a fixed sample of its tokens, and the statistics are of those;
            the profile says how many, and how far their mean square was from that of the whole value.
        raw: a folder for the values themselves, one safetensors file per step: `run000/step000.safetensors` with keys
            `site|branch`. Slow, and as big as it sounds; a step's values wait in the host's memory, beside `max_bytes`.
        **attach: passed on to `fastercache.attach`.

    Raises:
        NoSiteMatched: a term of `sites` matches nothing. RecordingError: a size below 1, a `raw` folder in use, or, at
            the first step, a `max_bytes` that leaves fewer than 64 tokens of a value.
        AttachError: as `fastercache.attach`.
    """
    for name, value in (("lags", lags), ("sketch", sketch), ("sample", sample), ("max_bytes", max_bytes)):
        if value < 1:
            raise RecordingError(f"{name} must be at least 1, found {value}")
    if isinstance(target, fc.Session):
        if attach:
            raise RecordingError(f"{', '.join(attach)} cannot be changed on a session that is attached already")
        return Recorder(target, sites, lags, sketch, sample, seed, raw, max_bytes, owned=False)
    # whether there is a second branch shows only when the pipeline is called, so a policy must not ask for it
    usual = [s.name for s in matches(DEFAULT_SITES, fc.find_sites(target)) if s.kind is not Kind.BRANCH]
    session = fc.attach(target, fc.NoCache(sites=sites or "|".join(usual) or DEFAULT_SITES), **attach)
    try:
        return Recorder(session, sites, lags, sketch, sample, seed, raw, max_bytes, owned=True, subject=target)
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
        max_bytes: int = MAX_BYTES,
        *,
        owned: bool,
        subject: Any = None,
    ) -> None:
        self.session = session
        self._owned, self._subject = owned, subject if subject is not None else session.pipe
        self._widths = {"lags": lags, "sketch": sketch, "sample": sample, "seed": seed}
        self._max_bytes, self._bound = max_bytes, cast("Bound | None", None)
        chosen = select(sites, session.sites) if sites is not None else matches(DEFAULT_SITES, session.sites)
        if not chosen:
            raise RecordingError(f"the model has none of the sites '{DEFAULT_SITES}': pass sites=...")
        self.sites: tuple[Site, ...] = chosen
        self.query = sites if sites is not None else DEFAULT_SITES
        self._usual = sites is None
        self._raw = _Raw(Path(raw)) if raw is not None else None
        self._decks: list[Deck] = []
        self._places: dict[tuple[str, Branch], tuple[Deck, int]] = {}
        self._fresh: dict[tuple[str, Branch], _Fresh] = {}  # values of this step that have no place yet
        self._guidance: GuidanceTape | None = None
        self._run: Run | None = None
        self._first: Run | None = None
        self._last_step = -1
        self._values = self._predicted = self._run_values = self._run_predicted = self._discarded = 0
        self._guidance_scale: float | None = None
        self._scale: float | None = None  # of the run that goes on
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
    def _observe(self, seen: fc.Observation) -> None:
        if seen.run is not self._run:
            self._begin(seen.run)
        bound = self._bound
        assert bound is not None  # set by _begin
        key, step = (seen.site.name, seen.branch), seen.step.index
        if step != self._last_step and self._last_step >= 0:
            self._settle()
        self._last_step = step
        self._run_values += 1
        self._run_predicted += seen.code is not Code.COMPUTED
        place = self._places.get(key)
        if place is not None and not place[0].fits(seen.value):
            self._release(place[0], seen)
            place = None
        if place is not None:
            place[0].put(place[1], step, seen.value)
        else:
            self._fresh[key] = _Fresh.of(seen.value, bound.tokens(seen.value, seen.site.name))
        if seen.site.kind is Kind.DENOISER and self._first is not None and len(self._first.branches) > 1:
            if self._guidance is None:
                order = self._first.branches
                together = bound.pairs(pair_bytes(seen.value), len(order) - 1)
                self._guidance = GuidanceTape(self._first.count, order, seen.value.device, together)
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
        self._scale = guidance_scale_of(self.session.pipe, self.session.call_arguments)
        if self._bound is None:
            if self._usual and len(run.branches) == 1:  # guidance is off, or distilled into the model
                self.sites = tuple(site for site in self.sites if site.kind is not Kind.BRANCH)
            others = {Kind.BRANCH: len(run.branches) - 1}
            rows = sum(others.get(site.kind, len(run.branches)) for site in self.sites)
            self._bound = Bound(self._max_bytes, max(1, rows), run.count, **self._widths)
        self._decks = list(dict.fromkeys(deck for deck, _ in self._places.values()))  # those of other sizes are dropped
        for deck in self._decks:
            deck.begin()
        if self._raw is not None:
            self._raw.begin()

    def _release(self, deck: Deck, seen: fc.Observation) -> None:
        """Give up a deck one of whose values has another size in this run; what it holds of this step waits for one."""
        step = seen.step.index
        if any(deck.recorded(row) for row in range(deck.rows)):
            raise RecordingError(
                f"{seen.site.name} has a value of another size at step {step} of one run ({tuple(seen.value.shape)}): "
                "steps cannot be compared, record other sites"
            )
        for key, (other, row) in list(self._places.items()):
            if other is deck:
                del self._places[key]
                waiting = deck.waiting(row, step)
                if waiting is not None:
                    self._fresh[key] = _Fresh(deck.tokens, *waiting)
        self._decks.remove(deck)

    def _settle(self) -> None:
        """The values of the last step are all there: give new ones their decks, and reduce them."""
        assert self._first is not None and self._bound is not None  # set by _begin
        layouts: dict[Layout, list[tuple[str, Branch]]] = {}
        for key, one in self._fresh.items():
            layouts.setdefault(one.layout, []).append(key)
        if layouts:
            sizes = {}
            for layout, keys in layouts.items():
                sizes[layout] = (len(keys), self._fresh[keys[0]].kept.element_size(), keys[0][0])
            fitting = self._bound.fit(sizes, self._decks)
            for layout, keys in layouts.items():
                self._place(keys, fitting[layout])
        self._fresh = {}
        for deck in self._decks:
            deck.settle(self._last_step)

    def _place(self, keys: list[tuple[str, Branch]], kept: int) -> None:
        """A deck for new values of one layout, each as so many of its tokens."""
        assert self._first is not None
        tokens = self._fresh[keys[0]].tokens.fewer(kept)
        deck = Deck(len(keys), self._first.count, self._fresh[keys[0]].kept, tokens, **self._widths)
        self._decks.append(deck)
        for row, key in enumerate(keys):
            one = self._fresh.pop(key)
            self._places[key] = (deck, row)
            deck.put_kept(row, self._last_step, one.tokens.shrunk(one.kept, tokens), one.mean_square)

    # -- when it ended -----------------------------------------------------------------------------------------------
    def _finish(self) -> None:
        """Turn the run that ended into statistics; one that did not reach its last step is only counted."""
        run, self._run = self._run, None
        if run is None:
            return
        if self._last_step == run.count - 1:
            if self._sums is None:
                self._sums = RunSums(self.sites, run)
            self._settle()
            statistics = dict(self._statistics())
            guidance = None if self._guidance is None else self._guidance.close()
            self._sums.add(statistics, guidance)
            self._values += self._run_values
            self._predicted += self._run_predicted
            self._guidance_scale = self._scale
            self._bands = self._guidance is None or self._guidance.bands
        else:
            self._discarded += 1
        self._fresh, self._guidance = {}, None
        self._run_values = self._run_predicted = 0
        if self._raw is not None:
            self._raw.flush()

    def _statistics(self) -> Iterator[tuple[tuple[str, Branch], TapeStatistics]]:
        for deck in self._decks:
            rows = {key: row for key, (one, row) in self._places.items() if one is deck and deck.recorded(row)}
            yield from zip(rows, deck.close(list(rows.values())), strict=True)

    def _tokens(self) -> dict[str, tuple[int, int]]:
        """How many tokens were kept of how many, by site; sites that were kept whole are left out."""
        kept = {site: deck.tokens for (site, _), (deck, _) in self._places.items()}
        return {site: (tokens.kept, tokens.count) for site, tokens in kept.items() if not tokens.whole}

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
            lags=self._widths["lags"],
            sketch=self._widths["sketch"],
            sample=self._widths["sample"],
            seed=self._widths["seed"],
            max_bytes=self._max_bytes,
            tokens=self._tokens(),
            token_error=sums.token_check(),
            projection_error=projection_error(self._widths["sketch"]),
            check=sums.check(),
            bands=self._bands,
            packages=package_versions(),
        )
        return Profile(info, **sums.arrays())


@dataclass(frozen=True)
class _Fresh:
    """A value that has no deck yet: some of its tokens, and the mean square of all of them."""

    tokens: Tokens
    kept: Tensor
    mean_square: Tensor | None

    @classmethod
    def of(cls, value: Tensor, tokens: Tokens) -> _Fresh:
        kept = tokens.of(value)
        return cls(tokens, kept.clone() if tokens.whole else kept, tokens.mean_square(value))

    @property
    def layout(self) -> Layout:
        return Layout(self.tokens.count, self.tokens.width, self.kept.dtype, self.kept.device)


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

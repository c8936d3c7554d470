"""Several entries on the same prompts and seeds, timed interleaved, judged against the uncached videos.

Timing policies one after another would credit the last with whatever the machine does meanwhile (clock, caches, other
processes). Here each prompt runs all of them, in heats of a few entries with an uncached run in each, in an order that
changes from prompt to prompt; every entry's seconds are compared with those of the uncached run of its own heat.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

import fastercache as fc
from fastercache.analysis.metrics import measure
from fastercache.experiments.bench.entries import Entry, Outcome, described, once
from fastercache.experiments.bench.rows import Row
from fastercache.experiments.console import say
from fastercache.experiments.pipelines import Subject
from fastercache.policies.documents import Missing, put_aside, read_model, write_atomic, write_json
from fastercache.tuned import Measured, quality_gathered
from fastercache.tuner.evaluate import Evaluator

UNCACHED = "uncached"
"""Name of the bare pipeline's entry: no session is attached for it."""

HEAT = 15
"""Entries that share an uncached run: a slow minute of the machine then hits both sides of a ratio."""

COUNTED = 2
"""Prompts on which another package's FLOPs are counted, by an extra, untimed run."""

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
"""Multiples of it, modulo 1, are spread evenly: where the order of entries starts at each prompt."""

METRICS = ("psnr", "ssim")
"""What every contest measures; the verdicts go by PSNR."""

Figures = dict[str, Any]
"""What is kept of one run: `seconds`, those of its heat's uncached run, FLOPs, cached bytes and quality; or why it was
`refused`."""


MEASURED = {"seconds", "seconds_uncached", "flops", "flops_full", "cache_bytes", "quality", "judge"}
"""The keys of a run that was not refused."""


class CaseRuns(BaseModel):
    """One prompt and seed, and the figures of each entry that was run on it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str
    seed: int
    runs: dict[str, Figures]

    @field_validator("runs", mode="before")
    @classmethod
    def _of_older_file(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: quality_gathered(run) for key, run in data.items()}

    @field_validator("runs")
    @classmethod
    def _whole(cls, runs: dict[str, Figures]) -> dict[str, Figures]:
        for run in runs.values():
            if not isinstance(run.get("refused", ""), str) or ("refused" not in run and not run.keys() >= MEASURED):
                raise ValueError("a run lacks figures")
            if not isinstance(run.get("quality", {}), dict):
                raise ValueError("the quality of a run is no object")
        return runs


class Runs(BaseModel):
    """`runs.json`: by case, then by entry, the figures of each run."""

    model_config = ConfigDict(extra="forbid", strict=True)
    cases: dict[str, CaseRuns]


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """What `runs.json` of a folder holds, by case; a file that cannot be read is put aside, and all is run again."""
    path = folder / "runs.json"
    try:
        cases: dict[str, dict[str, Any]] = read_model(path, Runs, "bench's runs").model_dump()["cases"]
        return cases
    except Missing:
        return {}
    except fc.ConfigUnreadable as error:
        say(f"{error}; kept as {put_aside(path).name}, all is run again")
        return {}


def judged(subject: Subject, videos: Tensor, prompts: Sequence[str]) -> list[bool] | None:
    """For each of `(N, F, 3, H, W)`, whether it shows what its caption asks for; None where nothing can judge it."""
    if not subject.reference:
        return None
    from fastercache.experiments.reference.data import parse
    from fastercache.experiments.reference.judges import Judge

    try:
        for prompt in prompts:
            parse(prompt)
    except ValueError:
        return None  # not a caption of the reference data: there is no right answer to compare with
    return [bool(right) for right in Judge.load().score(videos, list(prompts)).all]


class Contest:
    """Runs entries over prompts and keeps every figure on disk, so that it goes on where it stopped.

    A figure is kept under what determines it (pipeline, weights, call, machine, prompt, seed; the entry's settings), so
    other entries or more prompts leave what was run before in place.

    Args:
        subject: the pipeline.
        entries: name -> what to run; the bare pipeline, `UNCACHED`, is added to them.
        prompts: what to generate; prompt `i` is generated with seed `seed + i`.
        folder: where `runs.json` and the first `keep` prompts' videos go.
        keep: of how many prompts the videos are kept.
        allow: differences to what a tuned config was made for that are accepted.
        metrics: what quality is measured by; each run that lacks one is made again.
        lenient: an entry that cannot run on this pipeline is noted as refused instead of ending the contest.
        timed: whether peers' seconds are wanted; if not, each is run once, under the flop counter, on every prompt.
    """

    def __init__(
        self,
        subject: Subject,
        entries: Mapping[str, Entry],
        prompts: Sequence[str],
        folder: Path,
        *,
        seed: int = 0,
        keep: int = 4,
        metrics: Sequence[str] = METRICS,
        allow: frozenset[str] = frozenset(),
        lenient: bool = False,
        timed: bool = True,
    ) -> None:
        self.subject = subject
        self.evaluator = Evaluator(subject.pipe, subject.call, store=folder / "references", seed=seed)
        self.cases = self.evaluator.cases(prompts)
        self.entries: dict[str, Entry] = {UNCACHED: None} | dict(entries)
        self.folder = folder
        self.metrics = tuple(dict.fromkeys((*METRICS, *metrics)))
        self.allow = allow
        self.lenient = lenient
        self.timed = timed
        self.keep = min(keep, len(self.cases))
        self._entry_keys = {name: digest(described(entry)) for name, entry in self.entries.items()}
        setting = self.evaluator.setting
        where = {**setting.identity, "machine": setting.hardware}
        self._case_keys = [digest([where, *case.identity.values()]) for case in self.cases]
        self._store: dict[str, dict[str, Any]] = stored(folder)

    # -- what is there -----------------------------------------------------------------------------------------------
    def _known(self, i: int) -> dict[str, Figures]:
        """Case `i`'s figures by entry key."""
        runs: dict[str, Figures] = self._store.get(self._case_keys[i], {}).get("runs", {})
        return runs

    def _figures_of(self, i: int, name: str) -> Figures | None:
        found = self._known(i).get(self._entry_keys[name])
        if found is None or "refused" in found:
            return found
        enough = all(metric in found["quality"] for metric in self.metrics)
        return found if enough and not (self.timed and found["seconds"] is None) else None

    def refusal(self, name: str) -> str | None:
        """Why an entry could not run on this pipeline; None if it could, or was not tried yet."""
        found = (self._figures_of(i, name) or {} for i in range(len(self.cases)))
        return next((f["refused"] for f in found if "refused" in f), None)

    def figures(self, name: str) -> list[Figures]:
        """An entry's figures, one per prompt it has run on, in the order of the prompts."""
        found = (self._figures_of(i, name) for i in range(len(self.cases)))
        return [f for f in found if f is not None and "refused" not in f]

    def missing(self, i: int) -> list[str]:
        """The entries that prompt `i` has not been run with."""
        return [
            name
            for name in self.entries
            if self.refusal(name) is None
            and (self._figures_of(i, name) is None or (i < self.keep and not self._video(i, name).is_file()))
        ]

    # -- running -----------------------------------------------------------------------------------------------------
    def run(self, tick: Callable[[], None] = lambda: None) -> None:
        """Run what is still missing; `tick` is called once for each entry on each prompt."""
        warm = False
        for i in range(len(self.cases)):
            missing = self.missing(i)
            for _ in range(len(self.entries) - len(missing)):
                tick()
            if not missing:
                continue
            if not warm:
                self.evaluator.run_bare(self.cases[0])  # warm-up: lazy initialisation is no policy's fault
                warm = True
            for heat in heats([name for name in missing if name != UNCACHED], i):
                self._run_heat(i, heat, tick)
            if UNCACHED in missing:
                tick()

    def _run_heat(self, i: int, names: Sequence[str], tick: Callable[[], None]) -> None:
        """A few entries and an uncached run among them, whose place changes from prompt to prompt."""
        order = list(names)
        order.insert(i % (len(order) + 1), UNCACHED)
        outcomes: dict[str, Outcome] = {}
        refusals: dict[str, str] = {}
        for name in order:
            try:
                entry, case = self.entries[name], self.cases[i]
                counted = i < COUNTED or not self.timed
                outcomes[name] = once(self.evaluator, entry, case, self.allow, count=counted, timed=self.timed)
            except fc.FasterCacheError as error:
                if not self.lenient or name == UNCACHED:
                    raise
                refusals[name] = str(error)
            if name != UNCACHED:
                tick()
        empty = {"prompt": self.cases[i].prompt, "seed": self.cases[i].seed, "runs": {}}
        runs = self._store.setdefault(self._case_keys[i], empty)["runs"]
        for name, figures in self._measured(i, outcomes).items():
            if name != UNCACHED or self._figures_of(i, name) is None:
                runs[self._entry_keys[name]] = {"name": name, **figures}
        for name, why in refusals.items():
            runs[self._entry_keys[name]] = {"name": name, "refused": why}
        if i < self.keep:
            for name, outcome in outcomes.items():
                write_atomic(self._video(i, name), to_bytes({"video": outcome.video.contiguous()}), "video")
        write_json(self.folder / "runs.json", {"cases": self._store}, "bench's runs")

    def _measured(self, i: int, outcomes: Mapping[str, Outcome]) -> dict[str, Figures]:
        names = list(outcomes)
        videos = torch.stack([outcomes[name].video for name in names])
        quality = measure(
            videos, outcomes[UNCACHED].video.expand_as(videos), self.metrics, [self.cases[i].prompt] * len(names)
        )
        right = judged(self.subject, videos, [self.cases[i].prompt] * len(names))
        return {
            name: {
                "seconds": outcomes[name].seconds,
                "seconds_uncached": outcomes[UNCACHED].seconds,
                "flops": outcomes[name].flops,
                "flops_full": outcomes[name].flops_full,
                "cache_bytes": outcomes[name].cache_bytes,
                "quality": {metric: float(values[n]) for metric, values in quality.items()},
                "judge": None if right is None else right[n],
            }
            for n, name in enumerate(names)
        }

    def _video(self, i: int, name: str) -> Path:
        return self.folder / f"video-{self._case_keys[i]}-{self._entry_keys[name]}.safetensors"

    def videos(self, i: int) -> dict[str, Tensor]:
        """The kept videos of prompt `i`, by entry."""
        return {name: load_file(self._video(i, name))["video"] for name in self.entries if self.refusal(name) is None}

    # -- figures -----------------------------------------------------------------------------------------------------
    def row(self, name: str) -> Row:
        """The figures of one entry, over all prompts that have run."""
        own = self.figures(name)
        counted = [r for r in own if r["flops"]]
        peaks = [r["cache_bytes"] for r in own if r["cache_bytes"] is not None]
        return Row(
            name=name,
            speedup_flops=sum(r["flops_full"] for r in counted) / sum(r["flops"] for r in counted) if counted else 1.0,
            speedup_wall=_median(own, "seconds_uncached") / _median(own, "seconds") if _timed(own) else None,
            quality={name: statistics.fmean(r["quality"][name] for r in own) for name in self.metrics},
            judge=None if own[0]["judge"] is None else statistics.fmean(r["judge"] for r in own),
            cache_bytes=max(peaks) if peaks else None,
            prompts=len(own),
            policy=described(self.entries[name]),
        )

    def measured(self, name: str) -> Measured:
        """The same figures as a tuned config states them."""
        row = self.row(name)
        return Measured(
            prompts=row.prompts,
            quality=row.quality,
            speedup_flops=row.speedup_flops,
            speedup_wall=row.speedup_wall,
            seconds=_median(self.figures(name), "seconds"),
            cached_bytes=row.cache_bytes or 0,
            hardware=self.evaluator.setting.hardware,
        )

    def error(self, name: str) -> float:
        """Standard error over prompts of an entry's PSNR, in dB; 0 for a single prompt."""
        values = [r["quality"]["psnr"] for r in self.figures(name)]
        return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0

    def rows(self) -> list[Row]:
        """A row for each entry that could run, the uncached one first."""
        return [self.row(name) for name in self.entries if self.refusal(name) is None]


def heats(names: Sequence[str], i: int) -> list[list[str]]:
    """The entries of prompt `i` in heats of about the same size, at most `HEAT`; one empty heat for none."""
    first = int(len(names) * (i * GOLDEN % 1.0))
    order = [*names[first:], *names[:first]]
    parts = max(math.ceil(len(order) / HEAT), 1)
    size = math.ceil(len(order) / parts)
    return [order[n * size : (n + 1) * size] for n in range(parts)]


def _timed(runs: Sequence[Figures]) -> bool:
    return all(r["seconds"] is not None for r in runs)


def _median(runs: Sequence[Figures], key: str) -> float:
    return float(statistics.median(r[key] for r in runs))


def digest(data: Any) -> str:
    """A short key of JSON values."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]

"""Several policies on the same prompts and seeds, timed interleaved, judged against the uncached videos.

Timing policies one after another would credit the last with whatever the machine does meanwhile (clock, caches, other
processes). Here each prompt runs all of them, in an order that rotates, and the medians over prompts are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastercache as fc
from analysis.quality import measure
from experiments.pipelines import Subject
from experiments.rows import Row
from fastercache.tuned import Measured
from tuner.evaluate import Case, Evaluator, hardware

UNCACHED = "uncached"
"""Name of the bare pipeline's entry: no session is attached for it."""


@dataclass(frozen=True)
class FewerSteps:
    """The baseline a cache has to beat: the same solver with fewer steps and nothing cached."""

    steps: int


Entry = fc.Policy | fc.TunedConfig | FewerSteps | None


@dataclass(frozen=True)
class Outcome:
    """One run: video `(F, 3, H, W)`, seconds of the pipeline call, FLOPs computed and uncached, peak cached bytes."""

    video: Tensor
    seconds: float
    flops: int
    flops_full: int
    cache_bytes: int


def once(evaluator: Evaluator, entry: Entry, case: Case, allow: frozenset[str] = frozenset()) -> Outcome:
    """Run one prompt under one policy; None is the bare pipeline, whose FLOPs are not counted.

    With fewer steps, the uncached FLOPs are those of the full number of steps, each costing what these cost on average.

    `allow`: which differences to what a tuned config was made for are accepted.
    """
    if entry is None:
        return Outcome(*evaluator.run_bare(case), 0, 0, 0)
    evaluator.close()
    if isinstance(entry, FewerSteps):
        steps = int(evaluator.call["num_inference_steps"])
        evaluator.call["num_inference_steps"] = entry.steps
        try:
            shorter = once(evaluator, fc.NoCache(), case)
        finally:
            evaluator.call["num_inference_steps"] = steps
        return replace(shorter, flops_full=shorter.flops * steps // entry.steps)
    with fc.attach(evaluator.pipe, entry, allow=allow) as session:
        began = time.perf_counter()
        video = evaluator.generate(case)
        trace = session.last
        seconds = time.perf_counter() - began - trace.counting_seconds
    return Outcome(video, seconds, sum(trace.flops), sum(trace.flops_full), trace.cached_bytes)


def judged(subject: Subject, videos: Tensor, prompts: Sequence[str]) -> list[bool] | None:
    """For each of `(N, F, 3, H, W)`, whether it shows what its caption asks for; None where nothing can judge it."""
    if not subject.reference:
        return None
    from experiments.reference.data import parse
    from experiments.reference.judges import Judge

    try:
        for prompt in prompts:
            parse(prompt)
    except ValueError:
        return None  # not a caption of the reference data: there is no right answer to compare with
    return [bool(right) for right in Judge.load().score(videos, list(prompts)).all]


class Contest:
    """Runs entries over prompts and keeps every figure on disk, so that it goes on where it stopped.

    Args:
        subject: the pipeline.
        entries: name -> policy or tuned config; the bare pipeline, `UNCACHED`, is added to them.
        prompts: what to generate; prompt `i` is generated with seed `seed + i`.
        folder: where `runs.json` and the first `keep` prompts' videos go.
        keep: of how many prompts the videos are kept.
        allow: differences to what a tuned config was made for that are accepted.
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
        allow: frozenset[str] = frozenset(),
    ) -> None:
        self.subject = subject
        self.evaluator = Evaluator(subject.pipe, subject.call, store=folder / "references", seed=seed)
        self.cases = self.evaluator.cases(prompts)
        self.entries: dict[str, Entry] = {UNCACHED: None} | dict(entries)
        self.folder = folder
        self.allow = allow
        self.keep = min(keep, len(self.cases))
        policies = {name: described(entry) for name, entry in self.entries.items()}
        settings = [self.evaluator.identity, [[case.prompt, case.seed] for case in self.cases], policies]
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.runs: list[dict[str, dict[str, Any]]] = self._stored()

    def _stored(self) -> list[dict[str, dict[str, Any]]]:
        path = self.folder / "runs.json"
        if not path.is_file():
            return []
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            return []  # cut off while it was written, before the rename made that impossible
        return list(data["runs"]) if data.get("key") == self.key else []

    def run(self, tick: Callable[[], None] = lambda: None) -> None:
        """Run what is still missing; `tick` is called after each video."""
        names = list(self.entries)
        if len(self.runs) < len(self.cases):
            self.evaluator.run_bare(self.cases[0])  # warm-up: lazy initialisation is no policy's fault
        for _ in range(len(self.runs) * len(names)):
            tick()
        for i in range(len(self.runs), len(self.cases)):
            outcomes: dict[str, Outcome] = {}
            for name in names[i % len(names) :] + names[: i % len(names)]:
                outcomes[name] = once(self.evaluator, self.entries[name], self.cases[i], self.allow)
                tick()
            self.runs.append(self._figures(i, outcomes))
            if i < self.keep:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_file({n: o.video.contiguous() for n, o in outcomes.items()}, self._videos(i))
            self._save()

    def _figures(self, i: int, outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
        names = list(outcomes)
        videos = torch.stack([outcomes[name].video for name in names])
        quality = measure(videos, outcomes[UNCACHED].video.expand_as(videos), metrics=("psnr", "ssim"))
        right = judged(self.subject, videos, [self.cases[i].prompt] * len(names))
        return {
            name: {
                "seconds": outcomes[name].seconds,
                "flops": outcomes[name].flops,
                "flops_full": outcomes[name].flops_full,
                "cache_bytes": outcomes[name].cache_bytes,
                "psnr": float(quality["psnr"][n]),
                "ssim": float(quality["ssim"][n]),
                "judge": None if right is None else right[n],
            }
            for n, name in enumerate(names)
        }

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        prompts = [case.prompt for case in self.cases]
        write_json(self.folder / "runs.json", {"key": self.key, "prompts": prompts, "runs": self.runs})

    def _videos(self, i: int) -> Path:
        return self.folder / f"videos-{self.key}-{i}.safetensors"

    def videos(self, i: int) -> dict[str, Tensor]:
        """The kept videos of prompt `i`, by entry."""
        return load_file(self._videos(i))

    def row(self, name: str) -> Row:
        """The figures of one entry, over all prompts that have run."""
        own = [run[name] for run in self.runs]
        bare = [run[UNCACHED] for run in self.runs]
        flops = sum(r["flops"] for r in own)
        return Row(
            name=name,
            speedup_flops=sum(r["flops_full"] for r in own) / flops if flops else 1.0,
            speedup_wall=statistics.median(r["seconds"] for r in bare) / statistics.median(r["seconds"] for r in own),
            psnr=statistics.fmean(r["psnr"] for r in own),
            ssim=statistics.fmean(r["ssim"] for r in own),
            judge=None if own[0]["judge"] is None else statistics.fmean(r["judge"] for r in own),
            cache_bytes=max(r["cache_bytes"] for r in own),
            prompts=len(own),
            policy=described(self.entries[name]),
        )

    def measured(self, name: str) -> Measured:
        """The same figures as a tuned config states them."""
        row = self.row(name)
        return Measured(
            prompts=row.prompts,
            psnr=row.psnr,
            ssim=row.ssim,
            speedup_flops=row.speedup_flops,
            speedup_wall=row.speedup_wall,
            seconds=statistics.median(run[name]["seconds"] for run in self.runs),
            cached_bytes=row.cache_bytes,
            hardware=hardware(str(self.evaluator.identity["device"])),
        )

    def error(self, name: str) -> float:
        """Standard error over prompts of an entry's PSNR, in dB; 0 for a single prompt."""
        values = [run[name]["psnr"] for run in self.runs]
        return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0

    def rows(self) -> list[Row]:
        """A row for each entry, the uncached one first."""
        return [self.row(name) for name in self.entries]


def described(entry: Entry) -> dict[str, Any]:
    """The policy of an entry as JSON values; the bare pipeline is described as `no_cache`."""
    if isinstance(entry, FewerSteps):
        return {"policy": fc.NoCache.name, "num_inference_steps": entry.steps}
    if entry is None:
        return {"policy": fc.NoCache.name}
    return fc.dump(entry if isinstance(entry, fc.Policy) else entry.policy)


def write_json(path: Path, data: Any) -> None:
    """Write and rename, so that an interruption never leaves half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)

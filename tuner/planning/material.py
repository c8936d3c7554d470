"""What planning works with: the uncached runs of the search prompts, recorded while their references are made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastercache.analysis.sampling import MAX_BYTES, Recording, TrajectoryRecorder
from fastercache.analysis.trajectory_profile import TrajectoryProfile, load_values, save_values
from fastercache.policies.errors import ConfigUnreadable, RecordingError
from fastercache.tuner.planning.fitting import Sampler, SearchRun
from fastercache.tuner.planning.lockstep import Generate
from fastercache.tuner.setting import Case, References

Told = Callable[[str, float], None]
"""Progress: what is being done, and generations spent so far."""


@dataclass(frozen=True)
class Material:
    """The recorded search prompts.

    Attributes:
        cases: prompts and seeds. videos: their uncached videos, (F, 3, H, W) each.
        runs: how to generate each again, and its uncached values. profile: of all runs.
        spent: generations that it took, in this call or an earlier one: a resumed plan has no more left than another.
    """

    cases: tuple[Case, ...]
    videos: tuple[Tensor, ...]
    runs: tuple[SearchRun, ...]
    profile: TrajectoryProfile
    spent: float

    @property
    def sampler(self) -> Sampler:
        return Sampler(self.profile.response, self.profile.relations)


def generation(references: References, case: Case) -> Generate:
    """Generates a case with a given copy of the pipeline: its video."""

    def generate(pipe: Any) -> Tensor:
        return references.setting.on(pipe).generate(case)

    return generate


def recorded(references: References, cases: Sequence[Case]) -> list[Case]:
    """The cases that `material` would read and not generate, in order."""
    return [case for case in cases if _place(references, case).with_suffix(".json").is_file()]


def material(
    references: References,
    cases: Sequence[Case],
    *,
    max_bytes: int = MAX_BYTES,
    told: Told = lambda doing, spent: None,
    priced: Callable[[float], None] = lambda seconds: None,
) -> Material:
    """Record the search prompts, or read what an earlier call recorded. No reference is generated twice.

    Args:
        max_bytes: host memory that the values of one run may take. told: progress.
        priced: told the seconds of the first generation that this call makes, once.

    Raises:
        RecordingError: if a generation does not run to its last step, or needs more host memory than `max_bytes`.
    """
    if not cases:
        raise RecordingError("planning needs at least one search prompt: give --count or --prompts")
    videos, runs, profiles = [], [], []
    first = True
    for number, case in enumerate(cases):
        told(f"recording prompt {number + 1} of {len(cases)}", float(number))
        place = _place(references, case)
        known = _read(references, case, place)
        if known is None:
            began = time.perf_counter()
            known = _recorded(references, case, place, max_bytes)
            if first:
                priced(time.perf_counter() - began)
            first = False
        video, profile, run = known
        videos.append(video)
        runs.append(run)
        profiles.append(profile)
    merged = TrajectoryProfile.merged(profiles)
    return Material(tuple(cases), tuple(videos), tuple(runs), merged, float(len(cases)))


Known = tuple[Tensor, TrajectoryProfile, SearchRun]


def _recorded(references: References, case: Case, place: Path, max_bytes: int) -> Known:
    found: list[Recording] = []
    pipe = references.setting.pipe
    with TrajectoryRecorder(pipe, max_bytes, done=found.append) as recorder, torch.no_grad():
        video = references.setting.generate(case)
    if len(found) != 1:
        raise RecordingError(
            f"one call of the pipeline made {len(found)} complete runs of its scheduler ({recorder.discarded} ended "
            "early): planning needs one; leave out arguments that end a run early or split it"
        )
    [recording] = found
    profile = TrajectoryProfile.of(found, pipe, call=references.setting.call)
    references.write(case, video)
    save_values(place.with_suffix(".values.safetensors"), recording.values)
    profile.save(place)
    return video, profile, SearchRun(generation(references, case), recording.values)


def _read(references: References, case: Case, place: Path) -> Known | None:
    """What is on disk of a case; None if any of it is missing or cannot be read."""
    video = references.read(case)
    if video is None:
        return None
    try:
        profile = TrajectoryProfile.load(place)
        values = load_values(place.with_suffix(".values.safetensors"))
    except ConfigUnreadable:
        return None
    return video, profile, SearchRun(generation(references, case), values)


def _place(references: References, case: Case) -> Path:
    """Where a case's recording stands, under a key of everything that determines it."""
    key = json.dumps({**references.setting.identity, **case.identity}, sort_keys=True)
    return references.store / f"trajectory-{hashlib.sha256(key.encode()).hexdigest()[:32]}"

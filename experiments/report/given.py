"""What a report is made from: the folders and files that a user names, recognised by what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastercache as fc
from fastercache.analysis.profile import JSON_NAME as PROFILE
from fastercache.analysis.profile import Profile
from fastercache.analysis.trajectory_profile import TrajectoryInfo
from fastercache.experiments.bench.standings import Results
from fastercache.experiments.report.recording import FRONT, Planning, read_planning, read_recording
from fastercache.experiments.report.rivals import Rival, of_bench, of_demo, of_held_out
from fastercache.policies.documents import read_json
from fastercache.policies.errors import ConfigUnreadable
from fastercache.tuned import TunedConfig

BENCH, DEMO, TUNED = "results.json", "demo.json", "tuned.json"
EXPECTED = (
    "a folder of `plan` (front.json), `analyze` or `record` (profile.json), `bench` (results.json) or `demo` "
    "(demo.json), a tuned config, or a trajectory profile (.json)"
)


@dataclass
class Given:
    """Everything that the paths hold, each kind once.

    Attributes:
        rivals: measured settings of benches, demos and held-out comparisons.
        sources: what was read, in words: (kind, path).
        contests: folders of comparisons on held-out prompts, which may hold videos.
    """

    planning: Planning | None = None
    profile: Profile | None = None
    bench: Results | None = None
    rivals: list[Rival] = field(default_factory=list)
    sources: list[tuple[str, Path]] = field(default_factory=list)
    contests: list[Path] = field(default_factory=list)


def given(paths: Sequence[Path]) -> Given:
    """Read what the paths hold.

    Raises:
        ConfigUnreadable: if a path holds nothing that a report can show, or what another one holds too, or if they
            are of different models or step counts.
    """
    places: dict[str, Path] = {}
    for path in paths:
        for kind, place in _kinds(path).items():
            if places.setdefault(kind, place).resolve() != place.resolve():
                raise ConfigUnreadable(f"{places[kind]} and {place} both hold a {kind}: give one of them")
    found = Given(sources=list(places.items()))
    tuned = TunedConfig.load(places["tuned config"]) if "tuned config" in places else None
    if "planning folder" in places:
        folder = places["planning folder"]
        found.planning = read_planning(folder, tuned)
        plan = found.planning.planned
        for runs in sorted(folder.glob("held-out-*/runs.json")):
            found.rivals += of_held_out(runs.parent, None if plan is None else plan.computed)
            found.contests.append(runs.parent)
    elif "recording" in places:
        found.planning = read_recording(places["recording"])
    elif tuned is not None:
        raise ConfigUnreadable(
            f"a tuned config alone ({places['tuned config']}) shows nothing: give its planning folder too"
        )
    if "profile" in places:
        found.profile = Profile.load(places["profile"])
    if "bench" in places:
        found.bench = Results.load(places["bench"])
        found.rivals += of_bench(found.bench)
    if "demo" in places:
        found.rivals += of_demo(_table(places["demo"] / DEMO))
        found.contests.insert(0, places["demo"] / "held-out")
    _belong_together(found, tuned)
    return found


def _kinds(path: Path) -> dict[str, Path]:
    """What a path holds: kind -> the folder or file to read."""
    if path.is_file():
        by_name = {FRONT: "planning folder", PROFILE: "profile", BENCH: "bench"}
        if path.name in by_name:
            return {by_name[path.name]: path.parent}
        head = read_json(path, "report's source")
        form = head.get("format") if isinstance(head, dict) else None
        if form == TrajectoryInfo.model_fields["format"].default:
            return {"recording": path}
        if form == fc.tuned.FORMAT:
            return {"tuned config": path}
    elif path.is_dir():
        found = {}
        for kind, names in (
            ("planning folder", ("", "planning")),
            ("profile", ("", "profile")),
            ("bench", ("",)),
            ("demo", ("",)),
        ):
            name = {"planning folder": FRONT, "profile": PROFILE, "bench": BENCH, "demo": DEMO}[kind]
            for below in names:
                if (path / below / name).is_file():
                    found[kind] = path / below
                    break
        if found:
            if (path / TUNED).is_file() and "planning folder" in found:
                found["tuned config"] = path / TUNED
            return found
    else:
        raise ConfigUnreadable(f"there is nothing at {path}: give {EXPECTED}")
    raise ConfigUnreadable(f"{path} holds nothing that a report can show: give {EXPECTED}")


def _table(path: Path) -> dict[str, Any]:
    table = read_json(path, "demo's results")
    rows = table.get("rows") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"name", "speedup_flops", "prompts"} <= row.keys() for row in rows
    ):
        raise ConfigUnreadable(f"{path} is damaged: a list of rows was expected; run the demo again")
    return dict(table)


def _belong_together(found: Given, tuned: TunedConfig | None) -> None:
    """Raises ConfigUnreadable where parts are of different models, schedulers or step counts."""
    planning, profile = found.planning, found.profile
    if planning is None:
        return
    if tuned is not None and (tuned.model != planning.model or tuned.steps != planning.steps):
        _refuse("the tuned config", f"{tuned.model.denoiser.kind} at {tuned.steps} steps", planning)
    if profile is not None:
        model, steps = profile.info.model, len(profile.info.timesteps)
        same = model is None or (model.kind, model.fingerprint) == (
            planning.model.denoiser.kind,
            planning.model.denoiser.fingerprint,
        )
        if not same or steps != planning.steps:
            _refuse(
                "the feature profile", f"{'a denoiser' if model is None else model.kind} at {steps} steps", planning
            )
    if found.bench is not None and found.bench.steps != planning.steps:
        _refuse("the bench", f"{found.bench.pipeline} at {found.bench.steps} steps", planning)


def _refuse(what: str, found: str, planning: Planning) -> None:
    raise ConfigUnreadable(
        f"{what} is of {found}, the planning folder of {planning.model.denoiser.kind} at {planning.steps} steps with "
        "another configuration or step count: give parts that belong to one model and call"
    )

"""The bench's planned schedules: for each speedup the plan that `fastercache plan` finds on the search prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastercache as fc
from fastercache.experiments.console import say
from fastercache.experiments.jobs.planning import open_planner, watched
from fastercache.experiments.pipelines import Subject
from fastercache.policies.documents import put_aside, read_json, write_json
from fastercache.prompts import identity
from fastercache.tuner.planning.planner import EFFORTS
from fastercache.tuner.setting import Setting

EFFORT = 1
PLANNED_ON = EFFORTS[EFFORT].recorded
"""Search prompts that plans are made on; none of them is measured."""
WHAT = "bench's plans"


def plans_for(
    subject: Subject, prompts: Sequence[str], speedups: Sequence[float], out: Path
) -> tuple[Mapping[float, fc.Policy] | None, str]:
    """A plan for each speedup, made once and kept in `out`; else None and the reason."""
    if not prompts:
        return None, "no prompts are left to plan on: give more than --count in the file"
    setting = Setting(subject.pipe, subject.call)
    what = json.dumps([setting.identity, list(map(identity, prompts)), EFFORT], sort_keys=True, default=str)
    folder = out / f"planning-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    kept = _kept(folder / "plans.json")
    plans: dict[float, fc.Policy] = {}
    for speedup in speedups:
        if (name := f"{speedup:g}") not in kept:
            try:
                with watched(EFFORTS[EFFORT].generations) as told:
                    planner = open_planner(subject, prompts, effort=EFFORT, folder=folder, told=told)
                    kept[name] = fc.dump(planner.for_speedup(speedup).policy(planner.steps))
            except fc.FasterCacheError as error:
                return None, f"planning failed: {error}"
            write_json(folder / "plans.json", kept, WHAT)
        plans[speedup] = fc.load_policy(kept[name])
    return plans, ""


def _kept(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read_json(path, WHAT)
        for policy in found.values():
            fc.load_policy(policy)
    except (fc.FasterCacheError, AttributeError) as error:
        say(f"{error}; kept as {put_aside(path).name}")
        return {}
    return dict(found)

"""A planning folder as the page needs it: the recording in numbers, the front, and the plans that were run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna

import fastercache as fc
from fastercache.analysis.sampling import RunValues
from fastercache.analysis.trajectory_profile import TrajectoryProfile, load_values
from fastercache.experiments.report.numbers import doubles, triangle
from fastercache.policies.errors import ConfigUnreadable, RecordingError
from fastercache.policies.predictors.fitted import Fitted
from fastercache.tuned import Guidance, Identity, Model, TunedConfig
from fastercache.tuner.planning.fitting import RIDGE, Sampler
from fastercache.tuner.planning.front import Front, Point
from fastercache.tuner.planning.record import PLAN
from fastercache.tuner.planning.rehearsal import GROWTH, NOVELTY, Foresight, coordinates
from fastercache.tuner.planning.scale import APART, STEEPNESS
from fastercache.tuner.storage import open_storage

HISTORY = 5
"""K, how many computed outputs a stand-in combines, as the planner has it."""
WARY = 3.0
"""`NOVELTY` of the rehearsal that an edited schedule's weights come from.

They are used in runs as they are, without a fit that sees where the run has got to. With the predictions' own 0.7 they
repair errors that are only supposed: on latte-digits and two unseen prompts that lost 0 to 16 dB against 3, over six
planned schedules of 5 to 25 of 50 steps, and 10 lost 3 to 30 dB.
"""
FRONT, JOURNAL = "front.json", "plans.journal"
Run = tuple[tuple[int, ...], float]
"""A plan that was run on a few prompts, and -10 log10 of its squared error in the last latent, dB."""


@dataclass(frozen=True)
class Planning:
    """What a planning folder holds.

    Attributes:
        profile: the recording, all its prompts together. front: None for a recording by itself.
        tuned: the exported config, where it was given or found. judged: plans that were run on a few prompts.
        values: one run's values, for the size of a latent; None where they are gone.
    """

    profile: TrajectoryProfile
    front: Front | None = None
    tuned: TunedConfig | None = None
    judged: tuple[Run, ...] = ()
    values: RunValues | None = field(default=None, repr=False)

    @property
    def model(self) -> Model:
        return self.profile.info.model

    @property
    def scheduler(self) -> Identity | None:
        return self.profile.info.scheduler

    @property
    def steps(self) -> int:
        return self.profile.trajectory.steps

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self.profile.response, self.profile.relations)

    @cached_property
    def foresight(self) -> Foresight:
        """What planning believes of a schedule, from this recording."""
        return Foresight.recorded(self.profile.trajectory, self.sampler, HISTORY)

    @property
    def points(self) -> tuple[Point, ...]:
        return () if self.front is None else self.front.points

    @property
    def planned(self) -> fc.Planned | None:
        """The exported plan."""
        return self.tuned.policy if self.tuned is not None and isinstance(self.tuned.policy, fc.Planned) else None

    def island(self) -> dict[str, Any]:
        """What the page computes with, ready for JSON; arrays as base64 (`numbers`)."""
        trajectory, sampler = self.profile.trajectory, self.sampler
        products = trajectory.products.mean(axis=0)
        recording = {
            "steps": self.steps,
            "runs": trajectory.runs,
            "history": HISTORY,
            "ridge": RIDGE,
            "latent": sampler.input is not None,
            "input": None if sampler.input is None else sampler.input.tolist(),
            "starts": list(sampler.relations.starts),
            "impulse": sampler.impulse.tolist(),
            "products": triangle(products),
            "coordinates": doubles(coordinates(products)) if sampler.held else None,
            "response": doubles(sampler.response.matrix),
            "growth": GROWTH,
            "novelty": NOVELTY,
            "wary": WARY,
            "steepness": STEEPNESS,
            "apart": APART,
        }
        points = [
            {
                "computed": list(point.computed),
                "psnr": point.psnr,
                "prompts": len(point.quality.get("psnr", ())),
                "stretches": _stretches(point),
                "variance": point.predictor.variance if isinstance(point.predictor, Fitted) else None,
            }
            for point in self.points
        ]
        return {
            "recording": recording,
            "points": points,
            "chosen": list(self.chosen),
            "judged": [{"computed": list(plan), "decibels": value} for plan, value in self.judged],
            "config": self.template(),
            "entry_bytes": self.entry_bytes(),
        }

    @property
    def chosen(self) -> tuple[int, ...]:
        """The plan that the editor begins with: the exported one, else the cheapest measured one, else every second."""
        if self.planned is not None:
            return self.planned.computed
        measured = [point.computed for point in self.points if point.verified and len(point.computed) < self.steps]
        if measured:
            return measured[0]
        return tuple(sorted({*range(0, self.steps, 2), *self.sampler.relations.starts}))

    def template(self) -> dict[str, Any]:
        """The tuned config of an edited schedule, all but its policy: nothing was measured of it."""
        info = self.profile.info
        if self.tuned is not None:
            guidance, scale = self.tuned.guidance, self.tuned.guidance_scale
        else:
            guidance = self._guidance()
            scale = None if guidance == "none" else info.guidance_scale
        config = TunedConfig(
            model=info.model,
            scheduler=info.scheduler,
            steps=self.steps,
            guidance_scale=scale,
            guidance=guidance,
            policy=fc.NoCache(),
        )
        found = config.model_dump(mode="json")
        found["policy"] = None
        return found

    def _guidance(self) -> Guidance:
        branches = self.profile.trajectory.branches
        if branches == 1 or (branches == 0 and self.profile.info.guidance_scale is None):
            return "none"
        return "batched" if self.profile.info.calls == 1 else "separate"

    def entry_bytes(self) -> float | None:
        """Bytes of one kept output and input in all branches.

        Measured, where a plan was exported: its run's cached bytes over the most outputs that it keeps. Else from the
        size of a latent in float32; None where neither is known.
        """
        plan, measured = self.planned, None if self.tuned is None else self.tuned.measured.search
        if plan is not None and measured is not None and (kept := most_kept(plan)):
            return measured.cached_bytes / kept
        if self.values is None:
            return None
        branches = max(self.profile.trajectory.branches, 1)
        return float(self.values.outputs[0].numel() * 4 * branches * (2 if self.sampler.input is not None else 1))


def _stretches(point: Point) -> list[dict[str, Any]] | None:
    """The weights of a plan that was fitted in cached runs."""
    if not isinstance(point.predictor, Fitted):
        return None
    found: list[dict[str, Any]] = point.predictor.model_dump(mode="json")["stretches"]
    return found


def most_kept(plan: fc.Planned) -> int:
    """The most computed outputs that a run of a plan holds at the end of a step."""
    computed, done = set(plan.computed), list[int]()
    last: dict[int, int] = {}
    for step in range(plan.steps):
        if step in computed:
            done.append(step)
        else:
            last |= dict.fromkeys(done[-plan.stand_in.depth :], step)
    return max((sum(k <= now < last[k] for k in last) for now in range(plan.steps)), default=0)


def read_planning(folder: Path, tuned: TunedConfig | None = None) -> Planning:
    """What `fastercache plan` left in its study folder.

    Raises:
        ConfigUnreadable: if the recordings of the front are gone, or something in the folder is damaged.
    """
    front = Front.load(folder / FRONT)
    found = [(path, TrajectoryProfile.load(path)) for path in _recordings(folder)]
    fitting = [(path, profile) for path, profile in found if _of_front(profile, front)]
    if not fitting:
        raise ConfigUnreadable(
            f"{folder} holds a front but no recording that it was planned from ({len(found)} of other settings): keep "
            "the folder `references` beside it, or plan again"
        )
    try:
        merged = TrajectoryProfile.merged([profile for _, profile in fitting])
    except RecordingError as error:
        raise ConfigUnreadable(f"the recordings in {folder} do not belong together: {error}") from None
    return Planning(merged, front, tuned, _judged(folder / JOURNAL), _values(fitting[0][0]))


def read_recording(path: Path) -> Planning:
    """A `TrajectoryProfile` by itself. Raises ConfigUnreadable."""
    return Planning(TrajectoryProfile.load(path), values=_values(path))


def _recordings(folder: Path) -> Sequence[Path]:
    return sorted((folder / "references").glob("trajectory-*.json"))


def _of_front(profile: TrajectoryProfile, front: Front) -> bool:
    mine = (profile.info.model, profile.info.scheduler, profile.info.guidance_scale, profile.trajectory.steps)
    return mine == (front.model, front.scheduler, front.guidance_scale, front.steps)


def _values(path: Path) -> RunValues | None:
    try:
        return load_values(path.with_suffix(".values.safetensors"))
    except ConfigUnreadable:
        return None


def _judged(journal: Path) -> tuple[Run, ...]:
    """The plans in a study's journal that were run to the end; of a plan that several studies ran, the last."""
    if not journal.is_file():
        return ()
    storage = open_storage(journal)
    found: dict[tuple[int, ...], float] = {}
    for name in optuna.get_all_study_names(storage):
        for trial in optuna.load_study(study_name=name, storage=storage).trials:
            plan = trial.user_attrs.get(PLAN)
            if trial.value is not None and isinstance(plan, list):
                found[tuple(map(int, plan))] = trial.value
    return tuple(found.items())

"""Predicted against true damage of random schedules of one guidance branch, or of modules: see `plan_damage`.

Every schedule reuses half of the steps at its sites. *Branch*: the guidance difference, the unconditional output or the
conditional one, drawn at random. *Module*: one role of sites or all of them, in half of the blocks that follow each
other. What stands in is the last value or a Taylor series of first order. The truth is the squared error of the video
on held-out prompts; what predicts it is `consequence`, from a profile of the search prompts alone and

    sampler    the sampler's impulse response, computed: an error of a site counts by its relative size
    growth     the same, with errors that grow by e^g over a run as the planner has it (branches)
    noise      sensitivities measured by injecting noise, at so many steps of one search prompt
    hold       the same, by injecting the error of holding the value of the step before
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field

import fastercache as fc
from fastercache.analysis import record
from fastercache.analysis.consequence import consequence, of_sites
from fastercache.analysis.injection import Error, Injected, inject, spread
from fastercache.analysis.profile import Profile
from fastercache.analysis.sampling import record_trajectory
from fastercache.analysis.trajectory import Floats, Trajectory
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.experiments.console import progress
from fastercache.experiments.pipelines import open_pipeline, shipped_captions, with_steps
from fastercache.policies.base import Hold, Predictor
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.policies.errors import RecordingError
from fastercache.policies.predictors.history import Taylor
from fastercache.policies.schedule import Row, Schedule
from fastercache.policies.vocabulary import COND, UNCOND, Kind, Site, Step
from fastercache.tuner.planning.attribution import rank_interval
from fastercache.tuner.planning.rehearsal import GROWTH
from fastercache.tuner.setting import Setting, run

Level = Literal["branch", "module"]
STAND_INS: tuple[Predictor, ...] = (Hold(), Taylor(order=1))
BRANCHES = ("branch", "uncond", "cond")
"""What is reused at branch level: the guidance difference, or a branch's own output."""
RECORDED = 2
"""Search prompts of the profile."""
QUANTILES = {"least": 0.0, "median": 0.5, "most": 1.0}
WHAT = "damages"


class Damages(BaseModel):
    """The mean logarithm of the squared error that each random schedule left in held-out videos, in the order drawn."""

    level: str
    seed: int
    true: list[float] = Field(default_factory=list)


class Drawn(BaseModel):
    """A random schedule.

    Attributes:
        what: at branch level, one of `BRANCHES`. sites: at module level, their names.
        computed: steps at which they are computed. order: of the Taylor series that stands in; 0 holds the last value.
    """

    what: str = ""
    sites: tuple[str, ...] = ()
    computed: tuple[int, ...]
    order: int

    @property
    def stand_in(self) -> Predictor:
        return STAND_INS[self.order]

    def policy(self, count: int) -> Schedule:
        letters = "".join("C" if step in self.computed else "R" for step in range(count))
        query, branch = "|".join(self.sites), "*"
        if not self.sites:
            query, branch = ("branch", "*") if self.what == "branch" else ("denoiser", self.what)
        return Schedule(rows=(Row(sites=query, branch=branch, steps=letters, predictor=self.stand_in),))


def drawn(rng: np.random.Generator, level: Level, modules: Sequence[Site], count: int) -> Drawn:
    """A random schedule that computes step 0 and half of all steps."""
    computed = (0, *sorted(int(s) for s in 1 + rng.choice(count - 1, count // 2 - 1, replace=False)))
    order = int(rng.integers(len(STAND_INS)))
    if level == "branch":
        return Drawn(what=BRANCHES[rng.integers(len(BRANCHES))], computed=computed, order=order)
    roles: list[Any] = [*dict.fromkeys(site.role for site in modules), None]
    role, blocks = roles[rng.integers(len(roles))], 1 + max(site.depth for site in modules)
    first = int(rng.integers(blocks - blocks // 2 + 1))
    inside = range(first, first + blocks // 2)
    chosen = tuple(s.name for s in modules if s.depth in inside and role in (None, s.role))
    return Drawn(sites=chosen, computed=computed, order=order)


def measure(
    pipe: str, folder: Path, level: Level, count: int, *, injected: int, held_out: int, seed: int
) -> dict[str, Any]:
    """What predicts the damage of `count` random schedules, and how well; goes on where it stopped.

    Args:
        injected: steps of each injection, on the first of the `RECORDED` search prompts.
    """
    subject = with_steps(open_pipeline(pipe))
    setting = Setting(subject.pipe, subject.call, seed)
    cases = setting.cases(shipped_captions(pipe, "train")[:RECORDED])
    others = Setting(subject.pipe, subject.call, seed + 100_000)
    held = others.cases(shipped_captions(pipe, "held_out")[:held_out])
    modules = [site for site in fc.find_sites(subject.pipe) if site.kind is Kind.MODULE]
    with progress() as bar:
        task = bar.add_task("recording", total=None)
        profile: Profile | TrajectoryProfile
        if level == "module":
            with record(subject.pipe, "|".join(site.name for site in modules)) as recorder:
                for case in cases:
                    setting.generate(case)
            profile = recorder.profile()
        else:
            with record_trajectory(subject.pipe) as watching:
                for case in cases:
                    setting.generate(case)
            profile = TrajectoryProfile.of(watching.recordings, subject.pipe)
        steps = int(subject.call["num_inference_steps"])
        found: dict[str, Injected] = {}
        for error in get_args(Error):
            bar.update(task, description=f"injecting: {error}")
            groups = groups_of(level, subject.pipe)
            found[error] = inject(
                subject.pipe, lambda: setting.generate(cases[0]), groups, spread(steps, injected), error=error
            )
        bar.update(task, description="held-out prompts, uncached")
        references = [others.generate(case) for case in held]
        known = _known(folder / f"{level}-damages.json", level, seed)
        rng = np.random.default_rng(seed)
        wanted = [drawn(rng, level, modules, steps) for _ in range(count)]
        bar.update(task, description="random schedules", total=count, completed=len(known.true))
        for one in wanted[len(known.true) :]:
            videos = [run(others, one.policy(steps), case)[0] for case in held]
            errors = [float((v - r).square().mean()) for v, r in zip(videos, references, strict=True)]
            known.true.append(float(np.mean(np.log(np.array(errors) + 1e-14))))
            write_json(folder / f"{level}-damages.json", known.model_dump(), WHAT)
            bar.advance(task)
    predicted = (
        of_modules(profile, wanted, found) if isinstance(profile, Profile) else of_branches(profile, wanted, found)
    )
    true = np.array(known.true[:count])
    return {
        "pipeline": pipe,
        "level": level,
        "schedules": count,
        "recorded": RECORDED,
        "injected_runs": {error: one.runs for error, one in found.items()},
        "generations_injected": {error: one.generations for error, one in found.items()},
        "held_out": held_out,
        "true_psnr": {name: float(np.quantile(_decibels(true), q)) for name, q in QUANTILES.items()},
        "correlation": {name: rank_interval(values, true) for name, values in predicted.items()},
        "decibels_off": {
            name: {
                of: float(np.quantile(_decibels(np.log(values + 1e-14)) - _decibels(true), q))
                for of, q in QUANTILES.items()
            }
            for name, values in predicted.items()
            if name in found
        },
    }


def _decibels(logarithm: Floats) -> Floats:
    found: Floats = -10.0 / np.log(10.0) * logarithm
    return found


def _known(path: Path, level: str, seed: int) -> Damages:
    try:
        return read_model(path, Damages, WHAT)
    except Missing:
        return Damages(level=level, seed=seed)


def groups_of(level: Level, pipe: Any) -> dict[str, list[Site]]:
    """What errors are put into: the denoiser, or each role of module sites."""
    found: dict[str, list[Site]] = {}
    for site in fc.find_sites(pipe):
        if site.kind is (Kind.DENOISER if level == "branch" else Kind.MODULE):
            found.setdefault(str(site.role or site.kind), []).append(site)
    return found


def of_modules(profile: Profile, schedules: Sequence[Drawn], found: Mapping[str, Injected]) -> dict[str, Floats]:
    """Predicted squared error of each schedule, by what predicts it."""
    impulse = impulse_of(found)
    factors = {"sampler": {str(site.role): impulse for site in profile.sites}}
    factors |= {error: one.factors(len(impulse)) for error, one in found.items()}
    return {
        name: np.array(
            [of_sites(profile, profile.index("|".join(s.sites)), s.computed, rows, s.stand_in) for s in schedules]
        )
        for name, rows in factors.items()
    }


def of_branches(
    profile: TrajectoryProfile, schedules: Sequence[Drawn], found: Mapping[str, Injected]
) -> dict[str, Floats]:
    """Predicted squared error of each schedule, by what predicts it.

    Guidance is F = u + s (c - u): an error of u, or of u - c, counts 1 - s times, one of c counts s times.
    """
    scale, impulse = profile.info.guidance_scale, impulse_of(found)
    assert scale is not None
    n, grams = len(impulse), branch_grams(profile.trajectory, scale)
    steps = [Step(k, n, float(time)) for k, time in enumerate(profile.trajectory.times)]
    grown = impulse * np.exp(GROWTH * (1.0 - np.arange(1, n + 1) / n))
    factors = {"sampler": impulse, "growth": grown}
    factors |= {error: one.between(one.video[0] / one.output[0], n) for error, one in found.items()}
    counts = {COND: scale, UNCOND: 1.0 - scale, "branch": 1.0 - scale}
    return {
        name: np.array(
            [counts[s.what] ** 2 * consequence(grams[s.what], steps, s.computed, row, s.stand_in) for s in schedules]
        )
        for name, row in factors.items()
    }


def branch_grams(trajectory: Trajectory, scale: float) -> dict[str, Floats]:
    """Inner products over the steps of the conditional outputs, the unconditional ones, and their difference, (n, n).

    A recording does not say which of its two branches is which: with the guidance done one way round they give the
    recorded outputs, with the other way round they do not.
    """
    n = trajectory.steps
    whole = trajectory.by_branch.mean(axis=0)
    guided = trajectory.products.mean(axis=0)[n + 1 :, n + 1 :]
    first, second = slice(0, n), slice(n, 2 * n)

    def off(c: slice, u: slice) -> float:
        mixed = scale**2 * whole[c, c] + (1.0 - scale) ** 2 * whole[u, u]
        mixed += scale * (1.0 - scale) * (whole[c, u] + whole[u, c])
        return float(np.abs(mixed - guided).max())

    c, u = min(((first, second), (second, first)), key=lambda pair: off(*pair))
    difference = whole[u, u] - whole[u, c] - whole[c, u] + whole[c, c]
    return {COND: whole[c, c], UNCOND: whole[u, u], "branch": difference}


def impulse_of(found: Mapping[str, Injected]) -> Floats:
    """The sampler's impulse response. Raises RecordingError where it is not affine."""
    impulse = next(iter(found.values())).impulse
    if impulse is None:
        raise RecordingError("this sampler is not affine in the denoiser's outputs: its part cannot be computed")
    return impulse

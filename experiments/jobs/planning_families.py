"""Plan, fit and replay on every family of the zoo with every sampler that it takes: the fit beside fixed predictors.

`python -m fastercache.experiments.jobs.planning_families [FAMILY ...]` prints one line for each family and sampler:
random weights, 12 steps of which 5 are computed, two recorded runs. The error is the mean squared error of the
pipeline's result on these two runs. A family whose fit is worse than the best fixed predictor at the same steps, or
does not replay, is marked and makes the exit status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.sampling import Recording, TrajectoryRecorder
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.policies.base import Predictor
from fastercache.policies.errors import FasterCacheError
from fastercache.policies.methods.planned import Planned
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.fitting import Sampler, SearchRun, fit
from fastercache.tuner.planning.fixed import FIXED, better_of
from fastercache.tuner.planning.lockstep import Generate
from fastercache.tuner.planning.paths import plans
from fastercache.zoo.specimen import Specimen

STEPS, COMPUTED, SEEDS = 12, 5, (0, 1)
ROUNDING = 1e-3
"""Share of the error: a fixed predictor's weights, applied as a fit's are, add the same terms in another order."""


def samplers(pipe: Any) -> dict[str, Any]:
    """The samplers to try for a pipeline: its own, and others with its noise schedule. Not all are taken by it."""
    import diffusers

    own = pipe.scheduler
    found = {"own": own}
    if _flows(own):
        shift = float(own.config.get("shift") or own.config.get("flow_shift") or 1.0)
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        return found | {
            "flow Euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
            "DPM-Solver++": diffusers.DPMSolverMultistepScheduler(**flow),
            "UniPC": diffusers.UniPCMultistepScheduler(**flow),
        }
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "trained_betas")
    config = {key: own.config[key] for key in kept if key in own.config}
    return found | {
        "DDIM": diffusers.DDIMScheduler(**config, clip_sample=False),
        "Euler": diffusers.EulerDiscreteScheduler(**config),
        "DPM-Solver++": diffusers.DPMSolverMultistepScheduler(**config),
        "UniPC": diffusers.UniPCMultistepScheduler(**config),
    }


def _flows(scheduler: Any) -> bool:
    config = scheduler.config
    return "FlowMatch" in type(scheduler).__name__ or bool(config.get("use_flow_sigmas"))


@dataclass(frozen=True)
class Outcome:
    """What one family and sampler came to.

    Attributes:
        family, sampler: names. kind: of the sampler's response.
        computed: the planned steps.
        fitted: mean squared error of the replayed fit, relative to the uncached result's mean square.
        fixed: the same of the fixed predictors at the same steps.
        replays: largest difference between the fit's own result and the replay through `attach`.
    """

    family: str
    sampler: str
    kind: str
    computed: tuple[int, ...]
    fitted: float
    fixed: dict[str, float]
    replays: float

    @property
    def best(self) -> str:
        """The fixed predictor with the least error."""
        return min(self.fixed, key=self.fixed.__getitem__)

    @property
    def holds(self) -> bool:
        """Whether the fit replays bit for bit and is not worse than the best fixed predictor, but for rounding."""
        return self.replays == 0.0 and self.fitted <= self.fixed[self.best] * (1.0 + ROUNDING) + 1e-12

    def __str__(self) -> str:
        mark = "" if self.holds else "  <-- " + ("worse" if self.replays == 0.0 else f"replay {self.replays:.1e}")
        steps = ",".join(map(str, self.computed))
        return (
            f"{self.family:22} {self.sampler:13} {self.kind:10} {steps:14} {self.fitted:9.2e} "
            f"{self.fixed[self.best]:9.2e} {self.best}{mark}"
        )


def recorded(specimen: Specimen, seeds: Sequence[int] = SEEDS, steps: int = STEPS) -> tuple[Sampler, Recorded]:
    """Record one run for each seed: the sampler, and the runs with their results."""
    found: list[Recording] = []
    results = []
    with TrajectoryRecorder(specimen.pipe, done=found.append), torch.no_grad():
        for seed in seeds:
            results.append(specimen.generate(steps=steps, seed=seed))
    profile = TrajectoryProfile.of(found, specimen.pipe)
    runs = [SearchRun(generation(specimen, seed, steps), one.values) for seed, one in zip(seeds, found, strict=True)]
    return Sampler(profile.response, profile.relations), Recorded(profile, runs, results)


@dataclass(frozen=True)
class Recorded:
    """Recorded runs: their profile, how to generate each, and their results."""

    profile: TrajectoryProfile
    runs: list[SearchRun]
    results: list[Tensor]


def generation(specimen: Specimen, seed: int, steps: int = STEPS) -> Generate:
    """Generates one run of a specimen with a given copy of its pipeline."""

    def generate(pipe: Any) -> Tensor:
        return replace(specimen, pipe=pipe).generate(steps=steps, seed=seed)

    return generate


def planned(sampler: Sampler, profile: TrajectoryProfile, count: int = COMPUTED) -> tuple[int, ...]:
    """The planned steps, `count` of them."""
    starts = sampler.relations.starts
    damage = Damage(profile.trajectory, sampler.impulse, latent=sampler.input is not None, starts=starts)
    return plans(damage, counts=[count])[count][0].computed


def checked(family: str, name: str, specimen: Specimen) -> Outcome:
    """Record, plan, fit, replay, and compare with the fixed predictors."""
    sampler, material = recorded(specimen)
    steps = planned(sampler, material.profile)
    found = fit(specimen.pipe, material.runs, sampler, steps)
    found = better_of(specimen.pipe, material.runs, sampler, material.profile.trajectory, found)
    assert found.predictor is not None
    replayed = replays(specimen, sampler.steps, steps, found.predictor)
    fixed = {}
    for label, predictor in FIXED.items():
        fixed[label] = error(replays(specimen, sampler.steps, steps, predictor), material.results)
    return Outcome(
        family,
        name,
        sampler.response.kind,
        steps,
        error(replayed, material.results),
        fixed,
        max(float((a - b).abs().max()) for a, b in zip(replayed, found.results, strict=True)),
    )


def replays(specimen: Specimen, steps: int, computed: tuple[int, ...], predictor: Predictor) -> list[Tensor]:
    """The results of all seeds under a plan, through `attach`."""
    policy = Planned(steps=steps, computed=computed, stand_in=predictor)
    with fc.attach(specimen.pipe, policy), torch.no_grad():
        return [specimen.generate(steps=STEPS, seed=seed) for seed in SEEDS]


def error(results: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Mean squared error over the runs, relative to the references' mean square."""
    pairs = [(a.double(), b.double()) for a, b in zip(results, references, strict=True)]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))


def outcomes(family: str) -> Iterator[Outcome | str]:
    """All samplers of a family; a line for one that the pipeline, or planning, refuses."""
    for name, scheduler in samplers(zoo.build(family).pipe).items():
        specimen = zoo.build(family)
        if name != "own":
            specimen.pipe.scheduler = scheduler
            try:
                with torch.no_grad():
                    finite = bool(torch.isfinite(specimen.generate(steps=STEPS)).all())
            except Exception:  # whatever a pipeline raises for a scheduler that it does not take
                finite = False
            if not finite:
                continue
        try:
            yield checked(family, name, specimen)
        except FasterCacheError as refusal:
            yield f"{family:22} {name:13} refused: {refusal}"


def main(families: Sequence[str]) -> int:
    torch.set_num_threads(1)
    broken = 0
    for family in families or zoo.FAMILIES:
        for outcome in outcomes(family):
            print(outcome, flush=True)
            broken += isinstance(outcome, Outcome) and not outcome.holds
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

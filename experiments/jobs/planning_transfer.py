"""What of a plan transfers: other guidance scales, numbers of computed steps, step counts and sizes.

`python -m fastercache.experiments.jobs.planning_transfer latte-digits [--search 4] [--held-out 4]` records the search
prompts, plans and fits once, and replays the plan where it was not made for. PSNR in dB against the uncached run of the
same setting, mean over held-out prompts; a plan that was made for the setting stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import fastercache as fc
from fastercache.analysis.metrics import metric_called
from fastercache.analysis.sampling import Recording, TrajectoryRecorder
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.experiments.pipelines import Subject, open_pipeline
from fastercache.policies.methods.planned import Planned
from fastercache.tuner.planning.damage import Damage
from fastercache.tuner.planning.fitting import Sampler, SearchRun, fit
from fastercache.tuner.planning.lockstep import Generate
from fastercache.tuner.planning.paths import plans
from fastercache.tuner.setting import Case, Setting

FIRST_HELD_OUT = 100_000
SPEEDUPS = (50 / 15, 5.0)
GUIDANCES = (2.0, 7.0)
OTHER_STEPS = 30


@dataclass(frozen=True)
class Row:
    """One measurement: what is replayed, where, computed steps of all, and PSNR by held-out prompt, dB."""

    what: str
    where: str
    computed: str
    psnr: Sequence[float]

    def __str__(self) -> str:
        spread = f"{stdev(self.psnr):.1f}" if len(self.psnr) > 1 else "-"
        return f"| {self.where} | {self.what} | {self.computed} | {mean(self.psnr):.1f} | {spread} |"


@dataclass
class Recorded:
    """Recorded search prompts of one setting."""

    setting: Setting
    profile: TrajectoryProfile
    runs: list[SearchRun]

    @property
    def sampler(self) -> Sampler:
        return Sampler(self.profile.response, self.profile.relations)


@dataclass
class Bench:
    """The model, the prompts, and the uncached held-out videos made so far, by setting."""

    subject: Subject
    search: Sequence[str]
    held_out: Sequence[str]
    references: dict[str, list[Tensor]] = field(default_factory=dict)

    def setting(self, **changes: Any) -> Setting:
        return Setting(self.subject.pipe, self.subject.call).calling(**changes)

    @property
    def cases(self) -> list[Case]:
        return [Case(prompt, FIRST_HELD_OUT + i) for i, prompt in enumerate(self.held_out)]

    def record(self, setting: Setting, prompts: int) -> Recorded:
        """The first search prompts, uncached."""
        found: list[Recording] = []
        cases = setting.cases(self.search[:prompts])
        with TrajectoryRecorder(setting.pipe, done=found.append):
            for case in cases:
                setting.generate(case)
        runs = [SearchRun(_generation(setting, case), one.values) for case, one in zip(cases, found, strict=True)]
        return Recorded(setting, TrajectoryProfile.of(found, setting.pipe), runs)

    def psnr(self, setting: Setting, policy: Planned) -> list[float]:
        """PSNR of every held-out prompt under a plan."""
        key = repr(sorted(setting.call.items()))
        if key not in self.references:
            self.references[key] = [setting.generate(case) for case in self.cases]
        found = []
        with fc.attach(setting.pipe, policy):
            for case, reference in zip(self.cases, self.references[key], strict=True):
                video = setting.generate(case)
                found.append(float(metric_called("psnr").measured(video[None], reference[None], [case.prompt])[0]))
        return found


def _generation(setting: Setting, case: Case) -> Generate:
    def generate(pipe: Any) -> Tensor:
        return setting.on(pipe).generate(case)

    return generate


def steps_from(profile: TrajectoryProfile, count: int) -> tuple[int, ...]:
    """The planned steps, `count` of them."""
    damage = Damage(
        profile.trajectory,
        profile.response.impulse,
        latent=profile.relations.input is not None,
        starts=profile.relations.starts,
    )
    return plans(damage, counts=[count])[count][0].computed


def fitted(recorded: Recorded, steps: tuple[int, ...]) -> Planned:
    """The plan with weights fitted on the recorded prompts."""
    found = fit(recorded.setting.pipe, recorded.runs, recorded.sampler, steps, finish=False)
    assert found.predictor is not None
    return Planned(steps=recorded.sampler.steps, computed=steps, stand_in=found.predictor)


def measure(bench: Bench, sizes: Mapping[str, Any], refits: int) -> None:
    """Print every row as it is measured. `refits`: recorded prompts of each other setting."""

    def say(what: str, where: str, policy: Planned, setting: Setting) -> None:
        computed = f"{len(policy.computed)} of {policy.steps}"
        print(Row(what, where, computed, bench.psnr(setting, policy)), flush=True)

    home = bench.setting()
    recorded = bench.record(home, len(bench.search))
    steps = recorded.sampler.steps
    made = {}
    for speedup in SPEEDUPS:
        made[speedup] = fitted(recorded, steps_from(recorded.profile, round(steps / speedup)))
        say("made for it", "as recorded", made[speedup], home)
    for guidance in GUIDANCES:
        other = bench.setting(guidance_scale=guidance)
        own = bench.record(other, refits)
        for policy in made.values():
            where = f"guidance {guidance:g}"
            say("as it is", where, policy, other)
            say("its steps, weights fitted again", where, fitted(own, policy.computed), other)
            say("made for it", where, fitted(own, steps_from(own.profile, len(policy.computed))), other)
    fewer = bench.setting(num_inference_steps=OTHER_STEPS)
    own = bench.record(fewer, refits)
    guess = recorded.profile.with_steps(bench.subject.pipe.scheduler, OTHER_STEPS)
    for speedup in SPEEDUPS:
        count = round(OTHER_STEPS / speedup)
        say("steps from the interpolated profile", f"{OTHER_STEPS} steps", _at(own, guess, count), fewer)
        say("made for it", f"{OTHER_STEPS} steps", _at(own, own.profile, count), fewer)
    larger = bench.setting(**sizes)
    try:
        own = bench.record(larger, refits)
    except (RuntimeError, ValueError) as error:
        print(f"{sizes}: the model does not take it: {error}")
        return
    for policy in made.values():
        where = " x ".join(map(str, sizes.values()))
        say("as it is", where, policy, larger)
        say("made for it", where, fitted(own, steps_from(own.profile, len(policy.computed))), larger)


def _at(recorded: Recorded, profile: TrajectoryProfile, count: int) -> Planned:
    return fitted(recorded, steps_from(profile, count))


def main(
    model: Annotated[str, typer.Argument(help="latte-digits or wan-digits.")],
    search: Annotated[int, typer.Option(help="Recorded search prompts.")] = 4,
    held_out: Annotated[int, typer.Option(help="Held-out prompts.")] = 4,
    refits: Annotated[int, typer.Option(help="Recorded prompts of each other setting.")] = 2,
    size: Annotated[int, typer.Option(help="Height and width of the other resolution, pixels.")] = 48,
) -> None:
    torch.set_num_threads(1)
    subject = open_pipeline(model, device="cpu")
    bench = Bench(subject, subject.captions("train")[:search], subject.captions("held_out")[:held_out])
    print(f"{model}: {search} search prompts, {held_out} held-out prompts, {refits} recorded at each other setting")
    print("| setting | plan | computed steps | PSNR, dB | standard deviation |\n|---|---|---|---|---|")
    measure(bench, {"height": size, "width": size}, refits)


if __name__ == "__main__":
    typer.run(main)

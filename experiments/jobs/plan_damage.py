"""Predicted against true damage of random plans: the rank correlation that planning from a recording rests on.

`python -m fastercache.experiments.jobs.plan_damage latte-digits --out DIR` draws random sets of computed steps,
predicts the damage of each from the recorded search prompts alone, fits each on some search prompts and replays it on
held-out prompts. `--level branch` and `--level module` draw schedules that reuse one guidance branch or some modules
instead (`site_damage`). Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import typer
from pydantic import BaseModel, Field

from fastercache.analysis.trajectory import Floats
from fastercache.experiments.console import progress, quiet
from fastercache.experiments.jobs import site_damage
from fastercache.experiments.jobs.site_damage import Level
from fastercache.experiments.pipelines import open_pipeline, shipped_captions, with_steps
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.tuner.planning.attribution import rank_interval
from fastercache.tuner.planning.fitting import fit, replay
from fastercache.tuner.planning.material import Material, material
from fastercache.tuner.planning.rehearsal import Foresight
from fastercache.tuner.setting import References, Setting

RECORDED, FITTED = 8, 4
WHAT = "damages"


class Damages(BaseModel):
    """Plans with the mean logarithm of the mean squared error that each left in held-out latents."""

    seed: int
    plans: list[list[int]] = Field(default_factory=list)
    true: list[float] = Field(default_factory=list)


def drawn(rng: np.random.Generator, steps: int, count: int) -> tuple[int, ...]:
    """A random plan: step 0 and others, all sets of `count` steps alike."""
    return (0, *sorted(int(s) for s in 1 + rng.choice(steps - 1, count - 1, replace=False)))


def measure(pipe: str, folder: Path, *, plans: int, computed: int, held_out: int, seed: int) -> dict[str, Any]:
    """Rank correlations over `plans` random plans, with a 95 % bootstrap interval."""
    subject = with_steps(open_pipeline(pipe))
    setting = Setting(subject.pipe, subject.call, seed)
    references = References(setting, folder / "references")
    search = material(references, setting.cases(shipped_captions(pipe, "train")[:RECORDED]))
    others = Setting(subject.pipe, subject.call, seed + 100_000)
    held = material(
        References(others, folder / "references"), others.cases(shipped_captions(pipe, "held_out")[:held_out])
    )
    try:
        known = read_model(folder / "damages.json", Damages, WHAT)
    except Missing:
        known = Damages(seed=seed)
    rng = np.random.default_rng(seed)
    wanted = [drawn(rng, search.profile.trajectory.steps, computed) for _ in range(plans)]
    with progress() as bar:
        task = bar.add_task("random plans", total=plans, completed=len(known.plans))
        for plan in wanted[len(known.plans) :]:
            known.true.append(_truth(subject.pipe, search, held, plan))
            known.plans.append(list(plan))
            write_json(folder / "damages.json", known.model_dump(), WHAT)
            bar.advance(task)
    true = np.array(known.true[:plans])
    return {
        "pipeline": pipe,
        "plans": plans,
        "computed": computed,
        "recorded": RECORDED,
        "fitted_on": FITTED,
        "held_out": held_out,
        "correlation": {name: rank_interval(values, true) for name, values in _predicted(search, wanted).items()},
    }


def _truth(pipe: Any, search: Material, held: Material, plan: tuple[int, ...]) -> float:
    found = fit(pipe, search.runs[:FITTED], search.sampler, plan, finish=False)
    errors = replay(pipe, held.runs, held.sampler, plan, found.stretches).errors
    return float(np.mean(np.log(errors + 1e-14)))


def _predicted(search: Material, plans: list[tuple[int, ...]]) -> dict[str, Floats]:
    """Predicted damage of each plan from the recording: as planning has it, and the two that it is the mean of."""
    foresight = Foresight.recorded(search.profile.trajectory, search.sampler)
    found = {"foreseen": [foresight.of(plan) for plan in plans]}
    found["isolated"] = [foresight.damage.of(plan) for plan in plans]
    if foresight.rehearsal is not None:
        found["rehearsed"] = [foresight.rehearsal.of(plan) for plan in plans]
    return {name: np.array(values) for name, values in found.items()}


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("plan-damage"),
    level: Annotated[str, typer.Option("--level", help="step, branch or module: what a schedule reuses.")] = "step",
    plans: Annotated[int, typer.Option("--plans", min=3)] = 100,
    computed: Annotated[int, typer.Option("--computed", min=2, help="Of whole steps.")] = 12,
    held_out: Annotated[int, typer.Option("--held-out-count", min=1)] = 4,
    injected: Annotated[int, typer.Option("--inject", min=2, help="Steps of each injection.")] = 8,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Measure the rank correlation on a reference model and write it to DIR/LEVEL.json."""
    quiet()
    if level == "step":
        found = measure(pipe, out, plans=plans, computed=computed, held_out=held_out, seed=seed)
    else:
        if level not in get_args(Level):
            raise typer.BadParameter(f"step, branch or module, found {level}", param_hint="--level")
        found = site_damage.measure(
            pipe, out, cast(Level, level), plans, injected=injected, held_out=held_out, seed=seed
        )
    write_json(out / f"{level}.json", found, "correlation")
    for name, value in found["correlation"].items():
        print(f"{name:16} {value['spearman']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")


if __name__ == "__main__":
    typer.run(main)

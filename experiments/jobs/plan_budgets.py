"""Do planned schedules keep their budgets on prompts that planning did not see?

`python -m fastercache.experiments.jobs.plan_budgets latte-digits --out DIR` plans within random PSNR budgets and
measures each plan's mean on held-out prompts. What two budgets share (judged plans, held-out runs of one plan) is run
once, and counted for each as if it had been run for it alone. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import BaseModel, Field

from fastercache.analysis.metrics import metric_called
from fastercache.experiments.console import quiet, say
from fastercache.experiments.jobs.planning import open_planner
from fastercache.experiments.pipelines import open_pipeline, shipped_captions, with_steps
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.policies.methods.planned import Planned
from fastercache.policies.registry import AnyPolicy
from fastercache.tuner import Budget
from fastercache.tuner.planning.planner import EFFORTS
from fastercache.tuner.setting import References, Setting, run, run_bare

LOW, HIGH = 35.0, 65.0
WHAT = "budgets"


class Kept(BaseModel):
    """One budget: its plan, PSNR on search prompts and on each held-out prompt, generations spent."""

    budget: float
    policy: AnyPolicy
    search: float
    held_out: list[float]
    generations: float

    @property
    def slack(self) -> float:
        """dB by which the held-out mean keeps the budget; negative where it is missed."""
        return statistics.fmean(self.held_out) - self.budget


class Budgets(BaseModel):
    """All budgets so far."""

    found: list[Kept] = Field(default_factory=list)


def measure(pipe: str, folder: Path, *, budgets: int, held_out: int, effort: int, seed: int) -> list[Kept]:
    """Plan within each budget and measure on held-out prompts; budgets are uniform between `LOW` and `HIGH` dB."""
    subject = with_steps(open_pipeline(pipe))
    search = shipped_captions(pipe, "train")[: EFFORTS[effort].recorded]
    setting = Setting(subject.pipe, subject.call, seed + 200_000)
    references = References(setting, folder / "held-out")
    cases = setting.cases(shipped_captions(pipe, "held_out")[:held_out])
    try:
        known = read_model(folder / "budgets.json", Budgets, WHAT)
    except Missing:
        known = Budgets()
    levels = np.random.default_rng(seed).uniform(LOW, HIGH, budgets)
    for level in levels[len(known.found) :]:
        planner = open_planner(subject, search, effort=effort, seed=seed, folder=folder)
        point = planner.for_budget(Budget.parse(f"psnr>={level:.2f}"))
        policy = point.policy(planner.steps)
        values = next((kept.held_out for kept in known.found if kept.policy == policy), None)
        if values is None:
            values = []
            for case in cases:
                reference = references.read(case)
                if reference is None:
                    reference, _ = run_bare(setting, case)
                    references.write(case, reference)
                video, _, _ = run(setting, policy, case)
                psnr = metric_called("psnr").measured(video[None], reference[None], [case.prompt])
                values.append(float(psnr[0]))
        assert point.psnr is not None
        known.found.append(
            Kept(budget=float(level), policy=policy, search=point.psnr, held_out=values, generations=planner.spent)
        )
        write_json(folder / "budgets.json", known.model_dump(mode="json"), WHAT)
        last = known.found[-1]
        say(
            f"psnr>={level:.2f}: {len(point.computed)} steps, search {last.search:.2f}, held-out "
            f"{statistics.fmean(values):.2f} ({last.slack:+.2f} dB), {last.generations:.1f} generations"
        )
    return known.found


def summary(pipe: str, found: list[Kept]) -> dict[str, Any]:
    """How many budgets were kept, and the worst miss."""
    return {
        "pipeline": pipe,
        "budgets": len(found),
        "held_out": len(found[0].held_out),
        "kept": sum(kept.slack >= 0.0 for kept in found),
        "worst": min(kept.slack for kept in found),
        "most_generations": max(kept.generations for kept in found),
        "computed": [len(kept.policy.computed) for kept in found if isinstance(kept.policy, Planned)],
        "slack": [round(kept.slack, 3) for kept in found],
    }


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("plan-budgets"),
    budgets: Annotated[int, typer.Option("--budgets", min=1)] = 25,
    held_out: Annotated[int, typer.Option("--held-out-count", min=2)] = 40,
    effort: Annotated[int, typer.Option("--effort", min=0, max=2)] = 1,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Measure how often budgets are kept on held-out prompts and write DIR/kept.json."""
    quiet()
    found = summary(pipe, measure(pipe, out, budgets=budgets, held_out=held_out, effort=effort, seed=seed))
    write_json(out / "kept.json", found, WHAT)
    print(
        f"{found['kept']} of {found['budgets']} budgets kept on {found['held_out']} held-out prompts, worst "
        f"{found['worst']:+.2f} dB, at most {found['most_generations']:.1f} generations"
    )


if __name__ == "__main__":
    typer.run(main)

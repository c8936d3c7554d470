"""What `attribute` does: name the stretches of a planned schedule that make its error, predicted and measured."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import fastercache as fc
from fastercache.analysis.plots.attribution import AttributionInfo, draw_attribution
from fastercache.analysis.plots.style import save_png
from fastercache.analysis.trajectory import Floats
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.pipelines import Subject, as_made
from fastercache.picking import Pick, opened
from fastercache.policies.errors import InvalidPolicy
from fastercache.policies.wording import counted, lasting
from fastercache.tuned import TunedConfig
from fastercache.tuner.planning import attribution
from fastercache.tuner.planning.attribution import Decision, Truth, decisions
from fastercache.tuner.planning.material import Material, material, recorded
from fastercache.tuner.setting import References, Setting


def read_plan(path: Path, pipe: str, pick: Pick) -> tuple[TunedConfig, fc.Planned]:
    """A tuned config, or what is picked of a dial, and the plan in it.

    Raises ConfigUnreadable, BudgetNotMet, and InvalidPolicy for a config of another policy.
    """
    config = pick.of(opened(path))
    if not isinstance(config.policy, fc.Planned):
        raise InvalidPolicy(
            f"{path} holds the policy `{config.policy.name}`, which is no planned schedule: give a config that "
            f"`fastercache plan {pipe} --speedup 4 --out planned.json` made"
        )
    return config, config.policy


def attribute(
    subject: Subject,
    config: TunedConfig,
    plan: fc.Planned,
    prompts: Sequence[str],
    *,
    count: int = 2,
    with_truth: bool = True,
    seed: int = 0,
    allow: Collection[str] = (),
    folder: Path,
    show: bool = True,
) -> dict[str, Any]:
    """Predict what each stretch of a plan costs, and measure it.

    Args:
        prompts: the search prompts of the plan. All that the folder has recordings of serve the prediction.
        count: the first so many are run. with_truth: whether any is. allow: see `TunedConfig.check`.
        folder: the study of the plan, with its recordings; gets the picture.

    Raises:
        ConfigMismatch: if the config was made for another pipeline. InvalidPolicy: see `weights_of`.
    """
    config.check(subject.pipe, allow)
    subject = as_made(subject, config)
    setting = Setting(subject.pipe, subject.call, seed)
    references = References(setting, folder / "references")
    cases = setting.cases(prompts)
    here = set(recorded(references, cases))
    wanted = [case for i, case in enumerate(cases) if case in here or (i < count and (with_truth or not here))]
    missing = len(wanted) - len(here)
    skipped = decisions(plan)
    steps = attribution.price(plan) * min(count, len(cases)) if with_truth else 0
    costs = [f"{counted(missing, 'prompt')} to record, because {folder} has no recording of them"] if missing else []
    if with_truth:
        costs.append(
            f"{steps / plan.steps:.1f} uncached generations' worth of denoiser calls ({steps} steps) for "
            f"{counted(len(skipped), 'stretch')} on "
            f"{counted(min(count, len(cases)), 'prompt')}"
        )
    say("the price: " + ("; ".join(costs) or "nothing is run"))
    with progress() as bar:
        task = bar.add_task("recording", total=len(wanted))
        found = material(
            references, wanted, told=lambda doing, done: bar.update(task, description=doing, completed=done)
        )
    predicted = attribution.predicted(found.profile.trajectory, found.sampler, plan)
    truth = _truth(subject, found, plan, count, steps) if with_truth else None
    info = _info(skipped, predicted, truth, found, count)
    picture = save_png(draw_attribution(info), folder / "attribution.png")
    if show:
        _say(subject, plan, skipped, predicted, truth, found)
        say(f"picture: {picture}", results)
    return {
        "pipeline": subject.name,
        "steps": plan.steps,
        "computed_steps": list(plan.computed),
        "recorded_prompts": len(found.cases),
        "stretches": _rows(plan, skipped, predicted, truth),
        "truth": None if truth is None else _figures(predicted, truth),
        "files": {"picture": str(picture)},
    }


def _truth(subject: Subject, found: Material, plan: fc.Planned, count: int, steps: int) -> Truth:
    calls = steps * found.sampler.relations.calls
    began, priced = time.perf_counter(), False
    with progress() as bar:
        task = bar.add_task("measuring", total=calls)

        def told(doing: str, done: int) -> None:
            nonlocal priced
            bar.update(task, description=doing, completed=done)
            if done and not priced:
                priced = True
                say(f"at this pace some {lasting((time.perf_counter() - began) / done * calls)} in all here")

        runs, videos = found.runs[:count], found.videos[:count]
        return attribution.truth(subject.pipe, runs, videos, found.sampler, plan, told=told)


def _info(
    skipped: Sequence[Decision], predicted: Floats, truth: Truth | None, found: Material, count: int
) -> AttributionInfo:
    return AttributionInfo(
        names=tuple(map(str, skipped)),
        predicted=tuple(map(float, attribution.shares(predicted))),
        true=None if truth is None else tuple(map(float, truth.shares)),
        prompts=min(count, len(found.cases)),
        recorded=len(found.cases),
        note="" if truth is None else f"later weights repair {100.0 * truth.repaired:.0f} % of it",
    )


def _rows(
    plan: fc.Planned, skipped: Sequence[Decision], predicted: Floats, truth: Truth | None
) -> list[dict[str, Any]]:
    rows = []
    for place, (decision, share) in enumerate(zip(skipped, attribution.shares(predicted), strict=True)):
        row: dict[str, Any] = {
            "after": decision.after,
            "steps": [decision.first, decision.last],
            "predicted_share": float(share),
            "flops_share": len(decision.steps) / plan.steps,
        }
        if truth is not None:
            row |= {
                "true_share": float(truth.shares[place]),
                "psnr_gain_if_computed": float(truth.gains[place]),
                "drop_if_computed": float(truth.drops[place]),
            }
        rows.append(row)
    return rows


def _figures(predicted: Floats, truth: Truth) -> dict[str, Any]:
    return {
        "prompts": len(truth.whole),
        "psnr": float(truth.psnr.mean()),
        "mse": float(truth.whole.mean()),
        "spearman": attribution.rank_correlation(predicted, truth.shares),
        "repaired": truth.repaired,
        "explained_by_drops": truth.explained,
        "denoiser_calls": truth.calls,
    }


def _say(
    subject: Subject,
    plan: fc.Planned,
    skipped: Sequence[Decision],
    predicted: Floats,
    truth: Truth | None,
    found: Material,
) -> None:
    foreseen = attribution.shares(predicted)
    measured = "" if truth is None else f", measured on {len(truth.whole)}"
    title = f"{subject.name}, {len(plan.computed)} of {plan.steps} steps computed: predicted from "
    shown = Table(title=f"{title}{counted(len(found.cases), 'recorded prompt')}{measured}")
    shown.add_column("skipped steps")
    names = ["predicted share"] + (["true share", "PSNR if computed"] if truth is not None else [])
    for name in (*names, "FLOPs it costs"):
        shown.add_column(name, justify="right")
    for place, decision in enumerate(skipped):
        cells = [str(decision), f"{100.0 * foreseen[place]:.1f} %"]
        if truth is not None:
            cells += [f"{100.0 * truth.shares[place]:.1f} %", f"{truth.gains[place]:+.1f} dB"]
        shown.add_row(*cells, f"+{100.0 * len(decision.steps) / plan.steps:.0f} %")
    results.print(shown)
    if truth is None:
        say(_held(skipped, foreseen, "by the prediction "), results)
        return
    say(_held(skipped, truth.shares), results)
    figures = _figures(predicted, truth)
    if math.isfinite(figures["spearman"]):
        say(f"predicted and true shares: rank correlation (Spearman) {figures['spearman']:.2f}", results)
    say(
        f"the parts and the whole: by themselves the stretches leave {1.0 / (1.0 - truth.repaired):.1f} times the "
        f"plan's error ({figures['psnr']:.1f} dB); the weights of later stretches repair the rest",
        results,
    )
    worse = int(np.sum(truth.gains < 0.0))
    ending = (
        f"; {worse} of {len(skipped)} make it worse, because later weights repair what is no longer wrong: to compute "
        "more steps, plan again"
        if worse
        else ""
    )
    say(
        "computing one stretch and leaving all weights as they are: the drops together are "
        f"{100.0 * truth.explained:.0f} % of the error{ending}",
        results,
    )


def _held(skipped: Sequence[Decision], found: Floats, source: str = "") -> str:
    """`these 2 of 9 stretches hold 64 % of ...`: the fewest that hold half of it."""
    chosen = attribution.holding(found)
    these = "this 1" if len(chosen) == 1 else f"these {len(chosen)}"
    names = ", ".join(str(skipped[i]) for i in chosen)
    holds = "holds" if len(chosen) == 1 else "hold"
    part = 100.0 * float(found[chosen].sum())
    return f"{source}{these} of {len(skipped)} stretches {holds} {part:.0f} % of the error that all make: {names}"

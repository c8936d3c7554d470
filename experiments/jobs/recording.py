"""What `analyze` does: a recording of a pipeline, and what is drawn and told from it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from fastercache.analysis import Board, Profile, record
from fastercache.analysis.injection import Error
from fastercache.analysis.plots import overview, redundancy_info, save_png
from fastercache.analysis.ranking import ranked
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs import injecting
from fastercache.experiments.pipelines import Subject
from fastercache.policies.vocabulary import Kind
from fastercache.policies.wording import counted
from fastercache.tuner import Evaluator


class Recorded(NamedTuple):
    """A profile, and the share of a denoiser call's FLOPs that each of its sites takes, as far as it was counted."""

    profile: Profile
    shares: dict[str, float]


def recorded(evaluator: Evaluator, prompts: Sequence[str], folder: Path, query: str | None = None) -> Recorded:
    """Record the uncached pipeline on some prompts, and keep the profile in `folder`."""
    evaluator.close()
    with record(evaluator.pipe, query) as recorder, progress() as bar:
        for case in bar.track(evaluator.cases(prompts), description="recording"):
            evaluator.setting.generate(case)
    profile = recorder.profile()
    profile.save(folder)
    whole = {site.name: 1.0 for site in profile.sites if site.kind is Kind.DENOISER and not site.denoiser}
    return Recorded(profile, recorder.session.flop_shares() | whole)


def save_figures(profile: Profile, out: Path) -> dict[str, str]:
    """Every figure as PNG, and the same with the curves' scalars in TensorBoard: name -> path."""
    files = {name: str(save_png(figure, out / f"{name}.png")) for name, figure in overview(profile).items()}
    board = out / "tensorboard"
    shutil.rmtree(board / "profile", ignore_errors=True)  # events of an older call would be shown beside the new ones
    with Board(board / "profile") as writer:
        writer.add_profile(profile)
    return {**files, "tensorboard": str(board)}


def changes(profile: Profile) -> list[dict[str, Any]]:
    """Per role or kind, the relative L1 change from the step before: mean, least and greatest over steps."""
    rows = []
    for group in redundancy_info(profile).groups:
        at = np.flatnonzero(np.isfinite(group.mean))
        least, most = at[np.argmin(group.mean[at])], at[np.argmax(group.mean[at])]
        rows.append(
            {
                "group": group.name,
                "sites": len(group.sites),
                "mean": float(group.mean[at].mean()),
                "least": float(group.mean[least]),
                "least_at_step": int(least),
                "most": float(group.mean[most]),
                "most_at_step": int(most),
            }
        )
    return rows


def tell(profile: Profile) -> Table:
    """`changes` for a person."""
    grid = Table(
        title=f"relative L1 change from one step to the next, {counted(profile.runs, 'prompt')}",
        title_justify="left",
        header_style="bold",
    )
    for heading in ("group", "sites", "mean", "least", "most"):
        grid.add_column(heading, justify="left" if heading == "group" else "right")
    for row in changes(profile):
        least, most = (f"{row[which]:.3f} (step {row[f'{which}_at_step']})" for which in ("least", "most"))
        grid.add_row(row["group"], str(row["sites"]), f"{row['mean']:.3f}", least, most)
    return grid


def analyze(
    subject: Subject,
    prompts: Sequence[str],
    query: str | None,
    out: Path,
    *,
    inject: int,
    error: Error,
    seed: int,
    show: bool,
) -> dict[str, Any]:
    """Record a pipeline, draw what was found, and keep both in `out`.

    Args:
        inject: steps at which errors are injected on the first prompt; 0: nothing is. error: their kind.
    """
    evaluator = Evaluator(subject.pipe, subject.call, store=out, seed=seed)  # no reference is asked for, none stored
    profile, shares = recorded(evaluator, prompts, out / "profile", query)
    files = {"profile": str(out / "profile"), **save_figures(profile, out)}
    injected, sensitivity = None, None
    if inject:
        case = evaluator.cases(prompts[:1])[0]
        injected = injecting.sensitivity(evaluator.setting, case, profile, inject, error)
        sensitivity, more = injecting.kept(injected, len(profile.info.timesteps), out)
        files |= more
    findings = ranked(profile, shares, injected)
    if show:
        results.print(tell(profile))
        for name, path in files.items():
            say(f"{name:>12}  {path}", results)
        say(f"what can be reused, from {counted(profile.runs, 'prompt')}, what saves most first:", results)
        for number, one in enumerate(findings, 1):
            say(f"  {number}. {one}", results)
        if injected is not None:
            injecting.shown(injected)
    return {
        "pipeline": subject.name,
        "prompts": profile.runs,
        "changes": changes(profile),
        "reusable": [asdict(one) for one in findings],
        "sensitivity": sensitivity,
        "files": files,
    }

"""What `analyze` does: a recording of a pipeline, and the figures drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import Profile, record
from experiments.console import progress, results
from experiments.pipelines import Subject
from tuner import Evaluator


def recorded(evaluator: Evaluator, prompts: Sequence[str], folder: Path, query: str | None = None) -> Profile:
    """Record the uncached pipeline on some prompts, and keep the profile in `folder`."""
    evaluator.close()
    with record(evaluator.pipe, query) as recorder, progress() as bar:
        for case in bar.track(evaluator.cases(prompts), description="recording"):
            evaluator.generate(case)
    profile = recorder.profile()
    profile.save(folder)
    return profile


def save_figures(profile: Profile, out: Path) -> dict[str, str]:
    """Heatmaps and curves as PNG, and the same in TensorBoard: name -> path."""
    return {}


def analyze(
    subject: Subject, prompts: Sequence[str], query: str | None, out: Path, *, seed: int, show: bool
) -> dict[str, Any]:
    """Record a pipeline and draw what was found."""
    evaluator = Evaluator(subject.pipe, subject.call, store=out / "references", seed=seed)
    profile = recorded(evaluator, prompts, out / "profile", query)
    files = {"profile": str(out / "profile"), **save_figures(profile, out)}
    if show:
        for name, path in files.items():
            results.print(f"{name:>12}  {path}", soft_wrap=True)
    return {"pipeline": subject.name, "prompts": len(prompts), "files": files}

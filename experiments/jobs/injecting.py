"""What `analyze --inject` does: put errors into single steps of one run, and tell what they do to the video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fastercache.analysis.injection import SIZE, Error, Injected, inject, price, spread
from fastercache.analysis.plots import save_png
from fastercache.analysis.plots.sensitivity import draw_sensitivity
from fastercache.analysis.profile import Profile
from fastercache.experiments.console import progress, results, say
from fastercache.policies.documents import write_json
from fastercache.policies.errors import RecordingError
from fastercache.policies.vocabulary import Kind, Site
from fastercache.policies.wording import counted
from fastercache.tuner.setting import Case, Setting


def sensitivity(setting: Setting, case: Case, profile: Profile, steps: int, error: Error) -> Injected:
    """Inject errors into each role of module sites of a profile, and into the denoiser, at `steps` steps each.

    Says how many runs that takes before the first.

    Raises:
        RecordingError: if the profile holds no such site.
    """
    groups = groups_of(profile)
    count = len(profile.info.timesteps)
    chosen = spread(count, steps)
    runs = len(groups) * len(chosen)
    spent = price(groups, chosen, count, error)
    say(
        f"injecting {_words(error)} at {counted(len(chosen), 'step')} into {', '.join(groups)}: "
        f"{counted(runs, 'run')} of one prompt, {spent:.1f} uncached generations' worth of denoiser calls"
    )
    with progress() as bar:
        task = bar.add_task("injecting", total=runs)
        return inject(
            setting.pipe,
            lambda: setting.generate(case),
            groups,
            chosen,
            error=error,
            told=lambda done, total: bar.update(task, completed=done),
        )


def groups_of(profile: Profile) -> dict[str, Sequence[Site]]:
    """What errors can be put into, by name. Raises RecordingError if there is nothing."""
    groups: dict[str, Sequence[Site]] = {}
    for name, places in profile.groups():
        sites = [profile.sites[place] for place in places]
        if sites[0].kind in (Kind.MODULE, Kind.DENOISER):
            groups[name] = sites
    if not groups:
        raise RecordingError(
            f"errors are put into modules or the denoiser, and --sites {profile.info.query} names none of them"
        )
    return groups


def _words(error: Error) -> str:
    return f"noise of {SIZE:.0%}" if error == "noise" else "the value of the step before"


def table(found: Injected) -> Table:
    """PSNR of the video by group and step, if 1 % of the value were wrong there alone."""
    grid = Table(
        title=f"PSNR of the video in dB if the values of one step alone are off by {SIZE:.0%}",
        title_justify="left",
        header_style="bold",
    )
    grid.add_column("group \\ step")
    for step in found.steps:
        grid.add_column(str(step), justify="right")
    for place, name in enumerate(found.groups):
        off = SIZE * found.gain[place]
        grid.add_row(name, *(f"{-20.0 * math.log10(value):.0f}" if value else "-" for value in off))
    return grid


def told(found: Injected) -> list[str]:
    """What follows from it, in words."""
    lines = []
    for name, gains in zip(found.groups, found.gain, strict=True):
        order = [int(k) for k in np.argsort(gains) if gains[k] > 0.0]
        if not order:
            lines.append(f"{name}: its values are the same from step to step")
        elif gains[order[-1]] > gains[order[0]]:
            apart = 20.0 * math.log10(float(gains[order[-1]] / gains[order[0]]))
            most, least = found.steps[order[-1]], found.steps[order[0]]
            lines.append(f"{name}: an error at step {most} costs most, {apart:.0f} dB more than at step {least}")
    if found.computed is None:
        lines.append("this sampler is not affine in the denoiser's outputs: there is no computed curve to compare with")
    else:
        times = found.passed / found.computed
        between = f"{np.nanmin(times):.2g} to {np.nanmax(times):.2g}"
        lines.append(
            f"the last latent is off by {between} times what the sampler alone makes of an error: the rest is what the "
            "denoiser answers at later steps"
        )
    return lines


def kept(found: Injected, count: int, out: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The figures as plain values, also written to `sensitivity.json`, and the files beside them."""
    values = {
        "error": found.error,
        "size": SIZE if found.error == "noise" else None,
        "runs": found.runs,
        "generations": found.generations,
        "groups": dict(zip(found.groups, found.sites, strict=True)),
        "steps": list(found.steps),
        "computed": None if found.computed is None else found.computed.tolist(),
        **{name: getattr(found, name).tolist() for name in ("relative", "output", "latent", "video")},
    }
    files = {
        "sensitivity": str(write_json(out / "sensitivity.json", values, "sensitivity")),
        "sensitivity.png": str(save_png(draw_sensitivity(found, count), out / "sensitivity.png")),
    }
    return values, files


def shown(found: Injected) -> None:
    results.print(table(found))
    for line in told(found):
        say(f"  {line}", results)

"""What `compare` does: two recordings beside each other, as a table and as maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fastercache.analysis.comparing import Comparison, compare
from fastercache.analysis.measures import MEASURES, measure_of
from fastercache.analysis.plots.profiles import draw_profiles
from fastercache.analysis.plots.style import save_png
from fastercache.analysis.profile import Profile
from fastercache.experiments.console import results, say
from fastercache.policies.documents import check_writable
from fastercache.policies.wording import counted


def compared(first: Path, second: Path, measure: str, out: Path, *, show: bool) -> dict[str, Any]:
    """Compare the profiles in two folders of `analyze`, draw both, and return what `--json` prints.

    Raises:
        MeasurementError: for an unknown measure. ConfigUnreadable: if a folder holds no profile.
        RecordingError: if the two have nothing to compare.
    """
    measure_of(measure)
    check_writable(out, "picture")
    names = _names(first, second)
    found = compare(_profile(first), _profile(second), measure)
    save_png(draw_profiles(found, names), out)
    if show:
        results.print(_table(found, names))
        for line in found.left_out:
            say(f"left out: {line}", results)
        say(f"{out}: the maps of both, and where they differ", results)
    return {
        "measure": found.measure,
        "steps": found.steps,
        "prompts": list(found.runs),
        "rows": found.rows(),
        "left_out": list(found.left_out),
        "picture": str(out),
    }


def _profile(folder: Path) -> Profile:
    """The profile in a folder of `analyze`, or in one that `Profile.save` wrote."""
    return Profile.load(folder / "profile" if (folder / "profile").is_dir() else folder)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """What tells the folders apart: their own names, or the whole paths where those are the same."""
    names = first.resolve().name, second.resolve().name
    return names if names[0] != names[1] else (str(first), str(second))


def _table(found: Comparison, names: tuple[str, str]) -> Table:
    prompts = " and ".join(counted(runs, "prompt") for runs in found.runs)
    if found.runs[0] == found.runs[1]:
        prompts = f"{counted(found.runs[0], 'prompt')} each"
    what = MEASURES[found.measure]
    zero = "unlike" if what.identical else "alike"
    result = Table(
        title=f"{what.title} to the step before, {prompts}; 0: {zero}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    result.add_column("sites")
    for heading in ("branch", *names, "differ most by", "at steps"):
        result.add_column(heading, justify="right")
    for row in found.rows():
        counts = dict.fromkeys((row["sites_first"], row["sites_second"]))  # one where they are the same
        result.add_row(
            f"{row['group']}, {' and '.join(map(str, counts))}",
            str(row["branch"]),
            f"{row['first']:.4f}",
            f"{row['second']:.4f}",
            f"{row['largest_difference']:+.4f}",
            f"{row['stand_in_step']} for {row['replaced_step']}",
        )
    return result

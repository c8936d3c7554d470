"""What `export` does: a tuned config written for other software, or the tuned config of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastercache as fc
from fastercache.experiments.console import results, say
from fastercache.experiments.jobs import searching
from fastercache.export import FILES, exported
from fastercache.picking import Pick, carried, opened
from fastercache.policies.documents import write_atomic


def export(
    source: Path,
    target: str | None,
    out: Path | None,
    *,
    pick: Pick,
    trial: int | None,
    storage: str | None,
    show: bool,
) -> dict[str, Any]:
    """Export a tuned config to a target, or a study or a plan of a dial to a tuned config.

    Raises:
        ConfigUnreadable: if the source is not what the target is made from.
        BudgetNotMet: if no plan of a dial can be picked so.
        NotExportable: if the target cannot express the policy.
    """
    if pick and source.is_dir():
        raise fc.ConfigUnreadable(
            f"--speedup, --budget and --quality pick from a dial, {source} is a folder: leave them out"
        )
    if target is None and source.is_dir():
        return searching.export_study(source, out or Path("tuned.json"), trial=trial, storage=storage, show=show)
    if trial is not None or storage is not None:
        raise fc.ConfigUnreadable("--trial and --storage belong to a study: leave them out")
    if target is None:
        return _taken_out(source, pick, out or Path("tuned.json"), show)
    if source.is_dir():
        raise fc.ConfigUnreadable(
            f"{source} is a folder: --to {target} takes a tuned config; a study becomes one with fastercache export "
            f"{source} --out tuned.json"
        )
    found = exported(pick.of(opened(source)), target, None if out is None else out.name)
    place = out or Path(FILES[target])
    paths = [place / name for name in found.files] if target == "hub" else [place]
    for path, text in zip(paths, found.files.values(), strict=True):
        write_atomic(path, text, f"{target} export")
    if show:
        for path in paths:
            say(str(path), results)
        for line in found.lost:
            say(f"otherwise than in {source}: {line}", results)
    return {"source": str(source), "target": target, "files": [str(p) for p in paths], "lost": list(found.lost)}


def _taken_out(source: Path, pick: Pick, out: Path, show: bool) -> dict[str, Any]:
    """One plan of a dial as a tuned config. Raises ConfigUnreadable for a file that is no dial."""
    dial = opened(source)
    if not isinstance(dial, fc.Dial):
        raise fc.ConfigUnreadable(f"{source} is a file: say what it is written for, --to python for instance")
    path = carried(pick.of(dial), out).save(out)
    if show:
        say(str(path), results)
    return {"source": str(source), "target": None, "files": [str(path)], "lost": []}

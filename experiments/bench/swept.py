"""Other packages' caches at their best: what was searched and measured, and how far planned schedules are ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from fastercache.experiments.bench.contest import Contest
from fastercache.experiments.bench.equal import Drawn, Measured, Ratio, by_flops, by_time, compare, smallest
from fastercache.experiments.bench.grids import Grid
from fastercache.experiments.bench.lineup import FEWER, Contender
from fastercache.experiments.bench.standings import NOTHING, Line, Results
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.policies.errors import ConfigUnreadable

FILE = "swept.json"
WHAT = "swept peers"
NEAR = 1.0
"""dB: a setting that is further below one that is no slower, on the first search prompt, is not run on the others."""
WORTH = 1.1
"""Speedup in FLOPs that a setting must have to be measured, unless it is a default: less is hardly worth a cache."""
JOINT, OWN = 5, 1
"""Settings of a method that are measured: at most so many of those on the front of all peers, and of the others on its
own front."""
GOALS = {("each default", "FLOPs"): 2.0, ("the best swept setting", "FLOPs"): 1.5,
         ("each default", "time"): 1.7, ("the best swept setting", "time"): 1.3}  # fmt: skip
"""How many times faster than other packages' caches planned schedules are to be at equal PSNR."""


class Figures(NamedTuple):
    """A setting on the search prompts: speedup in FLOPs and mean PSNR in dB."""

    speedup: float
    psnr: float


class Point(BaseModel):
    """A setting that was searched.

    Attributes:
        method, setting, level: see `lineup.Contender`; the method with its package. default: whether it is the
            package's documented one. prompts: search prompts that it was run on. speedup: in FLOPs. psnr: dB.
        refused: why it has no figures. chosen: whether it was measured on held-out prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    setting: str
    level: str
    default: bool
    prompts: int = 0
    speedup: float | None = None
    psnr: float | None = None
    refused: str | None = None
    chosen: bool = False


class Equal(BaseModel):
    """A setting and what is as good as it, on held-out prompts.

    Attributes:
        method, setting, level: as in `Point`; fewer steps are there too. default: see `Point`.
        by_flops, by_time: the speedup of planned schedules at this setting's PSNR, over its own.
        fewer_by_flops, fewer_by_time: the same of fewer steps; None for these themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    setting: str
    level: str
    default: bool
    by_flops: Ratio
    by_time: Ratio
    fewer_by_flops: Ratio | None = None
    fewer_by_time: Ratio | None = None


class Goal(BaseModel):
    """What was to be reached over other packages' caches, and what was: the smallest ratio of all it is about.

    Attributes:
        over: which settings. by: `FLOPs` or `time`. settings: how many. nearest: the setting with the smallest ratio.
        reached: `yes`, `no` or `undecided`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    over: str
    by: str
    goal: float
    settings: int
    ratio: Ratio
    nearest: str
    reached: str


class Swept(BaseModel):
    """`swept.json`.

    Attributes:
        grids: version of `grids.GRIDS`. search_prompts, search_seed: what settings were chosen on.
        points: every setting tried. table: what was measured on held-out prompts. ratios: planned over each of it.
        goals: the four.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    grids: int
    search_prompts: int
    search_seed: int
    points: tuple[Point, ...]
    table: Results
    ratios: tuple[Equal, ...]
    goals: tuple[Goal, ...]

    @classmethod
    def load(cls, folder: Path) -> Swept:
        """Read `swept.json`. Raises ConfigUnreadable in one line."""
        try:
            return read_model(folder / FILE, cls, WHAT)
        except Missing:
            raise ConfigUnreadable(f"there is no {folder / FILE}: run the sweep without --plot-only first") from None

    def write(self, folder: Path) -> Path:
        """Write `swept.json`; returns its path."""
        write_json(folder / FILE, self.model_dump(mode="json"), WHAT)
        return folder / FILE


# -- choosing ----------------------------------------------------------------------------------------------------------
def acting(figures: Mapping[str, Figures], least: float = NOTHING) -> dict[str, Figures]:
    """Those that skip anything, or have a speedup of at least so much."""
    return {name: one for name, one in figures.items() if one.speedup >= least}


def front(figures: Mapping[str, Figures], near: float = 0.0) -> list[str]:
    """The settings that nothing beats by more than `near` dB at the same speedup or a higher one, slowest first.

    Of settings that are equal in both, the first stands for all, unless `near` is given.
    """
    kept: list[str] = []
    for name, one in figures.items():
        rivals = [other for other in figures.values() if other.speedup >= one.speedup]
        twin = not near and any(figures[other] == one for other in kept)
        beaten = any(
            other.psnr - near > one.psnr or (not near and other.psnr == one.psnr and other.speedup > one.speedup)
            for other in rivals
        )
        if not beaten and not twin:
            kept.append(name)
    return sorted(kept, key=lambda name: figures[name].speedup)


def thinned(names: Sequence[str], figures: Mapping[str, Figures], most: int) -> list[str]:
    """At most so many of a front, its ends among them, spread evenly in the logarithm of the speedup."""
    if len(names) <= most:
        return list(names)
    at = [math.log(figures[name].speedup) for name in names]
    left = list(range(len(names)))
    kept: list[int] = []
    for place in np.linspace(at[0], at[-1], most):
        nearest = min(left, key=lambda n: abs(at[n] - place))
        left.remove(nearest)
        kept.append(nearest)
    return [names[n] for n in sorted(kept)]


def chosen(figures: Mapping[str, Mapping[str, Figures]]) -> dict[str, list[str]]:
    """The settings to be measured, by method, from the figures of each method's settings by level."""
    flat = {f"{method}\n{level}": one for method, own in figures.items() for level, one in acting(own, WORTH).items()}
    joint = set(front(flat))
    found = {}
    for method, own in figures.items():
        best = front(acting(own, WORTH))
        leading = [level for level in best if f"{method}\n{level}" in joint]
        others = [level for level in best if level not in leading]
        kept = {*thinned(leading, own, JOINT), *thinned(others, own, OWN)}
        found[method] = [level for level in best if level in kept]
    return found


# -- comparing ---------------------------------------------------------------------------------------------------------
def measured(contest: Contest, name: str) -> Measured:
    """An entry's runs."""
    own = contest.figures(name)
    return Measured(
        flops=contest.row(name).speedup_flops,
        psnr=tuple(r["quality"]["psnr"] for r in own),
        seconds=tuple(r["seconds"] for r in own),
        uncached=tuple(r["seconds_uncached"] for r in own),
    )


def compared(
    runs: Mapping[str, Measured], contenders: Sequence[Contender], planned: str, grids: Sequence[Grid]
) -> tuple[list[Equal], list[Goal]]:
    """Planned schedules beside everything else, and the goals.

    Args:
        runs: by contender's name, of those that ran. planned: label of our schedules. grids: say what is a default.
    """
    ran = [c for c in contenders if c.name in runs]
    ours = [runs[c.name] for c in ran if c.label == planned]
    fewer = [runs[c.name] for c in ran if c.label == FEWER]
    kinds = {"by_flops": by_flops, "by_time": by_time}
    rows: list[Equal] = []
    drawn: dict[str, list[tuple[Equal, Drawn]]] = {kind: [] for kind in kinds}
    taken: set[str] = set()
    for one in ran:
        if one.label == planned or runs[one.name].flops < NOTHING:
            continue
        default = any(one.label == g.peer.label and one.level in g.defaults for g in grids) and one.label not in taken
        if default:
            taken.add(one.label)
        ratios = {kind: compare(ours, runs[one.name], speedups) for kind, speedups in kinds.items()}
        peer = one.label != FEWER
        theirs = {kind: compare(fewer, runs[one.name], speedups).ratio for kind, speedups in kinds.items() if peer}
        rows.append(
            Equal(
                method=method_of(one),
                setting=one.setting,
                level=one.level,
                default=default,
                by_flops=ratios["by_flops"].ratio,
                by_time=ratios["by_time"].ratio,
                fewer_by_flops=theirs.get("by_flops"),
                fewer_by_time=theirs.get("by_time"),
            )
        )
        if peer:
            for kind, ratio in ratios.items():
                drawn[kind].append((rows[-1], ratio))
    prompts = len(ours[0].psnr) if ours else 0
    return rows, [found for key in GOALS if (found := goal(*key, drawn, prompts)) is not None]


def goal(over: str, by: str, drawn: Mapping[str, Sequence[tuple[Equal, Drawn]]], prompts: int) -> Goal | None:
    """One of `GOALS`, from the ratios to all peers' settings; None without any."""
    about = [(row, one) for row, one in drawn[f"by_{by.lower()}"] if row.default or over != "each default"]
    if not about:
        return None
    ratio, least = smallest([one for _, one in about], prompts)
    row = about[least][0]
    return Goal(
        over=over,
        by=by,
        goal=GOALS[over, by],
        settings=len(about),
        ratio=ratio,
        nearest=f"{row.method}, {row.setting}",
        reached=ratio.reaches(GOALS[over, by]),
    )


def method_of(contender: Contender) -> str:
    """The method, and whose code where it is not ours."""
    return contender.label if contender.package == "fastercache" else f"{contender.label} ({contender.package})"


def acting_lines(swept: Swept) -> list[Line]:
    """The measured lines that skip anything."""
    return [line for line in swept.table.ran if not line.idle]

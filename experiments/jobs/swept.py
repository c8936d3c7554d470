"""Other packages' caches at many settings each, their best measured beside planned schedules and fewer steps.

`python -m fastercache.experiments.jobs.swept MODEL --out DIR` runs in two stages. Every setting of
`fastercache.experiments.bench.grids` is run on search prompts, under the flop counter: all on the first, those near the
front on the others too. Then each method's documented default and the settings on its front are measured on held-out
prompts, beside planned schedules and fewer steps, as `fastercache bench` measures. Choosing on other prompts than those
measured keeps chance out of the choice.

Written are `DIR/swept.json` and two figures. Every run is kept in DIR; interrupted, the same command goes on.
`--plot-only` draws again, `--page FILE` puts the tables into a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastercache.analysis.plots import save_png
from fastercache.experiments import pages
from fastercache.experiments.bench import swept_page
from fastercache.experiments.bench.contest import Contest
from fastercache.experiments.bench.grids import GRIDS, VERSION, Grid
from fastercache.experiments.bench.lineup import PLANNED, Contender, Method, levels, rows_of
from fastercache.experiments.bench.runner import Plan, calibrated, entered, hold, judged, plan_for
from fastercache.experiments.bench.standings import NOTHING
from fastercache.experiments.bench.swept import (
    NEAR,
    Figures,
    Point,
    Swept,
    acting,
    chosen,
    compared,
    front,
    measured,
    method_of,
)
from fastercache.experiments.bench.swept_picture import draw
from fastercache.experiments.console import quiet, say
from fastercache.experiments.pipelines import Subject, open_pipeline, with_steps

SPEEDUPS = (2.0, 2.5, 3.33, 5.0, 6.25, 10.0)
"""What schedules are planned for."""
OURS = Method("planned", "planned", PLANNED, levels("speedup", *SPEEDUPS), planned=True)
SEARCH_SEED = 500_000


class Search:
    """The settings of all grids on search prompts, kept in a folder.

    Attributes:
        rows: by method's label, its settings by level. figures: by method's label, then level, of those that ran.
        refused: why others did not.
    """

    def __init__(self, subject: Subject, plan: Plan, grids: Sequence[Grid], out: Path) -> None:
        self.subject, self.out = subject, out
        wanted = any(grid.peer.calibrated for grid in grids)
        constants, why_not = calibrated(subject, plan, out) if wanted else (None, "")
        self.grids = {grid.peer.label: grid for grid in grids}
        self.rows: dict[str, dict[str, Contender]] = {}
        for label, grid in self.grids.items():
            refused = why_not if grid.peer.calibrated and constants is None else None
            self.rows[label] = {row.level: row for row in rows_of(grid.peer, constants, refused)}
        self.figures: dict[str, dict[str, Figures]] = {label: {} for label in self.grids}
        self.prompts: dict[str, dict[str, int]] = {label: {} for label in self.grids}
        self.refused: dict[str, dict[str, str]] = {
            label: {level: row.refused for level, row in rows.items() if row.refused is not None}
            for label, rows in self.rows.items()
        }

    def run(self, prompts: Sequence[str]) -> None:
        """Scouts first; the grids of the methods that skip anything; what is near their fronts on all prompts."""
        say("does each method run, and skip anything?")
        self._on(prompts[:1], {label: grid.scouts for label, grid in self.grids.items()})
        living = [label for label, own in self.figures.items() if acting(own)]
        say("every setting on the first search prompt")
        self._on(prompts[:1], {label: self.grids[label].peer.names for label in living})
        say(f"settings near their method's front on all {len(prompts)} search prompts")
        near = {label: front(acting(self.figures[label]), NEAR) for label in living}
        self._on(prompts, near)

    def _on(self, prompts: Sequence[str], wanted: Mapping[str, Sequence[str]]) -> None:
        rows = [self.rows[label][level] for label, own in wanted.items() for level in own]
        entries = {row.name: row.entry for row in rows if row.refused is None}
        contest = Contest(
            self.subject, entries, prompts, self.out / "search", seed=SEARCH_SEED, keep=0, lenient=True, timed=False
        )
        hold(contest)
        for row in rows:
            if row.refused is not None:
                continue
            if (why := contest.refusal(row.name)) is not None:
                self.refused[row.label][row.level] = why
                continue
            found = contest.row(row.name)
            self.figures[row.label][row.level] = Figures(found.speedup_flops, found.quality["psnr"])
            self.prompts[row.label][row.level] = found.prompts

    def points(self, kept: Mapping[str, Sequence[str]]) -> list[Point]:
        """What was tried; `kept` are the levels that are measured."""
        found = []
        for label, rows in self.rows.items():
            for level, row in rows.items():
                one = self.figures[label].get(level)
                why = self.refused[label].get(level)
                if one is None and why is None:
                    continue
                found.append(
                    Point(
                        method=method_of(row),
                        setting=row.setting,
                        level=level,
                        default=level in self.grids[label].defaults,
                        prompts=self.prompts[label].get(level, 0),
                        speedup=None if one is None else round(one.speedup, 4),
                        psnr=None if one is None else round(one.psnr, 3),
                        refused=why,
                        chosen=level in kept.get(label, ()),
                    )
                )
        return found


def sweep(
    subject: Subject,
    out: Path,
    *,
    count: int,
    search_count: int,
    seed: int,
    ours: Method = OURS,
    grids: Sequence[Grid] = GRIDS,
) -> Swept:
    """Search, choose, measure and compare; everything is kept in `out`."""
    subject = with_steps(subject)
    plan = plan_for(subject, (ours,), None, count, seed, peers=False)
    search = Search(subject, plan, grids, out)
    search.run(plan.search[:search_count])
    kept = chosen(search.figures)
    for label, grid in search.grids.items():
        own = search.figures[label]
        default = next((level for level in grid.defaults if level in own and own[level].speedup >= NOTHING), None)
        if default is not None and default not in kept[label]:
            kept[label].insert(0, default)
    methods = tuple(search.grids[label].only(own) for label, own in kept.items() if own)
    say(f"measuring {sum(map(len, kept.values()))} settings of other packages on {count} held-out prompts")
    contest, contenders = entered(subject, replace(plan, methods=(ours, *methods)), out)
    hold(contest)
    runs = {
        c.name: measured(contest, c.name) for c in contenders if c.refused is None and contest.refusal(c.name) is None
    }
    ratios, goals = compared(runs, contenders, ours.label, grids)
    table = judged(contest, contenders)
    return Swept(
        grids=VERSION,
        search_prompts=search_count,
        search_seed=SEARCH_SEED,
        points=tuple(search.points(kept)),
        table=table.model_copy(update={"lines": tuple(line.model_copy(update={"policy": {}}) for line in table.lines)}),
        ratios=tuple(ratios),
        goals=tuple(goals),
    )


def main(
    pipe: Annotated[str, typer.Argument(metavar="PIPE", help="latte-digits or wan-digits.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("swept"),
    count: Annotated[int, typer.Option("--count", min=2, help="Held-out prompts.")] = 12,
    search: Annotated[int, typer.Option("--search-count", min=1, max=8, help="Search prompts.")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Held-out prompt i is generated with seed SEED + i.")] = 100_000,
    plot_only: Annotated[bool, typer.Option("--plot-only", help="Draw what was measured before.")] = False,
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Put the tables into this page.")] = None,
) -> None:
    """Sweep other packages' caches and compare their best with planned schedules at equal PSNR."""
    quiet()
    found = Swept.load(out) if plot_only else sweep(
        open_pipeline(pipe), out, count=count, search_count=search, seed=seed
    )  # fmt: skip
    if not plot_only:
        found.write(out)
    save_png(draw(found), out / "swept.png", dpi=110)
    if page is not None:
        pages.put_into(page, *swept_page.place(pipe), swept_page.markdown(found))
    for line in swept_page.goals(found):
        print(line)


if __name__ == "__main__":
    typer.run(main)

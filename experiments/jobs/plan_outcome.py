"""What `plan` makes of the plans that were found: measured on held-out prompts, written into files, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

import fastercache as fc
from fastercache.analysis.metrics import metric_called
from fastercache.analysis.plots.front import FrontInfo, draw_front, draw_steps, steps_info
from fastercache.analysis.plots.style import save_png
from fastercache.experiments.bench.contest import Contest
from fastercache.experiments.bench.entries import FewerSteps
from fastercache.experiments.bench.rows import Row, table
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.outcome import by_the_clock
from fastercache.experiments.pipelines import Subject
from fastercache.picking import carried
from fastercache.policies.errors import BudgetNotMet
from fastercache.policies.wording import counted
from fastercache.prompts import prompt_hash
from fastercache.tuned import Measured, Results, TunedConfig
from fastercache.tuner import Budget
from fastercache.tuner.planning.front import Front, Point, means
from fastercache.tuner.planning.planner import Planner
from fastercache.tuner.seconds import Seconds
from fastercache.tuner.setting import hardware, run

PLANNED = "planned"
HELD_OUT_SEED = 100_000
"""Held-out prompt i is generated with the seed + this + i, as the benchmark does: its noise is unseen too."""


@dataclass(frozen=True)
class Plan:
    """The answer to one question. `budget`: what it was planned within, if it was."""

    point: Point
    budget: Budget | None = None


@dataclass(frozen=True)
class Shown:
    """A plan with what was measured of it: its rows of the table, and its tuned config."""

    plan: Plan
    rows: tuple[Row, ...]
    config: TunedConfig


@dataclass(frozen=True)
class Outcome:
    """All that a planner found.

    Attributes:
        plans: one for each question. held_out: prompts to measure them on; may be empty.
        metrics: what is measured beside PSNR and SSIM. folder: keeps what was run, and the pictures.
        seconds: what steps take on this machine, where that was asked.
    """

    subject: Subject
    planner: Planner
    plans: Sequence[Plan]
    held_out: Sequence[str]
    metrics: Sequence[str]
    seed: int
    folder: Path
    seconds: Seconds | None = None

    @cached_property
    def front(self) -> Front:
        """Everything that planning knows."""
        return self.planner.front()

    def shipped(self, out: Path, *, show: bool) -> dict[str, Any]:
        """Measure the plans, write all files, and say what was found. Returns what `--json` prints.

        One plan goes into a tuned config, several go into a dial.
        """
        contest = self._measured() if self.held_out else None
        shown = [self._shown(plan, contest) for plan in self.plans]
        first = shown[0]
        if len(shown) == 1:
            carried(first.config, out).save(out)
        else:
            dial = fc.Dial.of(
                [one.config for one in shown], [self._values(one, contest) for one in shown], signs(shown)
            )
            carried(dial, out).save(out)
        name = "tuned" if len(shown) == 1 else "dial"
        files = {name: str(out), "front": str(self.front.save(self.folder / "front.json")), "study": str(self.folder)}
        others = tuple((row.name, row.speedup_flops, row.quality["psnr"]) for one in shown for row in one.rows[:-1])
        alone = self.planner.damage.alone()
        pictures = {
            "front": draw_front(_front_info(self.front, first.plan.point, others)),
            "steps": draw_steps(steps_info(first.plan.point.computed, alone, self.front.prompts)),
        }
        for kind, figure in pictures.items():
            files[f"{kind}_picture"] = str(save_png(figure, self.folder / f"{kind}.png"))
        if show:
            self._say(shown, files, out)
        answers = [self._answer(one) for one in shown]
        common = {
            "pipeline": self.subject.name,
            "generations": self.front.generations,
            "seconds": None if self.seconds is None else self.seconds.payload(),
            "prediction_error": self.front.prediction_error,
            "front": self.front.rows(),
            "files": files,
        }
        return common | (answers[0] if len(answers) == 1 else {"plans": answers})

    # -- measuring ---------------------------------------------------------------------------------------------------
    def _name(self, plan: Plan) -> str:
        return PLANNED if len(self.plans) == 1 else f"{PLANNED}, {len(plan.point.computed)} steps"

    def _fewer(self, plan: Plan) -> str:
        return f"{len(plan.point.computed)} of {self.front.steps} steps"

    def _measured(self) -> Contest:
        """The plans beside as many steps without a cache as cost the same, on the held-out prompts."""
        steps = self.front.steps
        entries: dict[str, fc.Policy | FewerSteps] = {}
        for plan in self.plans:
            entries[self._name(plan)] = plan.point.policy(steps)
            entries[self._fewer(plan)] = FewerSteps(len(plan.point.computed))
        counts = "-".join(str(len(plan.point.computed)) for plan in self.plans)
        contest = Contest(
            self.subject,
            entries,
            list(self.held_out),
            self.folder / f"held-out-{counts}",
            seed=self.seed + HELD_OUT_SEED,
            keep=1,  # for the report, which shows videos side by side
            metrics=self.metrics,
        )
        with progress() as bar:
            task = bar.add_task("held-out prompts", total=len(contest.entries) * len(contest.cases))
            contest.run(lambda: bar.advance(task))
        return contest

    def _shown(self, plan: Plan, contest: Contest | None) -> Shown:
        """Its rows (held-out, fewer steps, search) and its tuned config."""
        front, name = self.front, self._name(plan)
        policy = plan.point.policy(front.steps)
        _, trace, seconds = run(self.planner.setting, policy, self.planner.material.cases[0])
        cache = None if plan.budget is None else plan.budget.cache
        if cache is not None and trace.cached_bytes > cache.most:
            raise BudgetNotMet(
                f"the plan held {trace.cached_bytes:,} bytes, more than {cache}: lower the limit a little"
            )
        own = Row(
            name=f"{name}, search",
            speedup_flops=trace.speedup_flops,
            speedup_wall=None,
            quality=means(plan.point.quality),
            judge=None,
            cache_bytes=trace.cached_bytes,
            prompts=front.prompts,
            policy=fc.dump(policy),
        )
        rows: tuple[Row, ...] = (own,)
        held_out = None
        if contest is not None:
            rows = (replace(contest.row(name), name=f"{name}, held-out"), contest.row(self._fewer(plan)), own)
            held_out = contest.measured(name)
        info = self.planner.material.profile.info
        search = Measured(
            prompts=front.prompts,
            quality=means(plan.point.quality),
            speedup_flops=trace.speedup_flops,
            seconds=seconds,
            cached_bytes=trace.cached_bytes,
            hardware=hardware(str(self.planner.setting.identity["device"])),
        )
        seen = (*(case.prompt for case in self.planner.material.cases), *self.held_out)
        config = TunedConfig.describe(
            self.subject.pipe,
            policy,
            steps=front.steps,
            guidance_scale=info.guidance_scale if len(trace.run.branches) > 1 else None,
            guidance="none" if len(trace.run.branches) == 1 else "batched" if info.calls == 1 else "separate",
            latent=trace.latent,
            budget=None if plan.budget is None else str(plan.budget),
            measured=Results(search=search, held_out=held_out),
            seen=tuple(sorted(set(map(prompt_hash, seen)))),
        )
        return Shown(plan, rows, config)

    def _values(self, one: Shown, contest: Contest | None) -> Mapping[str, Sequence[float]]:
        """By metric, one value for each prompt that the plan's figures are means over."""
        if contest is None:
            return one.plan.point.quality
        runs = contest.figures(self._name(one.plan))
        return {metric: [run["quality"][metric] for run in runs] for metric in contest.metrics}

    # -- saying ------------------------------------------------------------------------------------------------------
    def _answer(self, one: Shown) -> dict[str, Any]:
        """What `--json` says of one plan."""
        first, *fewer, own = one.rows if len(one.rows) > 1 else (*one.rows, *one.rows)
        return {
            **first.payload(),
            "name": self._name(one.plan),
            "measured_on": "held-out prompts" if self.held_out else "search prompts",
            "search": own.payload(),
            "fewer_steps": [row.payload() for row in fewer] if self.held_out else None,
            "budget": one.config.budget,
            "predicted_psnr": one.plan.point.predicted_psnr,
            "computed_steps": list(one.plan.point.computed),
            "predicted_seconds": None if self.seconds is None else self.seconds.of(len(one.plan.point.computed)),
            "predicted_speedup_wall": None
            if self.seconds is None
            else self.seconds.speedup(len(one.plan.point.computed)),
        }

    def _clock(self, one: Shown) -> str:
        """What was foreseen by the clock, and what was measured beside the uncached pipeline."""
        assert self.seconds is not None
        count = len(one.plan.point.computed)
        return by_the_clock(self.seconds.of(count), self.seconds.speedup(count), one.rows[0].speedup_wall)

    def _say(self, shown: Sequence[Shown], files: dict[str, str], out: Path) -> None:
        prompts = counted(self.front.prompts, "search prompt")
        if self.held_out:
            prompts = f"{shown[0].rows[0].prompts} held-out and {prompts}"
        budget = shown[0].plan.budget
        goal = f" within {budget}" if budget is not None and len(shown) == 1 else ""
        rows = [row for one in shown for row in one.rows]
        results.print(table(rows, f"{self.subject.name}, planned{goal}: {prompts}"))
        results.print(_front_table(self.front))
        for one in shown:
            label = (
                "computed steps" if len(shown) == 1 else f"{one.config.budget or self._name(one.plan)}: computed steps"
            )
            say(f"{label}: {', '.join(map(str, one.plan.point.computed))}", results)
            if self.seconds is not None:
                say(self._clock(one), results)
        off = self.front.prediction_error
        error = "" if off is None else f", predictions miss measured plans by {off:.1f} dB"
        say(f"{self.front.generations:.1f} generations' worth of denoiser calls in all{error}")
        pick = "" if len(shown) == 1 else f" --speedup {min(one.rows[0].speedup_flops for one in shown):.2g}"
        say(f"{out}: apply it with fastercache generate {self.subject.name} --config {out}{pick}", results)
        say(f"pictures: {files['front_picture']}, {files['steps_picture']}", results)


def signs(shown: Sequence[Shown]) -> dict[str, Any]:
    """By metric that was measured, the sign that bounds it from its bad side."""
    names = {name for one in shown for row in one.rows for name in row.quality}
    return {name: ">=" if metric_called(name).higher_is_better else "<=" for name in sorted(names)}


def _front_info(front: Front, point: Point, others: tuple[tuple[str, float, float], ...]) -> FrontInfo:
    predicted = [(front.speedup(p), p.predicted_psnr) for p in front.points if p.predicted_psnr is not None]
    measured = [(front.speedup(p), p.psnr) for p in front.points if p.psnr is not None]
    return FrontInfo(
        predicted=tuple(predicted),
        measured=tuple(measured),
        chosen=None if point.psnr is None else (front.speedup(point), point.psnr),
        prompts=front.prompts,
        error=front.prediction_error,
        others=others,
        note="" if not others else "others: held-out prompts",
    )


def _front_table(front: Front) -> Table:
    """The front in a few lines: every verified plan, and predictions at round speedups."""
    found = Table(title="what other speedups would give")
    for name in ("computed steps", "FLOPs speedup", "predicted PSNR", "measured PSNR"):
        found.add_column(name, justify="right")
    round_ones = {len(front.at(s).computed) for s in (1.5, 2, 3, 4, 5, 6, 8, 10) if s <= front.speedup(front.points[0])}
    for point in reversed(front.points):
        if not point.verified and len(point.computed) not in round_ones:
            continue
        predicted = "" if point.predicted_psnr is None else f"{point.predicted_psnr:.1f}"
        psnr = "" if point.psnr is None else f"{point.psnr:.1f}"
        found.add_row(f"{len(point.computed)} of {front.steps}", f"{front.speedup(point):.2f}x", predicted, psnr)
    return found

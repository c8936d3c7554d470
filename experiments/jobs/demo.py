"""The main job, end to end: record, look, plan within the quality FasterCache has, export, apply, compare.

Each stage keeps what it made in the output folder, so an interrupted demo goes on where it stopped. Everything is
bounded by counts and drawn from seeds, so the outcome does not depend on how fast the machine is.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

import fastercache as fc
from fastercache.analysis import Board, Profile
from fastercache.analysis.plots import (
    ParetoPoint,
    draw_pareto,
    draw_timeline,
    pareto_info,
    save_png,
    timeline_info,
)
from fastercache.experiments.bench.contest import UNCACHED, Contest
from fastercache.experiments.bench.entries import Entry, FewerSteps
from fastercache.experiments.bench.rows import Row, table
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs import planning
from fastercache.experiments.jobs.plan_outcome import HELD_OUT_SEED
from fastercache.experiments.jobs.recording import recorded, save_figures
from fastercache.experiments.pictures import render
from fastercache.experiments.pictures.poster import Map, poster
from fastercache.experiments.pipelines import Subject
from fastercache.policies.documents import put_aside, read_json, write_json
from fastercache.policies.methods.taylorseer import Forecast
from fastercache.tuner import Budget, Evaluation, Evaluator
from fastercache.tuner.planning.material import material

PAPER, BEST, PLANNED = "FasterCache (paper)", "best published", "planned"
METHODS: dict[str, Callable[[int], Forecast]] = {
    "latte-digits": lambda interval: fc.HiCache(interval=interval, order=1),
    "wan-digits": lambda interval: fc.FoCa(interval=interval),
}
"""The published method that the benchmark found best on each model: what the plan is set beside."""
INTERVALS = (6, 5, 4, 3)
HOPELESS = 2.0
"""An interval whose first prompts are so much below the budget in the mean is not run on the others, dB."""


@dataclass(frozen=True)
class Plan:
    """How much the demo does.

    Attributes:
        search: prompts that are recorded, planned on and judged by. looked: others, whose features are recorded.
        held_out: prompts of the final table; nothing was chosen by them.
        effort: of the planner, see `fastercache.tuner.planning.planner.EFFORTS`.
        shown: held-out prompts in the comparison.
    """

    search: int = 8
    looked: int = 2
    held_out: int = 20
    effort: int = 1
    shown: int = 3


class Demo:
    """One demo in one folder.

    Args:
        subject: the reference model.
        out: where everything goes.
        plan: how much is done.
    """

    def __init__(self, subject: Subject, out: Path, plan: Plan) -> None:
        self.subject, self.out, self.plan = subject, out, plan
        self.search_prompts = subject.captions("train")[: plan.search]
        self.looked_prompts = subject.captions("train")[-plan.looked :]
        self.held_out_prompts = subject.captions("held_out")[: plan.held_out]
        self.evaluator = Evaluator(subject.pipe, subject.call, store=out / "planning" / "references")
        self.cases = self.evaluator.cases(self.search_prompts)
        self._settle()

    def _settle(self) -> None:
        """Forget an older demo in the same folder that had another model or plan."""
        what = json.dumps([self.evaluator.setting.identity, asdict(self.plan)], sort_keys=True, default=str)
        key = hashlib.sha256(what.encode()).hexdigest()
        path = self.out / "made-for.json"
        if path.is_file() and kept(path, "demo's plan").get("key") != key:
            for name in ("profile", "planning", "held-out", "tensorboard"):
                shutil.rmtree(self.out / name, ignore_errors=True)
            for name in ("budget.json", "published.json", "planned.json", "tuned.json"):
                (self.out / name).unlink(missing_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, **asdict(self.plan)}, "demo's plan")

    # -- stages ------------------------------------------------------------------------------------------------------
    @cached_property
    def profile(self) -> Profile:
        """The features of a few prompts of their own, recorded once."""
        folder = self.out / "profile"
        if (folder / "profile.json").is_file():
            return Profile.load(folder)
        return recorded(self.evaluator, self.looked_prompts, folder).profile

    def record(self) -> None:
        """The uncached runs of all search prompts: the planner's recordings and the references of everything else."""
        self.evaluator.close()
        with planning.watched(float(len(self.cases))) as told:
            material(self.evaluator.references, self.cases, told=told)

    @cached_property
    def budget(self) -> str:
        """The quality of FasterCache as published, on the search prompts: what the plan has to keep."""
        path = self.out / "budget.json"
        if path.is_file() and isinstance(found := kept(path, "demo's budget").get("budget"), str):
            return found
        with progress() as bar:
            measured = [
                self.evaluator.evaluate(fc.FasterCache(), [case]).values["psnr"][0]
                for case in bar.track(self.cases, description=f"{PAPER} on the search prompts")
            ]
        # Rounded down, so that the policy the budget was read from meets it.
        budget = str(Budget.parse(f"psnr>={math.floor(statistics.fmean(measured) * 1e4) / 1e4:.4f}"))
        write_json(path, {"budget": budget, "psnr": measured, "prompts": self.search_prompts}, "demo's budget")
        return budget

    @cached_property
    def published(self) -> Forecast | None:
        """The benchmark's best published method at the longest interval that keeps the budget; None if none does."""
        path = self.out / "published.json"
        tried: dict[str, float] = kept(path, "demo's trials").get("psnr", {}) if path.is_file() else {}
        demanded = Budget.parse(self.budget)

        def stop(found: Evaluation) -> str | None:
            values = found.values
            lost = len(values["psnr"]) > 1 and demanded.margin({"psnr": list(values["psnr"])}) < -HOPELESS
            return "far below the budget" if lost else None

        with progress() as bar:
            task = bar.add_task("the best published method", total=len(INTERVALS))
            for interval in INTERVALS:
                policy = METHODS[self.subject.name](interval)
                name = named(policy)
                bar.update(task, description=name, advance=1)
                if name not in tried:
                    tried[name] = statistics.fmean(self.evaluator.evaluate(policy, self.cases, stop).values["psnr"])
                    write_json(path, {"psnr": tried, "budget": self.budget}, "demo's trials")
                if demanded.margin({"psnr": [tried[name]]}) >= 0.0:
                    return policy
        return None

    def planned(self) -> dict[str, Any]:
        """Plan within the budget and export to `tuned.json`; what `fastercache plan` answers."""
        path, tuned = self.out / "planned.json", self.out / "tuned.json"
        if path.is_file() and tuned.is_file() and (found := kept(path, "demo's answer")):
            return found
        self.evaluator.close()
        found = planning.plan(
            self.subject,
            self.search_prompts,
            budgets=[self.budget],
            effort=self.plan.effort,
            folder=self.out / "planning",
            out=tuned,
            show=False,
        )
        write_json(path, found, "demo's answer")
        return found

    def fewer_steps(self, policies: Sequence[fc.Policy]) -> dict[str, Entry]:
        """As few uncached steps as cost at most what each policy costs: the baseline that every cache has to beat."""
        cost = self.evaluator.cost_model(self.cases[0])
        counts = {FewerSteps.within(cost.forecast(policy).ratio, cost.run.count).steps for policy in policies}
        return {f"{n} steps, no cache": FewerSteps(n) for n in sorted(counts, reverse=True)}

    def contest(self) -> Contest:
        """Every policy on the held-out prompts; the plan comes from its file, in an attach of its own."""
        tuned = fc.load(self.out / "tuned.json")
        policies: dict[str, fc.Policy] = {PAPER: fc.FasterCache()}
        if self.published is not None:
            policies[BEST] = self.published
        fewer = self.fewer_steps([*policies.values(), tuned.policy])
        self.evaluator.close()
        contest = Contest(
            self.subject,
            {**policies, PLANNED: tuned, **fewer},
            self.held_out_prompts,
            self.out / "held-out",
            seed=HELD_OUT_SEED,
            keep=self.plan.shown,
        )
        with progress() as bar:
            task = bar.add_task("held-out prompts", total=len(contest.cases) * len(contest.entries))
            contest.run(lambda: bar.advance(task))
        return contest

    def pictures(self, contest: Contest, rows: list[Row]) -> dict[str, str]:
        """The comparison GIF, the overview, the timeline of the plan, and quality over speedup."""
        shown = [contest.videos(i) for i in range(contest.keep)]
        by_name = {row.name: row for row in rows}
        others = [name for name in (PAPER, BEST, PLANNED) if name in by_name]
        cheapest = next(name for name in reversed(contest.entries) if isinstance(contest.entries[name], FewerSteps))
        gain = render.common_gain([(v[name], v[UNCACHED]) for v in shown for name in others])
        groups = [render.comparison(v[UNCACHED], [(name, v[name]) for name in others], gain=gain) for v in shown]
        gif = render.save(self.out / "comparison.gif", render.stacked(groups))
        strips = [(UNCACHED, _strip([v[UNCACHED] for v in shown]))]
        for name in (*others, cheapest):
            changed = [render.difference(v[name], v[UNCACHED], gain) for v in shown]
            strips.append((_caption(by_name[name]), _strip(changed)))
        trace = self.trace()
        figure = poster(
            Map("self-attention between steps", self.profile.matrix("attention", "rel_l1"), "rel_l1"),
            timeline_info(trace),
            f"the planned schedule: {_speedups(by_name[PLANNED])}",
            strips,
            gain,
        )
        figure.savefig(self.out / "overview.png")
        timeline = save_png(draw_timeline(timeline_info(trace)), self.out / "timeline.png")
        points = [
            ParetoPoint(row.name, row.speedup_flops, row.quality.get("psnr", 0.0), contest.error(row.name))
            for row in rows
            if row.name != UNCACHED and not isinstance(contest.entries[row.name], FewerSteps)
        ]
        curve = [
            ParetoPoint(f"{entry.steps} steps", row.speedup_flops, row.quality["psnr"], contest.error(row.name))
            for row in rows
            if isinstance(entry := contest.entries[row.name], FewerSteps)
        ]
        info = pareto_info(points, prompts=f"{len(contest.cases)} held-out prompts", curve=curve)
        pareto = save_png(draw_pareto(info), self.out / "pareto.png")
        board = self.out / "tensorboard" / "tuned"
        shutil.rmtree(board, ignore_errors=True)
        with Board(board) as writer:
            writer.add_trace(trace)
        return {
            "comparison": str(gif),
            "overview": str(self.out / "overview.png"),
            "timeline": str(timeline),
            "pareto": str(pareto),
        }

    def trace(self) -> fc.Trace:
        """What the plan, read from its file, does in a run."""
        self.evaluator.close()
        with fc.attach(self.subject.pipe, self.out / "tuned.json") as session:
            self.evaluator.setting.generate(self.cases[0])
            return session.last


def kept(path: Path, what: str) -> dict[str, Any]:
    """A JSON object written before; one that cannot be read is put aside, and the stage is run again."""
    try:
        found = read_json(path, what)
    except fc.ConfigUnreadable as error:
        say(f"{error}; kept as {put_aside(path).name}")
        return {}
    return found if isinstance(found, dict) else {}


def named(policy: Forecast) -> str:
    """A published method and its interval in words."""
    return f"{policy.name} at interval {policy.interval}"


def _strip(videos: list[Any]) -> NDArray[np.uint8]:
    return np.concatenate([render.strip(video, 3) for video in videos], axis=1)


def _caption(row: Row) -> str:
    return f"{row.name}\n{_speedups(row)}\n{row.quality['psnr']:.1f} dB"


def _speedups(row: Row) -> str:
    time = "" if row.speedup_wall is None else f", {row.speedup_wall:.2f}x in time"
    return f"{row.speedup_flops:.2f}x in FLOPs{time}"


@contextmanager
def stage(number: int, text: str) -> Iterator[None]:
    """Say what is going on, and how long it took."""
    say(Text.assemble((f"{number}/6", "bold"), f" {text}"))
    began = time.perf_counter()
    yield
    say(f"    {time.perf_counter() - began:.0f} s")


def demo(subject: Subject, out: Path, plan: Plan, *, show: bool) -> dict[str, Any]:
    """Run all stages; see the module. Returns what `demo.json` holds."""
    began = time.perf_counter()
    job = Demo(subject, out, plan)
    with stage(1, f"record {plan.search} search prompts uncached; look on {plan.looked} others where features repeat"):
        job.record()
        figures = save_figures(job.profile, out)
    with stage(2, "the quality to keep: FasterCache as published, on the search prompts"):
        say(f"    {job.budget}")
    with stage(3, "the best published method of the benchmark, at the longest interval that keeps it"):
        say("    no interval keeps it" if job.published is None else f"    {named(job.published)}")
    with stage(4, "plan within it, fit, verify, export"):
        found = job.planned()
        computed = len(found["computed_steps"])
        say(f"    {computed} steps computed, {found['generations']:.1f} generations' worth of denoiser calls")
    with stage(5, f"compare on {plan.held_out} held-out prompts, the plan read back from its file"):
        contest = job.contest()
    rows = contest.rows()
    with stage(6, "pictures"):
        files = {**figures, **job.pictures(contest, rows), "tuned": str(out / "tuned.json")}
        files |= {f"plan_{name}": found["files"][f"{name}_picture"] for name in ("front", "steps")}
        files["table"] = str(out / "demo.json")
    payload = {
        "rows": [row.payload() for row in rows],
        "budget": job.budget,
        "generations": found["generations"],
        "computed_steps": found["computed_steps"],
        "prompts": {"search": plan.search, "held_out": plan.held_out},
        "files": files,
        "seconds": time.perf_counter() - began,
    }
    write_json(out / "demo.json", payload, "demo's results")
    if show:
        results.print(table(rows, f"{subject.name}, {len(contest.cases)} held-out prompts, budget {job.budget}"))
        if job.published is not None:
            say(f"{BEST}: {named(job.published)}", results)
        say(f"{PLANNED}: computes steps {', '.join(map(str, found['computed_steps']))}", results)
        for name, path in files.items():
            say(f"{name:>22}  {path}", results)
    return payload

"""The main job, end to end: record, tune within the quality FasterCache has, export, apply from the file, compare.

Each stage keeps what it made in the output folder, so an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator
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
from fastercache.experiments.bench.entries import Entry, FewerSteps, in_words
from fastercache.experiments.bench.rows import Row, table
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.recording import recorded, save_figures
from fastercache.experiments.jobs.searching import Job, study_of, watched
from fastercache.experiments.jobs.selecting import select
from fastercache.experiments.pictures import render
from fastercache.experiments.pictures.poster import poster, schedule_rows
from fastercache.experiments.pipelines import Subject
from fastercache.policies.documents import put_aside, read_json, write_json
from fastercache.policies.vocabulary import matches
from fastercache.tuner import Budget, Evaluator, Outcome, Record, export

PAPER, STATIC, GENTLE = "FasterCache (paper)", "static interval", "static interval 2"
TUNED, ANY = "FasterCache, tuned", "any method, tuned"
FEWER, FEWEST = "fewer steps", "even fewer steps"
HELD_OUT_SEED = 100_000
"""Held-out prompts get noise of their own, too."""


@dataclass(frozen=True)
class Search:
    """One search of the demo: what it searches, the folder of its study, the file it ends in, its part of the time."""

    policies: tuple[str, ...]
    study: str
    file: str
    share: float


SEARCHES = {
    TUNED: Search(("fastercache",), "study", "tuned.json", 0.6),
    ANY: Search(("fastercache", "meancache", "foca", "hicache"), "study-any", "tuned-any.json", 0.4),
}
"""The methods of the second are those whose cost is known before they run, so that few trials go far."""


@dataclass(frozen=True)
class Plan:
    """How much the demo does.

    Attributes:
        recorded: prompts in the recording.
        search: prompts the tuner judges a trial by. selection: prompts its best trials are checked on.
        held_out: prompts of the final table; nothing was chosen by them.
        trials, tune_seconds: limits of each search and of both together, whichever comes first.
        seconds: what the whole demo should take; on a slow machine the searches are shortened for it, to 45 s at least.
        shown: held-out prompts in the comparison.
    """

    recorded: int = 3
    search: int = 6
    selection: int = 10
    held_out: int = 20
    trials: int = 200
    tune_seconds: float = 300.0
    seconds: float = 500.0
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
        train, held_out = subject.captions("train"), subject.captions("held_out")
        self.search_prompts = train[: plan.search]
        self.selection_prompts = train[plan.search : plan.search + plan.selection]
        self.recorded_prompts = train[-plan.recorded :]
        self.held_out_prompts = held_out[: plan.held_out]
        self.evaluator = Evaluator(subject.pipe, subject.call, store=out / "references")
        self._settle()

    def _settle(self) -> None:
        """Forget an older demo in the same folder that had another model or plan."""
        what = json.dumps([self.evaluator.setting.identity, asdict(self.plan)], sort_keys=True, default=str)
        key = hashlib.sha256(what.encode()).hexdigest()
        path = self.out / "plan.json"
        if path.is_file() and kept(path, "demo's plan").get("key") != key:
            for name in ("profile", "held-out", "tensorboard", *(search.study for search in SEARCHES.values())):
                shutil.rmtree(self.out / name, ignore_errors=True)
            for name in ("budget.json", *(search.file for search in SEARCHES.values())):
                (self.out / name).unlink(missing_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, **asdict(self.plan)}, "demo's plan")

    # -- stages ------------------------------------------------------------------------------------------------------
    @cached_property
    def profile(self) -> Profile:
        """The recording, made once."""
        folder = self.out / "profile"
        if (folder / "profile.json").is_file():
            return Profile.load(folder)
        return recorded(self.evaluator, self.recorded_prompts, folder)

    @cached_property
    def budget(self) -> str:
        """The quality of FasterCache as published, on the search prompts: what the tuned policy has to keep."""
        path = self.out / "budget.json"
        if path.is_file() and isinstance(found := kept(path, "demo's budget").get("budget"), str):
            return found
        cases = self.evaluator.cases(self.search_prompts)
        measured, seconds = [], []
        with progress() as bar:
            for case in bar.track(cases, description="FasterCache (paper) on the search prompts"):
                found = self.evaluator.evaluate(fc.FasterCache(), [case])
                measured.append(found.values["psnr"][0])
                seconds += found.seconds
        # Rounded down, so that the policy the budget was read from meets it.
        budget = str(Budget.parse(f"psnr>={math.floor(statistics.fmean(measured) * 1e4) / 1e4:.4f}"))
        record = {"budget": budget, "psnr": measured, "seconds": seconds, "prompts": self.search_prompts}
        write_json(path, record, "demo's budget")
        return budget

    def time_limit(self, search: Search) -> float:
        """Seconds for a search: what the plan gives it, or less where videos take longer."""
        seconds: list[float] = kept(self.out / "budget.json", "demo's budget")["seconds"]
        ahead: float = (7 * self.plan.held_out + 6 * self.plan.selection) * statistics.median(seconds)
        return max(45.0, search.share * min(self.plan.tune_seconds, self.plan.seconds - ahead))

    def tune(self, search: Search) -> Path:
        """Search within the budget, select, and export to the search's file."""
        path = self.out / search.file
        if path.is_file():
            return path
        job = Job(
            pipe=self.subject.name,
            prompts=tuple(self.search_prompts),
            budget=self.budget,
            held_out=tuple(self.held_out_prompts),
            policies=search.policies,
            call=dict(self.subject.call),
            device=str(self.subject.pipe.device),
        )
        job.save(self.out / search.study)
        self.evaluator.close()  # the study attaches by itself
        limit = self.time_limit(search)
        with watched(self.plan.trials, limit) as tick:
            study = study_of(
                self.subject,
                job,
                self.out / search.study,
                trials=self.plan.trials,
                seconds=limit,
                on_trial=tick,
                references=self.out / "references",
                logdir=self.out / "tensorboard" / search.study,
            )
        ran = sum(r.outcome in (Outcome.MEASURED, Outcome.STOPPED) for r in study.records)
        say(f"    {ran} trials, {study.ended}; the best on the search prompts: {_gain(study.best())}")
        record = select(study, self.evaluator, self.evaluator.cases(self.selection_prompts))
        say(f"    selected on {self.plan.selection} other prompts: {_gain(record)}")
        with study.evaluator:
            return export(study, record).save(path)

    def static(self) -> fc.StaticInterval:
        """The gentlest fixed interval of all attention sites (self and cross) that saves what FasterCache saves.

        Where none saves as much, the one that comes nearest.
        """
        cost = self.evaluator.cost_model(self.evaluator.cases(self.search_prompts)[0])
        aim = cost.forecast(fc.FasterCache()).ratio
        query = "attention|cross" if matches("cross", cost.run.sites) else "attention"
        choices = [fc.StaticInterval(sites=query, interval=n) for n in range(2, 13)]
        ratios = [cost.forecast(choice).ratio for choice in choices]
        reached = [i for i, ratio in enumerate(ratios) if ratio <= aim]
        return choices[reached[0] if reached else int(np.argmin(ratios))]

    def fewer_steps(self, policy: fc.Policy) -> FewerSteps:
        """As few uncached steps as cost at most what `policy` costs: the baseline that every cache has to beat."""
        cost = self.evaluator.cost_model(self.evaluator.cases(self.search_prompts)[0])
        return FewerSteps.within(cost.forecast(policy).ratio, cost.run.count)

    def contest(self) -> Contest:
        """Every policy on the held-out prompts; the tuned ones come from their files, in an attach of their own."""
        tuned = {name: fc.load(self.out / search.file) for name, search in SEARCHES.items()}
        entries: dict[str, Entry] = {
            FEWER: self.fewer_steps(tuned[TUNED].policy),
            FEWEST: self.fewer_steps(tuned[ANY].policy),
            GENTLE: fc.StaticInterval(),
            STATIC: self.static(),
            PAPER: fc.FasterCache(),
            **tuned,
        }
        self.evaluator.close()
        contest = Contest(
            self.subject,
            entries,
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
        """The comparison GIF and the overview PNG."""
        shown = [contest.videos(i) for i in range(contest.keep)]
        others = (STATIC, PAPER, TUNED, ANY)
        groups = [render.comparison(v[UNCACHED], [(name, v[name]) for name in others]) for v in shown]
        gif = render.save(self.out / "comparison.gif", render.stacked(groups))
        by_name = {row.name: row for row in rows}
        strips = [(_caption(by_name[name]), _strip([v[name] for v in shown])) for name in (UNCACHED, *others)]
        trace = self.trace()
        figure = poster(
            self.profile.matrix("attention", "rel_l1"),
            "self-attention: relative L1 between steps",
            schedule_rows(trace.table),
            f"the tuned schedule: {by_name[TUNED].speedup_flops:.2f}x fewer FLOPs",
            strips,
        )
        figure.savefig(self.out / "overview.png")
        timeline = save_png(draw_timeline(timeline_info(trace)), self.out / "timeline.png")
        points = [
            ParetoPoint(row.name, row.speedup_flops, row.quality.get("psnr", 0.0), contest.error(row.name))
            for row in rows
        ]
        prompts = f"{len(contest.cases)} held-out prompts"
        pareto = save_png(draw_pareto(pareto_info(points, prompts=prompts)), self.out / "pareto.png")
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
        """What the tuned FasterCache, read from its file, does in a run."""
        self.evaluator.close()
        with fc.attach(self.subject.pipe, self.out / SEARCHES[TUNED].file) as session:
            self.evaluator.setting.generate(self.evaluator.cases(self.search_prompts)[0])
            return session.last


def kept(path: Path, what: str) -> dict[str, Any]:
    """A JSON object written before; one that cannot be read is put aside, and the stage is run again."""
    try:
        found = read_json(path, what)
    except fc.ConfigUnreadable as error:
        say(f"{error}; kept as {put_aside(path).name}")
        return {}
    return found if isinstance(found, dict) else {}


def _gain(record: Record) -> str:
    return f"{record.speedup_flops:.2f}x at {statistics.fmean(record.values['psnr']):.2f} dB"


def _strip(videos: list[Any]) -> NDArray[np.uint8]:
    return np.concatenate([render.strip(video, 3) for video in videos], axis=1)


def _caption(row: Row) -> str:
    if row.name == UNCACHED:
        return UNCACHED
    return f"{row.name}\n{row.speedup_flops:.2f}x, {row.quality['psnr']:.1f} dB"


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
    with stage(1, f"recording {plan.recorded} prompts: where are the features redundant?"):
        figures = save_figures(job.profile, out)
    with stage(2, f"the budget: FasterCache as published on {plan.search} search prompts"):
        say(f"    {job.budget}")
    files = {}
    for number, (name, search) in enumerate(SEARCHES.items(), start=3):
        policies = ", ".join(search.policies)
        with stage(number, f"{name}: searching {policies} within it, at most {job.time_limit(search):.0f} s"):
            files[search.file.removesuffix(".json")] = str(job.tune(search))
    with stage(5, f"everything on {plan.held_out} held-out prompts, tuned policies read back from their files"):
        contest = job.contest()
    rows = contest.rows()
    with stage(6, "pictures"):
        files = {**figures, **job.pictures(contest, rows), **files, "table": str(out / "demo.json")}
    payload = {
        "rows": [row.payload() for row in rows],
        "budget": job.budget,
        "prompts": {"recorded": plan.recorded, "search": plan.search, "held_out": plan.held_out},
        "files": files,
        "seconds": time.perf_counter() - began,
    }
    write_json(out / "demo.json", payload, "demo's results")
    if show:
        results.print(table(rows, f"{subject.name}, {len(contest.cases)} held-out prompts, budget {job.budget}"))
        by_name = {row.name: row.policy for row in rows}
        say(f"{GENTLE}: {_described(by_name[GENTLE])}; {STATIC}: {_described(by_name[STATIC])}", results)
        steps = subject.call["num_inference_steps"]
        for few, name in ((FEWER, TUNED), (FEWEST, ANY)):
            count = by_name[few]["num_inference_steps"]
            say(f"{few}: {count} of {steps} and no cache, at what '{name}' costs", results)
        for name in SEARCHES:
            say(f"{name}: {in_words(by_name[name])}", results)
        for name, path in files.items():
            say(f"{name:>12}  {path}", results)
    return payload


def _described(policy: dict[str, Any]) -> str:
    return f"all of '{policy['sites']}' every {policy['interval']} steps"

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastercache as fc
from analysis import Board, Profile
from analysis.plots import (
    ParetoPoint,
    draw_pareto,
    draw_timeline,
    pareto_info,
    save_png,
    timeline_info,
)
from experiments import render
from experiments.bench.contest import UNCACHED, Contest, write_json
from experiments.bench.entries import Entry, FewerSteps
from experiments.bench.rows import Row, table
from experiments.console import progress, results, words
from experiments.pipelines import Subject
from experiments.poster import poster, schedule_rows
from experiments.recording import recorded, save_figures
from experiments.searching import Job, study_of, watched
from policies.vocabulary import matches
from tuner import Budget, Evaluator, Outcome, Record, Study, export

PAPER, STATIC, GENTLE, TUNED = "FasterCache (paper)", "static interval", "static interval 2", "tuned"
FEWER = "fewer steps"
HELD_OUT_SEED = 100_000
"""Held-out prompts get noise of their own, too."""


@dataclass(frozen=True)
class Plan:
    """How much the demo does.

    Attributes:
        recorded: prompts in the recording.
        search: prompts the tuner judges a trial by. selection: prompts its best trials are checked on.
        held_out: prompts of the final table; nothing was chosen by them.
        trials, tune_seconds: limits of the search, whichever comes first.
        seconds: what the whole demo should take; on a slow machine the search is shortened for it, to 45 s at least.
        shown: held-out prompts in the comparison.
    """

    recorded: int = 3
    search: int = 6
    selection: int = 10
    held_out: int = 20
    trials: int = 200
    tune_seconds: float = 180.0
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
        what = json.dumps([self.evaluator.identity, asdict(self.plan)], sort_keys=True, default=str)
        key = hashlib.sha256(what.encode()).hexdigest()
        path = self.out / "plan.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("key") != key:
            for name in ("profile", "study", "held-out", "tensorboard"):
                shutil.rmtree(self.out / name, ignore_errors=True)
            for name in ("tuned.json", "budget.json"):
                (self.out / name).unlink(missing_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, **asdict(self.plan)})

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
        if path.is_file():
            return str(json.loads(path.read_text(encoding="utf-8"))["budget"])
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
        write_json(path, record)
        return budget

    @property
    def time_limit(self) -> float:
        """Seconds for the search: what the plan gives it, or less where videos take longer."""
        seconds: list[float] = json.loads((self.out / "budget.json").read_text(encoding="utf-8"))["seconds"]
        ahead: float = (6 * self.plan.held_out + 4 * self.plan.selection) * statistics.median(seconds)
        return min(self.plan.tune_seconds, max(45.0, self.plan.seconds - ahead))

    def tune(self) -> Path:
        """Search within the budget, select, and export to `tuned.json`."""
        path = self.out / "tuned.json"
        if path.is_file():
            return path
        job = Job(
            self.subject.name,
            tuple(self.search_prompts),
            self.budget,
            tuple(self.held_out_prompts),
            call=dict(self.subject.call),
            device=str(self.subject.pipe.device),
        )
        job.save(self.out / "study")
        self.evaluator.close()  # the study attaches by itself
        limit = self.time_limit
        with watched(self.plan.trials, limit) as tick:
            study = study_of(
                self.subject,
                job,
                self.out / "study",
                trials=self.plan.trials,
                seconds=limit,
                on_trial=tick,
                references=self.out / "references",
                logdir=self.out / "tensorboard" / "trials",
            )
        ran = sum(r.outcome in (Outcome.MEASURED, Outcome.STOPPED) for r in study.records)
        words.print(
            f"    {ran} trials, {study.ended}; the best on the search prompts: {_gain(study.best())}", soft_wrap=True
        )
        record = self.select(study)
        words.print(f"    selected on {self.plan.selection} other prompts: {_gain(record)}", soft_wrap=True)
        with study.evaluator:
            return export(study, record).save(path)

    def select(self, study: Study) -> Record:
        """The cheapest trial within the budget that is surely no worse than FasterCache on prompts it was not found by.

        The cheapest of many trials on a few prompts is partly the luckiest. So the trials that met the budget are
        compared with FasterCache prompt by prompt on other prompts, cheapest first, and the first whose mean gain in
        PSNR exceeds its standard error is taken. FasterCache itself, which met the budget too, ends the list.
        """
        cases = self.evaluator.cases(self.selection_prompts)
        with self.evaluator as evaluator, progress() as bar:
            feasible = sorted((r for r in study.records if r.feasible), key=lambda r: r.ratio or 1.0)
            paper = next(r for r in feasible if r.policy == fc.FasterCache())
            candidates = feasible[: feasible.index(paper)]
            base = evaluator.evaluate(paper.policy, cases).values["psnr"]
            for record in bar.track(candidates, description="selecting"):
                found = evaluator.evaluate(record.policy, cases, lambda v: _hopeless(v["psnr"], base)).values["psnr"]
                if len(found) == len(cases) and surely_no_worse(found, base):
                    return record
        return paper

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

    def contest(self, tuned: Path) -> Contest:
        """Every policy on the held-out prompts; the tuned one comes from its file, in an attach of its own."""
        config = fc.load(tuned)
        entries: dict[str, Entry] = {
            FEWER: self.fewer_steps(config.policy),
            GENTLE: fc.StaticInterval(),
            STATIC: self.static(),
            PAPER: fc.FasterCache(),
            TUNED: config,
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
        others = (STATIC, PAPER, TUNED)
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
        points = [ParetoPoint(row.name, row.speedup_flops, row.psnr or 0.0, contest.error(row.name)) for row in rows]
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
        """What the tuned policy, read from its file, does in a run."""
        self.evaluator.close()
        with fc.attach(self.subject.pipe, self.out / "tuned.json") as session:
            self.evaluator.generate(self.evaluator.cases(self.search_prompts)[0])
            return session.last


def surely_no_worse(values: Sequence[float], base: Sequence[float]) -> bool:
    """Whether the mean of the paired differences is at least its standard error; for one pair, at least 0."""
    gains = [v - b for v, b in zip(values, base, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return statistics.fmean(gains) >= error


def _hopeless(values: Sequence[float], base: Sequence[float]) -> str | None:
    """Ends a comparison that is lost by half a dB after a few prompts."""
    gains = [v - b for v, b in zip(values, base, strict=False)]
    return "worse than FasterCache" if len(gains) >= 4 and statistics.fmean(gains) < -0.5 else None


def _gain(record: Record) -> str:
    return f"{record.speedup_flops:.2f}x at {statistics.fmean(record.values['psnr']):.2f} dB"


def _strip(videos: list[Any]) -> NDArray[np.uint8]:
    return np.concatenate([render.strip(video, 3) for video in videos], axis=1)


def _caption(row: Row) -> str:
    if row.name == UNCACHED:
        return UNCACHED
    return f"{row.name}\n{row.speedup_flops:.2f}x, {row.psnr:.1f} dB"


@contextmanager
def stage(number: int, text: str) -> Iterator[None]:
    """Say what is going on, and how long it took."""
    words.print(f"[bold]{number}/5[/bold] {text}", soft_wrap=True)
    began = time.perf_counter()
    yield
    words.print(f"    {time.perf_counter() - began:.0f} s")


def demo(subject: Subject, out: Path, plan: Plan, *, show: bool) -> dict[str, Any]:
    """Run all stages; see the module. Returns what `demo.json` holds."""
    began = time.perf_counter()
    job = Demo(subject, out, plan)
    with stage(1, f"recording {plan.recorded} prompts: where are the features redundant?"):
        figures = save_figures(job.profile, out)
    with stage(2, f"the budget: FasterCache as published on {plan.search} search prompts"):
        words.print(f"    {job.budget}")
    with stage(3, f"tuning FasterCache within it, at most {job.time_limit:.0f} s"):
        tuned = job.tune()
    with stage(4, f"everything on {plan.held_out} held-out prompts, the tuned policy read back from {tuned}"):
        contest = job.contest(tuned)
    rows = contest.rows()
    with stage(5, "pictures"):
        files = {**figures, **job.pictures(contest, rows), "tuned": str(tuned), "table": str(out / "demo.json")}
    payload = {
        "rows": [row.payload() for row in rows],
        "budget": job.budget,
        "prompts": {"recorded": plan.recorded, "search": plan.search, "held_out": plan.held_out},
        "files": files,
        "seconds": time.perf_counter() - began,
    }
    write_json(out / "demo.json", payload)
    if show:
        results.print(table(rows, f"{subject.name}, {len(contest.cases)} held-out prompts, budget {job.budget}"))
        few = next(row.policy["num_inference_steps"] for row in rows if row.name == FEWER)
        results.print(f"{GENTLE}: {_described(rows, GENTLE)}; {STATIC}: {_described(rows, STATIC)}", soft_wrap=True)
        steps = subject.call["num_inference_steps"]
        results.print(f"{FEWER}: {few} of {steps} and no cache, at what the tuned policy costs", soft_wrap=True)
        for name, path in files.items():
            results.print(f"{name:>12}  {path}", soft_wrap=True)
    return payload


def _described(rows: list[Row], name: str) -> str:
    policy = next(row.policy for row in rows if row.name == name)
    return f"all of '{policy['sites']}' every {policy['interval']} steps"

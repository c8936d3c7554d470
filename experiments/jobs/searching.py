"""What `tune` and `export` do: a tuner study in a folder, and the tuned config that comes out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastercache as fc
from fastercache.experiments.bench.contest import UNCACHED, Contest
from fastercache.experiments.bench.entries import FewerSteps
from fastercache.experiments.bench.rows import Row, table
from fastercache.experiments.bench.verdict import NO, OUTSIDE, UNDECIDED, YES, Baseline, Verdict, verdict
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.outcome import by_the_clock, sentence
from fastercache.experiments.jobs.study_job import Job, study_of
from fastercache.experiments.jobs.workers import Searching, devices, joined
from fastercache.experiments.pipelines import Subject, with_steps
from fastercache.picking import carried
from fastercache.policies.documents import check_writable
from fastercache.policies.wording import counted, lasting
from fastercache.prompts import prompts_of
from fastercache.tuner import Budget, JointSpace, Outcome, Record, Study, export
from fastercache.tuner.export import searched
from fastercache.tuner.planning.material import Told
from fastercache.tuner.setting import References, Setting, run_bare

TUNED = "tuned"
AFTER = 3.0
"""Uncached generations' worth of time for each held-out prompt: it is generated uncached, tuned, and by two numbers of
fewer steps."""
_GAP = "{difference:+.2f} dB (95 % interval {low:+.2f} to {high:+.2f}) at equal FLOPs on the held-out prompts"
SAID = {
    YES: f"the tuned policy beats fewer steps without a cache: {_GAP}",
    NO: f"the tuned policy does not beat fewer steps without a cache: {_GAP}",
    UNDECIDED: "whether the tuned policy beats fewer steps without a cache is undecided on these held-out prompts",
    OUTSIDE: "the tuned policy cannot be compared with fewer steps: no number of steps costs as much",
    None: "no held-out prompts were given: the tuned policy was not compared with fewer steps",
}


@contextmanager
def watched(trials: int, seconds: float | None, began: float) -> Iterator[tuple[Callable[[Study, Record], None], Told]]:
    """A progress bar over trials, or over the time limit where there is one, with the best so far; and over plans.

    `began`: when the command did, by `time.monotonic`.
    """
    with progress() as bar:
        task = bar.add_task("tuning", total=seconds or trials)

        def tick(study: Study, record: Record) -> None:
            ran = sum(r.outcome in (Outcome.MEASURED, Outcome.STOPPED) for r in study.records)
            saving = [1.0 / (r.cost or 1.0) for r in study.records if r.feasible]
            text = f"tuning, {counted(ran, 'trial')}, best {max(saving, default=1.0):.2f}x"
            bar.update(task, description=text, completed=time.monotonic() - began if seconds else ran)

        def told(doing: str, spent: float) -> None:
            bar.update(task, description=f"planning, {spent:.1f} generations: {doing}")

        yield tick, told


def tell(budget: Budget) -> None:
    """Say in words what is demanded, and what in it is seldom meant."""
    say(f"the budget {budget} means: {budget.words}")
    for warning in budget.warnings:
        say(f"warning: {warning}")


def search(
    job: Job,
    folder: Path,
    out: Path,
    *,
    trials: int,
    seconds: float | None,
    storage: str | None = None,
    references: Path | None = None,
    workers: int = 1,
    show: bool,
) -> dict[str, Any]:
    """Search, measure the best policy on the held-out prompts, export it to `out`.

    `seconds`: of the whole command: measuring on the held-out prompts gets its share. `references`: folder of the
    uncached references, where several studies share it. `workers`: processes that search, this one among them.

    Raises:
        InvalidPolicy: if the time leaves nothing to search in.
    """
    began = time.monotonic()
    budget = Budget.parse(job.budget)
    check_writable(out, "tuned config")
    job.save(folder, storage)
    subject = job.open()
    tell(budget)
    videos = counted(trials * len(job.prompts), "video")
    say(
        f"the price: at most {videos} ({counted(trials, 'trial')} of {counted(len(job.prompts), 'prompt')}, most are "
        f"stopped early), {counted(len(job.prompts), 'uncached one')} before them, and the held-out prompts after them"
        + ("; steps are timed once for the study, in some runs that compute every second one" if job.timed else "")
    )
    uncached = timed(subject, job, references or folder / "references", again=seconds is not None)
    if uncached is not None:
        most = (trials + 1) * len(job.prompts) + AFTER * len(job.held_out)
        say(f"an uncached generation takes {uncached:.1f} s here: at most some {lasting(most * uncached)} in all")
    searching = None
    if seconds is not None:
        assert uncached is not None
        searching = remaining(seconds, began, uncached, len(job.held_out))
    team = [
        Searching(
            folder=folder,
            device=device,
            trials=trials,
            seconds=searching,
            storage=storage,
            references=references,
            place=i * len(job.prompts) // workers,
        )
        for i, device in enumerate(devices(job.device, workers))
    ][1:]
    if team:  # made, calibrated and seeded before the others begin
        begun = study_of(subject, job, folder, trials=0, seconds=None, references=references, storage=storage)
        if begun.spent >= trials:
            say(f"all {trials} trials are done: no further worker is started")
            team = []
    with watched(trials, seconds, began) as (tick, told), joined(team):
        logdir = folder / "tensorboard"
        study = study_of(
            subject,
            job,
            folder,
            trials=trials,
            seconds=searching,
            on_trial=tick,
            told=told,
            references=references,
            logdir=logdir,
            storage=storage,
        )
    if team:  # one of them may have died after this process was done
        study.optimise(trials, timeout=searching)
    if study.time.table is not None:
        table, where = study.time.table, "here" if study.time.elsewhere is None else f"on {study.time.table.hardware}"
        say(f"by the clock, {table.told(where)}")
    best = study.best()
    say(f"search ended: {study.ended}")
    if left_out := _left_out(study):
        say(f"not searched: {', '.join(left_out)} (--json says why)")
    return ship(subject, job, study, best, folder, out, show=show)


def timed(subject: Subject, job: Job, references: Path, *, again: bool) -> float | None:
    """Seconds of an uncached generation: that of the first search prompt, which is kept as its reference.

    Where it is there already it is only generated `again` if that is asked; else None.
    """
    setting = Setting(subject.pipe, subject.call, job.seed)
    kept, case = References(setting, references), setting.cases(prompts_of(job.prompts[:1]))[0]
    known = kept.read(case) is not None
    if known and not again:
        return None
    video, seconds = run_bare(setting, case)
    if not known:
        kept.write(case, video)
    return seconds


def remaining(seconds: float, began: float, uncached: float, held_out: int) -> float:
    """What a time limit leaves for the search: without what has passed, and what measuring at the end will take.

    Raises:
        InvalidPolicy: if that is less than a generation takes.
    """
    passed, after = time.monotonic() - began, AFTER * held_out * uncached
    left = seconds - passed - after
    if left < uncached:
        raise fc.InvalidPolicy(
            f"--time-limit {seconds:g} leaves nothing to search in: opening the model took {lasting(passed)}, and "
            f"measuring on {counted(held_out, 'held-out prompt')} will take some {lasting(after)}; allow more than "
            f"{lasting(passed + after + uncached)}, or give fewer prompts"
        )
    say(f"of {lasting(seconds)} the search gets {lasting(left)}, measuring on the held-out prompts {lasting(after)}")
    return left


def export_study(
    folder: Path, out: Path, *, trial: int | None, storage: str | None = None, show: bool
) -> dict[str, Any]:
    """Export the best trial of a study, or another one, without searching on."""
    job = Job.load(folder)
    subject = job.open()
    study = study_of(subject, job, folder, trials=0, seconds=None, storage=storage)
    record = study.best()
    if trial is not None:
        measured = {r.number: r for r in study.records if r.outcome is Outcome.MEASURED}
        if trial not in measured:
            listed = ", ".join(map(str, measured)) or "none"
            raise fc.ConfigUnreadable(f"trial {trial} of {folder} was not measured; measured were: {listed}")
        record = measured[trial]
    return ship(subject, job, study, record, folder, out, show=show)


def ship(
    subject: Subject, job: Job, study: Study, record: Record, folder: Path, out: Path, *, show: bool
) -> dict[str, Any]:
    """Measure a trial's policy on the held-out prompts, beside fewer steps, and write the tuned config."""
    own = _searched(study, record)
    rows, held_out, answer, kept, found = [own], None, None, None, ""
    if job.held_out:
        contest = against_fewer_steps(subject, record, job, folder / "held-out")
        with progress() as bar:
            task = bar.add_task("held-out prompts", total=len(contest.entries) * len(contest.cases))
            contest.run(lambda: bar.advance(task))
        held_out, answer = contest.measured(TUNED), beats_fewer_steps(contest)
        kept, found = keeps_budget(contest, Budget.parse(job.budget))
        rows = [row for row in contest.rows() if row.name not in (TUNED, UNCACHED)]
        rows = [replace(contest.row(TUNED), name="tuned, held-out"), *rows, own]
    with study.evaluator:  # describing the run may take one; nothing stays attached
        path = carried(export(study, record, held_out=held_out), out).save(out)
    if show:
        held = f"{rows[0].prompts} held-out and " if job.held_out else ""
        prompts = f"{held}{counted(own.prompts, 'search prompt')}"
        results.print(table(rows, f"{subject.name}, {record.policy.name} within {job.budget}: {prompts}"))
        say(sentence(study.records, record), results)
        for line in _clock(study, record, rows[0] if job.held_out else None):
            say(line, results)
        if kept is not None:
            verb = "kept" if kept else "missed"
            say(f"the budget {job.budget} is {verb} on the held-out prompts: {found}", results)
        say(SAID[None if answer is None else answer.word].format(**_figures(answer)), results)
        say(f"{path}: apply it with fastercache generate {subject.name} --config {path}", results)
    return {
        "pipeline": subject.name,
        **rows[0].payload(),
        "name": TUNED,
        "measured_on": "held-out prompts" if job.held_out else "search prompts",
        "search": own.payload(),
        "fewer_steps": None
        if answer is None
        else {"beaten": answer.word, **_figures(answer), "rows": [row.payload() for row in rows[1:-1]]},
        "budget": job.budget,
        "kept_on_held_out": kept,
        "left_out": _left_out(study),
        "found": sentence(study.records, record),
        "foreseen": None if record.foreseen is None else {"seconds": record.foreseen, **_foresight(study)},
        "trial": record.number,
        "trials": len(study.records),
        "ended": study.ended,
        "files": {"tuned": str(path), "study": str(folder), "tensorboard": str(folder / "tensorboard")},
    }


def _clock(study: Study, record: Record, held_out: Row | None) -> list[str]:
    """What was foreseen by the clock and what was measured, where steps were timed."""
    if study.time.table is None or record.foreseen is None:
        return []
    uncached = study.time.table.of(study.time.table.steps)
    wall = None if held_out is None else held_out.speedup_wall
    lines = [by_the_clock(record.foreseen, uncached / record.foreseen, wall)]
    if (found := study.foresight) is not None:
        lines.append(f"foresight: {found.words}")
    return lines


def _foresight(study: Study) -> dict[str, Any]:
    """How well seconds were foreseen, as `--json` says it."""
    found = study.foresight
    table = None if study.time.table is None else study.time.table.payload()
    return {"trials": 0, "rank": None, "ratio": None, "table": table} | ({} if found is None else found._asdict())


def against_fewer_steps(subject: Subject, record: Record, job: Job, folder: Path) -> Contest:
    """A trial's policy and the two step counts between which its FLOPs lie, on the held-out prompts."""
    subject = with_steps(subject)
    steps = int(subject.call["num_inference_steps"])
    fewer = FewerSteps.within(record.ratio or 1.0, steps).steps
    rivals = {f"{n} of {steps} steps": FewerSteps(n) for n in (fewer, min(fewer + 1, steps))}
    measured = (*Budget.parse(job.budget).metrics, *job.metrics)
    held_out = prompts_of(job.held_out)
    return Contest(
        subject,
        {TUNED: record.policy, **rivals},
        held_out,
        folder,
        seed=job.seed,
        keep=0,
        metrics=measured,
    )


def keeps_budget(contest: Contest, budget: Budget) -> tuple[bool, str]:
    """Whether the tuned policy keeps the budget on the contest's prompts, and its figures in words.

    A limit of time is compared with what was measured here.
    """
    runs = contest.figures(TUNED)
    values = {name: [float(run["quality"][name]) for run in runs] for name in budget.metrics}
    kept, found = budget.violation(values) <= 0, budget.describe(values)
    if budget.time is not None:
        seconds = contest.measured(TUNED).seconds
        kept, found = kept and seconds <= budget.time.most, f"{found}, {seconds:.3g} s a call here"
    return kept, found


def beats_fewer_steps(contest: Contest) -> Verdict:
    """Whether the tuned policy has a better PSNR than fewer steps at its FLOPs, by the rule of `bench.verdict`."""
    values = {name: [float(run["quality"]["psnr"]) for run in contest.figures(name)] for name in contest.entries}
    speedups = {name: contest.row(name).speedup_flops for name in contest.entries}
    fewer = [name for name, entry in contest.entries.items() if isinstance(entry, FewerSteps)]
    return verdict(speedups[TUNED], values[TUNED], Baseline.of([(speedups[name], values[name]) for name in fewer]))


def _figures(answer: Verdict | None) -> dict[str, Any]:
    """The difference in PSNR to fewer steps at equal FLOPs, in dB, with its 95 % interval."""
    gap = None if answer is None else answer.difference
    return {"difference": None, "low": None, "high": None} if gap is None else gap._asdict() | {"difference": gap.value}


def _left_out(study: Study) -> dict[str, str]:
    """Policies that were asked for with `any` but cannot be searched on this pipeline, and why."""
    return dict(study.space.left_out) if isinstance(study.space, JointSpace) else {}


def _searched(study: Study, record: Record) -> Row:
    """A trial's figures on the search prompts."""
    found = searched(study, record)
    return Row(
        name="tuned, search",
        speedup_flops=found.speedup_flops,
        speedup_wall=found.speedup_wall,
        quality=found.quality,
        judge=None,
        cache_bytes=found.cached_bytes,
        prompts=found.prompts,
        policy=fc.dump(record.policy),
    )

"""What `plan` does: record, plan, fit, verify, and write the front and the tuned config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastercache.bounds import Limit
from fastercache.experiments.console import progress, say
from fastercache.experiments.jobs.plan_outcome import Outcome, Plan
from fastercache.experiments.jobs.searching import tell
from fastercache.experiments.jobs.workers import Recording, shared
from fastercache.experiments.pipelines import Subject, with_steps
from fastercache.policies.documents import check_writable
from fastercache.policies.errors import BudgetNotMet, InvalidPolicy
from fastercache.policies.wording import counted, lasting
from fastercache.prompts import Given, prompts_of
from fastercache.tuner import Budget
from fastercache.tuner.clock import Objective, needs_table
from fastercache.tuner.planning.material import Told
from fastercache.tuner.planning.opening import opened
from fastercache.tuner.planning.planner import EFFORTS, Planner, computed_for
from fastercache.tuner.planning.room import HISTORY
from fastercache.tuner.seconds import RUNS, Seconds, enough
from fastercache.tuner.setting import Case, References, Setting

TIMING = (1 + RUNS) / 2
"""Generations' worth of denoiser calls that timing steps takes: every second step of each run is computed."""


def plan(
    subject: Subject,
    prompts: Sequence[Given],
    *,
    budgets: Sequence[str] = (),
    speedups: Sequence[float] = (),
    held_out: Sequence[Given] = (),
    effort: int = 1,
    margin: float | None = None,
    metrics: Sequence[str] = (),
    objective: Objective = Objective.FLOPS,
    seed: int = 0,
    folder: Path,
    out: Path,
    storage: str | None = None,
    team: Sequence[Recording] = (),
    show: bool = True,
) -> dict[str, Any]:
    """Plan within budgets or for speedups, and export what was found: one plan as a tuned config, several as a dial.

    Args:
        prompts: search prompts, recorded uncached. held_out: what the outcome is measured on; may be empty.
        effort: see `EFFORTS`. margin: dB over a budget on the search prompts; by default from their spread.
        objective: what a speedup is of.
        folder: keeps recordings, references, judged plans and pictures. out: the tuned config or dial.
        team: workers that record some of the search prompts.

    Raises:
        InvalidPolicy: if neither or both of budgets and speedups are given.
        BudgetNotMet: if no plan does what is asked. MeasurementError: if steps cannot be timed that must be.
    """
    prompts, held_out = prompts_of(prompts), prompts_of(held_out)
    questions = questions_of(budgets, speedups)
    wanted = [question for question in questions if isinstance(question, Budget)]
    for budget in wanted:
        tell(budget)
    cache = limit_of(wanted)
    check_writable(out, "tuned config")
    subject = with_steps(subject)
    Setting(subject.pipe, subject.call, seed).cases(held_out)  # what is wrong with them is said first
    timed = needs_table(objective, *wanted)
    price = EFFORTS[effort].price(len(prompts), len(questions))
    steps = int(subject.call["num_inference_steps"])
    check_steps(steps, questions, timed)
    say(
        f"the price: at most {price:g} uncached generations' worth of denoiser calls ({price * steps:g} steps), "
        f"{counted(len(prompts), 'recorded prompt')} included"
        + (f"; measuring on {counted(len(held_out), 'held-out prompt')} comes on top" if held_out else "")
        + (f"; so does timing steps, {TIMING:g} generations" if timed else "")
    )

    def priced(seconds: float) -> None:
        say(f"an uncached generation takes {seconds:.1f} s here: at most some {lasting(price * seconds)} in all")

    named = tuple(dict.fromkeys([*(name for budget in wanted for name in budget.metrics), *metrics]))
    with watched(price) as told:
        planner = open_planner(
            subject,
            prompts,
            effort=effort,
            metrics=named,
            cache=cache,
            seed=seed,
            folder=folder,
            storage=storage,
            told=told,
            priced=priced,
            beforehand=shared(team, told, priced),
        )
        seconds = _timed(planner) if timed else None
        found = [_answered(planner, one, margin, objective, seconds) for one in questions]
    if cache is not None:
        say(f"{cache} leaves room for {planner.history} of {HISTORY} past outputs")
    return Outcome(subject, planner, found, held_out, named, seed, folder, seconds).shipped(out, show=show)


def questions_of(budgets: Sequence[str], speedups: Sequence[float]) -> list[Budget | float]:
    """What is asked, each once. Raises InvalidPolicy if neither or both of budgets and speedups are given."""
    if bool(budgets) == bool(speedups):
        raise InvalidPolicy("say what the plan is for: --budget 'psnr>=45' or --speedup 5, one of the two")
    return list(dict.fromkeys([*map(Budget.parse, budgets), *speedups]))


def check_steps(steps: int, questions: Sequence[Budget | float], timed: bool) -> None:
    """What no plan of so many steps can do is refused before anything is recorded.

    Raises:
        BudgetNotMet: for a speedup beyond the one of a single computed step; by the clock all are below that.
        MeasurementError: for too few steps to time.
    """
    if timed:
        enough(steps)
    for question in questions:
        if not isinstance(question, Budget):
            computed_for(steps, question)


def _timed(planner: Planner) -> Seconds:
    """What steps take here, said."""
    planner.told("timing steps")
    seconds = Seconds.measured(planner.setting, planner.material.cases[0], history=planner.history)
    say(f"by the clock, {seconds.words}")
    return seconds


def _answered(
    planner: Planner, question: Budget | float, margin: float | None, objective: Objective, seconds: Seconds | None
) -> Plan:
    """The plan for one question.

    Raises:
        BudgetNotMet: if there is none, or it would take longer than the budget allows.
    """
    if not isinstance(question, Budget):
        if objective is Objective.TIME:
            assert seconds is not None  # whatever is asked by the clock is timed
            question = planner.steps / seconds.computed_for(question)
        return Plan(planner.for_speedup(question))
    most = planner.steps
    if question.time is not None:
        assert seconds is not None
        most = seconds.most(question.time.most)
        if most < min(planner.predicted):
            fewest = min(planner.predicted)
            raise BudgetNotMet(
                f"no plan keeps {question.time}: with {counted(fewest, 'computed step')}, the fewest, a call takes "
                f"{seconds.of(fewest):.3g} s, because {seconds.words}"
            )
    point = planner.for_budget(question, margin)
    if len(point.computed) > most:
        assert seconds is not None
        fits = planner.point(most).predicted_psnr
        raise BudgetNotMet(
            f"{', '.join(map(str, question.terms))} takes {counted(len(point.computed), 'computed step')}, "
            f"{seconds.of(len(point.computed)):.3g} s a call here; {question.time} leaves room for {most}"
            + ("" if fits is None else f", from which {fits:.1f} dB are expected")
            + ": ask for less quality or allow more time"
        )
    return Plan(point, question)


def open_planner(
    subject: Subject,
    prompts: Sequence[str],
    *,
    effort: int = 1,
    metrics: Sequence[str] = (),
    cache: Limit | None = None,
    seed: int = 0,
    folder: Path,
    storage: str | None = None,
    told: Told = lambda doing, spent: None,
    priced: Callable[[float], None] = lambda seconds: None,
    beforehand: Callable[[References, Sequence[Case]], None] = lambda references, cases: None,
) -> Planner:
    """The planner of an opened pipeline, see `tuner.planning.opening`."""
    setting = Setting(subject.pipe, subject.call, seed)
    return opened(
        setting,
        prompts,
        folder,
        effort=effort,
        metrics=metrics,
        cache=cache,
        storage=storage,
        told=told,
        priced=priced,
        beforehand=beforehand,
    )


def limit_of(budgets: Sequence[Budget]) -> Limit | None:
    """The limit of the cache that all budgets have. Raises InvalidPolicy if they differ in it."""
    limits = {budget.cache for budget in budgets}
    if len(limits) > 1:
        raise InvalidPolicy(
            "all budgets of one command need the same limit of the cache, found "
            f"{' and '.join(sorted('none' if limit is None else str(limit) for limit in limits))}"
        )
    return next(iter(limits), None)


@contextmanager
def watched(generations: float) -> Iterator[Told]:
    """A progress bar over generations' worth of denoiser calls, with what is being done."""
    with progress() as bar:
        task = bar.add_task("planning", total=generations)

        def told(doing: str, spent: float) -> None:
            bar.update(task, description=doing, completed=round(spent, 1))

        yield told

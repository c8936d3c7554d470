"""Many workers on one study, measured: what each adds, and what is left of a study when one is killed.

`python -m fastercache.experiments.jobs.scaling MODEL --storage postgresql://USER@HOST/DATABASE` runs `fastercache
tune` with 1, 2 and 4 workers; with two, one of which is killed by SIGKILL in the middle of a trial; as eight commands
that start at once on a new study; and, where `--restart` gives a command that stops the database for a while, with
two through that. Each time the study is read afterwards: is a trial lost, is one run twice, is the best the same?
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import optuna
import typer
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

import fastercache as fc
from fastercache.experiments.bench.contest import digest
from fastercache.policies.documents import write_json
from fastercache.tuner import Outcome
from fastercache.tuner.codec import Notes
from fastercache.tuner.entry import JOURNAL
from fastercache.tuner.record import SPENT, is_interrupted, records
from fastercache.tuner.storage import open_storage

WORKERS = (1, 2, 4)
AT_ONCE = 8
POLL = 0.1


class Found(BaseModel):
    """A study after its search.

    Attributes:
        case: what was done. workers: how many processes searched.
        trials: that made videos. running: trials that nobody ended. lost: policies that were begun and never ended.
        twice: policies that made videos in two trials. best: its policy and computed share.
        seconds: from the first trial's begin to the last one's end. processor: seconds of all processes, with their
            start. busy: seconds of all trials together. statuses: exit statuses of the commands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    case: str
    workers: int
    trials: int
    running: int
    lost: int
    twice: int
    best: str
    ratio: float
    seconds: float
    processor: float
    busy: float
    statuses: tuple[int, ...]

    @property
    def trials_per_worker_minute(self) -> float:
        return 60.0 * self.trials / (self.workers * self.seconds)


def read(study: optuna.Study, case: str, workers: int, processor: float, statuses: Sequence[int]) -> Found:
    """What a study holds once all its workers have ended."""
    trials = study.get_trials(deepcopy=False)
    ended = records(study)
    spent = [r for r in ended if r.outcome in SPENT]
    tried = Counter(json.dumps(fc.dump(r.policy), sort_keys=True) for r in spent)
    over = {json.dumps(fc.dump(r.policy), sort_keys=True) for r in ended if r.outcome is not Outcome.INTERRUPTED}
    begun = {json.dumps(Notes.of(t).policy, sort_keys=True) for t in trials if is_interrupted(t) and Notes.of(t).policy}
    best = min((r for r in ended if r.feasible and r.ratio is not None), key=lambda r: (r.ratio or 1.0, r.number))
    times = [(t.datetime_start, t.datetime_complete) for t in trials if t.datetime_start and t.datetime_complete]
    return Found(
        case=case,
        workers=workers,
        trials=len(spent),
        running=sum(t.state is TrialState.RUNNING for t in trials),
        lost=len(begun - over),
        twice=sum(count > 1 for count in tried.values()),
        best=repr(best.policy),
        ratio=best.ratio or 1.0,
        seconds=(max(end for _, end in times) - min(start for start, _ in times)).total_seconds(),
        processor=processor,
        busy=sum((end - start).total_seconds() for start, end in times),
        statuses=tuple(statuses),
    )


class Team:
    """Runs `fastercache tune` on a model with one search, in new studies."""

    def __init__(self, model: str, folder: Path, storage: str | None, options: Sequence[str]) -> None:
        self.model, self.folder, self.storage, self.options = model, folder, storage, options

    def command(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        place = [] if self.storage is None else ["--storage", self.storage]
        study = ["--study", str(self.folder / name), "--out", str(self.folder / f"{name}-{time.monotonic_ns()}.json")]
        words = ["tune", self.model, *self.options, *study, *place, *more, "--json"]
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            return subprocess.Popen([sys.executable, "-m", "fastercache", *words], stdout=log, stderr=log)

    def study(self, name: str) -> optuna.Study:
        return optuna.load_study(
            storage=open_storage(self.storage or self.folder / name / JOURNAL),
            study_name=name if self.storage else None,
        )

    def measured(
        self, case: str, workers: int, *, commands: int = 1, meanwhile: Callable[[str], None] = lambda name: None
    ) -> Found:
        """One study, by `commands` commands that begin at once and have `workers` processes together."""
        name = f"{case.replace(' ', '-')}-{digest([case, time.time_ns()])[:6]}"
        before = _processor()
        each = ["--workers", str(workers // commands)]
        begun = [self.command(name, *each) for _ in range(commands)]
        meanwhile(name)
        statuses = [one.wait() for one in begun]
        return read(self.study(name), case, workers, _processor() - before, statuses)

    def kill_one(self, name: str) -> None:
        """SIGKILL a worker that is not a command, in the middle of its trial."""
        me = os.getpid()
        while True:
            time.sleep(POLL)
            for trial in self._running(name):
                worker = Notes.of(trial).worker
                if worker is None:
                    continue
                pid = int(worker.rsplit("/", 2)[1])
                if _parent(pid) not in (me, None):
                    os.kill(pid, signal.SIGKILL)
                    return

    def _running(self, name: str) -> list[optuna.trial.FrozenTrial]:
        try:
            return self.study(name).get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        except (KeyError, ValueError, fc.FasterCacheError):  # not made yet
            return []

    def restart(self, command: str) -> Callable[[str], None]:
        """Run a command that stops the database and starts it again, once the third trial is begun."""

        def run(name: str) -> None:
            while not any(trial.number >= 2 for trial in self._running(name)):
                time.sleep(POLL)
            subprocess.run(shlex.split(command), check=True)

        return run


def _parent(pid: int) -> int | None:
    """The parent of a process; None once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(found: Sequence[Found]) -> Table:
    """A line for each study; efficiency is trials by a worker's seconds, as a share of what one worker alone has."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "",
        "workers",
        "trials",
        "seconds",
        "processor",
        "efficiency",
        "never ended",
        "lost",
        "twice",
        "best",
    ):
        shown.add_column(heading, justify="left" if heading in ("", "best") else "right")
    for one in found:
        alone = next((f for f in found if f.workers == 1), one)
        share = one.trials_per_worker_minute / alone.trials_per_worker_minute
        row = (
            one.case,
            one.workers,
            one.trials,
            f"{one.seconds:.0f}",
            f"{one.processor:.0f}",
            f"{share:.0%}",
            one.running,
            one.lost,
            one.twice,
        )
        shown.add_row(*map(str, row), f"{one.best}, {1.0 / one.ratio:.2f}x")
    return shown


def main(
    model: Annotated[str, typer.Argument(help="A reference model.")] = "latte-digits",
    folder: Annotated[Path, typer.Option("--folder", help="Where the studies and references go.")] = Path("scaling"),
    storage: Annotated[str | None, typer.Option("--storage", metavar="URL", help="A database. [a file]")] = None,
    restart: Annotated[
        str | None, typer.Option("--restart", metavar="COMMAND", help="Stops the database for a while.")
    ] = None,
    policy: Annotated[str, typer.Option("--policy", help="What is searched.")] = "fora",
    budget: Annotated[str, typer.Option("--budget")] = "psnr>=25",
    trials: Annotated[int, typer.Option("--trials", min=2)] = 16,
    count: Annotated[int, typer.Option("--count", min=1, help="Search prompts.")] = 2,
    steps: Annotated[int, typer.Option("--steps", min=2)] = 20,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures to a JSON file.")] = None,
) -> None:
    """What workers add to a search, and what a killed one or a stopped database costs it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--policy", policy, "--budget", budget, "--trials", str(trials), "--count", str(count)]
    options += ["--steps", str(steps)]
    team = Team(model, folder.resolve(), storage, options)
    found = [team.measured(f"{n} at work", n) for n in WORKERS]
    found.append(team.measured("one killed", 2, meanwhile=team.kill_one))
    found.append(team.measured("begun at once", AT_ONCE, commands=AT_ONCE))
    if restart is not None:
        found.append(team.measured("database away", 2, meanwhile=team.restart(restart)))
    Console(width=140).print(table(found))
    if out is not None:
        write_json(out, {"model": model, "options": options, "studies": [f.model_dump() for f in found]}, "figures")


if __name__ == "__main__":
    typer.run(main)

"""`--workers N`: further processes that work with a command, one for each GPU where there are some.

With `tune` they search one study together; with `plan` they record the search prompts together. A worker is `python
-m fastercache.experiments.jobs.workers`, told on standard input what to do, so that a database's password stands in
no list of processes. What it would print goes to a log in the command's folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter

from fastercache.experiments import pipelines
from fastercache.experiments.console import say
from fastercache.experiments.jobs.study_job import Job, study_of
from fastercache.experiments.pipelines import Subject
from fastercache.policies.methods.planned import Planned
from fastercache.policies.wording import counted
from fastercache.prompts import plain, prompts_of
from fastercache.tuner import Record, Study
from fastercache.tuner.planning.material import Told, material
from fastercache.tuner.setting import Case, References, Setting

PATIENCE = 20.0
"""Seconds that a worker gets to put its trial back when the command is interrupted."""


class Orphaned(SystemExit):
    """The command that started this worker is gone."""


class Order(BaseModel):
    """What a worker is to do.

    Attributes:
        folder: of the command; a search's folder holds its job. device: the worker's own.
        references: folder of the uncached references, where it is shared.
        place: which of the search prompts the worker begins with, so that the workers share them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path
    device: str
    place: int
    references: Path | None = None


class Searching(Order):
    """Search a study. `trials`, `seconds`, `storage`: as of the command."""

    trials: int
    seconds: float | None = None
    storage: str | None = None


class Recording(Order):
    """Record every `of`-th search prompt from `place` on. `pipe`, `dtype`, `call`: how the pipeline is opened."""

    pipe: str
    dtype: str
    call: dict[str, Any]
    prompts: tuple[str | dict[str, Any], ...]
    seed: int
    of: int


def command() -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-m", "fastercache.experiments.jobs.workers"]


class Worker:
    """One further process, at work since it was made."""

    def __init__(self, order: Order, number: int, threads: int) -> None:
        self.number = number
        self.log = order.folder / "workers" / f"{number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C reaches the command alone, which then stops its workers
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(order.model_dump_json().encode())

    def ended(self, seconds: float | None = None) -> int | None:
        """The exit status, once there is one; None if it takes longer than `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def interrupt(self) -> None:
        """Stop it as Ctrl-C does: its trial is put back. It is killed if it does not stop."""
        self._process.send_signal(signal.SIGINT)
        if self.ended(PATIENCE) is None:
            self._process.kill()
            self._process.wait()


def devices(device: str, workers: int) -> list[str]:
    """The device of each worker: the GPUs in turn where `device` leaves the choice, else `device` for all.

    >>> devices("cpu", 2)
    ['cpu', 'cpu']
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return [f"cuda:{i % gpus}" if gpus else device for i in range(workers)]


@contextmanager
def threads_shared(workers: int) -> Iterator[int]:
    """This process's share of the threads that it has, so that all workers together use no more. Gives the share."""
    had = torch.get_num_threads()
    share = max(1, had // workers)
    torch.set_num_threads(share)
    try:
        yield share
    finally:
        torch.set_num_threads(had)


@contextmanager
def joined(orders: Sequence[Order]) -> Iterator[None]:
    """Workers beside what is done in this context. At its end they are waited for; if it raises they are stopped.

    One that fails ends alone: its trial is queued again, and this says where its log is.
    """
    with ExitStack() as stack:
        share = stack.enter_context(threads_shared(len(orders) + 1))
        team = [Worker(order, number, share) for number, order in enumerate(orders, 2)]
        try:
            yield
        except BaseException:
            for worker in team:
                worker.interrupt()
            raise
        if any(worker.ended(0) is None for worker in team):
            say(f"waiting for {counted(len(team), 'worker')} to end the trials that they are in")
        for worker in team:
            if status := worker.ended():
                say(f"warning: worker {worker.number} ended with status {status}; its log is {worker.log}")


def recorders(
    subject: Subject, prompts: Sequence[str], folder: Path, workers: int, *, device: str, dtype: str, seed: int
) -> list[Recording]:
    """Orders for the workers that record a share of the search prompts each; the first share is the command's own."""
    return [
        Recording(
            folder=folder,
            device=own,
            place=place,
            of=workers,
            pipe=subject.name,
            dtype=dtype,
            call=pipelines.with_steps(subject).call,
            prompts=tuple(map(plain, prompts)),
            seed=seed,
        )
        for place, own in enumerate(devices(device, workers))
    ][1 : len(prompts)]


def shared(
    team: Sequence[Recording], told: Told, priced: Callable[[float], None]
) -> Callable[[References, Sequence[Case]], None]:
    """Records all cases with these workers, in the command's folder; without any it leaves them to the command."""

    def record(references: References, cases: Sequence[Case]) -> None:
        if team:
            with joined(team):
                material(references, cases[:: team[0].of], told=told, priced=priced)

    return record


def work(order: Searching | Recording) -> None:
    """Do what is ordered."""
    if isinstance(order, Searching):
        search(order)
    else:
        record(order)


def search(order: Searching) -> None:
    """Search as the command does, until the study has its trials or the command is gone."""
    parent = os.getppid()

    def watched(study: Study, record: Record) -> None:
        if os.getppid() != parent:
            raise Orphaned(f"the command that started this worker is gone; the study in {order.folder} can go on")

    job = Job.load(order.folder)
    # The command plans; the plans are trials that any worker may take.
    searched = tuple(name for name in job.policies if name != Planned.name)
    job = job.model_copy(update={"device": order.device, "policies": searched})
    study_of(
        job.open(),
        job,
        order.folder,
        trials=order.trials,
        seconds=order.seconds,
        on_trial=watched,
        references=order.references,
        logdir=order.folder / "tensorboard",
        storage=order.storage,
        place=order.place,
    )


def record(order: Recording) -> None:
    """Record a share of the search prompts; the command reads the recordings from the folder."""
    subject = pipelines.open_pipeline(order.pipe, device=order.device, dtype=order.dtype, **order.call)
    setting = Setting(subject.pipe, subject.call, order.seed)
    mine = setting.cases(prompts_of(order.prompts))[order.place :: order.of]
    if mine:
        material(References(setting, order.references or order.folder / "references"), mine)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the command runs in the background
    work(TypeAdapter[Searching | Recording](Searching | Recording).validate_json(sys.stdin.read()))

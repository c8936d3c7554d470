"""`tune --workers N`: further processes that search one study with the command, one for each GPU where there are some.

A worker is `python -m fastercache.experiments.jobs.workers`, told on standard input what to do, so that a database's
password stands in no list of processes. What it would print goes to a log in the study's folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from fastercache.experiments.console import say
from fastercache.policies.methods.planned import Planned
from fastercache.policies.wording import counted
from fastercache.tuner import Record, Study

PATIENCE = 20.0
"""Seconds that a worker gets to put its trial back when the command is interrupted."""


class Orphaned(SystemExit):
    """The command that started this worker is gone."""


class Order(BaseModel):
    """What a worker is to do.

    Attributes:
        folder: of the study, which holds its job. device: the worker's own.
        trials, seconds, storage, references: as of the command.
        place: the number of the search prompt whose reference it makes first, so that the workers share them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path
    device: str
    trials: int
    seconds: float | None
    storage: str | None
    references: Path | None
    place: int


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


def work(order: Order) -> None:
    """Search as the command does, until the study has its trials or the command is gone."""
    from fastercache.experiments.jobs.searching import Job, study_of

    parent = os.getppid()

    def watched(study: Study, record: Record) -> None:
        if os.getppid() != parent:
            raise Orphaned(f"the command that started this worker is gone; the study in {order.folder} goes on with it")

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


if __name__ == "__main__":
    work(Order.model_validate_json(sys.stdin.read()))

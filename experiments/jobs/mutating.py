"""How many changes of the code that decides correctness the tests notice.

`make mutate`, or `python -m fastercache.experiments.jobs.mutating`, changes one place at a time in each module of
`deciding.ROOMS` with cosmic-ray's operators and runs the tests that mirror the module. A mutant that no test notices
has survived. Everything happens in copies of the tracked files under `.mutation/`, so the working tree is never
touched. What was tried is kept in one cosmic-ray session a module, so that an interrupted command goes on where it
stopped. A session is begun anew when its module changes; after new tests `--again` tries its survivors once more.

Which mutations count is told in `mutants.py`. Survivors that were read and found to change nothing that anyone could
see stand in `equivalent_mutants.json`, each with its reason; they are printed, and left out of the score.
"""

from __future__ import annotations

import json
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table as Printed

from fastercache.experiments import console
from fastercache.experiments.jobs.deciding import ROOMS, Deciding
from fastercache.experiments.jobs.mutants import OPERATORS, change, mutated, valid
from fastercache.extras import need
from fastercache.policies.documents import read_json, write_json
from fastercache.policies.errors import FasterCacheError

if TYPE_CHECKING:
    from cosmic_ray.work_db import WorkDB
    from cosmic_ray.work_item import WorkItem, WorkResult

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
WARM_TESTS = Path(__file__).with_name("warm_tests.py")
LEAST = 20.0
"""Seconds that every mutant's tests may take; those of a slow module may take five times what they take unchanged."""


class TestsFail(FasterCacheError):
    """The tests of a module fail without any mutation.

    Symptom: `the tests of policies/schedule.py fail as they are`.
    Cause: A mutant that they notice would tell nothing: they notice everything.
    Fix: Mend the tests or the code; `make test` shows which.
    """


class RunnerEnded(FasterCacheError):
    """The process that runs the tests is gone.

    Symptom: `the process that runs the tests ended`.
    Cause: Ctrl-C, or memory that ran out.
    Fix: Give the same command again, with fewer `--jobs` if memory was the cause; it goes on where it stopped.
    """


@dataclass(frozen=True)
class Tried:
    """One mutant.

    Attributes:
        module: the file it changes, from the root of the repository.
        line: number of the first line it changes.
        before: what stood there, without indentation; a change of several lines is joined.
        after: what stands there now.
        operator: cosmic-ray's name of the mutation.
        noticed: whether a test failed, or ran out of time.
        reason: why nobody could notice it, if that was found.
    """

    module: str
    line: int
    before: str
    after: str
    operator: str
    noticed: bool
    reason: str = ""


def tracked(root: Path) -> list[str]:
    """Paths of the files that git tracks, links among them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_symlink() | (root / name).exists()]


def copied(root: Path, tree: Path) -> Path:
    """Make `tree` a copy of the tracked files of `root`, links kept. Only what differs is written."""
    names = tracked(root)
    for name in names:
        source, target = root / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            if not target.is_symlink():
                target.symlink_to(os.readlink(source))
        elif not target.exists() or _stamp(source) != _stamp(target):
            shutil.copy2(source, target)
    wanted = {tree / name for name in names}
    for path in tree.rglob("*"):  # follows no links
        if (path.is_file() or path.is_symlink()) and path not in wanted and "__pycache__" not in path.parts:
            path.unlink()
    return tree


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


class Runner:
    """Runs tests in one copy of the tree, each time in a fork of a process that has imported torch and its like."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        path = {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "FASTERCACHE_MUTANT": "1"}
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WARM_TESTS)],
            cwd=tree,
            env=kept | path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, tests: Iterable[str], timeout: float, warm: bool = False) -> dict[str, Any]:
        """What `warm_tests.py` answers: exit code (None after the timeout), seconds, end of the output.

        Raises:
            RunnerEnded: if its process is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"tests": list(tests), "timeout": timeout, "warm": warm}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunnerEnded("the process that runs the tests ended: give the same command again") from None
        line = self._process.stdout.readline()
        if not line:
            raise RunnerEnded("the process that runs the tests ended: give the same command again")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process and the run that it may be in."""
        with self._process:  # which closes its pipes and waits for it
            self._process.terminate()


@contextmanager
def session(folder: Path, module: str, source: str) -> Iterator[WorkDB]:
    """cosmic-ray's session of a module, begun anew if the module is not what it was made for."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB

    file = folder / f"{module.removesuffix('.py').replace('/', '.')}.sqlite"
    written = file.with_suffix(".py.txt")
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = not written.exists() or written.read_text(encoding="utf-8") != source
    if fresh:
        file.unlink(missing_ok=True)
    db = WorkDB(str(file), WorkDB.Mode.create)
    try:
        if fresh:
            copy = file.with_suffix(".py")
            copy.write_text(source, encoding="utf-8")
            init([copy], db, {})
            copy.rename(written)
        yield db
    finally:
        db.close()


def order(items: Iterable[WorkItem], module: str, seed: int) -> list[WorkItem]:
    """A module's mutations by the operators that count, in a shuffled order that depends on nothing but the seed."""
    chosen = [item for item in items if item.mutations[0].operator_name in OPERATORS]
    chosen.sort(key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence))
    random.Random(f"{seed} {module}").shuffle(chosen)
    return chosen


def attempt(runner: Runner, deciding: Deciding, source: str, item: WorkItem, timeout: float) -> WorkResult:
    """Test one mutant in the runner's copy; a mutation that is no valid mutant is skipped."""
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    after = mutated(source, item.mutations[0])
    if after is None or not valid(source, after):
        return WorkResult(WorkerOutcome.SKIPPED)
    file = runner.tree / deciding.module
    stamp = file.stat()
    try:
        file.write_text(after, encoding="utf-8")
        answer = runner.run(deciding.tests, timeout)
    finally:
        file.write_text(source, encoding="utf-8")
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # so that the compiled file stays the right one
    outcome = TestOutcome.SURVIVED if answer["code"] == 0 else TestOutcome.KILLED
    said = answer["output"] if answer["code"] is not None else f"timeout after {timeout:.0f} s"
    return WorkResult(WorkerOutcome.NORMAL, said, outcome, json.dumps(change(source, after)))


def tried_in(db: WorkDB, module: str, judged: dict[str, list[dict[str, str]]]) -> list[Tried]:
    """The valid mutants of a session that were tested."""
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome

    reasons = {(one["before"], one["after"]): one["reason"] for one in judged.get(module, ())}
    mutations = {item.job_id: item.mutations[0] for item in db.work_items}
    found = []
    for job, result in db.results:
        if result.worker_outcome is WorkerOutcome.NORMAL:
            before, after, line = json.loads(result.diff or "")
            noticed = result.test_outcome is TestOutcome.KILLED
            reason = "" if noticed else reasons.get((before, after), "")
            found.append(Tried(module, line, before, after, mutations[job].operator_name, noticed, reason))
    return sorted(found, key=lambda one: (one.line, one.after))


def work(deciding: Deciding, runner: Runner, folder: Path, sample: int | None, seed: int, again: bool) -> None:
    """Test a module's mutants that have no result yet. Raises TestsFail."""
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome

    source = (runner.tree / deciding.module).read_text(encoding="utf-8")
    with session(folder, deciding.module, source) as db:
        results = dict(db.results)
        timeout = None
        valid_ones = 0
        for item in order(db.work_items, deciding.module, seed):
            if valid_ones == sample:
                break
            result = results.get(item.job_id)
            if result is None or (again and result.test_outcome is TestOutcome.SURVIVED):
                if timeout is None:
                    whole = runner.run(deciding.tests, 600, warm=True)
                    if whole["code"] != 0:
                        raise TestsFail(f"the tests of {deciding.module} fail as they are: {whole['output'][-600:]}")
                    timeout = max(LEAST, 5 * whole["seconds"])
                result = attempt(runner, deciding, source, item, timeout)
                db.set_result(item.job_id, result)
            valid_ones += result.worker_outcome is WorkerOutcome.NORMAL


def score(tried: Iterable[Tried]) -> tuple[int, int]:
    """How many mutants were noticed, and of how many; those that nobody could notice are left out."""
    counted = [one for one in tried if not one.reason]
    return sum(one.noticed for one in counted), len(counted)


def report(tried: list[Tried]) -> tuple[Printed, list[str]]:
    """The table of scores by room and module, and the survivors in words."""
    table = Printed(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, where in (("", "left"), ("noticed", "right"), ("of", "right"), ("score", "right")):
        table.add_column(heading, justify=where, no_wrap=True)  # type: ignore[arg-type]
    for room, modules in ROOMS.items():
        for name in (None, *(one.module for one in modules)):
            of_it = [
                t for t in tried if t.module == name or (name is None and any(t.module == m.module for m in modules))
            ]
            noticed, counted = score(of_it)
            if counted:
                label, style = (room, "bold") if name is None else (f"  {name}", "")
                table.add_row(label, str(noticed), str(counted), f"{noticed / counted:.0%}", style=style)
    lines = []
    for one in tried:
        if not one.noticed:
            lines += [f"{one.module}:{one.line}" + (f"  (equivalent: {one.reason})" if one.reason else "")]
            lines += [f"  - {one.before}", f"  + {one.after}"]
    return table, lines


def chosen(rooms: list[str] | None, modules: list[str] | None) -> list[Deciding]:
    """The modules of the rooms that were asked for. Raises typer.BadParameter for a name that is not in the table."""
    every = [one for room, members in ROOMS.items() for one in members if not rooms or room in rooms]
    if unknown := sorted(set(rooms or ()) - set(ROOMS)):
        raise typer.BadParameter(f"no room {', '.join(unknown)}; there are {', '.join(ROOMS)}")
    if unknown := sorted(set(modules or ()) - {one.module for one in every}):
        raise typer.BadParameter(
            f"{', '.join(unknown)} is not among the deciding modules of experiments/jobs/deciding.py"
        )
    return [one for one in every if not modules or one.module in modules]


def main(
    room: Annotated[list[str] | None, typer.Option(help="Only these rooms (repeat it).")] = None,
    module: Annotated[
        list[str] | None, typer.Option(help="Only these modules, as policies/schedule.py (repeat it).")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many mutants of each module, drawn by seed. [all]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which mutants a sample holds, and in which order they are tried.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Modules at a time.")] = os.cpu_count() or 1,
    again: Annotated[
        bool, typer.Option("--again", help="Test the survivors once more, after tests were added.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where copies and sessions are kept.")] = ROOT / ".mutation",
    out: Annotated[Path | None, typer.Option(help="Scores and survivors (JSON). [score.json in the folder]")] = None,
) -> None:
    """Change the deciding modules place by place; print how many changes tests notice. Exits with 1 if tests fail."""
    console.quiet()
    waiting: queue.SimpleQueue[Deciding] = queue.SimpleQueue()
    wanted = chosen(room, module)
    for deciding in wanted:
        waiting.put(deciding)
    stop, broken = threading.Event(), []
    jobs = min(jobs, len(wanted))
    try:
        need("dev", "mutation testing")
        runners = [Runner(copied(ROOT, folder / f"tree-{n}")) for n in range(jobs)]
        with console.progress() as bar:
            task = bar.add_task("modules", total=len(wanted))

            def worker(runner: Runner) -> None:
                while not stop.is_set():
                    try:
                        deciding = waiting.get_nowait()
                    except queue.Empty:
                        return
                    bar.update(task, description=deciding.module)
                    try:
                        work(deciding, runner, folder / "sessions", sample, seed, again)
                    except TestsFail as error:
                        broken.append(str(error))
                        console.fail(str(error))
                    bar.advance(task)

            try:
                with ThreadPoolExecutor(jobs) as pool:
                    try:
                        for done in [pool.submit(worker, runner) for runner in runners]:
                            done.result()
                    finally:  # before the pool waits for its threads, which end with their runner
                        stop.set()
                        for runner in runners:
                            runner.close()
            except KeyboardInterrupt:
                console.fail("interrupted: the same command goes on")
                raise typer.Exit(130) from None
        tried = gathered(folder / "sessions", wanted)
        table, survivors = report(tried)
        for line in survivors:
            console.results.print(line, soft_wrap=True)
        console.results.print(table)
        write_json(out or folder / "score.json", summary(tried, sample, seed), "score")
    except FasterCacheError as error:
        console.fail(str(error))
        raise typer.Exit(2) from None
    if broken:
        raise typer.Exit(1)


def gathered(sessions: Path, modules: Iterable[Deciding]) -> list[Tried]:
    """What the sessions of these modules hold. Raises ConfigUnreadable for a list of equivalents that is none."""
    judged = read_json(EQUIVALENT, "list of equivalent mutants")
    found = []
    for one in modules:
        with session(sessions, one.module, (ROOT / one.module).read_text(encoding="utf-8")) as db:
            found += tried_in(db, one.module, judged)
    return found


def summary(tried: list[Tried], sample: int | None, seed: int) -> dict[str, Any]:
    """Scores by room and module, and every survivor, ready for JSON."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    rows = []
    for name, modules in ROOMS.items():
        for one in modules:
            noticed, counted = score(t for t in tried if t.module == one.module)
            if counted:
                rows.append({"room": name, "module": one.module, "noticed": noticed, "of": counted})
    survivors = [asdict(one) for one in tried if not one.noticed]
    return {"commit": commit.strip(), "sample": sample, "seed": seed, "modules": rows, "survivors": survivors}


if __name__ == "__main__":
    typer.run(main)

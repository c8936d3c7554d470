"""How far a training run is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
Item = TypeVar("Item")


def tracked(
    items: Iterable[Item], total: int, title: str, done: int = 0, note: Callable[[Item], str] = lambda _: ""
) -> Iterator[Item]:
    """A progress bar on a terminal; a line now and then in a log file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started, last, first = time.monotonic(), 0.0, done
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, completed=done)
        for item in items:
            yield item
            done += 1
            progress.advance(task)
            now = time.monotonic()
            if not console.is_terminal and (now - last > 30 or done == total):
                last, pace = now, (now - started) / (done - first)
                left = pace * (total - done) / 60
                console.print(f"{title}: {done}/{total}, {pace:.3f} s each, {left:.1f} min left {note(item)}")

"""Trials for TensorBoard's HPARAMS tab."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastercache.policies.registry import dump
from fastercache.tuner.record import SPENT, Record
from fastercache.tuner.study import OnTrial, Study


def figures(record: Record) -> dict[str, float]:
    """What a trial measured; a stopped one's quality is over fewer prompts, which `prompts` tells."""
    found = {name: statistics.fmean(values) for name, values in record.values.items() if values}
    if not found:
        return {}
    found["prompts"] = float(max(len(values) for values in record.values.values()))
    optional = {"speedup_flops": record.speedup_flops, "seconds": record.seconds, "violation": record.violation}
    return found | {name: value for name, value in optional.items() if value is not None}


@contextmanager
def logged(folder: str | Path | None, on_trial: OnTrial | None) -> Iterator[OnTrial | None]:
    """`on_trial`, which also writes each trial that made videos below `folder`; without a folder it is unchanged."""
    if folder is None:
        yield on_trial
        return
    from fastercache.analysis.board import Board  # imports TensorBoard and Matplotlib, which only this needs

    with Board(folder) as board:

        def write(study: Study, record: Record) -> None:
            measured = figures(record)
            if record.outcome in SPENT and measured:
                settings = {**dump(record.policy), "source": record.source, "outcome": str(record.outcome)}
                board.add_trial(f"trial-{record.number:04d}", settings, measured, record.number)
                board.flush()
            if on_trial is not None:
                on_trial(study, record)

        yield write

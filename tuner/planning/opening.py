"""A planner opened in a folder: recordings, references and judged plans are kept there, and none is made twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from fastercache.bounds import Limit
from fastercache.tuner.planning.material import Told, material
from fastercache.tuner.planning.planner import Planner
from fastercache.tuner.planning.record import PlanRecord
from fastercache.tuner.planning.room import HISTORY, history_within
from fastercache.tuner.setting import Case, References, Setting


def opened(
    setting: Setting,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    effort: int = 1,
    metrics: Sequence[str] = (),
    cache: Limit | None = None,
    references: str | Path | None = None,
    storage: str | None = None,
    told: Told = lambda doing, spent: None,
    priced: Callable[[float], None] = lambda seconds: None,
    beforehand: Callable[[References, Sequence[Case]], None] = lambda references, cases: None,
) -> Planner:
    """Record the search prompts, or read what was recorded, and open the study that keeps the plans.

    Args:
        setting: the pipeline and its call. prompts: the search prompts. folder: where everything is kept.
        effort, metrics: see `Planner`. cache: plans keep as many past outputs as it allows.
        references: another folder of the uncached references, where it is shared.
        storage: a database for the study of plans, in place of a file in the folder. told, priced: see `material`.
        beforehand: called before anything is recorded, for whoever records some of the cases elsewhere.

    Raises:
        BudgetNotMet: if the limit of the cache leaves no room for any plan, before anything is recorded.
        RecordingError: see `material`. ConfigMismatch: if the folder holds plans of something else.
    """
    folder = Path(folder)
    cases = setting.cases(prompts)
    history = history_within(setting, cases[0], cache) if cases else HISTORY
    kept = References(setting, Path(references or folder / "references"))
    beforehand(kept, cases)
    recorded = material(kept, cases, told=told, priced=priced)
    made_for = _made_for(setting, cases, effort, history)
    # One study for each effort and set of prompts, beside shared references.
    name = f"{'plans' if storage is None else folder.name}-{made_for[:8]}"
    record = PlanRecord(storage or folder / "plans.journal", made_for, name=name, history=history)
    return Planner(
        setting,
        recorded,
        effort=effort,
        metrics=("psnr", "ssim", *metrics),
        history=history,
        judged=record.add,
        known=record.known,
        told=told,
    )


def _made_for(setting: Setting, cases: Sequence[Case], effort: int, history: int) -> str:
    limited = [history] if history != HISTORY else []  # studies of the usual K keep their names
    inputs = [list(case.identity.values()) for case in cases]
    # the studies of older versions judged plans with the input's weights left out where there is a learned variance
    key = json.dumps([setting.identity, inputs, effort, *limited, "variance"], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:32]

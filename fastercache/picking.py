"""Files that hold schedules: a tuned config, or a dial from which one plan is picked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastercache.dial import FORMAT, Dial
from fastercache.policies.documents import read_json
from fastercache.policies.errors import ConfigUnreadable
from fastercache.tuned import TunedConfig

FRONT = "fastercache-front"
"""Format of what planning foresees; it holds plans that were never run."""


@dataclass(frozen=True)
class Pick:
    """Which plan of a dial is meant, by one of three questions; see `Dial.pick`."""

    speedup: float | None = None
    budget: str | None = None
    quality: str | None = None

    def __bool__(self) -> bool:
        return self != Pick()

    def of(self, found: TunedConfig | Dial) -> TunedConfig:
        """One plan of a dial, or the tuned config itself, which nothing can be picked from. Raises as `load`."""
        if isinstance(found, Dial):
            return found.pick(**asdict(self))
        if self:
            raise ConfigUnreadable(
                "speedup, budget and quality pick from a dial, this tuned config holds one schedule: leave them out"
            )
        return found


def opened(path: str | Path) -> TunedConfig | Dial:
    """What a file holds, a tuned config or a dial. Raises ConfigUnreadable."""
    head: Any = read_json(path, "tuned config")
    form = head.get("format") if isinstance(head, dict) else None
    if form == FRONT:
        raise ConfigUnreadable(
            f"{path} holds what planning foresaw, and no schedules to apply: give the file of --out; with several "
            "--speedup or --budget, `fastercache plan` writes several plans into it"
        )
    return Dial.load(path) if form == FORMAT else TunedConfig.load(path)


def load(
    path: str | Path, *, speedup: float | None = None, budget: str | None = None, quality: str | None = None
) -> TunedConfig:
    """Read a tuned config, or pick one from a dial; see `Dial.pick`.

    Raises:
        ConfigUnreadable: with one clear line; also where a file of one plan is to be picked from.
        InvalidBudget, BudgetNotMet: see `Dial.pick`.
    """
    return Pick(speedup, budget, quality).of(opened(path))

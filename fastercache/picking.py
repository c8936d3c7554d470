"""Files that hold schedules: a tuned config, or a dial from which one plan is picked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastercache.dial import FORMAT, Dial
from fastercache.policies.documents import read_json
from fastercache.policies.errors import ConfigUnreadable
from fastercache.policies.registry import dump
from fastercache.tuned import Certificate, TunedConfig

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


Schedules = TypeVar("Schedules", TunedConfig, Dial)


def carried(made: Schedules, path: str | Path) -> Schedules:
    """What is about to be written over a file, with what certifications left in that: nothing they know is lost.

    The prompts that they looked at stay barred, for a schedule made after a look may not be certified on them, and a
    schedule that was certified, made again for the same and not from those prompts, keeps its certificate.
    """
    try:
        before = opened(path)
    except ConfigUnreadable:
        return made  # no such file, or one that holds no schedules
    old = [before.config(plan) for plan in before.plans] if isinstance(before, Dial) else [before]
    if not {text for texts in before.tried.values() for text in texts}.isdisjoint(made.seen):
        old = []

    def certificate(one: TunedConfig) -> Certificate | None:
        known = (was.certificate for was in old if was.certificate and _made_for(was) == _made_for(one))
        return one.certificate or next(known, None)

    made = made.model_copy(update={"tried": before.tried | made.tried})
    if isinstance(made, Dial):
        found = {i: certificate(made.config(plan)) for i, plan in enumerate(made.plans)}
        return made.certified({i: one for i, one in found.items() if one is not None})
    return made.model_copy(update={"certificate": certificate(made)})


def _made_for(config: TunedConfig) -> tuple[object, ...]:
    """The schedule, and all that a certificate of it depends on."""
    return (
        dump(config.policy),
        config.model,
        config.scheduler,
        config.steps,
        config.guidance_scale,
        config.guidance,
        config.conditions,
    )

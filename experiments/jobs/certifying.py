"""What `certify` does: run tuned configs on fresh prompts, and write the certificate of the fastest that passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import fastercache as fc
from fastercache.experiments.bench.contest import Contest, digest
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.pipelines import Subject, shipped_captions, with_steps
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.policies.errors import BudgetNotMet, ConfigMismatch, ConfigUnreadable
from fastercache.policies.wording import counted
from fastercache.tuned import TunedConfig, prompt_hash
from fastercache.tuner.budget import Budget
from fastercache.tuner.certify import each, misses, prompts_needed, sequential

SEED = 200_000
"""Prompt i is generated with the seed + this + i: its noise too was used for nothing else."""
DRAW = "draw.json"


class Draw(BaseModel):
    """What was fixed before the first run. A certificate is worth nothing if it is changed after a look."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    configs: tuple[str, ...]
    prompts: str
    count: int
    budget: str
    level: float
    rate: float
    seed: int


@dataclass(frozen=True)
class Request:
    """What is to be certified.

    Attributes:
        configs: file -> tuned config, the safest (slowest) first.
        budget: asked of each prompt. level: how sure. rate: share of prompts that may miss it. count: prompts.
    """

    configs: dict[Path, TunedConfig]
    budget: Budget
    level: float
    rate: float
    count: int
    seed: int


def request_of(
    paths: Sequence[Path], budget: str | None, level: float, rate: float, count: int | None, seed: int
) -> Request:
    """The request that was typed.

    Raises:
        ConfigUnreadable: if no budget is known, or so few prompts can certify nothing.
    """
    configs = {path: fc.load(path) for path in dict.fromkeys(paths)}
    text = budget or next((config.budget for config in configs.values() if config.budget), None)
    if text is None:
        raise ConfigUnreadable(f"{paths[0]} names no budget: say what each prompt must keep, --budget 'psnr>=40'")
    least = prompts_needed(rate, level)
    if count is not None and count < least:
        raise ConfigUnreadable(
            f"{counted(count, 'prompt')} cannot certify a rate of {rate:g} at a level of {level:g}, even without a "
            f"miss: that takes {least}"
        )
    parsed = Budget.parse(text)
    ordered = dict(sorted(configs.items(), key=lambda item: speedup(item[1])))
    return Request(ordered, Budget.parse(each(parsed)), level, rate, count or least, seed)


def speedup(config: TunedConfig) -> float:
    """FLOPs saved as measured when it was made; known before certification prompts are looked at."""
    measured = config.measured.held_out or config.measured.search
    return 1.0 if measured is None else measured.speedup_flops


def unseen(pipe: str, seen: Collection[str]) -> list[str]:
    """A reference model's captions whose hashes are not among `seen`: nothing was searched or measured on them."""
    every = (*shipped_captions(pipe, "train"), *shipped_captions(pipe, "held_out"))
    return [caption for caption in every if prompt_hash(caption) not in seen]


def chosen(request: Request, prompts: Sequence[str]) -> list[str]:
    """The first of the prompts, as many as were asked for.

    Raises:
        ConfigUnreadable: if there are fewer, one is there twice, or one was used for searching or measuring.
    """
    if len(prompts) < request.count:
        raise ConfigUnreadable(
            f"a rate of {request.rate:g} at a level of {request.level:g} takes {request.count} prompts, found "
            f"{len(prompts)}: give more, or ask for less with --rate and --level"
        )
    seen = seen_by(request)
    first: dict[str, int] = {}
    for number, prompt in enumerate(prompts[: request.count], start=1):
        before = first.setdefault(prompt_hash(prompt), number)
        if before != number:
            raise ConfigUnreadable(
                f"prompt {number} ('{prompt:.60}') is prompt {before} again: a certificate counts prompts that were "
                "drawn each by itself; take one of them out"
            )
        if prompt_hash(prompt) in seen:
            raise ConfigUnreadable(
                f"prompt {number} ('{prompt:.60}') was used when the schedule was searched or measured: a certificate "
                "needs prompts that were used for nothing else"
            )
    return list(prompts[: request.count])


def seen_by(request: Request) -> frozenset[str]:
    """Hashes of the prompts that any of the configs was searched or measured on."""
    return frozenset(text for config in request.configs.values() for text in config.seen)


def certify(subject: Subject, request: Request, prompts: Sequence[str], folder: Path, *, show: bool) -> dict[str, Any]:
    """Run every config on every prompt, and write the certificate into the fastest that passes.

    Raises:
        ConfigMismatch: if the folder holds the runs of another draw.
        BudgetNotMet: if none passes.
    """
    _fix(request, prompts, folder)
    for path, config in request.configs.items():
        if not config.seen:
            say(f"note: {path} does not say which prompts it was searched on: make sure that these are others")
    subject = with_steps(subject)
    names = {str(path): config for path, config in request.configs.items()}
    contest = Contest(subject, names, prompts, folder, seed=request.seed + SEED, keep=0, metrics=request.budget.metrics)
    with progress() as bar:
        task = bar.add_task("certifying", total=len(contest.entries) * len(prompts))
        contest.run(lambda: bar.advance(task))
    missed = [[misses(request.budget, run["quality"]) for run in contest.figures(name)] for name in names]
    found = sequential(missed, str(request.budget), request.rate, request.level)
    for name, flags in zip(names, missed, strict=True):
        say(f"{name}: {sum(flags)} of {len(flags)} prompts miss {request.budget}")
    if not found:
        raise BudgetNotMet(
            f"{sum(missed[0])} of {len(prompts)} prompts miss {request.budget}, too many for a rate of "
            f"{request.rate:g} at a level of {request.level:g}: plan for a higher quality, and certify that on other "
            "prompts"
        )
    path, certificate = list(request.configs)[len(found) - 1], found[-1]
    request.configs[path].model_copy(update={"certificate": certificate}).save(path)
    if show:
        say(f"{path}: {certificate.words}", results)
    return {
        "pipeline": subject.name,
        "file": str(path),
        "certificate": certificate.model_dump(mode="json"),
        "words": certificate.words,
        "misses": {name: sum(flags) for name, flags in zip(names, missed, strict=True)},
        "study": str(folder),
    }


def _fix(request: Request, prompts: Sequence[str], folder: Path) -> None:
    """Note what is about to be drawn, or compare it with what was noted before."""
    draw = Draw(
        configs=tuple(digest(fc.dump(config.policy)) for config in request.configs.values()),
        prompts=digest(list(prompts)),
        count=len(prompts),
        budget=str(request.budget),
        level=request.level,
        rate=request.rate,
        seed=request.seed,
    )
    try:
        before = read_model(folder / DRAW, Draw, "draw")
    except Missing:
        write_json(folder / DRAW, draw.model_dump(mode="json"), "draw")
        return
    for name in Draw.model_fields:
        was, now = getattr(before, name), getattr(draw, name)
        if was != now:
            what = f"{name} {was}, this call has {now}" if name not in ("configs", "prompts") else f"other {name}"
            raise ConfigMismatch(
                f"the certification in {folder} was begun with {what}: changing it after a look breaks the promise; "
                "repeat the old call to continue it, or give other prompts and another --study folder"
            )

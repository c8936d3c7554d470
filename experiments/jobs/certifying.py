"""What `certify` does: run tuned configs on fresh prompts, and write the certificate of the fastest that passes."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import fastercache as fc
from fastercache.bounds import Limit
from fastercache.experiments.bench.contest import Contest, digest
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.study_job import numbered
from fastercache.experiments.pipelines import Subject, shipped_captions, with_steps
from fastercache.picking import opened
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.policies.errors import BudgetNotMet, ConfigMismatch, ConfigUnreadable
from fastercache.policies.wording import counted
from fastercache.prompts import Given, identity, prompt_hash, prompts_of
from fastercache.tuned import ADVICE, Certificate, OtherConditions, TunedConfig
from fastercache.tuner.budget import Budget
from fastercache.tuner.certify import each, misses, prompts_needed, sequential
from fastercache.tuner.setting import Setting

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

    @property
    def key(self) -> str:
        """What this certification is called in the files that it is about."""
        return digest(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Request:
    """What is to be certified.

    Attributes:
        configs: what each is called -> tuned config, the safest (slowest) first: a file's path, and with the speedup
            for a plan of a dial.
        dial: the dial and its path, where they are its plans.
        budget: asked of each prompt. level: how sure. rate: share of prompts that may miss it. count: prompts.
        time: a limit of time that was asked for too: no certificate can hold it.
    """

    configs: dict[str, TunedConfig]
    dial: tuple[Path, fc.Dial] | None
    budget: Budget
    level: float
    rate: float
    count: int
    seed: int
    time: Limit | None = None

    @property
    def tried(self) -> dict[str, tuple[str, ...]]:
        """By certification, the prompts that it looked at, of all that the files know."""
        return {key: texts for config in self.configs.values() for key, texts in config.tried.items()}

    @property
    def looked_at(self) -> frozenset[str]:
        """All of these prompts."""
        return frozenset(text for texts in self.tried.values() for text in texts)


def request_of(
    paths: Sequence[Path], budget: str | None, level: float, rate: float, count: int | None, seed: int
) -> Request:
    """The request that was typed.

    Raises:
        ConfigUnreadable: if no budget is known, or so few prompts can certify nothing.
    """
    dial = None
    found = {path: opened(path) for path in dict.fromkeys(paths)}
    if len(found) == 1 and isinstance(one := found[paths[0]], fc.Dial):
        dial = paths[0], one
        configs = {f"{paths[0]} at {plan.speedup:.2f}x": one.config(plan) for plan in one.plans}
    else:
        for path, one in found.items():
            if isinstance(one, fc.Dial):
                raise ConfigUnreadable(f"{path} is a dial, whose plans are certified together: give it alone")
        configs = {str(path): one for path, one in found.items() if isinstance(one, TunedConfig)}
    named = sorted({config.budget for config in configs.values() if config.budget})
    if budget is None and len(named) > 1:
        raise ConfigUnreadable(
            f"the schedules in {', '.join(map(str, found))} were made within {' and '.join(named)}: say which of them "
            f"each prompt must keep, for instance --budget '{named[0]}'"
        )
    text = budget or next(iter(named), None)
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
    return Request(ordered, dial, Budget.parse(each(parsed)), level, rate, count or least, seed, parsed.time)


def speedup(config: TunedConfig) -> float:
    """FLOPs saved as measured when it was made; known before certification prompts are looked at."""
    measured = config.measured.held_out or config.measured.search
    return 1.0 if measured is None else measured.speedup_flops


def unseen(pipe: str, seen: Collection[str]) -> list[str]:
    """A reference model's captions whose hashes are not among `seen`: nothing was searched or measured on them."""
    every = (*shipped_captions(pipe, "train"), *shipped_captions(pipe, "held_out"))
    return [caption for caption in every if prompt_hash(caption) not in seen]


def untried(request: Request, prompts: Sequence[str]) -> list[str]:
    """The prompts without those that earlier certifications looked at; what the same command took, it takes again."""
    tried, known = request.tried, request.looked_at
    left = list(prompts)
    while _draw(request, first := left[: request.count]).key not in tried:
        rest = [prompt for prompt in first if prompt_hash(prompt) not in known]
        if len(rest) == len(first):
            break
        left = rest + left[len(first) :]
    if len(left) < len(prompts):
        say(f"{counted(len(prompts) - len(left), 'prompt')} left out: an earlier certification looked at them")
    return left


def chosen(request: Request, prompts: Sequence[Given]) -> list[str]:
    """The first of the prompts, as many as were asked for.

    Raises:
        ConfigUnreadable: if there are fewer, one is there twice, one was used for searching or measuring, or another
            certification has looked at one.
    """
    prompts = prompts_of(prompts)
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
    _not_looked_at(request, prompts[: request.count])
    return list(prompts[: request.count])


def _not_looked_at(request: Request, prompts: Sequence[str]) -> None:
    """Raises ConfigUnreadable if a certification that is not this one looked at one of the prompts."""
    if _draw(request, prompts).key in request.tried:
        return  # the same command again: it goes on, or says the same
    looked_at = request.looked_at
    for number, prompt in enumerate(prompts, start=1):
        if prompt_hash(prompt) in looked_at:
            raise ConfigUnreadable(
                f"prompt {number} ('{prompt:.60}') was looked at when this file was certified otherwise: what is "
                "chosen after a look breaks the promise; repeat the old command, or give other prompts"
            )


def seen_by(request: Request) -> frozenset[str]:
    """Hashes of the prompts that any of the configs was searched or measured on."""
    return frozenset(text for config in request.configs.values() for text in config.seen)


def certify(
    subject: Subject, request: Request, prompts: Sequence[Given], folder: Path, *, show: bool
) -> dict[str, Any]:
    """Run every config on every prompt, and write the certificate into the fastest that passes.

    Raises:
        ConfigMismatch: if the folder holds the runs of another draw.
        BudgetNotMet: if none passes.
    """
    subject, prompts = with_steps(subject), chosen(request, prompts)
    _as_made(subject, request, prompts[0])
    if request.time is not None:
        say(f"note: a certificate holds on any machine, so it says nothing of {request.time}")
    _within(subject, request, prompts[0])
    request = _fix(request, prompts, folder)
    for name, config in request.configs.items():
        if not config.seen:
            say(f"note: {name} does not say which prompts it was searched on: make sure that these are others")
    names = request.configs
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
    passed = dict(zip(names, found, strict=False))
    path = _written(request, passed)
    if request.dial is None:
        passed = dict(list(passed.items())[-1:])
    if show:
        for name, certificate in passed.items():
            say(f"{name}: {certificate.words}", results)
    fastest, certificate = list(passed.items())[-1]
    return {
        "pipeline": subject.name,
        "file": str(path),
        "certified": fastest,
        "certificate": certificate.model_dump(mode="json"),
        "words": certificate.words,
        "misses": {name: sum(flags) for name, flags in zip(names, missed, strict=True)},
        "study": str(folder),
    }


def _as_made(subject: Subject, request: Request, prompt: str) -> None:
    """Compare the call with the one that each config was made for, before any run: the promise is about those.

    Raises:
        ConfigMismatch: for the first difference, also where applying the config would only warn of it.
    """
    for name, config in request.configs.items():
        for found in differences(subject, config, prompt, request.seed):
            made = found.removesuffix(ADVICE).removeprefix("this tuned config ")
            raise ConfigMismatch(
                f"{name} {made}: a certificate made so would not hold where it is applied; certify with the "
                "call it was made for, or plan again for this one"
            )


def differences(subject: Subject, config: TunedConfig, prompt: str, seed: int) -> list[str]:
    """What a call has other than what a config was made for, where applying it only warns; no step is computed."""
    setting = Setting(subject.pipe, subject.call, seed)
    with fc.attach(subject.pipe, config) as session, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", OtherConditions)
        session.plan(**setting.arguments(setting.cases([prompt])[0]))
    return [str(one.message) for one in found if issubclass(one.category, OtherConditions)]


def _within(subject: Subject, request: Request, prompt: str) -> None:
    """Compare what each config caches with the budget's limit, before any run.

    Raises:
        BudgetNotMet: for the first that would cache more.
    """
    cache = request.budget.cache
    if cache is None:
        return
    setting = Setting(subject.pipe, subject.call, request.seed)
    for name, config in request.configs.items():
        with fc.attach(subject.pipe, config) as session:
            needed = session.plan(**setting.arguments(setting.cases([prompt])[0])).peak
        if needed > cache.most:
            raise BudgetNotMet(f"{name} caches {needed:,} bytes at its peak, more than {cache}: leave it out")


def _written(request: Request, passed: Mapping[str, Certificate]) -> Path:
    """Write the certificates: of a dial all that passed, of several files that of the fastest."""
    if request.dial is not None:
        path, dial = request.dial
        return dial.certified(dict(enumerate(passed.values()))).save(path)  # both are in the order of rising speedup
    name, certificate = list(passed.items())[-1]
    return request.configs[name].model_copy(update={"certificate": certificate}).save(name)


def folder_for(request: Request, prompts: Sequence[str], base: Path) -> Path:
    """The default folder of a certification: `base`, or where that holds another one `base-2`, `base-3`, ..."""
    mine = _draw(request, prompts)

    def free(folder: Path) -> bool:
        try:
            return read_model(folder / DRAW, Draw, "draw") == mine
        except Missing:
            return True

    return next(filter(free, numbered(base)))


def _draw(request: Request, prompts: Sequence[str]) -> Draw:
    return Draw(
        configs=tuple(digest(fc.dump(config.policy)) for config in request.configs.values()),
        prompts=digest(list(map(identity, prompts))),
        count=len(prompts),
        budget=str(request.budget),
        level=request.level,
        rate=request.rate,
        seed=request.seed,
    )


def _fix(request: Request, prompts: Sequence[str], folder: Path) -> Request:
    """Note what is about to be drawn, in the folder and in the files, or compare it with what was noted before.

    Returns the request with the files as they are now. They know it too, because a folder can be left out.
    """
    draw = _draw(request, prompts)
    try:
        before = read_model(folder / DRAW, Draw, "draw")
    except Missing:
        request = _noted(request, draw, prompts)
        write_json(folder / DRAW, draw.model_dump(mode="json"), "draw")
        return request
    for name in Draw.model_fields:
        was, now = getattr(before, name), getattr(draw, name)
        if was != now:
            what = f"{name} {was}, this call has {now}" if name not in ("configs", "prompts") else f"other {name}"
            raise ConfigMismatch(
                f"the certification in {folder} was begun with {what}: changing it after a look breaks the promise; "
                "repeat the old call to continue it, or give other prompts and another --study folder"
            )
    return _noted(request, draw, prompts)


def _noted(request: Request, draw: Draw, prompts: Sequence[str]) -> Request:
    """Write into every file which prompts are about to be looked at."""
    mine = {draw.key: tuple(map(prompt_hash, prompts))}
    if all(draw.key in config.tried for config in request.configs.values()):
        return request
    configs = {name: one.model_copy(update={"tried": one.tried | mine}) for name, one in request.configs.items()}
    if request.dial is not None:
        path, dial = request.dial
        dial = dial.model_copy(update={"tried": dial.tried | mine})
        dial.save(path)
        return replace(request, configs=configs, dial=(path, dial))
    for name, config in configs.items():
        config.save(name)
    return replace(request, configs=configs)

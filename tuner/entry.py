"""`tune`: the one call that makes or continues a study."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fastercache.attachment import find_sites
from fastercache.policies.base import Policy
from fastercache.policies.errors import BudgetNotMet, ConfigUnreadable, FasterCacheError
from fastercache.policies.methods.faster_cache import PRESETS, FasterCache
from fastercache.policies.methods.planned import Planned
from fastercache.policies.schedule import Code, compile_policy
from fastercache.policies.vocabulary import Run, Site
from fastercache.prompts import Given, prompts_of
from fastercache.tuned import OtherConditions
from fastercache.tuner.attempts import GUEST
from fastercache.tuner.budget import Budget
from fastercache.tuner.clock import needs_table, objective_called
from fastercache.tuner.evaluate import Evaluator
from fastercache.tuner.fields import Bounds
from fastercache.tuner.library import Library, Searched, check, listed
from fastercache.tuner.logbook import logged
from fastercache.tuner.planning.material import Told
from fastercache.tuner.planning.opening import opened
from fastercache.tuner.propose import SamplerName
from fastercache.tuner.seconds import Seconds, kinds_reused, timeable
from fastercache.tuner.simulate import CostModel
from fastercache.tuner.space import SearchSpace, Space
from fastercache.tuner.study import Guests, OnTrial, Study, disjoint

JOURNAL = "study.journal"
"""The study's file in its folder, where it is kept in no database."""


def tune(
    pipe: Any,
    prompts: Sequence[Given],
    *,
    budget: str | Budget,
    policy: Searched | Sequence[Searched] = "fastercache",
    held_out: Sequence[Given] = (),
    call: Mapping[str, Any] | None = None,
    trials: int = 30,
    timeout: float | None = None,
    out: str | Path = "tuning",
    storage: str | Path | None = None,
    name: str = "tuning",
    seed: int = 0,
    metrics: Sequence[str] = ("psnr", "ssim"),
    fixed: Mapping[str, Any] | None = None,
    bounds: Mapping[str, Bounds] | None = None,
    seeds: Mapping[str, Policy] | None = None,
    sampler: SamplerName = "known-cost",
    on_trial: OnTrial | None = None,
    references: str | Path | None = None,
    logdir: str | Path | None = None,
    video: Callable[[Any], Tensor] | None = None,
    told: Told = lambda doing, spent: None,
    place: int = 0,
    objective: str = "flops",
    table: Seconds | None = None,
) -> Study:
    """Search the cheapest policy within a budget; call it again with the same arguments to go on.

    Args:
        pipe: a diffusers pipeline.
        prompts: the search prompts, texts or keyword arguments of the pipeline (see `prompts_of`); a handful, since
            each trial runs them all unless it is stopped early.
        budget: for example `psnr>=30`, against the uncached output; see `Budget`.
        policy: what to search: a name, a class, or an instance whose unsearched fields are kept; several of these; or
            `any` for every registered policy that the pipeline allows. Constants that belong to a model (TeaCache's
            polynomial, MagCache's ratios, ...) are measured on the first search prompts unless they are given.
            `planned` among others is planned from a recording of the search prompts, for some 24 uncached generations
            in all, and the plans that came out are tried beside the rest.
        held_out: prompts the search never sees, for `study.verify()`. Overlap with `prompts` is an error.
        call: keyword arguments of each pipeline call (steps, guidance scale, size, ...).
        trials: how many trials make videos in all, those of earlier calls included. timeout: seconds for this call.
        out: folder of the study file and the uncached references.
        storage: another path for the study file, or `postgresql://...` shared by many machines.
        metrics: what to measure; the budget's metrics are added.
        fixed, bounds: fields that are not searched, and tighter bounds, by field name; with several policies
            `policy.field`.
        seeds: further policies to try first, by name.
        sampler: `known-cost` (the default) or `tpe`. Of a policy that decides at run time the cost is not known
            before: alone it is searched by TPE, among others they take turns.
        on_trial: called with the study and each finished trial's record.
        references: folder of the uncached references, where it is shared.
        logdir: folder for TensorBoard: each trial's settings and figures under HPARAMS.
        video: turns the pipeline's output into a video (F, 3, H, W) in [0, 1], where it is not diffusers' own.
        told: progress of planning: what is done, and generations spent.
        place: number of the search prompt whose reference is made first. Workers that share `references` and begin at
            different ones make each of them once.
        objective: what is minimised: `flops`, or `time`, the seconds of a call as foreseen from what steps take. They
            are timed once, by the worker that begins the study, also where the budget limits time (`time<=8s`).
        table: what steps take, instead of timing them.

    Raises:
        InvalidBudget, InvalidPolicy: for what cannot be read or searched.
        MeasurementError: if steps cannot be timed that must be.
        ConfigMismatch: if the study on disk was made for another model, scheduler, budget or prompts.
    """
    budget, goal = Budget.parse(budget), objective_called(objective)
    if not prompts:
        raise ConfigUnreadable("tuning needs at least one search prompt, found none")
    prompts, held_out = prompts_of(prompts), prompts_of(held_out, "held-out prompt")
    disjoint(prompts, held_out)
    out = Path(out)
    evaluator = Evaluator(
        pipe,
        call,
        store=references or out / "references",
        metrics=tuple(dict.fromkeys((*budget.metrics, *metrics))),
        seed=seed,
        video=video,
        max_cache_bytes=None if budget.cache is None else int(budget.cache.most),
        place=place,
    )
    library = Library(evaluator, evaluator.cases(prompts), out / "calibration.json", fixed, bounds)
    searched, guests = _with_plans(policy, evaluator, prompts, budget, out, references, told)
    space = library.space(searched)
    first = evaluator.cases(prompts[:1])[0]
    if trials:  # before the study is written down: a call that the pipeline refuses leaves none behind
        evaluator.reference(first)
        if table is None and needs_table(goal, budget):
            timeable(evaluator.setting, first)

    began = time.monotonic()

    def clock(model: CostModel) -> Seconds:
        evaluator.close()
        kinds = kinds_reused(space.bases.values(), model.run)
        return table or Seconds.of_kinds(evaluator.setting, first, model.run, kinds)

    study = Study(
        evaluator,
        space,
        budget,
        prompts,
        held_out,
        storage=storage or out / JOURNAL,
        name=name,
        seed=seed,
        sampler=sampler,
        seeds=default_seeds(space, find_sites(pipe), seeds),
        guests=guests if trials else None,
        objective=goal,
        clock=clock if trials else None,
    )
    if trials and study.time.elsewhere is not None:
        warnings.warn(study.time.elsewhere, OtherConditions, stacklevel=2)
    if timeout is not None and study.time.table is not None:
        timeout -= time.monotonic() - began  # timing steps, or waiting for the worker that does, is part of the call
    with logged(logdir, on_trial) as finished:
        return study.optimise(trials, timeout, finished)


def _with_plans(
    policy: Searched | Sequence[Searched],
    evaluator: Evaluator,
    prompts: Sequence[str],
    budget: Budget,
    out: Path,
    references: str | Path | None,
    told: Told,
) -> tuple[Searched | Sequence[Searched], Guests | None]:
    """What is searched by its fields, and what makes the plans where `planned` was asked for beside it."""
    names = listed(policy)
    others = [one for one in names if one not in (Planned.name, Planned)]
    if len(others) == len(names):
        return policy, None
    if not others:
        check([Planned.name], {})

    def guests() -> dict[str, Policy]:
        evaluator.close()
        planner = opened(
            evaluator.setting,
            prompts,
            out / "planning",
            metrics=budget.metrics,
            cache=budget.cache,
            references=None if references is None else Path(references),
            told=told,
        )
        with suppress(BudgetNotMet):  # then what was run on the way may keep the budget without a margin
            planner.for_budget(budget)
        front = planner.front()
        return {f"{GUEST}{len(p.computed)}": p.policy(front.steps) for p in front.verified}

    return others, guests


def default_seeds(space: Space, sites: Sequence[Site], given: Mapping[str, Policy] | None = None) -> dict[str, Policy]:
    """What every search tries first: no reuse, each policy's defaults (for FasterCache the paper's), what is given,
    and, where FasterCache alone is searched, the presets.

    `sites`: of the pipeline, by which a seed is known to reuse nothing.
    """
    seeds: dict[str, Policy] = {}
    for base in space.bases.values():
        off = _off(space, base, sites)
        if off is not None:
            seeds["no_cache"] = off
            break
    alone = len(space.bases) == 1
    seeds |= {"default" if alone else f"default:{name}": base for name, base in space.bases.items()}
    seeds |= dict(given or {})
    if isinstance(space, SearchSpace) and type(space.base) is FasterCache and space.base.sites == FasterCache().sites:
        held = [name for name, reason in space.fixed.items() if reason == "given"]
        for preset, policy in PRESETS.items():
            kept = {name: getattr(space.base, name) for name in held}
            seeds[f"preset:{preset}"] = FasterCache(**{**policy.model_dump(), **kept})
    return seeds


def _off(space: Space, base: Policy, sites: Sequence[Site]) -> Policy | None:
    """The point of the space at which a static policy reuses nothing, if there is one."""
    off = base.switched_off()
    if off is None or not off.static:
        return None
    try:
        policy = space.build(space.encode(off).params)
        table = compile_policy(policy, Run.of(12, sites=sites))
    except FasterCacheError:  # bounds that leave the setting out, or sites that this pipeline does not have
        return None
    return None if (table.codes == Code.REUSED).any() else policy

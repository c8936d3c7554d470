"""Why a finding holds or does not: what each stand-in leaves of the value it stands in for, on the uncached trajectory.

A video tells what all errors of a run come to together. Here each step is looked at by itself: the solver's result is
replaced by that of the uncached run after every step, so that nothing accumulates, and what a policy makes of the
guided output is compared with the uncached one. A recording adds how alike attention outputs of adjacent steps are, and
which weights would have been right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import fastercache as fc
from fastercache.analysis.predictability import weights_at
from fastercache.analysis.profile import Profile
from fastercache.analysis.record import record
from fastercache.experiments.pipelines import Subject
from fastercache.experiments.reproduce.trajectory import Trajectory, on_path, relative, uncached
from fastercache.experiments.reproduce.variants import REUSE
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.policies.predictors.frequency import band_radius, split_bands
from fastercache.policies.schedule import Code, compile_policy
from fastercache.policies.vocabulary import matches
from fastercache.tuner.setting import Case, Setting

RECORDED = 4
"""Training captions that are looked at; none of them is measured."""
SEED = 200_000
LAST = "one step of the uncached run held"
"""In place of a policy: the whole guided output of the step before."""
Stage = Literal["early", "late"]


class Band(BaseModel):
    """One frequency band of the guidance difference in one stage of CFG-Cache.

    Attributes:
        stage: before or after the switch t0. factor: what the paper multiplies the kept difference by.
        best: the factor that would have been best, by least squares over prompts and reused steps.
        plain, weighted, fitted: relative L2 error of the kept difference as it is, with the paper's factor and with
            the best.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    band: Literal["low", "high"]
    stage: Stage
    factor: float
    best: float
    plain: float
    weighted: float
    fitted: float


class Why(BaseModel):
    """All of it.

    Attributes:
        prompts: how many were looked at.
        cosine, rel_l1: attention outputs of adjacent steps from the first third of the run on, means over sites,
            branches, steps and prompts.
        cosine_least: the least of the sites' mean cosines at one step.
        share: of a step's FLOPs that all self-attentions take.
        stand_ins: by variant, the relative L2 error of what stands in for attention outputs, root mean square over
            sites, branches and reused steps.
        best_weight: the constant weight on the last difference that would have been best at every second step, by
            least squares; best_error: what it would have left.
        bands: of the guidance difference.
        local: by variant, the error of the guided output at the steps that reuse anything, relative L2 over prompts
            and steps; `LAST` is the whole output held for one step, over the same steps as `hold`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompts: int
    cosine: float
    cosine_least: float
    rel_l1: float
    share: float
    stand_ins: dict[str, float]
    best_weight: float
    best_error: float
    bands: tuple[Band, ...]
    local: dict[str, float]


class _Kept(BaseModel):
    """`why.json` in a run's folder: the answer and what it was made from."""

    model_config = ConfigDict(extra="forbid")
    key: str
    why: Why


def why(subject: Subject, policies: Mapping[str, fc.Policy], out: Path) -> Why:
    """Record and compare, once; the answer is kept in `out`."""
    setting = Setting(subject.pipe, subject.call, SEED)
    cases = setting.cases(subject.captions("train")[:RECORDED])
    made_from = [setting.identity, [c.identity for c in cases], {n: fc.dump(p) for n, p in policies.items()}]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()
    try:
        kept = read_model(out / "why.json", _Kept, "recording's answers")
        if kept.key == key:
            return kept.why
    except Missing:
        pass
    found = _found(setting, cases, policies)
    write_json(out / "why.json", _Kept(key=key, why=found).model_dump(mode="json"), "recording's answers")
    return found


def _found(setting: Setting, cases: Sequence[Case], policies: Mapping[str, fc.Policy]) -> Why:
    pipe = setting.pipe
    paths: list[Trajectory] = []
    deltas: list[Tensor] = []
    with record(pipe, "attention|branch", lags=1) as recorder:
        seen: list[Tensor] = []
        with closing(recorder.session.watch("branch", lambda one: seen.append(one.value.detach().clone()))):
            for case in cases:
                seen.clear()
                paths.append(uncached(pipe, lambda case=case: setting.generate(case)))  # type: ignore[misc]
                deltas.append(torch.stack(seen))
        shares = recorder.session.flop_shares()
    profile = recorder.profile()
    run = profile.run
    own = [site.name for site in matches("attention", profile.sites)]
    local = {}
    for name, policy in policies.items():
        with fc.attach(pipe, policy) as session:
            pairs = []
            for case, path in zip(cases, paths, strict=True):
                outputs = on_path(pipe, path, lambda case=case: setting.generate(case))  # type: ignore[misc]
                codes = np.array(session.last.codes)
                reused = np.flatnonzero((codes == Code.REUSED).any(axis=(0, 1)))
                pairs += [(outputs[i], path.outputs[i]) for i in reused]
        local[name] = relative(pairs)
    steps = np.flatnonzero((compile_policy(policies["hold"], run).codes == Code.REUSED).any(axis=(0, 1)))
    local[LAST] = relative([(path.outputs[i - 1], path.outputs[i]) for path in paths for i in steps])
    return Why(
        prompts=len(cases),
        **alike(profile),
        share=sum(shares[name] for name in own),
        stand_ins={name: mixed_errors(profile, policy) for name, policy in REUSE.items()},
        best_weight=(best := best_weight(profile)),
        best_error=weighted_error(profile, best),
        bands=bands(deltas, run),
        local=local,
    )


# -- attention outputs -------------------------------------------------------------------------------------------------
def alike(profile: Profile) -> dict[str, float]:
    """How alike attention outputs of adjacent steps are from the first third of the run on, where they are reused."""
    first = -(-(profile.run.count - 1) // 3)
    found: dict[str, list[Any]] = {"cosine": [], "rel_l1": []}
    for measure, values in found.items():
        values += [profile.lag("attention", measure, 1, branch)[:, :, first:] for branch in profile.branches]
    return {
        "cosine": float(np.mean(found["cosine"])),
        "cosine_least": float(np.mean(found["cosine"], axis=(0, 1)).min()),
        "rel_l1": float(np.mean(found["rel_l1"])),
    }


def mixed_errors(profile: Profile, policy: fc.Policy) -> float:
    """Relative L2 error of a static policy's stand-ins at the recorded sites, from inner products; root mean square
    over sites, branches and reused steps."""
    table = compile_policy(policy, profile.run)
    squares = []
    for s, site in enumerate(table.sites):
        (place,) = profile.index(site.name)
        for b, _ in enumerate(profile.branches):
            gram, codes = profile.gram[place, b], table.codes[s, b]
            for k in np.flatnonzero(codes == Code.REUSED):
                past = [int(j) for j in np.flatnonzero(codes[:k] == Code.COMPUTED)]
                steps = [profile.run.steps[j] for j in past]
                mixed = np.zeros(len(codes))
                mixed[past] = weights_at(table.predictors[s], steps, profile.run.steps[k])
                mixed[k] -= 1.0
                squares.append(max(float(mixed @ gram @ mixed), 0.0) / gram[k, k])
    return float(np.sqrt(np.mean(squares)))


def _triples(profile: Profile) -> Iterator[tuple[Any, int]]:
    """(inner products of a site and branch, reused step k) of dynamic reuse where k - 1 and k - 3 were computed."""
    table = compile_policy(fc.DynamicReuse(), profile.run)
    for s, site in enumerate(table.sites):
        (place,) = profile.index(site.name)
        for b, _ in enumerate(profile.branches):
            for k in np.flatnonzero(table.codes[s, b] == Code.REUSED):
                if k >= 3:
                    yield profile.gram[place, b], int(k)


def best_weight(profile: Profile) -> float:
    """The constant w that makes F_a + w (F_a - F_b) best, a = k - 1 and b = k - 3: least squares of relative errors."""
    over = under = 0.0
    for gram, k in _triples(profile):
        a, b = k - 1, k - 3
        over += (gram[k, a] - gram[k, b] - gram[a, a] + gram[a, b]) / gram[k, k]
        under += (gram[a, a] - 2.0 * gram[a, b] + gram[b, b]) / gram[k, k]
    return float(over / under)


def weighted_error(profile: Profile, weight: float) -> float:
    """The error that a constant weight leaves there, as `mixed_errors` has it."""
    squares = []
    for gram, k in _triples(profile):
        mixed = np.zeros(len(gram))
        mixed[[k, k - 1, k - 3]] = -1.0, 1.0 + weight, -weight
        squares.append(max(float(mixed @ gram @ mixed), 0.0) / gram[k, k])
    return float(np.sqrt(np.mean(squares)))


# -- the guidance difference -------------------------------------------------------------------------------------------
def bands(deltas: Sequence[Tensor], run: fc.Run) -> tuple[Band, ...]:
    """How the kept difference of CFG-Cache compares with the true one, by band and stage.

    Args:
        deltas: for each prompt uncond - cond at every step, (T, ..., H, W).
    """
    policy = fc.CFGCache()
    codes = compile_policy(policy, run).codes[0]
    (reused,) = {tuple(np.flatnonzero(row == Code.REUSED).tolist()) for row in codes if (row == Code.REUSED).any()}
    found = []
    split = [split_bands(delta, band_radius(*delta.shape[-2:])) for delta in deltas]
    early: Stage = "early"
    late: Stage = "late"
    for number, name in enumerate(("low", "high")):
        for stage in (early, late):
            pairs = []
            for one in split:
                for k in reused:
                    if (run.steps[k].progress < policy.switch) == (stage == early):
                        pairs.append((one[number][_newest(k, reused)].double(), one[number][k].double()))
            factor = 1.2 if (name == "low") == (stage == early) else 1.0
            best = sum(float((a * b).sum()) for a, b in pairs) / sum(float(a.square().sum()) for a, _ in pairs)
            plain, weighted, fitted = (relative([(f * a, b) for a, b in pairs]) for f in (1.0, factor, best))
            found.append(
                Band(
                    band="low" if name == "low" else "high",
                    stage=stage,
                    factor=factor,
                    best=best,
                    plain=plain,
                    weighted=weighted,
                    fitted=fitted,
                )
            )
    return tuple(found)


def _newest(step: int, reused: Sequence[int]) -> int:
    """The newest computed step before one that is reused."""
    while step in reused:
        step -= 1
    return step

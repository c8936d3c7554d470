"""Every published method, fewer steps and other packages' caches on the same prompts: one table, one figure.

`runs.json` holds every run's figures and is what an interrupted bench goes on from; `results.json` holds the table, and
everything that is printed and drawn can be made from it again without running anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastercache as fc
from fastercache.analysis.calibrate import Calibration, calibrate
from fastercache.experiments.bench.contest import COUNTED, HEAT, UNCACHED, Contest
from fastercache.experiments.bench.lineup import FEWER, VERSION, Contender, Method, PeerMethod, lineup
from fastercache.experiments.bench.peers import Peer
from fastercache.experiments.bench.plans import PLANNED_ON, plans_for
from fastercache.experiments.bench.standings import Line, Results
from fastercache.experiments.bench.verdict import (
    RULE,
    Baseline,
    Interval,
    Verdict,
    mean_interval,
    ratio_interval,
    verdict,
)
from fastercache.experiments.console import progress, say
from fastercache.experiments.pipelines import Subject, with_steps
from fastercache.policies.documents import put_aside
from fastercache.policies.vocabulary import matches
from fastercache.policies.wording import counted
from fastercache.tuned import package_versions
from fastercache.tuner.setting import Setting

CALIBRATED_ON = 3
"""Prompts that constants are calibrated on; none of them is measured."""
CALIBRATION_SEED = 200_000


@dataclass(frozen=True)
class Plan:
    """What a bench does.

    Attributes:
        methods: the methods to run. prompts: what everything is measured on. calibration: other prompts, which
            constants are calibrated on, and search those that plans are made on; each may be empty.
        seed: prompt i is generated with `seed + i`. peers: whether other packages' caches take part.
        metrics: what quality is measured by besides PSNR and SSIM.
    """

    methods: tuple[Method | PeerMethod, ...]
    prompts: tuple[str, ...]
    calibration: tuple[str, ...]
    search: tuple[str, ...] = ()
    seed: int = 0
    peers: bool = True
    metrics: tuple[str, ...] = ()


def plan_for(
    subject: Subject,
    methods: Sequence[Method | PeerMethod],
    given: Sequence[str] | None,
    count: int,
    seed: int,
    peers: bool,
    metrics: Sequence[str] = (),
) -> Plan:
    """Measured on held-out captions, planned and calibrated on training ones; of a file's prompts those after the
    measured ones serve for both.

    Raises:
        ConfigUnreadable: for fewer prompts than `count`, or a pipeline without captions and no file.
    """
    prompts = list(given) if given is not None else subject.captions("held_out")
    if len(prompts) < count:
        raise fc.ConfigUnreadable(f"--count asks for {counted(count, 'prompt')}, found {len(prompts)}")
    others = prompts[count:] if given is not None else subject.captions("train")
    known = set(prompts[:count])
    spare = [prompt for prompt in others if prompt not in known]
    search, calibration = tuple(spare[:PLANNED_ON]), tuple(spare[-CALIBRATED_ON:])
    return Plan(tuple(methods), tuple(prompts[:count]), calibration, search, seed, peers, tuple(metrics))


def calibrated(subject: Subject, plan: Plan, out: Path) -> tuple[Calibration | None, str]:
    """The model's constants, recorded once and kept in `out`; else None and the reason."""
    if not plan.calibration:
        return None, "no prompts are left to calibrate on: give more than --count in the file"
    setting = Setting(subject.pipe, subject.call, CALIBRATION_SEED)
    cases = setting.cases(plan.calibration)
    what = json.dumps([setting.identity, plan.calibration], sort_keys=True, default=str)
    path = out / f"calibration-{hashlib.sha256(what.encode()).hexdigest()[:12]}.json"
    sites = fc.find_sites(subject.pipe)
    policies = [
        cls
        for cls in (fc.policy_class(method.policy) for method in plan.methods if isinstance(method, Method))
        if all(matches(measure.sites, sites) for measure in cls.measures.values())
    ]
    if path.is_file():
        try:
            kept = Calibration.load(path)
        except fc.ConfigUnreadable as error:
            say(f"{error}; kept as {put_aside(path).name}")
        else:
            if kept.measured_for(policies):
                return kept, ""
    try:
        with calibrate(subject.pipe, policies) as calibrator, progress() as bar:
            for case in bar.track(cases, description="calibrating"):
                setting.generate(case)
        calibration = calibrator.result()
    except fc.FasterCacheError as error:
        return None, f"calibration failed: {error}"
    calibration.save(path)
    return calibration, ""


def bench(subject: Subject, plan: Plan, out: Path) -> Results:
    """Calibrate, plan, run what is missing, and judge; everything is kept in `out`."""
    subject = with_steps(subject)
    contest, contenders = entered(subject, plan, out)
    hold(contest)
    return judged(contest, contenders)


def entered(subject: Subject, plan: Plan, out: Path) -> tuple[Contest, list[Contender]]:
    """Calibrate and plan what asks for it; the contest with every row that can be tried, and all rows."""
    steps = int(subject.call["num_inference_steps"])
    constants, why_not = None, ""
    if any(part.calibrated for part in plan.methods) or plan.peers:
        constants, why_not = calibrated(subject, plan, out)
    plans, why_no_plans = None, ""
    if speedups := [speedup for part in plan.methods if isinstance(part, Method) for speedup in part.speedups]:
        plans, why_no_plans = plans_for(subject, plan.search, speedups, out)
    contenders = lineup(
        plan.methods, steps, constants, why_not, plans=plans, why_no_plans=why_no_plans, peers=plan.peers
    )
    contest = Contest(
        subject,
        {c.name: c.entry for c in contenders if c.refused is None},
        plan.prompts,
        out,
        seed=plan.seed,
        keep=0,
        metrics=plan.metrics,
        lenient=True,
    )
    return contest, contenders


def hold(contest: Contest) -> None:
    """Run what is missing, with a word ahead and progress."""
    announce(contest)
    with progress() as bar:
        task = bar.add_task("running", total=len(contest.cases) * len(contest.entries))
        contest.run(lambda: bar.advance(task))


def announce(contest: Contest) -> None:
    """Say how much is ahead and how long it will take, from one timed run."""
    missing = [contest.missing(i) for i in range(len(contest.cases))]
    count = sum(len(names) for names in missing)
    if not count:
        say("everything has been run already")
        return
    contest.evaluator.run_bare(contest.cases[0])
    _, seconds = contest.evaluator.run_bare(contest.cases[0])
    cost = 0.0
    for i, names in enumerate(missing):
        twice = contest.timed and i < COUNTED
        again = sum(isinstance(contest.entries[name], Peer) for name in names) if twice else 0
        cost += seconds * (0.65 * len(names) + len(names) / HEAT + again)
    kept = len(contest.cases) * len(contest.entries) - count
    say(
        f"{len(contest.entries)} entries x {counted(len(contest.cases), 'prompt')}, "
        f"{counted(kept, 'run')} kept, {count} ahead: about {cost / 60:.0f} min at {seconds:.2f} s for an uncached run"
    )


def judged(contest: Contest, contenders: Sequence[Contender]) -> Results:
    """The table: each contender's figures, and what they say against fewer steps."""
    fewer = [c for c in contenders if c.label == FEWER and contest.refusal(c.name) is None]
    by_flops = Baseline.of([(contest.row(c.name).speedup_flops, psnrs(contest, c.name)) for c in fewer])
    by_wall = Baseline.of([(contest.row(c.name).speedup_wall or 1.0, psnrs(contest, c.name)) for c in fewer])
    lines = [line_of(contest, c, by_flops, by_wall) for c in contenders]
    return Results(
        lineup=VERSION,
        pipeline=contest.subject.name,
        steps=int(contest.evaluator.setting.call["num_inference_steps"]),
        prompts=len(contest.cases),
        seed=contest.evaluator.setting.seed,
        hardware=contest.evaluator.setting.hardware,
        versions=package_versions(("fastercache", "diffusers", "cache-dit", "torch")),
        seconds_uncached=mean_interval([r["seconds"] for r in contest.figures(UNCACHED)]).value,
        counted=min(COUNTED, len(contest.cases)),
        rule=RULE,
        lines=tuple(lines),
    )


def psnrs(contest: Contest, name: str) -> list[float]:
    """An entry's PSNR on each prompt."""
    return [r["quality"]["psnr"] for r in contest.figures(name)]


def line_of(contest: Contest, contender: Contender, by_flops: Baseline, by_wall: Baseline) -> Line:
    """One contender's line."""
    who = {key: getattr(contender, key) for key in ("label", "setting", "level", "family", "package")}
    refused = contender.refused or contest.refusal(contender.name)
    if refused is not None:
        return Line(**who, refused=refused)
    row, figures = contest.row(contender.name), contest.figures(contender.name)
    flops = mean_interval([r["flops_full"] / r["flops"] for r in figures if r["flops"]])
    wall = ratio_interval([r["seconds_uncached"] for r in figures], [r["seconds"] for r in figures])
    values = psnrs(contest, contender.name)
    verdicts = Verdict("", None), Verdict("", None)
    if contender.label != FEWER:
        verdicts = verdict(row.speedup_flops, values, by_flops), verdict(wall.value, values, by_wall)
    right = [float(r["judge"]) for r in figures if r["judge"] is not None]
    return Line(
        **who,
        prompts=row.prompts,
        speedup_flops=Interval(row.speedup_flops, flops.low, flops.high),
        speedup_wall=wall,
        quality={name: mean_interval([r["quality"][name] for r in figures]) for name in contest.metrics},
        judge=mean_interval(right) if right else None,
        cache_bytes=row.cache_bytes,
        beats_by_flops=verdicts[0].word,
        beats_by_wall=verdicts[1].word,
        difference_by_flops=verdicts[0].difference,
        difference_by_wall=verdicts[1].difference,
        policy=row.policy if not isinstance(contender.entry, fc.Policy) else trimmed(row.policy),
    )


def trimmed(policy: dict[str, Any]) -> dict[str, Any]:
    """A policy without its calibrated constants, which are kept in the calibration's own file."""
    constants = fc.policy_class(policy["policy"]).constants
    return {key: value for key, value in policy.items() if key not in constants}

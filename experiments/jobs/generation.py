"""What `generate` does. Imported by `fastercache.experiments.cli` only when it runs, so that `--help` needs no torch.

Each function returns the object that `--json` prints; with `show` it also prints the same for a person.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastercache as fc
from fastercache.experiments.arguments import choose, read_prompts
from fastercache.experiments.bench.contest import UNCACHED, Contest, judged
from fastercache.experiments.bench.entries import described, once
from fastercache.experiments.bench.rows import Row, table
from fastercache.experiments.console import progress, results, say
from fastercache.experiments.jobs.certifying import differences
from fastercache.experiments.pictures import render
from fastercache.experiments.pipelines import Subject
from fastercache.picking import Pick
from fastercache.policies.wording import counted
from fastercache.tuned import UNCOVERED
from fastercache.tuner.evaluate import Evaluator


def prompts_for(subject: Subject, given: Sequence[str], path: Path | None, split: str, count: int | None) -> list[str]:
    """Prompts from the command line, else from a file, else the reference model's captions of a split."""
    prompts = list(given) or (read_prompts(path) if path else subject.captions(split)[: count or 1])
    if count is not None and len(prompts) < count:
        raise fc.ConfigUnreadable(f"--count asks for {counted(count, 'prompt')}, found {len(prompts)}")
    for number, prompt in enumerate(prompts[:count], start=1):
        if not prompt.strip():
            say(f"note: prompt {number} is empty: what comes out follows no text")
    return prompts[:count]


def generate(
    subject: Subject,
    prompts: Sequence[str],
    policy: fc.Policy | fc.TunedConfig | None,
    *,
    out: Path,
    seed: int,
    compare: bool,
    fps: float,
    show: bool,
    allow: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Generate each prompt under a policy; with `compare` also uncached, side by side with the difference."""
    out.mkdir(parents=True, exist_ok=True)
    name = UNCACHED if policy is None else str(described(policy)["policy"])
    files: list[Path] = []
    if compare and policy is not None:
        with tempfile.TemporaryDirectory() as scratch, progress() as bar:
            contest = Contest(
                subject, {name: policy}, prompts, Path(scratch), seed=seed, keep=len(prompts), allow=allow
            )
            task = bar.add_task("generating", total=2 * len(prompts))
            contest.run(lambda: bar.advance(task))
            for i in range(len(prompts)):
                shown = contest.videos(i)
                pictures = render.comparison(shown[UNCACHED], [(name, shown[name])])
                files.append(render.save(out / f"{i:03d}-compare", pictures, fps))
                files.append(render.save_video(out / f"{i:03d}-{name}", shown[name], fps))
        row = contest.row(name)
    else:
        row = _plain(subject, prompts, policy, name, out=out, seed=seed, fps=fps, files=files, allow=allow)
    if show:
        results.print(table([row], f"{subject.name}, {counted(row.prompts, 'prompt')}, seeds from {seed}"))
        for path in files:
            say(str(path), results)
        if isinstance(policy, fc.TunedConfig) and policy.certificate is not None and not allow:
            covered = not differences(subject, policy, prompts[0], seed)
            say(f"certificate: {policy.certificate.words}" if covered else f"note: {UNCOVERED}", results)
    return {"pipeline": subject.name, **row.payload(), "seed": seed, "files": [str(path) for path in files]}


def _plain(
    subject: Subject,
    prompts: Sequence[str],
    policy: fc.Policy | fc.TunedConfig | None,
    name: str,
    *,
    out: Path,
    seed: int,
    fps: float,
    files: list[Path],
    allow: frozenset[str],
) -> Row:
    """Generate without uncached runs: no quality against them and no wall-clock speedup is known."""
    flops = full = peak = 0
    right: list[bool] = []
    evaluator = Evaluator(subject.pipe, subject.call, store=out, seed=seed)  # stores nothing: no reference is asked for
    with progress() as bar:
        for i, case in enumerate(bar.track(evaluator.cases(prompts), description="generating")):
            outcome = once(evaluator, policy, case, allow)
            files.append(render.save_video(out / f"{i:03d}-{name}", outcome.video, fps))
            flops, full = flops + (outcome.flops or 0), full + (outcome.flops_full or 0)
            peak = max(peak, outcome.cache_bytes or 0)
            right += judged(subject, outcome.video[None], [case.prompt]) or []
    return Row(
        name=name,
        speedup_flops=full / flops if flops else 1.0,
        speedup_wall=None,
        quality={},
        judge=sum(right) / len(right) if right else None,
        cache_bytes=peak,
        prompts=len(prompts),
        policy=described(policy),
    )


def chosen(
    policy: str | None,
    preset: str | None,
    fields: Sequence[str],
    config: Path | None,
    uncached: bool,
    pick: Pick | None = None,
) -> fc.Policy | fc.TunedConfig | None:
    """The policy of the common options; None for `--uncached`."""
    if not uncached:
        return choose(policy, fields, config, preset, pick)
    if policy or preset or fields or config or pick:
        raise fc.InvalidPolicy(
            "--uncached runs the bare pipeline: leave out --policy, --preset, --set, --config and what picks from it"
        )
    return None

"""Runs what the findings compare, on held-out captions, and keeps every figure; an interrupted run goes on."""

from __future__ import annotations

from pathlib import Path

from fastercache.experiments.bench.contest import Contest
from fastercache.experiments.bench.runner import announce
from fastercache.experiments.console import progress, say
from fastercache.experiments.pipelines import Subject, with_steps
from fastercache.experiments.reproduce.results import Findings, judged
from fastercache.experiments.reproduce.variants import POLICIES, entries
from fastercache.experiments.reproduce.why import RECORDED, why

METRICS = ("psnr", "ssim", "tpsnr")
"""What quality is measured by. LPIPS, which the paper reports too, needs a download."""


def prompts_for(subject: Subject, count: int) -> list[str]:
    """Held-out captions; where there are fewer than `count`, from the first again, each time with other noise."""
    captions = subject.captions("held_out")
    return [captions[i % len(captions)] for i in range(count)]


def contest(subject: Subject, count: int, out: Path, *, seed: int = 100_000) -> Contest:
    """Every variant on `count` prompts, run where it has not been yet. Prompt i is generated with `seed + i`."""
    subject = with_steps(subject)
    steps = int(subject.call["num_inference_steps"])
    found = Contest(
        subject, entries(steps), prompts_for(subject, count), out, seed=seed, keep=0, metrics=METRICS, lenient=True
    )
    announce(found)
    with progress() as bar:
        task = bar.add_task("running", total=len(found.cases) * len(found.entries))
        found.run(lambda: bar.advance(task))
    return found


def findings(subject: Subject, count: int, out: Path, *, seed: int = 100_000) -> Findings:
    """The contest, then the recording that explains it, and the verdicts; everything is kept in `out`.

    Raises:
        ConfigUnreadable: for a pipeline without captions of its own.
    """
    subject = with_steps(subject)
    say(f"after the prompts {RECORDED} training captions are recorded, which takes about as long as {RECORDED} prompts")
    ran = contest(subject, count, out, seed=seed)
    usable = {name: policy for name, policy in POLICIES.items() if ran.refusal(name) is None}
    return judged(ran, why(subject, usable, out))

"""What came out: the figures of each variant, the verdict on each finding, and why; kept as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fastercache.experiments.bench.contest import UNCACHED, Contest
from fastercache.experiments.bench.entries import FewerSteps, described
from fastercache.experiments.bench.verdict import Baseline, Interval, mean_interval, ratio_interval
from fastercache.experiments.reproduce.findings import FEWER, FINDINGS, Claim, Finding
from fastercache.experiments.reproduce.variants import VERSION
from fastercache.experiments.reproduce.verdicts import RULE, UNDECIDED, holm, overall, p_value, word
from fastercache.experiments.reproduce.why import Why
from fastercache.policies.documents import Missing, read_model, write_json
from fastercache.policies.errors import ConfigUnreadable
from fastercache.tuned import package_versions

TIME = "time"
"""Stands where a metric's name does in claims about speed; the difference is a ratio of seconds then."""
WHAT = "findings"


class Variant(BaseModel):
    """Figures of one variant, with 95 % intervals over prompts.

    Attributes:
        speedup_flops: computed FLOPs of the uncached run over this one's. speedup_wall: the same in seconds.
        judge: share of videos in which the judges read what the caption asks for.
        over_fewer: PSNR over that of fewer steps at the same FLOPs, in dB; None outside their speedups.
        refused: why it could not run; everything else is then empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    policy: dict[str, Any]
    speedup_flops: float | None = None
    speedup_wall: Interval | None = None
    quality: dict[str, Interval] = {}
    judge: float | None = None
    over_fewer: Interval | None = None
    refused: str | None = None


class Compared(BaseModel):
    """A claim's difference in one metric: the mean of better - worse with its interval, and the corrected p-value.

    In time it is the ratio of the speedups, and its interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    difference: Interval
    corrected: float
    word: str


class Judged(BaseModel):
    """A claim and what it came to, by metric; empty where one of the two could not run or has no counterpart."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    worse: str
    better: str
    by: dict[str, Compared]


class Outcome(BaseModel):
    """A finding and what it came to: `word` by PSNR or time, `words` by each metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    title: str
    source: str
    words: dict[str, str]
    claims: tuple[Judged, ...]

    @property
    def word(self) -> str:
        """The verdict: by PSNR, or by time where the finding is about that."""
        return next(iter(self.words.values()), UNDECIDED)


class Findings(BaseModel):
    """A whole run of the findings on one model; `captions`: how many different ones the prompts are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["fastercache-findings"] = "fastercache-findings"
    version: Literal[1] = 1
    variants_version: int = VERSION
    pipeline: str
    steps: int
    prompts: int
    captions: int
    seed: int
    hardware: str
    versions: dict[str, str]
    seconds_uncached: float
    rule: str
    variants: tuple[Variant, ...]
    findings: tuple[Outcome, ...]
    why: Why

    @classmethod
    def load(cls, path: Path) -> Findings:
        """Read `findings.json`. Raises ConfigUnreadable in one line."""
        try:
            return read_model(path, cls, WHAT)
        except Missing:
            raise ConfigUnreadable(f"there is no {path}: run without --print-only first") from None

    def write(self, folder: Path) -> Path:
        """Write `findings.json` and return its path."""
        return write_json(folder / "findings.json", rounded(self.model_dump(mode="json")), WHAT, indent=1)

    def variant(self, name: str) -> Variant:
        """The variant of this name."""
        return next(one for one in self.variants if one.name == name)

    def finding(self, key: str) -> Outcome:
        """The finding of this key."""
        return next(one for one in self.findings if one.key == key)


def rounded(data: Any) -> Any:
    """JSON values with measured numbers of five significant digits: more are noise, and the file is read by people.

    A policy's own numbers are settings and stay as they are.
    """
    if isinstance(data, float):
        return float(f"{data:.5g}")
    if isinstance(data, dict):
        return {key: value if key == "policy" else rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list) else data


class Judge:
    """Judges claims by the figures of a contest that has run."""

    def __init__(self, contest: Contest) -> None:
        self.contest = contest

    @cached_property
    def _fewer(self) -> list[str]:
        return [name for name, entry in self.contest.entries.items() if isinstance(entry, FewerSteps)]

    def baseline(self, metric: str) -> Baseline:
        """Fewer steps by their speedup in FLOPs, in one metric."""
        return Baseline.of([(self.contest.row(name).speedup_flops, self._values(name, metric)) for name in self._fewer])

    def _values(self, name: str, metric: str) -> list[float]:
        figures = self.contest.figures(name)
        if metric == TIME:  # a logarithm, so that the mean of differences is the ratio of speedups
            return [math.log(one["seconds_uncached"] / one["seconds"]) for one in figures]
        return [one["quality"][metric] for one in figures]

    def differences(self, claim: Claim, metric: str) -> list[float] | None:
        """better - worse on each prompt; None where there is nothing to compare."""
        if any(self.contest.refusal(name) for name in (claim.worse, claim.better) if name != FEWER):
            return None
        pair = []
        for name, other in ((claim.better, claim.worse), (claim.worse, claim.better)):
            values: Sequence[float] | None
            if name == FEWER:
                values = self.baseline(metric).at(self.contest.row(other).speedup_flops)
            else:
                values = self._values(name, metric)
            if values is None:
                return None
            pair.append(values)
        return [a - b for a, b in zip(*pair, strict=True)]

    def finding(self, finding: Finding) -> Outcome:
        """A finding's verdict in each metric; Holm's correction is over its claims, one metric at a time."""
        (kind,) = {claim.kind for claim in finding.claims}
        metrics = [TIME] if kind == "time" else list(self.contest.metrics)
        by: list[dict[str, Compared]] = [{} for _ in finding.claims]
        words = {}
        for metric in metrics:
            found = [self.differences(claim, metric) for claim in finding.claims]
            there = [n for n, values in enumerate(found) if values is not None]
            corrected = holm([p_value(found[n] or ()) for n in there])
            for n, p in zip(there, corrected, strict=True):
                mean = mean_interval(found[n] or ())
                shown = mean if metric != TIME else Interval(*(None if v is None else math.exp(v) for v in mean))  # type: ignore[arg-type]
                by[n][metric] = Compared(difference=shown, corrected=p, word=word(mean.value, p))
            words[metric] = overall([one[metric].word if metric in one else UNDECIDED for one in by])
        claims = tuple(
            Judged(worse=claim.worse, better=claim.better, by=one)
            for claim, one in zip(finding.claims, by, strict=True)
        )
        return Outcome(key=finding.key, title=finding.title, source=finding.source, words=words, claims=claims)

    def variant(self, name: str) -> Variant:
        """The figures of one entry."""
        policy = described(self.contest.entries[name])
        if (refused := self.contest.refusal(name)) is not None:
            return Variant(name=name, policy=policy, refused=refused)
        row, figures = self.contest.row(name), self.contest.figures(name)
        over = None if name == UNCACHED or name in self._fewer else self.differences(Claim(FEWER, name), "psnr")
        return Variant(
            name=name,
            policy=policy,
            speedup_flops=row.speedup_flops,
            speedup_wall=ratio_interval([r["seconds_uncached"] for r in figures], [r["seconds"] for r in figures]),
            quality={metric: mean_interval(self._values(name, metric)) for metric in self.contest.metrics},
            judge=row.judge,
            over_fewer=None if over is None else mean_interval(over),
        )


def judged(contest: Contest, why: Why) -> Findings:
    """Everything, from a contest that has run and what was recorded."""
    judge = Judge(contest)
    setting = contest.evaluator.setting
    return Findings(
        pipeline=contest.subject.name,
        steps=int(setting.call["num_inference_steps"]),
        prompts=len(contest.cases),
        captions=len({str(case.prompt) for case in contest.cases}),
        seed=setting.seed,
        hardware=setting.hardware,
        versions=package_versions(("fastercache", "diffusers", "torch")),
        seconds_uncached=mean_interval([r["seconds"] for r in contest.figures(UNCACHED)]).value,
        rule=RULE,
        variants=tuple(judge.variant(name) for name in contest.entries),
        findings=tuple(judge.finding(finding) for finding in FINDINGS),
        why=why,
    )

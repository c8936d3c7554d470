"""Differences are paired by prompt, against the right counterpart, and kept whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import fastercache as fc
from fastercache.experiments.bench.contest import Contest
from fastercache.experiments.bench.entries import FewerSteps
from fastercache.experiments.reproduce.findings import FEWER, Claim, Finding, rising
from fastercache.experiments.reproduce.results import Findings, Judge, rounded
from fastercache.experiments.reproduce.verdicts import FAILS, HOLDS, REVERSED, UNDECIDED
from fastercache.policies.errors import ConfigUnreadable
from tests.experiments.pages import ROOT


class Stub:
    """A contest that has run: PSNR by prompt, seconds, and the speedup in FLOPs of each entry."""

    metrics = ("psnr",)

    def __init__(self, runs: dict[str, tuple[list[float], float, float]], refused: str = "") -> None:
        self.runs, self.refused = runs, refused
        self.entries: dict[str, Any] = {
            name: FewerSteps(int(name.split()[0])) if name.endswith(" steps") else fc.NoCache() for name in runs
        }

    def refusal(self, name: str) -> str | None:
        return "it cannot" if name == self.refused else None

    def figures(self, name: str) -> list[dict[str, Any]]:
        psnr, seconds, _ = self.runs[name]
        return [{"quality": {"psnr": p}, "seconds": seconds, "seconds_uncached": 3.0} for p in psnr]

    def row(self, name: str) -> Any:
        return SimpleNamespace(speedup_flops=self.runs[name][2], judge=None)


def judge(refused: str = "", **runs: tuple[list[float], float, float]) -> Judge:
    named = {name.replace("_", " ").strip(): run for name, run in runs.items()}
    return Judge(cast(Contest, Stub(named, refused)))


SPREAD = [0.0, 0.1, -0.1, 0.05]


def near(mean: float) -> list[float]:
    return [mean + one for one in SPREAD]


FOUR = {
    "a": (near(30.0), 2.0, 1.5),
    "b": ([v + 2.0 for v in near(30.0)], 1.0, 1.5),
    "c": (near(31.0), 1.5, 2.0),
    "_20_steps": ([40.0, 42.0, 44.0, 46.0], 2.0, 1.0),
    "_10_steps": ([30.0, 32.0, 34.0, 36.0], 1.0, 2.0),
}


def finding(*claims: Claim) -> Finding:
    return Finding("key", "title", "source", claims)


def test_differences_are_taken_prompt_by_prompt() -> None:
    assert judge(**FOUR).differences(Claim("a", "b"), "psnr") == pytest.approx([2.0] * 4)
    assert judge(**FOUR).differences(Claim("b", "a"), "psnr") == pytest.approx([-2.0] * 4)


def test_fewer_steps_stand_at_the_flops_of_the_other() -> None:
    """Half way from 1 to 2 in the logarithm is sqrt 2; at 1.5 it is log2(1.5) of the way from 40 + 2 i to 30 + 2 i."""
    share = math.log2(1.5)
    expected = [40.0 - 10.0 * share + 2.0 * i - value for i, value in enumerate(near(30.0))]
    assert judge(**FOUR).differences(Claim("a", FEWER), "psnr") == pytest.approx(expected)
    assert judge(**FOUR).differences(Claim(FEWER, "a"), "psnr") == pytest.approx([-v for v in expected])


def test_outside_of_what_fewer_steps_were_measured_at_there_is_no_answer() -> None:
    faster = judge(**{**FOUR, "a": (near(30.0), 2.0, 2.5)})
    assert faster.differences(Claim("a", FEWER), "psnr") is None
    found = faster.finding(finding(Claim("a", FEWER), Claim("a", "b")))
    assert found.claims[0].by == {} and found.claims[1].by["psnr"].word == HOLDS
    assert found.word == UNDECIDED


def test_a_refused_variant_has_no_claims() -> None:
    found = judge("b", **FOUR).finding(finding(Claim("a", "b")))
    assert found.claims[0].by == {} and found.word == UNDECIDED


def test_a_finding_holds_or_does_not() -> None:
    up = judge(**FOUR).finding(finding(*rising("a", "b")))
    assert (up.word, up.claims[0].by["psnr"].difference.value) == (HOLDS, pytest.approx(2.0))
    down = judge(**FOUR).finding(finding(*rising("a", "b"), *rising("b", "c")))
    assert down.word == FAILS and [c.by["psnr"].word for c in down.claims] == [HOLDS, REVERSED]


def test_the_correction_is_over_the_claims_of_the_finding() -> None:
    """Two prompts' differences of 0.1 and 0.3: t = 2 with one degree of freedom, p = 0.2952; twice that for two."""
    runs: dict[str, tuple[list[float], float, float]] = {
        "a": ([30.0, 30.0], 1.0, 1.5),
        "b": ([30.1, 30.3], 1.0, 1.5),
        "c": ([30.2, 30.6], 1.0, 1.5),
    }
    p = 2.0 * (0.5 - math.atan(2.0) / math.pi)  # Student's distribution with one degree of freedom is Cauchy's
    alone = judge(**runs).finding(finding(Claim("a", "b")))
    both = judge(**runs).finding(finding(Claim("a", "b"), Claim("b", "c")))
    assert alone.claims[0].by["psnr"].corrected == pytest.approx(p)
    assert [c.by["psnr"].corrected for c in both.claims] == pytest.approx([2 * p, 2 * p])


def test_claims_of_time_are_ratios_of_speedups() -> None:
    found = judge(**FOUR).finding(finding(*rising("a", "c", "b", kind="time")))
    assert [c.by["time"].difference.value for c in found.claims] == pytest.approx([2.0 / 1.5, 1.5 / 1.0])
    assert found.words == {"time": HOLDS}


def test_five_digits_are_kept() -> None:
    assert rounded({"a": [1.23456789, 123456.7], "b": {"c": 7, "d": None}}) == {
        "a": [1.2346, 123460.0],
        "b": {"c": 7, "d": None},
    }


def test_a_missing_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable, match="run without --print-only first"):
        Findings.load(tmp_path / "findings.json")
    kept = ROOT / "docs" / "bench" / "latte-digits" / "results.json"
    with pytest.raises(ConfigUnreadable):
        Findings.load(kept)


@pytest.mark.parametrize("model", ["latte-digits", "wan-digits"])
def test_what_is_kept_is_what_is_read(model: str, tmp_path: Path) -> None:
    folder = ROOT / "docs" / "bench" / model
    written = Findings.load(folder / "findings.json").write(tmp_path)
    assert json.loads(written.read_text()) == json.loads((folder / "findings.json").read_text())

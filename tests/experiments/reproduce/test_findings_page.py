"""The page of findings says what the kept results say: its tables, its verdicts, its reasons and every figure."""

from __future__ import annotations

import re

import pytest
from scipy.stats import spearmanr

from fastercache.experiments.reproduce import page
from fastercache.experiments.reproduce.findings import FINDINGS
from fastercache.experiments.reproduce.results import Findings
from fastercache.experiments.reproduce.variants import GUIDANCE, OTHERS, REUSE, SHARES, entries
from fastercache.experiments.reproduce.verdicts import HOLDS, REVERSED, UNDECIDED
from fastercache.experiments.reproduce.why import LAST, RECORDED, Band
from tests.experiments.pages import BLOCK, ROOT

MODELS = ("latte-digits", "wan-digits")
RESULTS = {name: Findings.load(ROOT / "docs" / "bench" / name / "findings.json") for name in MODELS}
TEXT = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")


def flat(text: str) -> str:
    return " ".join(text.split())


def prose() -> str:
    """The page on one line, without code, addresses and the models' sections."""
    text = TEXT
    for name in MODELS:
        text = re.sub(f"{page.start(name)}.*?{page.END}", "", text, flags=re.DOTALL)
    return flat(re.sub(r"`[^`\n]*`", "", re.sub(r"\]\([^)\s]*\)", "]", BLOCK.sub("", text))))


def verdict(key: str) -> str:
    """A finding's words on both models, as the page has them."""
    first, second = (RESULTS[name].finding(key).word for name in MODELS)
    return f"{first} on both models." if first == second else f"{first} on {MODELS[0]}, {second} on {MODELS[1]}."


def settings() -> list[str]:
    """What the page says of how it was done, with its figures from the code."""
    steps = {one.steps for one in RESULTS.values()}
    (count,) = steps
    counts = [str(round(share * count)) for share in SHARES]
    return [
        f"{', '.join(counts[:-1])} and {counts[-1]} of {count} steps", f"the same {count} steps",
        f"a recording of {RECORDED} training captions", "seed 100000 + i", "A model has 40 of them",
        "(eq. 5)", "(eqs. 8-11)", "rises from 0 to 1", "every 5 steps", "band counts 1.2", "high band 1.2 after",
        "interval 1 is the uncached run", "arXiv 2410.19355", "Student's 95 % interval", "below 0.05",
        "of 32 x 32 pixels", "latents are 8 x 8", "radius 1", "factor there is below 1, and 1.2 makes",
        *(finding.title for finding in FINDINGS),
    ]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_tables_are_those_of_the_kept_results(name: str) -> None:
    results = RESULTS[name]
    assert results.pipeline == name and results.variants_version == 1
    assert page.markdown(results) in TEXT
    assert [one.name for one in results.variants] == ["uncached", *entries(results.steps)]
    assert [(one.key, one.title) for one in results.findings] == [(one.key, one.title) for one in FINDINGS]


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda one: one.key)
def test_each_finding_stands_there_with_its_verdict(finding: object) -> None:
    key, title = getattr(finding, "key"), getattr(finding, "title")  # noqa: B009
    assert f"- **{title}**: {verdict(key)}" in prose()


def test_no_other_figure_stands_on_the_page() -> None:
    text = prose()
    for known in sorted(settings(), key=len, reverse=True):
        assert known in text, known
        text = text.replace(known, "")
    assert re.findall(r".{0,40}\d.{0,20}", text) == []


def test_what_is_said_beside_the_verdicts() -> None:
    for results in RESULTS.values():
        words = {
            (claim.worse, claim.better): claim.by["psnr"].word
            for finding in results.findings
            for claim in finding.claims
            if "psnr" in claim.by
        }
        assert words["hold", "constant 0.5"] == HOLDS, "the difference helps"
        assert words["constant 0.5", "ramp"] != HOLDS, "the rise gains nothing"
        assert words["no weighting", "high"] == words["low", "both"] == REVERSED, "the plain difference is the best"
        assert words["high", "low"] == HOLDS, "of the two bands alone the low one does less harm"
        psnr = {name: results.variant(name).quality["psnr"].value for name in ("no weighting", "low", "high", "both")}
        assert max(psnr, key=lambda name: psnr[name]) == "no weighting"
        flops = [results.variant(name).speedup_flops or 0.0 for name in ("uncached", "ramp", "both", "FasterCache")]
        assert flops == sorted(set(flops)), "in FLOPs it does, exactly"
        fastest = results.variant("FasterCache").speedup_flops or 0.0
        assert (results.variant("T-GATE").speedup_flops or 0.0) < fastest, "T-GATE reaches less"
        plain = results.variant("uncached").judge or 0.0
        assert all(abs((one.judge or 0.0) - plain) < 0.1 for one in results.variants), "in about as many videos"
        assert set(OTHERS) <= {one.name for one in results.variants if one.refused is None}


def test_what_is_said_beside_fewer_steps_and_of_delta_dit() -> None:
    latte, wan = (RESULTS[name] for name in MODELS)
    assert all(one.prompts == 64 for one in (latte, wan)), "as many as the command measures"
    words = {(c.worse, c.better): c.by["psnr"].word for one in wan.findings for c in one.claims if "psnr" in c.by}
    assert words["Δ-DiT", "FasterCache"] == REVERSED
    speedups = [wan.variant(name).speedup_flops or 0.0 for name in ("Δ-DiT", "FasterCache")]
    assert max(speedups) < 1.03 * min(speedups), "at about the same FLOPs"
    both = next(c for one in latte.findings for c in one.claims if (c.worse, c.better) == ("both", "fewer steps"))
    assert both.by["psnr"].word == UNDECIDED and (both.by["psnr"].difference.value or 0.0) > 0.0, (
        "behind, but undecided"
    )
    level = {"low", "high", "no weighting"}
    for results in (latte, wan):
        for one in results.variants:
            if (over := one.over_fewer) is None or over.low is None or over.high is None:
                continue
            if results is latte and one.name == "guidance 3":
                assert over.low > 0.0, "ahead of them at its shortest interval"
            elif results is latte and one.name in level:
                assert over.low < 0.0 < over.high, "level with fewer steps"
            else:
                assert over.high < 0.0, (results.pipeline, one.name)


def test_what_is_said_of_the_reasons() -> None:
    for results in RESULTS.values():
        why = results.why
        assert why.prompts == RECORDED and why.share < 1 / 3, "less than a third of the step"
        assert why.local["hold"] > 0.8 * why.local[LAST], "about as wrong as keeping the whole output, or more"
        assert why.local["hold"] > why.stand_ins["hold"], "a small error becomes a large one"
        assert why.stand_ins["constant 0.5"] < why.stand_ins["hold"] > why.stand_ins["ramp"]
        assert 0.5 < why.best_weight < 1.0 and why.stand_ins["constant 0.5"] < 1.1 * why.stand_ins["ramp"]
        assert why.best_error <= min(why.stand_ins["constant 0.5"], why.stand_ins["ramp"]) * 1.01
        bands: dict[tuple[str, str], Band] = {(one.band, one.stage): one for one in why.bands}
        early, late = bands["low", "early"], bands["high", "late"]
        assert early.best < 1.0 and early.weighted > 1.2 * early.plain
        assert late.weighted > 0.999 * late.plain, "nothing better on either model"
        for kind in (REUSE, GUIDANCE):
            errors = [why.local[name] for name in kind]
            psnrs = [results.variant(name).quality["psnr"].value for name in kind]
            assert float(spearmanr(errors, psnrs).statistic) < -0.7, "what errs less mostly ends closer"

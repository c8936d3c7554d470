"""`cache<=2GiB` in a budget: read strictly, known before any run, and kept by whatever plans, tunes or certifies."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fastercache as fc
from fastercache import zoo
from fastercache.bounds import read_limit
from fastercache.experiments.jobs import certifying, planning
from fastercache.experiments.pipelines import Subject
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.tuner import Budget, InvalidBudget, tune
from fastercache.tuner.certify import each
from fastercache.tuner.planning.room import fullest, history_within, made_use_of
from fastercache.tuner.record import Outcome
from fastercache.tuner.seconds import _every_second
from fastercache.tuner.setting import Setting, run

STEPS = 6
CALL = {"num_inference_steps": STEPS, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}


@pytest.mark.parametrize(
    ("text", "most", "words"),
    [
        ("cache<=2GiB", 2 * 2**30, "at most 2 GiB"),
        ("cache <= 1.5 MiB", 3 * 2**19, "at most 1.5 MiB"),
        ("CACHE<=500kb", 500_000, "at most 500 kB"),
        ("cache<=3gb", 3 * 10**9, "at most 3 GB"),
        ("cache<=10b", 10, "at most 10 B"),
    ],
)
def test_units(text: str, most: int, words: str) -> None:
    budget = Budget.parse(f"psnr>=30, {text}")
    assert budget.cache is not None and budget.cache.most == most
    assert budget.words == f"psnr at least 30 on average over the prompts and {words} of cached values"
    assert Budget.parse(str(budget)) == Budget.parse(f"psnr>=30,{budget.cache}") and budget.cache.most == most
    assert budget.metrics == ("psnr",) and budget.violation({"psnr": [30.0]}) == 0.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cache<=2", "it has no unit, write one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"),
        ("cache<=2GiBs", "no unit of memory is called 'GiBs'"),
        ("cache<=2s", "no unit of memory is called 's'"),
        ("cache>=2GiB", "write for example cache<=2GiB"),
        ("cache<2GiB", "write for example cache<=2GiB"),
        ("cache", "write for example cache<=2GiB"),
        ("cache<=GiB", "write for example cache<=2GiB"),
        ("cache<=1.2.3GiB", "cannot read a number"),
        ("cache>=64KiB", "the limit 'cache>=64KiB' must be an upper one, written with <=: write for example"),
        ("time<8s", "the limit 'time<8s' must be an upper one"),
        ("cache<=0GiB", "leaves no byte"),
        ("cache<=-1GiB", "leaves no byte"),
        ("cache<=1.5MiB/s", "cannot read the limit 'cache<=1.5MiB/s': write for example cache<=2GiB"),
        ("p90:cache<=2GiB", "the same for every prompt"),
        ("mean(cache)<=2GiB", "the same for every prompt"),
        ("cache<=2GiB,cache<=3GiB", "limits the cache twice"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, says: str) -> None:
    with pytest.raises(InvalidBudget) as caught:
        Budget.parse(f"psnr>=30,{text}")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "most", "words"),
    [
        ("time<=8s", 8.0, "8 s"),
        ("TIME <= 500 MS", 0.5, "500 ms"),
        ("time<=1.5min", 90.0, "1.5 min"),
        ("time<=2e-1s", 0.2, "2e-1 s"),
    ],
)
def test_units_of_time(text: str, most: float, words: str) -> None:
    budget = Budget.parse(f"psnr>=30,{text},cache<=1MiB")
    assert budget.time is not None and budget.time.most == pytest.approx(most) and budget.cache is not None
    assert budget.words.endswith(
        f"1 MiB of cached values and at most {words} for a call of the pipeline on this machine"
    )
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time<=8", "it has no unit, write one of ms, s, min, h"),
        ("time<=8GiB", "no unit of time is called 'GiB'"),
        ("time>=8s", "write for example time<=8s"),
        ("time", "write for example time<=8s"),
        ("time<=0s", "leaves no time"),
        ("time<=-1s", "leaves no time"),
        ("time<=1e400s", "cannot read a number in the limit 'time<=1e400s'"),
        ("time<=1h30min", "cannot read the limit 'time<=1h30min': write for example time<=8s"),
        ("p90:time<=8s", "no share or quantile of it"),
        ("time<=8s,time<=9s", "limits the time twice"),
    ],
)
def test_what_cannot_be_read_of_a_time_is_one_line(text: str, says: str) -> None:
    with pytest.raises(InvalidBudget) as caught:
        Budget.parse(f"psnr>=30,{text}")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_limit_alone_says_nothing_of_quality() -> None:
    with pytest.raises(InvalidBudget, match="asks for no quality: add what to keep, cache<=2GiB,psnr>=30"):
        Budget.parse("cache<=2GiB")
    assert read_limit("psnr>=30") is None and read_limit("caches<=3") is None  # a metric may be called so


def test_a_certificate_keeps_the_limit_of_the_cache_and_leaves_out_that_of_time() -> None:
    """What is cached is the same everywhere; what a call takes belongs to a machine."""
    assert each(Budget.parse("p90:psnr>=30,cache<=1MiB,time<=8s")) == "psnr>=30,cache<=1MiB"


@pytest.fixture
def setting(tiny_latte: Any) -> Setting:
    return Setting(tiny_latte, CALL)


def held(setting: Setting, history: int) -> int:
    """Bytes that a run holds whose plan combines so many outputs and the input, by its trace."""
    stretches = tuple(
        Stretch(after=step, start=step + 1, outputs=(1.0,) + (0.0,) * (min(history, step + 1) - 1), input=1e-9)
        for step in (history - 1,)
    )
    plan = fc.Planned(steps=STEPS, computed=tuple(range(history)), stand_in=Fitted(stretches=stretches, variance=True))
    return run(setting, plan, setting.cases(["a"])[0])[1].cached_bytes


def test_as_many_past_outputs_as_there_is_room_for(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_of = {history: held(setting, history) for history in (1, 2, 5)}
    assert bytes_of[2] == 2 * bytes_of[1] and bytes_of[5] == 5 * bytes_of[1]
    case = setting.cases(["a"])[0]
    monkeypatch.setattr(Setting, "generate", lambda *_: pytest.fail("a whole run was made"))
    for history in (1, 2, 5):
        assert history_within(setting, case, read_limit(f"cache<={bytes_of[history]}B")) == history
    assert history_within(setting, case, read_limit(f"cache<={bytes_of[2] - 1}B")) == 1
    assert history_within(setting, case, read_limit("cache<=1GiB")) == 5 == history_within(setting, case, None)
    with pytest.raises(fc.BudgetNotMet, match=f"caches {bytes_of[1]:,} bytes, more than cache<={bytes_of[1] - 1}B"):
        history_within(setting, case, read_limit(f"cache<={bytes_of[1] - 1}B"))


@pytest.mark.parametrize(
    ("family", "source"), [("wan-i2v", False), ("cogvideox-i2v", False), ("vchitect-2.0", True), ("latte", True)]
)
@pytest.mark.parametrize("made", [partial(fullest, STEPS, 2), partial(_every_second, STEPS, 2)])
def test_a_plan_that_nothing_was_fitted_for_runs_where_inputs_cannot_be_added(
    family: str, source: bool, made: Any
) -> None:
    """Behind these latents stand an image's channels, which outputs have not: inputs are then left out."""
    s = zoo.build(family)
    with fc.attach(s.pipe, fc.NoCache(sites="denoiser")) as session:
        told = made_use_of(session, made, s.call(steps=STEPS))
        assert session.policy == made(float(source))
        s.generate(steps=STEPS)
        assert told.peak == session.last.cached_bytes > 0


def subject(setting: Setting) -> Subject:
    return Subject("tiny-latte", setting.pipe, CALL, reference=False)


def test_a_plan_keeps_it(setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = held(setting, 2)
    words = {"folder": tmp_path / "study", "out": tmp_path / "tuned.json", "effort": 0, "margin": 0.0, "show": False}
    planning.plan(subject(setting), ["a"], budgets=[f"psnr>=1,cache<={limit}B"], **words)
    said = " ".join(capsys.readouterr().err.split())
    assert f"at most {limit} B of cached values" in said
    assert f"cache<={limit}B leaves room for 2 of 5 past outputs" in said
    found = fc.load(tmp_path / "tuned.json")
    assert found.measured.search is not None and 0 < found.measured.search.cached_bytes <= limit
    assert isinstance(found.policy, fc.Planned) and getattr(found.policy.stand_in, "depth", 0) <= 2
    with pytest.raises(fc.InvalidPolicy, match="the same limit of the cache, found cache<=1GiB and none"):
        planning.plan(subject(setting), ["a"], budgets=["psnr>=1", "psnr>=2,cache<=1GiB"], **words)

    request = certifying.request_of([tmp_path / "tuned.json"], None, 0.5, 0.5, None, 0)
    assert str(request.budget) == f"psnr>=1,cache<={limit}B"
    tight = certifying.request_of([tmp_path / "tuned.json"], "psnr>=1,cache<=9B", 0.5, 0.5, None, 0)
    with pytest.raises(fc.BudgetNotMet, match="more than cache<=9B: leave it out"):
        certifying.certify(subject(setting), tight, ["b"], tmp_path / "certify", show=False)


def test_a_search_runs_nothing_that_would_not_fit(setting: Setting, tmp_path: Path) -> None:
    policies = {interval: fc.StaticInterval(sites="attention", interval=interval) for interval in (2, 3)}
    small = fc.StaticInterval(sites="block[0:1]", interval=2)
    case = setting.cases(["a"])[0]
    large, room = (run(setting, policy, case)[1].cached_bytes for policy in (policies[2], small))
    assert room < large
    study = tune(
        setting.pipe,
        ["a"],
        budget=f"psnr>=1,cache<={room}B",
        policy=fc.StaticInterval,
        call=CALL,
        out=tmp_path,
        trials=4,
        seeds={"small": small, **{f"large {n}": policy for n, policy in policies.items()}},
    )
    by_source = {record.source: record for record in study.records}
    assert by_source["large 2"].outcome is Outcome.INVALID and "more than max_cache_bytes" in str(
        by_source["large 2"].reason
    )
    assert all(record.cached_bytes is None or record.cached_bytes <= room for record in study.records)

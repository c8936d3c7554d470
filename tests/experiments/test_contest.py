"""A contest's bookkeeping: order, heats, what is kept and counted, and the figures of an entry. No video is made: runs
are stand-ins whose figures a test chooses."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastercache as fc
from fastercache.experiments.bench import contest as module
from fastercache.experiments.bench.contest import UNCACHED, CaseRuns, Contest, Runs, digest, heats, stored
from fastercache.experiments.bench.entries import FewerSteps, Outcome
from fastercache.experiments.bench.peers import Refused
from fastercache.experiments.pipelines import Subject
from fastercache.tuner import Evaluator, Setting

PROMPTS = ("a red seven moving left", "a blue two moving up", "one", "two", "three")
ENTRIES = {"second": fc.FORA(interval=2), "third": fc.FORA(interval=3)}


class Ran:
    """What was run, in order, and what each run gave."""

    def __init__(self, figures: Callable[[str, int], dict[str, Any]]) -> None:
        self.figures = figures
        self.done: list[tuple[str, str, bool]] = []  # prompt, entry, and whether FLOPs were to be counted
        self.warm: list[str] = []
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1

    def order(self, prompt: str) -> list[str]:
        """The entries that were run on a prompt."""
        return [name for case, name, _ in self.done if case == prompt]


def usual(name: str, i: int) -> dict[str, Any]:
    return {"seconds": 1.0, "flops": 50, "flops_full": 100, "cache_bytes": 7, "level": 0.5}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Every run of a contest is a stand-in; videos are plain grey."""
    ran = Ran(usual)
    names = {json.dumps(fc.dump(policy)): name for name, policy in ENTRIES.items()}

    def once(evaluator: Any, entry: Any, case: Any, allow: Any, *, count: bool, timed: bool) -> Outcome:
        name = UNCACHED if entry is None else names[json.dumps(fc.dump(entry))]
        ran.done.append((case.prompt, name, count))
        figures = ran.figures(name, PROMPTS.index(case.prompt))
        level = figures.pop("level")
        return Outcome(torch.full((2, 3, 12, 12), level), **figures)

    monkeypatch.setattr(module, "once", once)
    monkeypatch.setattr(Evaluator, "run_bare", lambda self, case: ran.warm.append(case.prompt))
    return ran


@pytest.fixture
def subject(tiny_latte: Any) -> Subject:
    return Subject("tiny", tiny_latte, {"num_inference_steps": 4}, reference=False)


def test_defaults() -> None:
    given = inspect.signature(Contest.__init__).parameters
    defaults = {"seed": 0, "keep": 4, "metrics": ("psnr", "ssim"), "allow": frozenset(), "lenient": False}
    assert {name: given[name].default for name in defaults} == defaults
    constants = {"HEAT": 15, "COUNTED": 2, "METRICS": ("psnr", "ssim"), "GOLDEN": (5**0.5 - 1) / 2}
    assert {name: getattr(module, name) for name in constants} == constants


def test_heats_are_of_about_the_same_size_and_begin_elsewhere_at_each_prompt() -> None:
    """The golden ratio's multiples modulo 1 are 0, 0.618, 0.236 and 0.854: of 5 entries the first is 0, 3, 1 and 4."""
    assert [heats(list("abcde"), i)[0] for i in range(4)] == [
        list("abcde"),
        list("deabc"),
        list("bcdea"),
        list("eabcd"),
    ]
    sizes = {15: [15], 16: [8, 8], 30: [15, 15], 31: [11, 11, 9], 1: [1], 0: [0]}
    for count, expected in sizes.items():
        assert [len(heat) for heat in heats([str(n) for n in range(count)], 0)] == expected


def test_each_prompt_runs_all_of_them_with_the_uncached_run_in_another_place(
    subject: Subject, tmp_path: Path, runs: Ran
) -> None:
    contest = Contest(subject, ENTRIES, PROMPTS[:4], tmp_path, keep=0)
    contest.run(runs.tick)
    assert [runs.order(prompt).index(UNCACHED) for prompt in PROMPTS[:4]] == [0, 1, 2, 0]
    assert all(sorted(runs.order(prompt)) == sorted([UNCACHED, *ENTRIES]) for prompt in PROMPTS[:4])
    assert runs.ticks == 3 * 4 and runs.warm == [PROMPTS[0]], "one warm-up"
    counted = {prompt: {count for case, _, count in runs.done if case == prompt} for prompt in PROMPTS[:4]}
    assert list(counted.values()) == [{True}, {True}, {False}, {False}], "a peer's FLOPs take a run of their own"
    again = Contest(subject, ENTRIES, PROMPTS[:4], tmp_path, keep=0)
    again.run(runs.tick)
    assert len(runs.done) == 3 * 4 and runs.ticks == 2 * 3 * 4 and len(runs.warm) == 1, "nothing is run twice"
    assert [case.seed for case in again.cases] == [0, 1, 2, 3]


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_the_videos_of_the_first_prompts_are_kept(subject: Subject, tmp_path: Path, runs: Ran, keep: int) -> None:
    contest = Contest(subject, ENTRIES, PROMPTS[:3], tmp_path, keep=keep)
    contest.run()
    kept = min(keep, 3)
    assert len(list(tmp_path.glob("video-*.safetensors"))) == 3 * kept
    for i in range(kept):
        assert set(contest.videos(i)) == {UNCACHED, *ENTRIES}
        assert contest.videos(i)["second"].unique().tolist() == [0.5]
    assert all(contest.missing(i) == [] for i in range(3))
    if kept:
        contest._video(0, "third").unlink()
        assert contest.missing(0) == ["third"]


def test_a_rows_figures_are_sums_medians_and_means(subject: Subject, tmp_path: Path, runs: Ran) -> None:
    """Speedups by FLOPs are of the sums over prompts, by time of the medians; quality is a mean; bytes are the most."""
    seconds = {UNCACHED: (8.0, 6.0, 20.0), "second": (2.0, 4.0, 5.0), "third": (1.0, 1.0, 1.0)}
    flops = {UNCACHED: (0, 0, 0), "second": (10, 50, None), "third": (20, 20, 20)}
    sizes = {UNCACHED: (0, 0, 0), "second": (7, 30, 5), "third": (None, None, None)}
    levels = {UNCACHED: (0.5, 0.5, 0.5), "second": (0.6, 0.51, 0.5 + 10**-1.5), "third": (0.6, 0.6, 0.6)}
    runs.figures = lambda name, i: {
        "seconds": seconds[name][i],
        "flops": flops[name][i],
        "flops_full": None if flops[name][i] is None else 100,
        "cache_bytes": sizes[name][i],
        "level": levels[name][i],
    }
    contest = Contest(subject, ENTRIES, PROMPTS[:3], tmp_path, keep=0)
    contest.run()
    row = contest.row("second")
    assert row.speedup_flops == pytest.approx(200 / 60), "a run that was not counted is in neither sum"
    assert row.speedup_wall == pytest.approx(8.0 / 4.0)
    # a difference of d everywhere is 20 log10(1 / d) dB: 20, 40 and 30
    assert row.quality["psnr"] == pytest.approx(30.0, abs=1e-3)
    assert (row.cache_bytes, row.prompts, row.judge) == (30, 3, None)
    assert contest.error("second") == pytest.approx(10.0 / math.sqrt(3), abs=1e-3)
    uncached, third = contest.row(UNCACHED), contest.row("third")
    assert (uncached.speedup_flops, uncached.speedup_wall, uncached.cache_bytes) == (1.0, 1.0, 0)
    assert third.cache_bytes is None and third.speedup_flops == 5.0
    assert [one.name for one in contest.rows()] == [UNCACHED, *ENTRIES]
    told = contest.measured("third")
    assert (told.prompts, told.seconds, told.cached_bytes, told.speedup_wall) == (3, 1.0, 0, 8.0)
    assert contest.measured("second").cached_bytes == 30 and contest.measured("second").seconds == 4.0
    assert told.speedup_flops == 5.0 and told.quality == third.quality


def test_figures_are_kept_by_all_that_determines_them(
    subject: Subject, tmp_path: Path, runs: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine, the call, the prompt, its place and its seed; and the entry's own settings."""

    def keys(which: Subject = subject, prompts: Any = PROMPTS[:2], **more: Any) -> list[str]:
        return Contest(which, ENTRIES, prompts, tmp_path, **more)._case_keys

    usually = keys()
    others = [
        keys(replace(subject, call={"num_inference_steps": 5})),
        keys(prompts=PROMPTS[1::-1]),
        keys(seed=2),
        keys(prompts=[{"prompt": PROMPTS[0], "width": 8}, {"prompt": PROMPTS[1], "seed": 9}]),
    ]
    monkeypatch.setattr(Setting, "hardware", "another machine")
    found = [key for case in (usually, *others, keys()) for key in case]
    assert len(set(found)) == len(found) == 12
    policies = {"a": fc.FORA(interval=2), "b": fc.FORA(interval=3), "c": FewerSteps(2), "d": FewerSteps(3)}
    assert len(set(Contest(subject, policies, PROMPTS[:1], tmp_path)._entry_keys.values())) == 5


def test_another_machines_seconds_are_not_taken_for_ones_own(
    subject: Subject, tmp_path: Path, runs: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    Contest(subject, ENTRIES, PROMPTS[:1], tmp_path, keep=0).run()
    monkeypatch.setattr(Setting, "hardware", "another machine")
    runs.figures = lambda name, i: usual(name, i) | {"seconds": 9.0}
    again = Contest(subject, ENTRIES, PROMPTS[:1], tmp_path, keep=0)
    assert again.missing(0) == [UNCACHED, *ENTRIES] and again.figures("second") == []
    again.run()
    assert [one["seconds"] for one in again.figures("second")] == [9.0]
    assert again.measured("second").hardware == "another machine"


def test_a_run_that_was_not_timed_is_missing_where_time_counts(subject: Subject, tmp_path: Path, runs: Ran) -> None:
    runs.figures = lambda name, i: usual(name, i) | {"seconds": None if name == "third" else 1.0}
    untimed = Contest(subject, ENTRIES, PROMPTS[:3], tmp_path, keep=0, timed=False)
    untimed.run()
    assert all(counted for _, _, counted in runs.done), "every run is counted where none is timed"
    assert untimed.row("third").speedup_wall is None and untimed.row("second").speedup_wall == 1.0
    assert [untimed.missing(i) for i in range(3)] == [[]] * 3
    timed = Contest(subject, ENTRIES, PROMPTS[:3], tmp_path, keep=0)
    assert [timed.missing(i) for i in range(3)] == [["third"]] * 3 and len(timed.figures("third")) == 0
    more = Contest(subject, ENTRIES, PROMPTS[:3], tmp_path, keep=0, metrics=("tpsnr",))
    assert more.metrics == ("psnr", "ssim", "tpsnr") and more.missing(0) == [UNCACHED, *ENTRIES]


def test_quality_is_told_the_prompt_of_its_own_run(
    subject: Subject, tmp_path: Path, runs: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, ...]] = []

    def measure(videos: Any, references: Any, metrics: Any, prompts: Any) -> dict[str, Any]:
        told.append(tuple(prompts))
        assert torch.equal(references, torch.full_like(videos, 0.5))
        return {name: torch.arange(float(len(videos))) for name in metrics}

    monkeypatch.setattr(module, "measure", measure)
    runs.figures = lambda name, i: usual(name, i) | {"level": 0.5 if name == UNCACHED else 0.7}
    contest = Contest(subject, ENTRIES, PROMPTS[:2], tmp_path, keep=0)
    contest.run()
    assert told == [(PROMPTS[0],) * 3, (PROMPTS[1],) * 3]
    for i, prompt in enumerate(PROMPTS[:2]):
        order = runs.order(prompt)
        assert all(contest.figures(name)[i]["quality"]["psnr"] == order.index(name) for name in order)


def test_what_a_heat_gave_is_on_the_disk_before_the_next(
    subject: Subject, tmp_path: Path, runs: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAT", 1)

    def stops(name: str, i: int) -> dict[str, Any]:
        if name == "third":
            raise KeyboardInterrupt
        return usual(name, i)

    runs.figures = stops
    with pytest.raises(KeyboardInterrupt):
        Contest(subject, ENTRIES, PROMPTS[:1], tmp_path, keep=0).run()
    assert Contest(subject, ENTRIES, PROMPTS[:1], tmp_path, keep=0).missing(0) == ["third"]


def test_captions_alone_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastercache.experiments.reference.judges import Judge

    told: list[list[str]] = []

    def load() -> Any:
        return SimpleNamespace(score=lambda videos, prompts: (told.append(prompts), SimpleNamespace(all=[1, 0]))[1])

    monkeypatch.setattr(Judge, "load", load)
    videos, ours = torch.zeros(2, 1, 3, 8, 8), Subject("tiny", None, {}, reference=True)
    assert module.judged(ours, videos, list(PROMPTS[:2])) == [True, False] and told == [list(PROMPTS[:2])]
    assert module.judged(ours, videos, [PROMPTS[0], "a cat"]) is None
    assert module.judged(replace(ours, reference=False), videos, list(PROMPTS[:2])) is None and len(told) == 1


def test_the_error_of_one_prompt_is_none_to_speak_of(subject: Subject, tmp_path: Path, runs: Ran) -> None:
    runs.figures = lambda name, i: usual(name, i) | {"level": 0.5 if name == UNCACHED else 0.6 - 0.09 * i}
    one = Contest(subject, ENTRIES, PROMPTS[:1], tmp_path, keep=0)
    one.run()
    assert one.error("second") == 0.0
    two = Contest(subject, ENTRIES, PROMPTS[:2], tmp_path, keep=0)
    two.run()
    # 20 and 40 dB: a standard deviation of 20 / sqrt(2), over sqrt(2)
    assert two.error("second") == pytest.approx(10.0, abs=1e-3)


def test_what_the_judges_say_is_a_share(
    subject: Subject, tmp_path: Path, runs: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "judged", lambda subject, videos, prompts: [bool(video.mean() > 0.55) for video in videos]
    )
    runs.figures = lambda name, i: usual(name, i) | {"level": 0.6 if name == "second" and i else 0.5}
    contest = Contest(subject, ENTRIES, PROMPTS[:3], tmp_path, keep=0)
    contest.run()
    assert contest.row("second").judge == pytest.approx(2 / 3) and contest.row("third").judge == 0.0


def test_only_a_lenient_contest_goes_on_without_an_entry(subject: Subject, tmp_path: Path, runs: Ran) -> None:
    def refusing(which: str) -> Callable[[str, int], dict[str, Any]]:
        def figures(name: str, i: int) -> dict[str, Any]:
            if name == which:
                raise Refused("not on this one")
            return usual(name, i)

        return figures

    runs.figures = refusing("third")
    with pytest.raises(Refused):
        Contest(subject, ENTRIES, PROMPTS[:2], tmp_path, keep=0).run()
    contest = Contest(subject, ENTRIES, PROMPTS[:2], tmp_path, keep=0, lenient=True)
    contest.run()
    assert contest.refusal("third") == "not on this one" and contest.refusal("second") is None
    assert [row.name for row in contest.rows()] == [UNCACHED, "second"] and contest.figures("third") == []
    assert contest.missing(0) == contest.missing(1) == []
    runs.figures = refusing(UNCACHED)
    with pytest.raises(Refused):
        Contest(subject, ENTRIES, PROMPTS[2:4], tmp_path, keep=0, lenient=True).run()


def test_a_figure_that_was_there_stays_where_its_heats_uncached_run_is_repeated(
    subject: Subject, tmp_path: Path, runs: Ran
) -> None:
    Contest(subject, {"second": ENTRIES["second"]}, PROMPTS[:1], tmp_path, keep=0).run()
    runs.figures = lambda name, i: usual(name, i) | {"seconds": 5.0}
    both = Contest(subject, ENTRIES, PROMPTS[:1], tmp_path, keep=0)
    assert both.missing(0) == ["third"]
    runs.done.clear()
    both.run()
    assert sorted(runs.order(PROMPTS[0])) == sorted([UNCACHED, "third"])
    assert [both.figures(name)[0]["seconds"] for name in (UNCACHED, "second", "third")] == [1.0, 1.0, 5.0]
    assert both.figures("third")[0]["seconds_uncached"] == 5.0


# -- what is on the disk -----------------------------------------------------------------------------------------------
FIGURES = {
    "seconds": 1.0, "seconds_uncached": 2.0, "flops": 1, "flops_full": 2, "cache_bytes": 0, "judge": None,
}  # fmt: skip


def case(**run: Any) -> dict[str, Any]:
    return {"prompt": "one", "seed": 3, "runs": {"key": run}}


def test_runs_of_an_older_file_keep_their_quality() -> None:
    old = CaseRuns.model_validate(case(**FIGURES, psnr=30.0, ssim=0.9, lpips=None))
    assert old.runs["key"]["quality"] == {"psnr": 30.0, "ssim": 0.9} and "psnr" not in old.runs["key"]
    assert CaseRuns.model_validate(case(**FIGURES, quality={"psnr": 30.0})).runs["key"]["quality"] == {"psnr": 30.0}
    assert CaseRuns.model_validate(case(refused="why")).runs["key"] == {"refused": "why"}


@pytest.mark.parametrize(
    "run",
    [
        FIGURES,  # without quality
        {**FIGURES, "quality": [30.0]},
        {"quality": {"psnr": 30.0}},
        {"refused": 3},
        {**FIGURES, "quality": {"psnr": 30.0}, "refused": None},
    ],
)
def test_runs_that_lack_figures_are_no_runs(run: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(ValueError, match="runs"):
        CaseRuns.model_validate(case(**run))
    (tmp_path / "runs.json").write_text(json.dumps({"cases": {"a": case(**run)}}))
    assert stored(tmp_path) == {}
    assert "all is run again" in capsys.readouterr().err and not (tmp_path / "runs.json").exists()


@pytest.mark.parametrize("runs", [None, [], "text", 3])
def test_runs_of_another_kind_are_refused_in_words(runs: Any) -> None:
    with pytest.raises(ValueError, match="runs"):
        Runs.model_validate({"cases": {"a": {"prompt": "one", "seed": 3, "runs": runs}}})


def test_a_folder_without_runs_holds_none_and_one_with_them_those(tmp_path: Path) -> None:
    assert stored(tmp_path) == {}
    there = {"a": case(**FIGURES, quality={"psnr": 30.0})}
    (tmp_path / "runs.json").write_text(json.dumps({"cases": there}))
    assert stored(tmp_path) == there


def test_a_key_depends_on_nothing_but_the_values() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert len(digest([])) == 16

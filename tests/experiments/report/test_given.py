"""What a report is made from: folders are recognised, and what does not belong together is refused in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastercache.experiments.cli import app
from fastercache.experiments.jobs import reporting
from fastercache.experiments.report import maps
from fastercache.experiments.report.given import Given, given
from fastercache.experiments.report.page import ReportTooLarge, page
from fastercache.policies.errors import ConfigUnreadable
from tests.experiments.report.conftest import STEPS, Made

BENCH = Path(__file__).resolve().parents[3] / "docs" / "bench" / "latte-digits"


def test_every_kind_is_recognised(made: Made, found: Given) -> None:
    assert [kind for kind, _ in found.sources] == ["planning folder", "tuned config", "profile"]
    assert found.planning is not None and found.planning.profile.trajectory.runs == 2
    named = {rival.name: rival.group for rival in found.rivals}
    assert named == {"planned": "planned", "4 of 12 steps": "fewer steps"}
    (plan,) = (rival for rival in found.rivals if rival.group == "planned")
    assert found.planning.planned is not None and plan.computed == found.planning.planned.computed
    alone = given([made.folder / "planning" / "front.json"])
    assert alone.planning is not None and alone.planning.planned is None and alone.profile is None
    (recording, _) = sorted((made.folder / "planning" / "references").glob("trajectory-*.json"))
    single = given([recording]).planning
    assert single is not None and single.profile.trajectory.runs == 1 and single.front is None
    bench = given([BENCH])
    assert bench.bench is not None and {rival.group for rival in bench.rivals} >= {"fewer steps", "published"}
    assert all(rival.speedup >= 1.005 or rival.group == "fewer steps" for rival in bench.rivals)


def test_a_demo_folder_is_all_of_it(made: Made, tmp_path: Path) -> None:
    """A demo's folder holds planning, profile and tuned config below it, and its table."""
    for name in ("planning", "profile"):
        shutil.copytree(made.folder / name, tmp_path / name)
    shutil.copy(made.folder / "tuned.json", tmp_path)
    row = {
        "name": "FasterCache (paper)",
        "speedup_flops": 1.5,
        "psnr": 40.0,
        "prompts": 3,
        "policy": {"policy": "faster_cache"},
    }
    fewer = row | {"name": "6 steps, no cache", "policy": {"policy": "no_cache"}}
    bare = row | {"name": "uncached", "policy": {}}
    (tmp_path / "demo.json").write_text(json.dumps({"rows": [bare, row, fewer]}))
    found = given([tmp_path])
    assert {kind for kind, _ in found.sources} == {"planning folder", "profile", "demo", "tuned config"}
    assert [(r.name, r.group) for r in found.rivals if r.source == "demo"] == [
        ("FasterCache (paper)", "published"),
        ("6 steps, no cache", "fewer steps"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nothing", "there is nothing at .*: give a folder of `plan`"),
        ("empty", "holds nothing that a report can show"),
        ("twice", "both hold a planning folder: give one of them"),
        ("no recordings", "holds a front but no recording that it was planned from"),
        ("tuned alone", "shows nothing: give its planning folder too"),
        (
            "other steps",
            "the bench is of latte-digits at 50 steps, the planning folder of .* at 12",
        ),
        ("other model", "the feature profile is of OtherModel at 12 steps"),
    ],
)
def test_what_cannot_be_shown_is_refused(made: Made, tmp_path: Path, change: str, words: str) -> None:
    paths = made.paths
    if change == "nothing":
        paths = [tmp_path / "gone"]
    elif change == "empty":
        paths = [tmp_path]
    elif change == "twice":
        shutil.copytree(made.folder / "planning", tmp_path / "planning")
        paths = [made.folder / "planning", tmp_path / "planning"]
    elif change == "no recordings":
        shutil.copy(made.folder / "planning" / "front.json", tmp_path)
        paths = [tmp_path]
    elif change == "tuned alone":
        paths = [made.folder / "tuned.json"]
    elif change == "other steps":
        paths = [*paths, BENCH]
    else:
        other = shutil.copytree(made.folder / "profile", tmp_path / "profile")
        info = json.loads((other / "profile.json").read_text())
        info["model"]["kind"] = "OtherModel"
        (other / "profile.json").write_text(json.dumps(info))
        paths = [*paths[:2], other]
    with pytest.raises(ConfigUnreadable, match=words) as error:
        given(paths)
    assert "\n" not in str(error.value)


def test_the_command_writes_one_file_and_says_so(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    ran = CliRunner().invoke(app, ["report", *map(str, made.paths), "--out", str(out), "--json"])
    assert ran.exit_code == 0, ran.output
    answer = json.loads(ran.stdout)
    assert answer["report"] == str(out) and answer["bytes"] == out.stat().st_size
    assert set(answer["from"]) == {"planning folder", "tuned config", "profile"}
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "gone"), "--out", str(out)])
    assert refused.exit_code == 2


def test_nothing_in_the_data_or_the_words_ends_a_script_or_an_element(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "pictures", lambda found: [])
    nasty = "</script><script>alert(1)</script><!-- $style \u2028"
    out = tmp_path / "report.html"
    reporting.report(made.paths, out, title=nasty, show=False)
    assert "<script>alert" not in out.read_text("utf-8")
    text = page("t", "l", {"words": nasty}, "", [])
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None and json.loads(data[1]) == {"words": nasty} and "<" not in data[1]


def test_a_page_that_would_be_too_large_is_refused() -> None:
    with pytest.raises(ReportTooLarge, match="at most 5,000,000"):
        page("t", "l", {"words": "x" * 5_000_000}, "", [])


def test_of_many_sites_the_page_holds_groups_and_an_even_choice(found: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = found.profile
    assert profile is not None
    everything, nothing_left = maps.of_profile(profile)
    groups = [name for name, _ in profile.groups()]
    assert nothing_left == ""
    room = sum(len(text) for entry in everything for text in entry["values"].values()) - 1
    monkeypatch.setattr(maps, "MOST", room)
    fewer, note = maps.of_profile(profile)
    assert re.fullmatch(r"\d+ of \d+ single sites are left out to keep the file small", note)
    assert sum(len(text) for entry in fewer for text in entry["values"].values()) <= room
    labels = {entry["label"].split(",")[0] for entry in fewer}
    assert labels >= {name for name in groups if name != "branch"} and len(fewer) < len(everything)
    assert reporting.island(found)["maps"]["note"] == note and fewer[0]["steps"] == STEPS

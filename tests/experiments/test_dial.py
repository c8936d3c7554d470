"""A dial on the command line: plans in one file, each the one that is found alone; picked, certified, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fastercache as fc
from fastercache.experiments import cli
from fastercache.experiments.jobs import certifying

pytestmark = pytest.mark.usefixtures("loaded_once")

STEPS = 6
MODEL = ["latte-digits", "--steps", str(STEPS)]
PLAN = ["plan", *MODEL, "--effort", "0", "--count", "1", "--held-out-count", "2", "--json"]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def refused(result: Result, said: str) -> bool:
    return result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dial")


@pytest.fixture(scope="module")
def planned(folder: Path, loaded_once: None) -> Any:
    """What `plan` for two speedups says; its dial is `dial.json` in the folder."""
    speedups = ["--speedup", "3", "--speedup", "2"]
    result = run(*PLAN, *speedups, "--study", folder / "study", "--out", folder / "dial.json")
    assert result.exit_code == 0, result.stderr
    assert "the price: at most 19 uncached generations' worth" in result.stderr  # 1 + 2 x (10 - 1)
    found = json.loads(result.stdout)
    assert found["generations"] <= 19
    return found


@pytest.fixture
def path(planned: Any, folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(folder / "dial.json", tmp_path / "dial.json"))


def test_it_holds_what_was_measured(planned: Any, folder: Path) -> None:
    dial = fc.Dial.load(folder / "dial.json")
    assert planned["files"]["dial"] == str(folder / "dial.json")
    assert [plan.speedup for plan in dial.plans] == [2.0, 3.0]
    for plan, answer in zip(dial.plans, reversed(planned["plans"]), strict=True):
        assert fc.dump(plan.policy)["computed"] == answer["computed_steps"]
        assert plan.measured.held_out is not None and plan.measured.held_out.quality["psnr"] == answer["psnr"]
        assert sum(plan.values["psnr"]) / 2 == pytest.approx(answer["psnr"])
        assert answer["fewer_steps"][0]["policy"]["num_inference_steps"] == STEPS / plan.speedup


def test_each_plan_is_the_one_that_is_found_alone(planned: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "study" / "references", tmp_path / "study" / "references")  # the same recordings
    result = run(
        *PLAN,
        "--speedup",
        "2",
        "--held-out-count",
        "0",
        "--study",
        tmp_path / "study",
        "--out",
        tmp_path / "tuned.json",
    )
    assert result.exit_code == 0, result.stderr
    assert fc.load(tmp_path / "tuned.json").policy == fc.load(folder / "dial.json", speedup=2).policy


def test_generate_picks_from_it(path: Path, tmp_path: Path) -> None:
    generate = ["generate", *MODEL, "a red one moving up", "--json", "--out", tmp_path]
    for words, speedup in ((["--speedup", "2.5"], 3.0), (["--quality", "low"], None), (["--budget", "psnr>=1"], 3.0)):
        result = run(*generate, "--config", path, *words)
        assert result.exit_code == 0, result.stderr
        wanted = fc.load(
            path, **{words[0].removeprefix("--"): float(words[1]) if speedup and "sp" in words[0] else words[1]}
        )
        assert json.loads(result.stdout)["speedup_flops"] == (speedup or wanted.steps / len(wanted.policy.computed))
    assert refused(run(*generate, "--config", path), "found none of them")
    assert refused(
        run(*generate, "--config", path, "--speedup", "9"), "no plan of this dial is 9x as fast: it holds 2.00x"
    )
    assert refused(run(*generate, "--speedup", "2"), "give it with --config FILE")
    assert refused(run(*generate, "--uncached", "--quality", "low"), "leave out")


def test_what_takes_one_plan_takes_one_out_of_it(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    assert run("export", path, "--speedup", "3", "--out", out).exit_code == 0
    assert fc.load(out) == fc.load(path, speedup=3)
    assert run("export", path, "--speedup", "3", "--to", "python", "--out", tmp_path / "cached.py").exit_code == 0
    assert refused(run("export", path, "--to", "python"), "pick one by speedup, budget or quality")
    assert refused(run("export", path), "pick one by speedup, budget or quality")
    assert refused(run("export", tmp_path, "--speedup", "3"), "pick from a dial")
    assert refused(run("report", path), f"take it out with fastercache export {path}")
    assert refused(run("attribute", "latte-digits", "--config", path), "pick one by speedup, budget or quality")


@pytest.mark.parametrize(("fails", "sure"), [(None, [True, True]), ((0, 3), [True, False])])
def test_every_plan_that_passes_gets_a_certificate(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any, sure: list[bool]
) -> None:
    """They are tested in one fixed sequence, the slowest first, so all that pass are certified together."""
    bound = 1.0
    if fails is not None:  # between the two plans
        slow, fast = (plan.expected.quality["psnr"] for plan in fc.Dial.load(path).plans)
        bound = (slow + fast) / 2
        assert fast < slow
    monkeypatch.setattr(certifying, "misses", lambda budget, value: value["psnr"] < bound)
    certify = ["certify", *MODEL, path, "--rate", "0.5", "--level", "0.5", "--study", tmp_path / "study", "--json"]
    assert refused(run(*certify), "names no budget")
    result = run(*certify, "--budget", "psnr>=1")
    assert result.exit_code == 0, result.stderr
    dial = fc.Dial.load(path)
    assert [plan.certificate is not None for plan in dial.plans] == sure
    found = json.loads(result.stdout)
    assert found["file"] == str(path) and found["certified"] == f"{path} at {3 if all(sure) else 2}.00x"


def test_a_dial_is_certified_alone(path: Path, tmp_path: Path) -> None:
    one = fc.load(path, speedup=2).save(tmp_path / "tuned.json")
    assert refused(
        run("certify", *MODEL, path, one, "--budget", "psnr>=1"), "is a dial, whose plans are certified together"
    )


def test_several_budgets_make_a_dial_too(planned: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "study", tmp_path / "study")
    words = ["--budget", "psnr>=20", "--budget", "psnr>=10", "--margin", "0", "--held-out-count", "0"]
    result = run(*PLAN, *words, "--study", tmp_path / "study", "--out", tmp_path / "dial.json")
    assert result.exit_code == 0, result.stderr
    assert "the budget psnr>=20 means" in result.stderr and "the budget psnr>=10 means" in result.stderr
    dial = fc.Dial.load(tmp_path / "dial.json")
    for budget in ("psnr>=20", "psnr>=10"):
        found = dial.pick(budget=budget)
        assert found.measured.search is not None and found.measured.search.quality["psnr"] >= float(budget[6:])
    both = run(*PLAN, "--budget", "psnr>=20", "--speedup", "2", "--out", tmp_path / "x.json")
    assert refused(both, "one of the two")

"""Files that the project wrote before its packages moved under one name still load and still do the same.

`older/` was written by the code as it was then: a tuned config and its study (`tune latte-digits --budget 'psnr>=20'
--steps 4 --count 1 --trials 3`), the schedule of a run of FasterCache, and a policy that composes two.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fastercache as fc
from fastercache.experiments import cli, reference
from fastercache.experiments.pipelines import open_pipeline

pytestmark = pytest.mark.usefixtures("loaded_once")

OLDER = Path(__file__).parent / "older"


def read(name: str) -> Any:
    return json.loads((OLDER / name).read_text(encoding="utf-8"))


def outcome(policy: Any) -> dict[str, float]:
    """What a policy does to the run that the older code made."""
    pipe = open_pipeline("latte-digits").pipe
    call = reference.GENERATION["latte-digits"].kwargs() | {"num_inference_steps": 4}
    noise = torch.Generator().manual_seed(0)
    with fc.attach(pipe, policy) as session:
        frames = pipe("a red seven moving left", generator=noise, output_type="pt", **call).frames
        trace = session.last
    return {
        "speedup_flops": trace.speedup_flops,
        "mean": float(frames.float().mean()),
        "cached_bytes": trace.cached_bytes,
    }


@pytest.mark.parametrize("name", ["tuned", "schedule", "compose"])
def test_a_policy_does_what_it_did(name: str) -> None:
    policy = str(OLDER / "tuned.json") if name == "tuned" else fc.load_policy(read(f"{name}.json"))
    assert outcome(policy) == pytest.approx(read("outcomes.json")[name], rel=1e-4)


def test_the_published_policy_does_what_it_did() -> None:
    assert outcome(fc.FasterCache(start=0.0)) == pytest.approx(read("outcomes.json")["fastercache"], rel=1e-4)


def test_an_older_tuned_config_keeps_what_was_measured() -> None:
    config, file = fc.load(OLDER / "tuned.json"), read("tuned.json")
    for part in ("search", "held_out"):
        measured = getattr(config.measured, part)
        assert measured.quality["psnr"] == file["measured"][part]["psnr"] and measured.prompts == 1
        assert measured.speedup_flops == file["measured"][part]["speedup_flops"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A copy of the older study, its journal (one JSON object a line) under its own name."""
    folder = Path(shutil.copytree(OLDER / "study", tmp_path / "study"))
    return (folder / "study.jsonl").rename(folder / "study.journal").parent


def run(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli.app, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_an_older_study_is_exported(study: Path, tmp_path: Path) -> None:
    run("export", str(study), "--out", str(tmp_path / "again.json"))
    assert fc.load(tmp_path / "again.json").policy == fc.load(OLDER / "tuned.json").policy


@pytest.mark.slow
def test_an_older_study_goes_on_where_it_stopped(study: Path, tmp_path: Path) -> None:
    words = ["tune", "latte-digits", "--budget", "psnr>=20", "--steps", "4", "--count", "1"]
    found = run(*words, "--trials", "4", "--study", str(study), "--out", str(tmp_path / "more.json"))
    assert found["trials"] > 4, "the four that the older code made, and another"

"""A package of somebody else's is installed: what it adds, of every kind, goes through the commands by name.

The package stands in `package/`, with its entry points, as pip would leave it; nothing of ours knows it. The commands
run on a pipeline whose denoiser is its own, too.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastercache as fc
from fastercache import zoo
from fastercache.analysis.calibrate import Calibration
from fastercache.analysis.record import record
from fastercache.experiments import pipelines
from fastercache.model import families
from fastercache.tuner import SearchSpace, default_seeds
from tests.experiments.test_third_party import answer, run

PACKAGE = Path(__file__).parent / "package"
CALL = ["--steps", "5"]
for _argument in ("height=32", "width=32", "video_length=4", "clean_caption=false"):
    CALL += ["--call", _argument]
PROMPT = "a red seven moving left"
LOAD = functools.cache(pipelines._load)


@pytest.fixture(autouse=True)
def installed(own_registry: None, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is on the path and nothing of it is imported, as in a new process."""
    monkeypatch.syspath_prepend(PACKAGE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "morecache"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(pipelines, "_load", LOAD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline saved with the package's denoiser: Latte's in everything else."""
    place = tmp_path_factory.mktemp("pipe")
    latte = zoo.build("latte").pipe
    with pytest.MonkeyPatch.context() as patch, zoo.specimen.seeded():
        patch.syspath_prepend(PACKAGE)
        denoiser = importlib.import_module("morecache.frames").FramesTransformer3DModel().eval()
    type(latte)(**{**latte.components, "transformer": denoiser}).save_pretrained(place)
    return str(place)


@pytest.fixture
def prompts(tmp_path: Path) -> Iterator[list[str]]:
    """The options that name prompts to work on and held-out ones."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([PROMPT, "a blue two moving right", "a green one moving up", "a six"]))
    yield ["--prompts", str(path), "--count", "1"]


def test_generate_knows_the_static_rule_and_the_predictor_that_needs_the_input(folder: str, tmp_path: Path) -> None:
    fields = ["--set", "sites=denoiser", "--set", 'stand_in={"predictor":"drifting","weight":0.3}']
    found = answer("generate", folder, PROMPT, *CALL, "--policy", "thirds", *fields, "--out", str(tmp_path))
    assert found["policy"]["stand_in"] == {"predictor": "drifting", "weight": 0.3} and found["speedup_flops"] > 1.5
    refused = run("generate", folder, PROMPT, *CALL, "--policy", "thirds", "--set", 'stand_in={"predictor":"driftin"}')
    assert refused.exit_code == 2 and "did you mean 'drifting'" in refused.stderr


def test_generate_knows_the_watching_rule_and_its_signal(folder: str, tmp_path: Path) -> None:
    words = ["generate", folder, PROMPT, *CALL, "--policy", "steady", "--out", str(tmp_path), "--set", "threshold=1.0"]
    found = answer(*words)
    assert found["policy"] == {"policy": "steady", "watched": "spread", "threshold": 1.0} and found["speedup_flops"] > 1
    refused = run(*words, "--set", "watched=spred")
    assert refused.exit_code == 2 and "no signal is called 'spred'; did you mean 'spread'?" in refused.stderr
    needed = run("generate", folder, PROMPT, *CALL, "--policy", "aligned_cache", "--out", str(tmp_path))
    assert needed.exit_code == 2 and "aligned_cache needs turns measured on this very model" in needed.stderr


def test_tune_calibrates_searches_and_judges_and_the_tuned_file_applies(
    folder: str, tmp_path: Path, prompts: list[str]
) -> None:
    study, tuned = tmp_path / "study", tmp_path / "tuned.json"
    words = ["tune", folder, *CALL, "--policy", "aligned_cache", "--budget", "warmth<=0.9", "--trials", "2", *prompts]
    found = answer(*words, "--metric", "warmth", "--study", str(study), "--out", str(tuned))
    (calibration,) = study.rglob("calibration.json")
    turns = Calibration.load(calibration).own("aligned_cache")["turn"]
    assert found["policy"]["turns"] == list(turns[0]) and turns[0][0] == 0.0 < min(turns[0][1:])
    assert 0.0 <= found["warmth"] <= 0.9
    applied = answer("generate", folder, PROMPT, *CALL, "--config", str(tuned), "--out", str(tmp_path / "out"))
    assert applied["policy"] == found["policy"]


@pytest.mark.slow
def test_tune_weighs_the_predictor(folder: str, tmp_path: Path, prompts: list[str]) -> None:
    fields = ["--set", "sites=denoiser", "--set", 'stand_in={"predictor":"drifting"}', "--set", "pace=2"]
    words = ["tune", folder, *CALL, "--policy", "thirds", "--budget", "psnr>=1", "--trials", "2", *prompts, *fields]
    found = answer(*words, "--study", str(tmp_path / "study"), "--out", str(tmp_path / "tuned.json"))
    assert found["policy"]["stand_in"]["predictor"] == "drifting" and found["speedup_flops"] > 1


@pytest.mark.slow
def test_bench_puts_them_in_its_table(folder: str, tmp_path: Path, prompts: list[str]) -> None:
    words = ["bench", folder, *CALL, "--policies", "thirds,steady,aligned_cache", "--metric", "warmth", "--no-peers"]
    found = answer(*words, *prompts, "--out", str(tmp_path / "bench"))
    lines = {line["label"]: line for line in found["lines"] if line["label"] != "fewer steps"}
    assert set(lines) == {"thirds", "steady", "aligned_cache"}
    assert all(line["refused"] is None and "warmth" in line["quality"] for line in lines.values())
    assert "turns" not in lines["aligned_cache"]["policy"] and lines["aligned_cache"]["policy"]["angle"] == 0.5
    assert json.loads((tmp_path / "bench" / "results.json").read_text())["lines"]


@pytest.mark.parametrize(
    "words",
    [
        ["thirds", "--set", 'stand_in={"predictor":"drifting"}'],
        ["steady", "--set", "threshold=1.0"],
        ["aligned_cache", "--set", "angle=2.0"],
    ],
    ids=lambda words: words[0],
)
def test_check_policy_holds_them_to_the_laws(folder: str, words: list[str]) -> None:
    found = answer("check-policy", *words, "--pipe", folder, *CALL, "--prompt", PROMPT)
    assert found["passed"] and found["pipes"][0]["reused"] > 0


# -- the same from Python ----------------------------------------------------------------------------------------------
@pytest.fixture
def specimen(folder: str) -> Any:
    pipe = LOAD(folder, torch.float32)
    call = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False, "output_type": "latent"}
    return zoo.Specimen("frames", pipe, lambda n: {**call, "prompt": [PROMPT] * n}, steps=5, videos=True)


def test_the_family_says_what_structure_does_not(specimen: Any) -> None:
    with record(specimen.pipe, "stack") as recorder:
        specimen.generate()
        assert recorder.session.guidance == "batched"
    with fc.attach(specimen.pipe, fc.CFGCache(start=0.0)) as session:
        specimen.generate()
        assert session.last.share() > 0, "the unconditional rows are left out"
    families.FAMILIES.pop("FramesTransformer3DModel")
    with pytest.raises(fc.BranchUnknown, match="guidance="):
        fc.attach(specimen.pipe, fc.NoCache())


def test_the_signal_is_computed_from_the_denoisers_input(specimen: Any) -> None:
    """At each step the rule is shown the spread of what the denoiser is called with, branch by branch."""
    called, shown = [], []
    steady = importlib.import_module("morecache.steady").Steady

    class Noting(steady):  # type: ignore[misc, valid-type]
        def reuse(self, state: Any, step: fc.Step, seen: torch.Tensor) -> bool:
            shown.append(float(seen))
            super().reuse(state, step, seen)
            return False

    handle = specimen.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: called.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with fc.attach(specimen.pipe, Noting()) as session:
        specimen.generate()
        assert session.plan().peak > 0
    handle.remove()
    assert shown == pytest.approx([float(row.std()) for x in called for row in x], rel=1e-5)


def test_its_measure_is_taken_over_all_its_sites_branches_and_runs(specimen: Any) -> None:
    """1 - cosine from each step to the next, by hand."""
    values: dict[Any, list[np.ndarray]] = {}
    with fc.attach(specimen.pipe, fc.NoCache()) as session:
        session.watch(
            "attention",
            lambda o: values.setdefault((o.site.name, o.branch), []).append(o.value.flatten().double().numpy()),
        )
        for seed in (0, 1):
            specimen.generate(seed=seed)
    with fc.analysis.calibrate(specimen.pipe, [fc.policy_class("aligned_cache")], lags=2) as calibrator:
        for seed in (0, 1):
            specimen.generate(seed=seed)
    assert all(not comparison._past for comparison in calibrator._comparisons) and calibrator._comparisons
    found = calibrator.result().own("aligned_cache")["turn"]
    for lag in (1, 2):
        expected = np.zeros(5)
        for i in range(lag, 5):
            pairs = [(all_of[run + i], all_of[run + i - lag]) for all_of in values.values() for run in (0, 5)]
            expected[i] = np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
        np.testing.assert_allclose(found[lag - 1], expected, rtol=1e-4, atol=1e-6)


def test_a_setting_that_reuses_nothing_is_tried_first(specimen: Any) -> None:
    thirds = fc.policy_class("thirds")
    seeds = default_seeds(SearchSpace.of("thirds"), fc.find_sites(specimen.pipe))
    assert list(seeds) == ["no_cache", "default"] and seeds["no_cache"] == thirds(pace=1)


def test_the_list_of_policies_tells_their_fields() -> None:
    entries = {entry["name"]: entry for entry in answer("policies")["policies"]}
    assert {"thirds", "steady", "aligned_cache"} <= set(entries)
    (steady,) = answer("policies", "steady")["policies"]
    watched = steady["fields"]["watched"]
    assert watched["default"] == '"spread"' and {'"spread"', '"input"'} <= set(watched["allowed"].split(" | "))

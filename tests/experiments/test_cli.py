"""The command line: results that scripts can read, and one clear line with exit code 2 for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import fastercache as fc
from fastercache.analysis import Profile
from fastercache.experiments import cli
from fastercache.experiments.pipelines import open_pipeline

pytestmark = pytest.mark.usefixtures("loaded_once")

ROOT = Path(__file__).resolve().parents[2]
PIPE = "latte-digits"
ROW = {"speedup_flops", "speedup_wall", "psnr", "ssim", "judge", "cache_bytes", "prompts", "policy"}


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


def answer(*words: str) -> dict[str, Any]:
    """The JSON object a command prints; standard output must hold nothing else."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned config that was made for another denoiser."""
    pipe = open_pipeline(PIPE).pipe
    made = fc.TunedConfig.describe(pipe, fc.FasterCache(), steps=4, guidance_scale=4.0, guidance="batched")
    data = json.loads(made.model_dump_json())
    data["model"]["denoiser"]["kind"] = "CogVideoXTransformer3DModel"
    path = tmp_path_factory.mktemp("foreign") / "tuned.json"
    path.write_text(json.dumps(data))
    return path


# -- what commands answer ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words", [["--help"], ["tune", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """That is what makes it quick: torch alone takes seconds to import."""
    code = (
        "import runpy, sys; sys.argv[0] = 'fastercache'\n"
        "try: runpy.run_module('fastercache.experiments.cli', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'optuna', 'matplotlib', 'sklearn', 'tensorboard'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = ("sites", "generate", "analyze", "tune", "export", "demo", "policies", "check-policy")
    shown = commands if words == ["--help"] else ("--trials", "--budget")
    assert [name for name in shown if f" {name} " not in done.stdout] == []


@pytest.mark.parametrize("name", ["sites", "generate", "analyze", "tune", "export", "demo", "policies", "check-policy"])
def test_each_command_offers_json_and_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout and "Example" in result.stdout


def test_policies_tell_their_fields_and_sources() -> None:
    everything = {entry["name"]: entry for entry in answer("policies")["policies"]}
    assert set(everything) == set(fc.known_policies())
    fields = answer("policies", "static_interval")["policies"][0]["fields"]
    assert fields["interval"].items() >= {"default": "2", "allowed": "1 to 12 (integer)"}.items()
    assert "Lv et al. 2024" in run("policies", "fastercache").stdout


def test_sites_answers_what_attach_sees() -> None:
    found = answer("sites", PIPE, "--sites", "temporal")
    expected = fc.select("temporal", fc.find_sites(open_pipeline(PIPE).pipe))
    assert [site["name"] for site in found["sites"]] == [site.name for site in expected]
    assert {site["role"] for site in found["sites"]} == {"temporal"}


def test_sites_tells_costs_and_what_was_not_recognised() -> None:
    """The parts of a call add up to it: sites of modules, and what belongs to none."""
    found = answer("sites", PIPE)
    (denoiser,) = found["denoisers"]
    modules = sum(site["flops"] for site in found["sites"] if site["kind"] == "module")
    assert modules + sum(part["flops"] for part in denoiser["not_recognised"]) == denoiser["flops"] > 0
    shown = run("sites", PIPE).stdout
    assert "proj_out" in shown and "not recognised" in shown and "100.0 %" in shown


def test_sites_of_an_unknown_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    """A made-up class is found by structure; a pipeline that cannot be called is told by its parameters, with why."""
    from fastercache.experiments.jobs.catalog import sites
    from fastercache.experiments.pipelines import Subject

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = nn.Linear(4, 4)

    class Madeup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"attn": Attention(), "mlp": nn.Linear(4, 4)}) for _ in range(2))
            self.head = nn.Linear(4, 4)

    class Pipeline:
        transformer = Madeup()

        def __call__(self, colour: str) -> None: ...

    found = sites(Subject("madeup", Pipeline(), {}, False), None, show=True)
    assert [s["role"] for s in found["sites"] if s["kind"] == "module"] == ["spatial", "ff"] * 2
    assert found["denoisers"][0]["not_recognised"][0]["pattern"] == "head" and not found["denoisers"][0]["known"]
    assert "colour" in found["not_counted"]
    shown = capsys.readouterr()
    assert "found by structure" in shown.out and "--call" in " ".join(shown.err.split())


def test_generate_compares_with_the_uncached_video(tmp_path: Path) -> None:
    found = answer(
        "generate", PIPE, "a red seven moving left", "--steps", "4", "--compare", "--out", str(tmp_path),
        "--policy", "static_interval", "--set", "interval=2", "--set", "sites=temporal",
    )  # fmt: skip
    assert set(found) >= ROW
    assert found["policy"]["policy"] == "static_interval" and found["policy"]["sites"] == "temporal"
    assert found["speedup_flops"] > 1 and found["speedup_wall"] > 0 and found["cache_bytes"] > 0
    assert 0 < found["psnr"] <= 100 and found["prompts"] == 1 and found["judge"] in (0.0, 1.0)
    compare, cached = (Image.open(path) for path in found["files"])
    assert (compare.n_frames, cached.n_frames) == (8, 8)
    assert compare.width > 2 * cached.width


def test_generate_takes_prompts_from_a_file_and_can_leave_the_cache_out(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red seven moving left\na blue two moving up\n")
    found = answer("generate", PIPE, "--prompts", str(prompts), "--uncached", "--steps", "2", "--out", str(tmp_path))
    assert found["prompts"] == 2 and len(found["files"]) == 2
    assert found["speedup_flops"] == 1.0 and found["psnr"] is None and found["speedup_wall"] is None


@pytest.mark.slow
def test_a_folder_works_like_the_short_name(tmp_path: Path) -> None:
    from fastercache.experiments import reference

    folder = str(reference.path(PIPE))
    assert len(answer("sites", folder)["sites"]) == len(answer("sites", PIPE)["sites"])


def test_analyze_draws_what_it_tells(tmp_path: Path) -> None:
    found = answer("analyze", PIPE, "a red seven moving left", "--steps", "6", "--inject", "1", "--out", str(tmp_path))
    assert {row["group"] for row in found["changes"]} == {"spatial", "temporal", "denoiser", "branch"}
    assert all(0 < row["least"] <= row["mean"] <= row["most"] for row in found["changes"])
    reusable = {row["group"]: row for row in found["reusable"]}
    assert set(reusable) == {row["group"] for row in found["changes"]}
    assert all(row["fitted"] > 0.0 and row["hold"] > 0.0 for row in reusable.values())
    counted = [row["saves"] for row in found["reusable"] if row["saves"] is not None]
    assert len(counted) == 3 and all(0.0 <= share < 1.0 for share in counted), "none of the guidance difference"
    for name in ("similarity_rel_l1", "similarity_cosine", "redundancy_rel_l1", "guidance"):
        with Image.open(found["files"][name]) as picture:
            assert picture.format == "PNG"
    assert Profile.load(found["files"]["profile"]).runs == 1
    assert list(Path(found["files"]["tensorboard"]).rglob("events.out.tfevents.*"))
    sensitivity = found["sensitivity"]
    assert sensitivity["groups"] == {"spatial": 4, "temporal": 4, "denoiser": 1}, "nothing goes into the difference"
    assert sensitivity["steps"] == [1] and sensitivity["runs"] == 3 and sensitivity["generations"] < 4.0
    assert all(value > 0.0 for [value] in sensitivity["video"]) and len(sensitivity["computed"]) == 1
    assert sensitivity["error"] == "hold" and sensitivity["size"] is None
    for name, row in reusable.items():
        assert (row["psnr"] is None) == (name == "branch" or row["first"] is None)
    assert json.loads(Path(found["files"]["sensitivity"]).read_text("utf-8")) == sensitivity


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A small study, and what `tune` answered."""
    folder = tmp_path_factory.mktemp("tune")
    return folder, answer(*tuning(folder))


def tuning(folder: Path, *more: str) -> list[str]:
    return [
        "tune", PIPE, "--budget", "psnr>=20", "--steps", "8", "--count", "2", "--trials", "3",
        "--study", str(folder / "study"), "--out", str(folder / "tuned.json"), *more,
    ]  # fmt: skip


def test_tune_reports_search_and_held_out_figures(study: tuple[Path, dict[str, Any]]) -> None:
    folder, found = study
    assert set(found) >= ROW
    assert found["measured_on"] == "held-out prompts" and found["prompts"] == 2
    assert found["search"]["psnr"] >= 20 and found["search"]["prompts"] == 2
    assert found["speedup_flops"] > 1 and found["judge"] is not None
    assert found["kept_on_held_out"] is (found["psnr"] >= float(found["budget"].removeprefix("psnr>=")))
    fewer = found["fewer_steps"]
    below, above = (row["speedup_flops"] for row in reversed(fewer["rows"]))
    assert fewer["beaten"] in ("yes", "no", "undecided") and below <= found["speedup_flops"] * 1.001 < above * 1.002
    assert fewer["low"] <= fewer["difference"] <= fewer["high"]
    tuned = fc.load(folder / "tuned.json")
    assert fc.dump(tuned.policy) == found["policy"] and tuned.steps == 8
    assert tuned.measured.held_out is not None and tuned.measured.held_out.quality["psnr"] == pytest.approx(
        found["psnr"]
    )


def test_tune_resumes_and_makes_no_trial_twice(study: tuple[Path, dict[str, Any]]) -> None:
    folder, found = study
    again = answer(*tuning(folder))
    assert (again["trials"], again["policy"]) == (found["trials"], found["policy"])


def test_a_study_of_something_else_is_refused(study: tuple[Path, dict[str, Any]]) -> None:
    line = refused(*tuning(study[0], "--set", "order=0"))
    assert "fields" in line and "--study" in line


def test_export_writes_the_same_config_from_the_study_alone(study: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    found = answer("export", str(study[0] / "study"), "--out", str(tmp_path / "again.json"))
    assert fc.load(tmp_path / "again.json").policy == fc.load(study[0] / "tuned.json").policy
    assert found["psnr"] == study[1]["psnr"]
    assert "trial 999" in refused("export", str(study[0] / "study"), "--trial", "999")


@pytest.mark.slow
def test_several_policies_are_tuned_at_once(tmp_path: Path) -> None:
    words = tuning(tmp_path, "--policy", "foca", "--policy", "magcache", "--set", "foca.start=0.0")
    found = answer(*words)
    assert found["policy"]["policy"] in ("foca", "magcache") and found["left_out"] == {}
    assert found["policy"]["policy"] != "foca" or found["policy"]["start"] == 0.0
    assert answer("export", str(tmp_path / "study"), "--out", str(tmp_path / "t.json"))["policy"] == found["policy"]
    assert "policy.field" in refused(*tuning(tmp_path, "--policy", "foca", "--policy", "fora", "--set", "start=0.0"))
    assert "did you mean 'threshold'" in refused(*tuning(tmp_path, "--policy", "any", "--set", "teacache.treshold=0.2"))


def test_a_tuned_config_is_applied_from_its_file(study: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    config = str(study[0] / "tuned.json")
    found = answer(
        "generate", PIPE, "a red seven moving left", "--steps", "8", "--config", config, "--out", str(tmp_path)
    )
    assert found["policy"] == study[1]["policy"] and found["speedup_flops"] > 1
    line = refused("generate", PIPE, "x", "--steps", "6", "--config", config, "--out", str(tmp_path))
    assert "8 steps" in line and "6" in line
    words = ["generate", PIPE, "x", "--steps", "6", "--config", config, "--out", str(tmp_path), "--allow", "steps"]
    assert answer(*words)["policy"] == study[1]["policy"]


# -- what can go wrong -------------------------------------------------------------------------------------------------
def refused(*words: str, after: int = 0) -> str:
    """The one line a mistaken command prints on standard error, `after` so many others; it exits 2."""
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == after + 1 and lines[-1].startswith("error: "), result.stderr
    return lines[-1]


def test_unknown_policy() -> None:
    assert "did you mean 'static_interval'" in refused("generate", PIPE, "x", "--policy", "static_intervall")
    assert "no policy is called 'nope'" in refused("policies", "nope")


def test_misspelt_field() -> None:
    assert "did you mean 'cfg_interval'" in refused("generate", PIPE, "x", "--set", "cfg_intervall=4")


def test_value_out_of_range() -> None:
    line = refused("generate", PIPE, "x", "--policy", "static_interval", "--set", "interval=99")
    assert "interval" in line and "12" in line and "99" in line


def test_value_of_the_wrong_type() -> None:
    assert "found 'often'" in refused("generate", PIPE, "x", "--set", "interval=often")


def test_pattern_that_matches_no_site(tmp_path: Path) -> None:
    line = refused("generate", PIPE, "x", "--set", "sites=temporl", "--steps", "2", "--out", str(tmp_path))
    assert "did you mean 'temporal'" in line
    assert "matches none" in refused("sites", PIPE, "--sites", "blocks.99.*")


def test_missing_tuned_config(tmp_path: Path) -> None:
    assert "absent.json" in refused("generate", PIPE, "x", "--config", str(tmp_path / "absent.json"))


def test_truncated_tuned_config(tmp_path: Path, foreign: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text(foreign.read_text()[:200])
    assert "cut.json" in refused("generate", PIPE, "x", "--config", str(path))


def test_json_that_is_no_tuned_config(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"interval": 3}')
    assert "no tuned config" in refused("generate", PIPE, "x", "--config", str(path))


def test_tuned_config_of_another_model(foreign: Path, tmp_path: Path) -> None:
    line = refused("generate", PIPE, "x", "--config", str(foreign), "--steps", "4", "--out", str(tmp_path))
    assert "CogVideoXTransformer3DModel" in line and "LatteTransformer3DModel" in line


def test_unreadable_prompt_file(tmp_path: Path) -> None:
    binary = tmp_path / "prompts.bin"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    assert "prompts.bin" in refused("generate", PIPE, "--prompts", str(binary))
    assert "absent.txt" in refused("generate", PIPE, "--prompts", str(tmp_path / "absent.txt"))


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    assert "model_index.json" in refused("sites", str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "LattePipeline"')
    assert "could not be loaded" in refused("sites", str(tmp_path))
    assert "did you mean 'latte-digits'" in refused("sites", "latte-digit")


def test_unknown_argument_of_the_pipeline() -> None:
    assert "did you mean 'video_length'" in refused("generate", PIPE, "x", "--call", "video_lenght=4")


def test_contradicting_options(tmp_path: Path) -> None:
    assert "--config" in refused("generate", PIPE, "x", "--config", str(tmp_path / "t.json"), "--policy", "no_cache")
    assert "--uncached" in refused("generate", PIPE, "x", "--uncached", "--policy", "no_cache")


def test_too_few_prompts() -> None:
    assert "--count asks for 3" in refused("generate", PIPE, "x", "--count", "3")


def test_budget_that_no_trial_meets(tmp_path: Path) -> None:
    words = tuning(tmp_path, "--set", "interval=8", "--set", "cfg_interval=12")
    line = refused(
        *[word.replace("psnr>=20", "psnr>=99.9") for word in words], after=3
    )  # the budget in words, the price in videos and in seconds
    assert "psnr>=99.9" in line and "closest" in line and not (tmp_path / "tuned.json").exists()


def test_budget_that_cannot_be_read(tmp_path: Path) -> None:
    assert "psnr" in refused(*[word.replace("psnr>=20", "psnr<=20") for word in tuning(tmp_path)])
    assert "no quality metric" in refused(*[word.replace("psnr>=20", "beauty>=1") for word in tuning(tmp_path)])


def test_missing_prompts_and_studies(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    assert "--prompts" in refused("tune", str(tmp_path / "pipe"))
    assert "no study" in refused("export", str(tmp_path))
    (tmp_path / "job.json").write_text('{"pipe": ')
    assert "job.json" in refused("export", str(tmp_path))


def test_errors_have_no_traceback_in_a_real_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastercache.experiments.cli", "policies", "nope", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no policy is called 'nope'") and done.stderr.count("\n") == 1


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastercache.experiments.arguments.choose", interrupted)
    monkeypatch.setattr("fastercache.experiments.jobs.generation.choose", interrupted)
    result = run("generate", PIPE, "x")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "interrupted" in result.stderr

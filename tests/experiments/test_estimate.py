"""`--estimate`: what `plan` and `tune` would cost, counted on a pipeline without weights, equals what they then do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fastercache as fc
from fastercache import zoo
from fastercache.bounds import Limit
from fastercache.experiments import cli, weightless
from fastercache.experiments.jobs import estimating, planning, searching, study_job
from fastercache.experiments.pipelines import Subject, given_prompts, open_pipeline
from fastercache.policies.errors import PipelineUnreadable
from fastercache.tuner import Seconds
from fastercache.tuner.clock import Objective
from fastercache.tuner.planning import material
from fastercache.tuner.planning.planner import EFFORTS
from fastercache.tuner.setting import Setting

STEPS = 8
CALL = {"num_inference_steps": STEPS, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}
PROMPTS, HELD_OUT = ["a red seven", "a blue two"], ["a green nine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline's configuration files and its tokenizer, and no weights."""
    place = tmp_path_factory.mktemp("configuration")
    zoo.build("latte").pipe.save_pretrained(place)
    for file in [*place.rglob("*.safetensors"), *place.rglob("*.bin")]:
        file.unlink()
    return str(place)


def opened(folder: str, **call: Any) -> Subject:
    return open_pipeline(folder, weights=False, **{**CALL, **call})


class Tally:
    """Videos that a pipeline itself makes, and denoiser calls: those in its own videos, and all."""

    def __init__(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.videos = self.calls = self.every = 0
        self._inside = False
        generate, denoiser = Setting.generate, pipe.transformer
        forward = type(denoiser).forward

        def generated(setting: Setting, case: Any) -> Any:
            own, self._inside = self._inside, setting.pipe is pipe
            try:
                video = generate(setting, case)
            finally:
                self._inside = own
            self.videos += setting.pipe is pipe
            return video

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is denoiser:  # FLOPs are counted on copies
                self.every += 1
                self.calls += self._inside
            return forward(module, *args, **kwargs)

        monkeypatch.setattr(Setting, "generate", generated)
        monkeypatch.setattr(type(denoiser), "forward", called)


def test_a_call_without_weights_counts_what_a_real_one_does(folder: str, tmp_path: Path) -> None:
    """FLOPs, denoiser calls, recorded bytes and cached bytes: equal, not close."""
    pipe = zoo.build("latte").pipe
    setting = Setting(pipe, CALL)
    case = setting.cases(PROMPTS)[0]
    with fc.attach(pipe, fc.NoCache()) as session:
        setting.generate(case)
        trace = session.last
    [run] = material.material(material.References(setting, tmp_path), [case]).runs
    kept = [*run.reference.latents, *run.reference.outputs]
    plan = estimating.fullest(STEPS, 5, 1.0)
    with fc.attach(pipe, plan) as session:
        setting.generate(case)
        cached = session.last.cached_bytes

    found = estimating.facts(opened(folder), PROMPTS[0])
    assert (found.calls, found.flops) == (trace.calls, sum(trace.flops_full))
    assert (found.run.branches, found.run.count) == (trace.run.branches, STEPS)
    assert found.recorded == sum(value.numel() * 4 for value in kept) > 0
    assert found.cached == cached > 0
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in modules.items()}
    assert found.weights == {name: 4 * size for name, size in sizes.items()}
    assert found.parameters == sum(sizes.values()) and found.seconds is None


@pytest.mark.slow
def test_plan_makes_as_many_videos_and_calls_as_were_estimated(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"speedups": [2.0], "effort": 0, "show": False}
    told = estimating.plan(opened(folder), PROMPTS, len(HELD_OUT), **words)
    parts = {part["name"]: part for part in told["parts"]}
    assert [name for name, part in parts.items() if part["at_most"]] == ["searching and fitting"]

    pipe = zoo.build("latte").pipe
    tally = Tally(pipe, monkeypatch)
    subject = Subject("tiny", pipe, CALL, reference=False)
    real = planning.plan(
        subject, PROMPTS, held_out=HELD_OUT, folder=tmp_path / "study", out=tmp_path / "tuned.json", **words
    )
    exact = [part for part in told["parts"] if not part["at_most"]]
    assert tally.videos == told["videos"] == sum(part["videos"] for part in exact)
    assert tally.calls == sum(part["calls"] for part in exact)
    assert tally.every - tally.calls <= parts["searching and fitting"]["calls"]
    assert real["generations"] <= (parts["searching and fitting"]["calls"] / STEPS) + len(PROMPTS)
    assert told["flops"] == told["denoiser_calls"] * told["call"]["flops"] / told["call"]["denoiser_calls"]
    assert parts["searching and fitting"]["calls"] == (EFFORTS[0].price(2) - 2) * STEPS


@pytest.mark.slow
def test_tune_makes_as_many_videos_as_were_estimated(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial keeps the budget on all prompts, so that what is said to be the most is what is made."""
    words: dict[str, Any] = {"prompts": tuple(PROMPTS), "held_out": tuple(HELD_OUT), "budget": "psnr>=1"}
    job = study_job.Job(pipe="tiny", policies=("teacache",), call=CALL, **words)
    told = estimating.tune(opened(folder), job, trials=1, show=False)
    assert "measuring constants" in {part["name"] for part in told["parts"]}
    pipe = zoo.build("latte").pipe
    monkeypatch.setattr(study_job.Job, "open", lambda job: Subject("tiny", pipe, CALL, reference=False))
    tally = Tally(pipe, monkeypatch)
    searching.search(job, tmp_path / "study", tmp_path / "tuned.json", trials=1, seconds=None, show=False)
    assert tally.videos == told["videos"]
    assert tally.calls == tally.every <= told["denoiser_calls"]


@pytest.mark.slow
def test_timing_steps_by_the_clock_is_part_of_it(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_clock = estimating.plan(
        opened(folder), PROMPTS, 0, speedups=[2.0], effort=0, objective=Objective.TIME, show=False
    )
    pipe = zoo.build("latte").pipe
    setting = Setting(pipe, CALL)
    tally = Tally(pipe, monkeypatch)
    Seconds.measured(setting, setting.cases(PROMPTS)[0])
    parts = {part["name"]: part for part in by_clock["parts"]}
    assert (parts["timing steps"]["videos"], parts["timing steps"]["calls"]) == (tally.videos, tally.calls)

    words: dict[str, Any] = {"prompts": tuple(PROMPTS), "budget": "psnr>=1", "objective": "time"}
    job = study_job.Job(pipe="tiny", policies=("static_interval",), call=CALL, **words)
    told = estimating.tune(opened(folder), job, trials=1, show=False)
    tally.videos = tally.calls = 0
    known = estimating.facts(opened(folder), PROMPTS[0])
    Seconds.of_kinds(setting, setting.cases(PROMPTS)[0], known.run, ["spatial", "temporal"])
    [timing] = [part for part in told["parts"] if part["name"] == "timing steps"]
    assert timing["videos"] == tally.videos and timing["calls"] >= tally.calls

    everything = estimating.tune(opened(folder), job.model_copy(update={"policies": ("any",)}), trials=1, show=False)
    [more] = [part for part in everything["parts"] if part["name"] == "timing steps"]
    assert more["videos"] > timing["videos"], "more kinds of sites take more runs"


def run(*args: str) -> Any:
    return CliRunner().invoke(cli.app, list(args))


def calls() -> Iterator[str]:
    yield from ("--steps", str(STEPS))
    for argument in ("height=32", "width=32", "video_length=4", "clean_caption=false"):
        yield from ("--call", argument)


def test_the_command_says_what_is_known_and_what_is_not(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setting, "generate", lambda *_: pytest.fail("something was generated"))
    said = run("plan", folder, *calls(), "--speedup", "2", "--effort", "0", "--estimate")
    assert said.exit_code == 0, said.stderr
    out = " ".join(said.stdout.split())
    assert "nothing was generated" in out and "recording 2 prompts" in out
    assert "time: not known, as no speed is: give --tflops N" in out
    assert "beside weights and cache: not known" in out

    fast = json.loads(run("tune", folder, *calls(), "--estimate", "--tflops", "0.5", "--json").stdout)
    assert fast["seconds"] == pytest.approx(fast["flops"] / 0.5e12) and fast["estimated"] is True
    assert sum(part["videos"] for part in fast["parts"]) == fast["videos"]
    idle = run(
        "plan", folder, *calls(), "--speedup", "2", "--estimate", "--workers", "2", "--storage", "sqlite:///a.db"
    )
    assert "note: the estimate is of one process" in idle.stderr and idle.exit_code == 0
    assert "--workers, --storage changes nothing in it" in " ".join(idle.stderr.split())
    tuned = run("tune", folder, *calls(), "--estimate", "--time-limit", "5")
    assert "--time-limit changes nothing in it" in " ".join(tuned.stderr.split())
    refused = run("plan", folder, *calls(), "--speedup", "2", "--tflops", "1")
    assert refused.exit_code == 2 and "give --estimate too" in " ".join(refused.stderr.split())
    for speed in ("0", "1e-300", "1e300", "nan", "-1"):
        refused = run("plan", folder, *calls(), "--speedup", "2", "--estimate", "--tflops", speed)
        assert refused.exit_code == 2 and f"found {float(speed):g}" in refused.stderr
    assert refused.exit_code == 2 and "--tflops is the speed" in " ".join(refused.stderr.split())


def test_without_a_tokenizer_texts_are_as_long_as_the_pipeline_allows(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "bare"
    shutil.copytree(folder, place)
    shutil.rmtree(place / "tokenizer")
    bare = opened(str(place))
    found = estimating.plan(bare, ["a"], 0, speedups=[2.0], effort=0)
    said = " ".join(capsys.readouterr().out.split())
    assert "texts are taken to be as long as the pipeline allows" in said
    longest = estimating.facts(opened(folder), " ".join(["red"] * 300))
    assert found["call"]["flops"] == longest.flops


def test_what_cannot_be_built_or_followed_is_refused_in_a_line(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineUnreadable, match=r"holds no model_index\.json"):
        weightless.load(str(tmp_path), torch.float32)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text(json.dumps({"_class_name": "LattePipeline", "vae": ["diffusers", "Vae"]}))
    with pytest.raises(PipelineUnreadable, match="cannot be built from its configuration") as caught:
        weightless.load(str(broken), torch.float32)
    assert "\n" not in str(caught.value)
    subject = opened(folder)
    monkeypatch.setattr(subject.pipe.scheduler, "set_timesteps", lambda *_, **__: 1 / 0)
    with pytest.raises(PipelineUnreadable, match="cannot be followed without weights: division by zero"):
        estimating.facts(subject, "a")


def test_a_hub_id_fetches_configuration_only(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetched(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    pipe = weightless.load("owner/name", torch.bfloat16)
    assert type(pipe.transformer).__name__ == "LatteTransformer3DModel"
    assert pipe.transformer.dtype is torch.bfloat16
    [(name, patterns)] = asked
    assert name == "owner/name"
    weights = ["transformer/diffusion_pytorch_model.safetensors", "text_encoder/pytorch_model.bin", "unet/model.bin"]
    assert not any(fnmatch(file, pattern) for file in weights for pattern in patterns)
    assert all(any(fnmatch(file, p) for p in patterns) for file in ("model_index.json", "transformer/config.json"))

    def gone(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(PipelineUnreadable, match="could not be fetched: no network"):
        weightless.load("owner/name", torch.float32)


def test_prompts_are_made_up_for_an_estimate_only(tmp_path: Path) -> None:
    assert given_prompts("./model", None, None, 2) == (["a prompt"] * 2, ["another prompt"] * 2)
    with pytest.raises(fc.ConfigUnreadable, match="comes without prompts"):
        given_prompts("./model", None, None)
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\n")
    assert given_prompts("./model", file, None, 5) == (["one", "two"], [])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_of_few_steps_are_estimated(folder: str, steps: int) -> None:
    """A run of fewer steps than a plan combines past outputs caches as many as it has."""
    found = estimating.facts(opened(folder, num_inference_steps=steps), "a")
    assert found.steps == steps
    plan = estimating.fullest(steps, 5, 1.0)
    assert plan.computed == tuple(range(max(1, steps - 1)))
    assert (found.cached > 0) == (steps > 1)
    assert estimating.facts(opened(folder, num_inference_steps=steps), "a", Limit(1e9, "cache<=1GB")) == found


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--speedup", "9"], "no plan of 8 steps is 9x as fast: at most 8x; ask for less"),
        (["--speedup", "9", "--objective", "time"], "no plan of 8 steps is 9x as fast: at most 8x; ask for less"),
        (["--speedup", "2", "--objective", "time", "--steps", "3"], "calls of at least 4, found 3: go by FLOPs"),
        (["--budget", "psnr>=9,time<=1s", "--steps", "3"], "calls of at least 4, found 3: go by FLOPs"),
    ],
)
def test_what_plan_refuses_its_estimate_refuses_and_both_before_anything_is_generated(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], says: str
) -> None:
    said = run("plan", folder, *calls(), *words, "--effort", "0", "--estimate")
    assert said.exit_code == 2 and says in " ".join(said.stderr.split())
    monkeypatch.setattr(Setting, "generate", lambda *_: pytest.fail("something was generated"))
    folders = ["--study", str(tmp_path / "study"), "--out", str(tmp_path / "tuned.json")]
    said = run("plan", "latte-digits", "--steps", str(STEPS), *words, "--effort", "0", *folders)
    assert said.exit_code == 2 and says in " ".join(said.stderr.split())
    assert not (tmp_path / "study").exists()


def test_an_estimate_of_tune_refuses_steps_that_cannot_be_timed(folder: str) -> None:
    said = run("tune", folder, *calls(), "--steps", "3", "--objective", "time", "--estimate")
    assert said.exit_code == 2 and "steps are timed in calls of at least 4, found 3" in said.stderr


def test_a_reference_model_is_timed_in_the_dtype_that_was_asked_for() -> None:
    said = run("plan", "latte-digits", "--steps", "4", "--speedup", "2", "--dtype", "bfloat16", "--estimate", "--json")
    assert said.exit_code == 0, said.stderr
    assert json.loads(said.stdout)["seconds"] > 0

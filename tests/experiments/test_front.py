"""The command line's first minute: what a newcomer does wrong is one line that helps, and nothing eats what it says."""

from __future__ import annotations

import errno
import io
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from rich.console import Console
from torch import nn
from typer.testing import CliRunner, Result

import fastercache as fc
from fastercache.experiments import arguments, cli, console, failures
from fastercache.experiments.jobs import catalog, generation, study_job
from fastercache.policies.errors import InvalidPolicy
from fastercache.tuner import Budget, InvalidBudget
from fastercache.tuner.setting import Case, Setting
from fastercache.zoo.specimen import Specimen


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


def ended_by(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A command in the middle of which something is raised."""

    def raises(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(catalog, "policies", raises)
    return run("policies")


# -- the roof: one place where every error of every command ends ----------------------------------------
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/profile.npz"),
            "out/profile.npz: No space left on device",
        ),
        (FileExistsError(errno.EEXIST, "File exists", "out"), "give another path"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "Permission denied"),
        (MemoryError(), "out of memory"),
        (fc.MissingDependency("pip install 'fastercache[peers]'"), "pip install 'fastercache[peers]'"),
        (fc.ConfigMismatch("or pass allow={'steps'} to use it"), "or pass --allow steps to use it"),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_2(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended_by(error, monkeypatch)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_fault_of_ours_is_reported_with_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = ended_by(KeyError("depth"), monkeypatch)
    assert result.exit_code == 1 and "Traceback" not in result.output and "report" in result.stderr
    (log,) = tmp_path.glob("fastercache-*.log")
    assert str(log) in result.stderr and "KeyError: 'depth'" in log.read_text()


def pipeline_that_raises(where: str) -> DiffusionPipeline:
    """A pipeline whose call raises in code of a module called `where`."""
    module = types.ModuleType(where)
    exec("def check(height):\n    raise ValueError(f'`height` is {height}')", module.__dict__)

    class Toy(DiffusionPipeline):  # type: ignore[misc]
        def __call__(self, height: int) -> None:
            module.check(height)

    return Toy()


def test_what_a_pipeline_refuses_is_the_users_and_what_we_raise_in_it_is_ours() -> None:
    for where, owner in (("diffusers.pipelines.toy", "Toy"), ("fastercache.run.units", None)):
        with pytest.raises(ValueError) as caught:
            pipeline_that_raises(where)(height=33)
        found = failures.refused_by(caught.value)
        assert owner == (None if found is None else type(found).__name__)
    line, code = failures.told(_raised(lambda: pipeline_that_raises("diffusers.pipelines.toy")(height=33)))
    assert code == 2 and "`height` is 33" in line and "--call" in line


def _raised(call: Any) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sites", "latte-digits", "--stepz", "2"), "--stepz"),
        (("siets", "latte-digits"), "siets"),
        (("plan", "latte-digits", "--speedup", "fast"), "fast"),
        (("plan", "latte-digits", "--effort", "9"), "--effort"),
        (("generate",), "PIPE"),
    ],
)
def test_a_command_line_that_no_command_takes_is_one_line_too(words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and said in result.stderr and "--help" in result.stderr


def test_the_bare_name_shows_the_help() -> None:
    result = run()
    assert result.exit_code == 2 and " plan " in result.output and "error:" not in result.output
    assert run("--help").exit_code == 0


def test_version() -> None:
    assert re.fullmatch(r"fastercache \d+\.\d+\.\d+\n", run("--version").stdout)


# -- what is printed ------------------------------------------------------------------------------------
def shown(text: str, width: int) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, markup=False, highlight=False)
    console.say(text, screen)
    assert isinstance(screen.file, io.StringIO)
    return [line.strip() for line in screen.file.getvalue().splitlines()]


def test_prose_breaks_between_words_and_paths_do_not_break() -> None:
    path = "/a/very/long/path/" + "x" * 60
    text = f"the tuned policy beats fewer steps without a cache; it is kept in {path} and nowhere else"
    lines = shown(text, 40)
    assert len(lines) > 3 and " ".join(lines).split() == text.split()
    assert path in lines
    assert all(len(line) <= 40 for line in lines if line != path)


def test_nothing_is_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for screen in (console.words, console.results):
        assert screen.render_str("a [bold]b[/bold] fastercache[peers] :smile:").plain.endswith("[peers] :smile:")
    console.fail("pip install 'fastercache[peers]'")
    assert "fastercache[peers]" in capsys.readouterr().err


def test_each_policy_has_a_text_of_its_own_that_is_a_sentence() -> None:
    entries = catalog.policies(None, show=False)["policies"]
    texts = [entry["summary"] for entry in entries]
    assert len(set(texts)) == len(texts) and all(text[0].isupper() and text.endswith(".") for text in texts)
    assert not any(re.search(r"\b(\w+) \1\b", text.replace("`", "")) for text in texts), "a word twice in a row"


def test_a_policys_fields_are_explained() -> None:
    (entry,) = catalog.policies("teacache", show=False)["policies"]
    assert "delta in the paper" in entry["fields"]["threshold"]["meaning"]
    assert entry["fields"]["scope"]["allowed"] == '"branch" | "call" | "cond"'


# -- what is typed --------------------------------------------------------------------------------------
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa red seven\r\nb\r\n")
    assert arguments.read_prompts(tmp_path / "p.txt") == ["a red seven", "b"]


@pytest.mark.parametrize("policy", sorted(name for name in fc.known_policies() if fc.policy_class(name).unmeasured({})))
def test_constants_of_another_model_are_refused_with_the_way_to_get_them(policy: str) -> None:
    with pytest.raises(InvalidPolicy, match=f"fastercache tune PIPE --policy {policy}"):
        arguments.choose(policy, (), None)


def test_constants_that_are_given_are_taken() -> None:
    assert isinstance(arguments.choose("teacache", ["coefficients=[2.0, 0.0]"], None), fc.TeaCache)


def test_a_budget_that_the_shell_cut_in_two_says_quote_it() -> None:
    with pytest.raises(InvalidBudget, match="quote"):
        Budget.parse("psnr")


def test_one_step_and_an_empty_prompt_are_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    generation.prompts_for(None, ["a", " "], None, "train", None)  # type: ignore[arg-type]
    assert "prompt 2 is empty" in capsys.readouterr().err
    run("sites", "no-such-pipe")
    assert "--steps 2" in run("generate", "no-such-pipe", "x", "--steps", "1").stderr


@pytest.mark.parametrize("device", ["nonsense", "cuda:77", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    result = run("sites", "latte-digits", "--device", device)
    assert result.exit_code == 2 and device in result.stderr and "--device cpu" in result.stderr


def test_plan_says_its_budget_in_words_first(tmp_path: Path) -> None:
    words = ["--call", "height=33", "--steps", "2", "--count", "1", "--study", str(tmp_path / "plans")]
    result = run("plan", "latte-digits", "--budget", "q0.9(psnr)>=30", *words)
    said, warned, *price, error = result.stderr.splitlines()
    words = " ".join(price)
    assert words.startswith(
        "the price: at most 24 uncached generations' worth of denoiser calls (48 steps), 1 recorded"
    )
    assert "12 held-out prompts comes on top" in words and "an uncached generation takes" not in words
    assert said == "the budget q0.9(psnr)>=30 means: psnr at least 30 for at least 10 % of the prompts"
    assert warned.startswith("warning: ") and warned.endswith("write p90:psnr>=30")
    assert result.exit_code == 2 and error.startswith("error: LattePipeline cannot be called so: ") and "33" in error


@pytest.mark.slow
def test_the_same_plan_command_twice_writes_the_same_file(tmp_path: Path) -> None:
    files, said = [], []
    for number in (1, 2):
        folder = tmp_path / str(number)
        result = run(
            "plan", "latte-digits", "--speedup", "3", "--steps", "12", "--count", "2", "--effort", "1",
            "--held-out-count", "0", "--study", str(folder / "study"), "--out", str(folder / "tuned.json"),
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        found = json.loads((folder / "tuned.json").read_text())
        assert found["measured"]["search"].pop("seconds") > 0.0
        files.append(found)
        said.append(" ".join(result.stderr.split()))
    assert files[0] == files[1]
    assert all("an uncached generation takes" in one and "in all" in one for one in said)


def test_a_call_that_the_pipeline_refuses_leaves_no_study_behind(tmp_path: Path) -> None:
    words = ["--steps", "2", "--count", "1", "--study", str(tmp_path)]
    assert run("tune", "latte-digits", *words, "--call", "height=33").exit_code == 2
    assert (tmp_path / study_job.JOB).is_file() and not (tmp_path / study_job.JOURNAL).exists()
    corrected = study_job.Job(pipe="latte-digits", prompts=("a red seven moving left",), budget="psnr>=30")
    corrected.save(tmp_path)
    (tmp_path / study_job.JOURNAL).touch()
    with pytest.raises(fc.ConfigMismatch, match="budget"):
        corrected.model_copy(update={"budget": "psnr>=31"}).save(tmp_path)
    assert study_job.Job.load(tmp_path) == corrected


def test_a_pipeline_without_a_text_encoder_is_told_by_what_it_lacks(latte: Specimen) -> None:
    latte.pipe.register_modules(text_encoder=None, tokenizer=None)
    said = "this LattePipeline has no tokenizer and no text_encoder, so it cannot read prompts: load all its parts"
    call = {"height": 32, "width": 32, "video_length": 4, "clean_caption": False, "num_inference_steps": 2}
    with pytest.raises(fc.PipelineUnreadable, match=said):
        Setting(latte.pipe, call).generate(Case("a red seven", 0))
    assert failures.told(_raised(lambda: latte.pipe("a red seven", **call))) == (said, failures.HIS)
    with pytest.raises(ValueError, match="divisible"):
        Setting(latte.pipe, call | {"height": 33}).generate(Case("a red seven", 0))


# -- the same mistakes in Python ------------------------------------------------------------------------
def test_attach_refuses_a_class_in_words() -> None:
    with pytest.raises(fc.AttachError, match=r"write FasterCache\(\)"):
        fc.attach(nn.Linear(1, 1), fc.FasterCache)  # type: ignore[arg-type]

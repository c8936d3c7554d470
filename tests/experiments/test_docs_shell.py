"""The command lines in the documentation: options that exist, and runs that end well, with few steps and prompts."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import typer
from typer.testing import CliRunner

from fastercache.experiments import cli
from tests.experiments.pages import PAGES, ROOT, commands, mentioned, python, typed
from tests.tuner.postgresql import server

pytestmark = pytest.mark.usefixtures("loaded_once")

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]

FEW = {
    "generate": ["--steps", "6"],
    "analyze": ["--steps", "6", "--count", "1"],
    "plan": ["--steps", "6", "--count", "1", "--held-out-count", "1", "--effort", "0"],
    "attribute": ["--count", "1"],
    "certify": ["--steps", "6", "--rate", "0.5", "--level", "0.6", "--count", "2"],
    "tune": ["--steps", "6", "--count", "1", "--trials", "2"],
    "bench": ["--steps", "6", "--count", "1"],
    "check-policy": ["--steps", "4"],
    "overhead": ["--steps", "6", "--runs", "3"],
}
"""By command, what makes a run short. The last value of an option counts."""

ELSEWHERE = {
    "git clone": "continuous integration begins with it",
    "make ": "the targets are what continuous integration runs",
    "source ": "not a program",
    "python -m fastercache.experiments.reproduce ": "an hour; small in tests/experiments/reproduce/test_command.py",
    "python -m fastercache.experiments.jobs.swept ": "an hour; small in tests/experiments/jobs/test_swept.py",
    "tensorboard": "serves until it is stopped; that `analyze` writes its files is tested with the command",
    "pip install": "test_wheel.py installs",
}
"""How lines begin that are not run here, and why."""


def test_every_line_of_a_shell_block_is_a_command_of_ours_or_one_that_is_listed() -> None:
    for page in PAGES:
        for line in typed(page):
            assert line.startswith(("fastercache ", *ELSEWHERE)), f"{page}: {line}"
    lines = [line for page in PAGES for line in typed(page)]
    assert all(any(line.startswith(start) for line in lines) for start in ELSEWHERE), "listed, but nowhere on a page"


def options(command: str) -> set[str]:
    found = COMMANDS[command]
    return {name for parameter in found.params for name in parameter.opts + parameter.secondary_opts} | {"--help"}


def unknown(words: list[str]) -> list[str]:
    """What in a command line does not exist."""
    if words[0].startswith("-"):
        return []
    if words[0] not in COMMANDS:
        return words[:1]
    given = [word.partition("=")[0] for word in words[1:] if re.match(r"--[a-z]", word)]
    return [word for word in given if word not in options(words[0])]


def test_every_command_and_option_that_a_page_names_exists() -> None:
    for page in PAGES:
        for words in [*commands(page), *mentioned(page)]:
            assert unknown(words) == [], f"{page}: {' '.join(words)}"
    assert unknown(["tune", "x", "--budgt", "psnr>=1"]) == ["--budgt"] and unknown(["tuna"]) == ["tuna"]


def test_the_readme_shows_every_command_but_the_demo() -> None:
    shown = {words[0] for words in commands("README.md")}
    assert set(COMMANDS) - shown == {"demo"}


# -- run, page by page, as a reader would ---------------------------------------------------------------------------
def short(words: list[str]) -> list[str]:
    """A command line with less to do, and a budget that so short a run can keep."""
    words = [re.sub(r">=[\d.]+", ">=0.01", word) for word in words]
    if "time" in words and "--speedup" in words:  # how fast steps are is the machine's; this much any machine can do
        words[words.index("--speedup") + 1] = "1"
    if words[0] == "bench" and "--policies" not in words:  # every method is run once, where a page says `all`
        words += ["--policies", "fora", "--no-peers"]
    return [*words, *FEW.get(words[0], [])]


def run(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, short(words))
    assert result.exit_code == 0, f"{' '.join(words)}: {result.output[-2000:]}"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None) -> Path:
    """A folder with what the pages tell a reader to have: a policy, a metric, prompts, and the pages themselves."""
    policy, *_, metric = python("docs/writing-a-policy.md")
    (tmp_path / "my_policies.py").write_text(policy, encoding="utf-8")
    (tmp_path / "my_policy.py").write_text(policy, encoding="utf-8")
    (tmp_path / "my_metrics.py").write_text(metric, encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a red seven moving left\na blue two moving up\n", encoding="utf-8")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


IN_A_DATABASE = "--storage"
ON_A_GPU = "bench-size"
"""Needs a CUDA device; tests/experiments/jobs/test_real_size.py runs what it does small."""
CHECKPOINTS = "docs/checkpoints.md"
"""Its pipelines have to be fetched; what is typed there is held to their signatures below."""
LINES = {
    page: [words for words in commands(page) if IN_A_DATABASE not in words and words[0] != ON_A_GPU]
    for page in PAGES
    if page != CHECKPOINTS
}
PUBLISHED = {
    "maxin-cn/Latte-1": diffusers.LattePipeline,
    "THUDM/CogVideoX-2b": diffusers.CogVideoXPipeline,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": diffusers.WanPipeline,
    "genmo/mochi-1-preview": diffusers.MochiPipeline,
}


def test_published_checkpoints_are_planned_and_certified_in_the_same_call_which_their_pipelines_take() -> None:
    calls: dict[str, list[list[str]]] = {}
    for words in commands(CHECKPOINTS):
        if words[0] in ("plan", "certify"):
            given = itertools.pairwise(words)
            calls.setdefault(words[1], []).append(
                [f"{one} {two}" for one, two in given if one in ("--call", "--steps", "--guidance")]
            )
    assert calls.keys() == PUBLISHED.keys()
    for name, (planned, certified) in calls.items():
        assert planned == certified, name
        keys = {said.split()[1].partition("=")[0] for said in planned if said.startswith("--call")}
        taken = inspect.signature(PUBLISHED[name].__call__).parameters.keys()
        assert {"height", "width"} < keys and keys <= taken, f"{name}: {keys - taken}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in LINES if LINES[page]])
def test_the_command_lines_of_a_page_run_one_after_the_other(page: str, workplace: Path) -> None:
    for words in LINES[page]:
        run(words)
    for name in {word for words in LINES[page] for word in words if word.endswith("tuned.json")}:
        assert json.loads((workplace / name).read_text(encoding="utf-8"))["format"] == "fastercache-tuned"


@pytest.mark.slow
def test_tuning_in_a_database(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = [(page, words) for page in PAGES for words in commands(page) if IN_A_DATABASE in words]
    assert [page for page, _ in lines] == ["docs/deployment.md"]
    with server(tmp_path_factory.mktemp("server")) as database:
        url = database.url("shared")
        for _, words in lines:
            run(["latte-digits" if word == "MODEL" else url if "://" in word else word for word in words])

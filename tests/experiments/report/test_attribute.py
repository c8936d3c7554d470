"""The command `attribute` on a small planning folder: what it runs, says and leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fastercache as fc
from fastercache.analysis.plots.attribution import AttributionInfo, draw_attribution
from fastercache.experiments import cli, pipelines
from fastercache.experiments.pipelines import Subject, as_made
from fastercache.tuned import TunedConfig
from fastercache.tuner.planning import attribution
from tests.experiments.report.conftest import STEPS, Made


@pytest.fixture
def place(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder with the prompts of its plan. The pipeline is opened as the plan's was, less the steps."""
    shutil.copytree(made.folder / "planning", tmp_path / "planning")
    shutil.copy(made.folder / "tuned.json", tmp_path)
    (tmp_path / "prompts.txt").write_text("a red seven\na blue two\na green nine\n", encoding="utf-8")
    call = {key: value for key, value in made.subject.call.items() if key != "num_inference_steps"}
    monkeypatch.setattr(pipelines, "open_pipeline", lambda name, **_: Subject(name, made.subject.pipe, call, False))
    return tmp_path


@pytest.fixture
def calls(made: Made) -> Iterator[list[None]]:
    """Denoiser calls, by a hook on its first block."""
    found: list[None] = []
    block = made.subject.pipe.transformer.get_submodule("transformer_blocks.0")
    handle = block.register_forward_hook(lambda *_: found.append(None))
    yield found
    handle.remove()


def run(place: Path, *words: str, config: str = "tuned.json") -> Result:
    given = [
        "--config",
        str(place / config),
        "--study",
        str(place / "planning"),
        "--prompts",
        str(place / "prompts.txt"),
    ]
    return CliRunner().invoke(cli.app, ["attribute", "tiny-latte", *given, *words])


def printed(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_plan_is_attributed_and_nothing_is_recorded_again(place: Path, calls: list[None]) -> None:
    result = run(place, "--count", "1", "--json")
    found = printed(result)
    plan = TunedConfig.load(place / "tuned.json").policy
    assert isinstance(plan, fc.Planned)
    assert found["truth"]["denoiser_calls"] == len(calls) == attribution.price(plan)
    assert f"({len(calls)} steps)" in result.stderr and "1 prompt" in result.stderr and "record" not in result.stderr
    rows = found["stretches"]
    assert [row["steps"] for row in rows] == [[d.first, d.last] for d in attribution.decisions(plan)]
    assert sum(row["predicted_share"] for row in rows) == pytest.approx(1.0)
    assert sum(row["true_share"] for row in rows) == pytest.approx(1.0)
    assert sum(row["drop_if_computed"] for row in rows) == pytest.approx(found["truth"]["explained_by_drops"])
    assert sum(row["flops_share"] for row in rows) == pytest.approx(1.0 - len(plan.computed) / STEPS)
    assert found["recorded_prompts"] == 2 and Path(found["files"]["picture"]).read_bytes()[1:4] == b"PNG"


def test_the_prediction_alone_runs_nothing(place: Path, calls: list[None]) -> None:
    result = run(place, "--no-truth")
    assert result.exit_code == 0, result.output
    assert calls == [] and "nothing is run" in result.stderr
    assert "predicted share" in result.stdout and "true share" not in result.stdout


def test_the_words_name_the_costliest_stretches(place: Path) -> None:
    result = run(place, "--count", "1")
    assert result.exit_code == 0, result.output
    rows = printed(run(place, "--count", "1", "--json"))["stretches"]
    worst = max(rows, key=lambda row: row["true_share"])
    first, last = worst["steps"]
    name = f"{first if first == last else f'{first}-{last}'} after {worst['after']}"
    line = next(line for line in result.stdout.splitlines() if "of the error that all make" in line)
    assert f": {name}" in line and f"of {len(rows)} stretches" in line


def test_what_the_folder_lacks_is_priced_and_recorded(place: Path, calls: list[None]) -> None:
    result = run(place, "--count", "3", "--json")
    found = printed(result)
    assert "1 prompt to record" in result.stderr and found["recorded_prompts"] == 3
    assert len(calls) == found["truth"]["denoiser_calls"] + STEPS
    shutil.rmtree(place / "planning")
    calls.clear()
    found = printed(run(place, "--count", "2", "--no-truth", "--json"))
    assert len(calls) == 2 * STEPS and found["recorded_prompts"] == 2 and found["truth"] is None


def test_a_config_that_is_no_plan_is_refused_in_one_line(place: Path) -> None:
    tuned = TunedConfig.load(place / "tuned.json")
    tuned.model_copy(update={"policy": fc.FasterCache()}).save(place / "other.json")
    result = run(place, config="other.json")
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert (
        "other.json holds the policy `fastercache`" in result.stderr and "fastercache plan tiny-latte" in result.stderr
    )


def test_the_run_is_the_one_that_the_config_was_made_for(made: Made, place: Path) -> None:
    tuned = TunedConfig.load(place / "tuned.json")
    call = {"num_inference_steps": 50, "height": 32}
    subject = Subject("tiny-latte", made.subject.pipe, call, False)
    assert as_made(subject, tuned).call == {**call, "num_inference_steps": STEPS}
    other = tuned.model_copy(update={"guidance_scale": 2.0})
    assert as_made(subject, other).call["guidance_scale"] == 2.0
    kept = Subject("tiny-latte", made.subject.pipe, {**call, "guidance_scale": 2.0}, False)
    assert as_made(kept, tuned).call["guidance_scale"] == tuned.guidance_scale


def test_bars_are_the_shares_in_the_order_of_the_run() -> None:
    info = AttributionInfo(("1 after 0", "3-4 after 2"), (0.25, 0.75), (0.4, 0.6), 1, 2)
    axes = draw_attribution(info).axes[0]
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[25.0, 75.0], [40.0, 60.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(info.names) and axes.yaxis_inverted()
    alone = draw_attribution(info._replace(true=None)).axes[0]
    assert len(alone.containers) == 1

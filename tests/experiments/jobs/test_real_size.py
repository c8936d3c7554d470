"""`bench-size` on the CPU: every code path on small members of the zoo, and the published sizes without storage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fastercache as fc
from fastercache import zoo
from fastercache.experiments import cli
from fastercache.experiments.bench import size_tables
from fastercache.experiments.bench.sizes import SIZES, Size
from fastercache.experiments.jobs import real_size
from fastercache.experiments.pages import filled
from fastercache.zoo import videos, wan
from fastercache.zoo.further_videos import VCHITECT
from fastercache.zoo.rows import Row, found

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
LATTE = replace(videos.latte(), parts={key: videos.latte().parts[key] for key in ("transformer", "scheduler")})
STEPS = 10
PARAMETERS = {
    "latte-1": 1.06e9,
    "cogvideox-2b": 1.69e9,
    "vchitect-2.0": 2.42e9,
    "wan-2.1-1.3b": 1.42e9,
    "mochi-1": 10.03e9,
}


def measured(row: Row, **options: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    size = Size("a small one", row, STEPS)
    result = real_size.measure(size, device=CPU, dtype=torch.float32, steps=STEPS, **options)
    return result, {row["name"]: row for row in result["rows"]}


@pytest.fixture(scope="module")
def wans() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    return measured(wan.WAN, compiled=False)


def test_the_kinds_of_steps_are_those_of_the_plan(wans: Any) -> None:
    result, rows = wans
    assert set(result["seconds"]) == {"recording", "planning"}
    planned = rows[real_size.PLANNED]
    assert {kind: count for kind, (count, _) in planned["kinds"].items()} == {"100%": 2, "skipped": 8}
    assert planned["speedup_flops"] == pytest.approx(5.0)
    assert planned["cached_gib"] > 0
    assert rows["NoCache at every site"]["kinds"]["100%"][0] == STEPS
    assert rows["NoCache at every site"]["speedup_flops"] == 1.0
    assert rows[real_size.UNCACHED]["speedup"] == 1.0


def test_speedups_are_ratios_of_the_seconds_and_shares_of_the_flops(wans: Any) -> None:
    _, rows = wans
    base = rows[real_size.UNCACHED]["seconds"]
    for name in (real_size.PLANNED, real_size.FASTER):
        row = rows[name]
        assert row["refused"] is None
        assert row["speedup"] == pytest.approx(base / row["seconds"])
        assert row["realised"] == pytest.approx(base / row["seconds"] / row["speedup_flops"])
    assert rows[real_size.FASTER]["speedup_flops"] > 1.0


def test_another_packages_cache_that_cannot_run_is_named_with_its_reason(wans: Any) -> None:
    _, rows = wans
    for name in (*real_size.peers(), "cache-dit, the plan's steps", "recording every site"):
        assert (rows[name]["refused"] is None) == (rows[name]["seconds"] is not None), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [LATTE, videos.COGVIDEOX, videos.MOCHI, VCHITECT], ids=["latte", "cogvideox", "mochi", "vchitect"]
)
def test_the_other_models_run_too(row: Row) -> None:
    _, rows = measured(row, compiled=False)
    for name in (real_size.PLANNED, real_size.FASTER, "recording every site", "NoCache at every site"):
        assert rows[name]["refused"] is None, rows[name]["refused"]


@pytest.mark.slow
def test_compiled_blocks_are_compared_with_compiled_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def eager(self: torch.nn.Module) -> None:
        compiled.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    _, rows = measured(wan.WAN, compiled=True, brief=True)
    assert compiled == ["WanTransformerBlock"] * 2
    plain = rows["uncached, compiled"]
    assert plain["speedup"] == 1.0
    for name in (f"{real_size.PLANNED}, compiled", f"{real_size.FASTER}, compiled"):
        assert rows[name]["refused"] is None, rows[name]["refused"]
        assert rows[name]["speedup"] == pytest.approx(plain["seconds"] / rows[name]["seconds"])
    assert not any(name == "recording every site" or "diffusers" in name for name in rows), "brief"


def test_the_runs_are_what_a_bare_pipeline_computes() -> None:
    """The clock and the random weights change nothing: as many denoiser calls as a bare run makes, the same latents."""
    specimen = zoo.build("wan")
    calls: list[int] = []
    specimen.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    bare = specimen.generate(steps=4)
    assert len(calls) == 8
    clock = real_size.Clock(CPU)
    with real_size.heard(specimen.pipe, clock):
        heard = specimen.generate(steps=4)
    assert torch.equal(bare, heard) and len(calls) == 16
    assert len(clock.seconds()) == 4 and min(clock.seconds()) > 0.0
    assert "step" not in vars(specimen.pipe.scheduler)


@pytest.mark.parametrize("name", SIZES)
def test_the_published_sizes(name: str) -> None:
    part = SIZES[name].row.parts["transformer"]
    with torch.device("meta"):
        model = found(part.kind)(**part.fields)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[name], rel=0.01)
    assert isinstance(SIZES[name].faster_cache(), fc.FasterCache)


def test_without_a_cuda_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(cli.app, ["bench-size", "latte-1"])
    assert result.exit_code == 2 and "needs a CUDA device and found none" in " ".join(result.stderr.split())
    result = CliRunner().invoke(cli.app, ["bench-size", "latte-2"])
    assert result.exit_code == 2 and "latte-1" in result.stderr


def test_the_page_is_a_rendering_of_the_committed_figures() -> None:
    text = (ROOT / "docs" / "real-size.md").read_text(encoding="utf-8")
    found = size_tables.read(ROOT / "docs" / "bench" / "size")
    assert filled(text, size_tables.START, size_tables.END, size_tables.markdown(found)) == text
    for one in found:
        rows = {row["name"]: row for row in one["rows"]}
        assert rows[real_size.PLANNED]["realised"] == pytest.approx(
            rows[real_size.UNCACHED]["seconds"] / rows[real_size.PLANNED]["seconds"] / rows["planned"]["speedup_flops"]
        )


def test_a_folder_without_figures_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["bench-size", "--print-only", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "holds no figures" in " ".join(result.stderr.split())
    (tmp_path / "other.json").write_text("[1]")
    result = CliRunner().invoke(cli.app, ["bench-size", "--print-only", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "other.json" in result.stderr

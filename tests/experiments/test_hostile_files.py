"""A seeded fuzz of every JSON loader: whatever stands in a file, reading ends well or in one short printable line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache.analysis.calibrate import Calibration
from fastercache.analysis.profile import Profile, ProfileInfo, SiteRow
from fastercache.experiments.bench.contest import Runs, stored
from fastercache.experiments.bench.standings import Results
from fastercache.experiments.jobs.study_job import Job
from fastercache.policies.documents import read_model, write_json
from fastercache.tuned import Identity, Measured, Model, TunedConfig
from fastercache.tuned import Results as Measurements

MUTATIONS = 250
Load = Callable[[Path], Any]


def tuned(folder: Path) -> tuple[Path, Load]:
    identity = Identity.of("LatteTransformer3DModel", {"num_layers": 2, "sizes": [1, 2]})
    measured = Measured(
        prompts=2, quality={"psnr": 40.0}, speedup_flops=2.0, seconds=1.0, cached_bytes=3, hardware="CPU"
    )
    config = TunedConfig(
        model=Model(pipeline="LattePipeline", denoiser=identity),
        scheduler=identity,
        steps=6,
        guidance_scale=4.0,
        guidance="batched",
        policy=fc.Compose(policies=(fc.TeaCache(coefficients=(1.0, 0.0)), fc.GuidanceReuse(interval=3))),
        budget="psnr>=40",
        measured=Measurements(search=measured),
    )
    return config.save(folder / "tuned.json"), fc.load


def calibration(folder: Path) -> tuple[Path, Load]:
    one = ((0.5, 0.25),)
    found = Calibration(
        steps=3, runs=1, inputs=one, outputs=one, ratios={"cond": (1.0,)}, curves={"ff": one}, errors=one, gains=one
    )
    return found.save(folder / "calibration.json"), Calibration.load


def profile(folder: Path) -> tuple[Path, Load]:
    info = ProfileInfo(
        query="stack",
        sites=(SiteRow(name="stack", kind=fc.Kind.STACK, span=(0, 2)),),
        branches=("cond",),
        timesteps=(9.0, 1.0),
        sigmas=(None, None),
        runs=1,
        values=2,
        lags=1,
        sketch=2,
        sample=2,
        seed=0,
        projection_error=0.5,
    )
    shapes = {"l1": (1, 1, 1, 2), "rms": (1, 1, 1, 2), "lag_l1": (1, 1, 1, 2, 1), "lag_rms": (1, 1, 1, 2, 1)}
    shapes |= {"gram": (1, 1, 2, 2), "matrix_mean": (1, 1, 2, 2, 3), "matrix_std": (1, 1, 2, 2, 3)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    Profile(info, guidance=np.zeros((1, 1, 2, 0, 0), np.float32), **arrays).save(folder)  # type: ignore[arg-type]
    return folder / "profile.json", lambda path: Profile.load(path.parent)


def job(folder: Path) -> tuple[Path, Load]:
    Job(pipe="latte-digits", prompts=("a red seven",), budget="psnr>=30", fields={"interval": 2}).save(folder)
    return folder / "job.json", lambda path: Job.load(path.parent)


def runs(folder: Path) -> tuple[Path, Load]:
    figures = {"name": "fora", "seconds": 1.0, "seconds_uncached": 2.0, "flops": 3, "flops_full": 6, "cache_bytes": 1}
    figures |= {"quality": {"psnr": 40.0}, "judge": None}
    data = {"cases": {"key": {"prompt": "a red seven", "seed": 0, "runs": {"entry": figures}}}}
    return write_json(folder / "runs.json", data, "runs"), lambda path: read_model(path, Runs, "bench's runs")


def results(folder: Path) -> tuple[Path, Load]:
    line = {"label": "FORA", "setting": "interval 2", "level": "mid", "family": "fora", "package": "fastercache"}
    line |= {"prompts": 2, "speedup_flops": [2.0, 1.9, 2.1], "quality": {"psnr": [40.0, None, None]}}
    data = {"format": "fastercache-bench", "version": 1, "pipeline": "latte", "steps": 6, "prompts": 2, "seed": 0}
    data |= {"hardware": "CPU", "versions": {}, "seconds_uncached": 1.0, "counted": 2, "rule": "", "lines": [line]}
    return write_json(folder / "results.json", data, "results"), lambda path: Results.load(path.parent)


MAKERS = (tuned, calibration, profile, job, runs, results)
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**70, 1e308, -0.5, "", "x" * 5000, "\x1b[2J\x00", "\u202e", "../x", "3", [], {}, [[]],
    {"policy": "any"}, {"policy": ["fora"]}, [None] * 200, {"a": {"b": {"c": [1]}}}, {"predictor": 3},
)  # fmt: skip
RAW = ("1" * 5000, "NaN", "-Infinity", "1e999", "[" * 5000 + "]" * 5000, '"\\ud800"', "nul", '"\\u0000"')


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutated(text: str, draw: random.Random) -> bytes:
    """One value replaced, removed or added; or raw bytes cut, flipped or put in."""
    kind = draw.choice(("value", "value", "raw", "drop", "add", "cut", "flip"))
    data = text.encode()
    if kind == "cut":
        return data[: draw.randrange(len(data))]
    if kind == "flip":
        at = draw.randrange(len(data))
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    value = json.loads(text)
    where = draw.choice([path for path in places(value) if path])
    holder = value
    for key in where[:-1]:
        holder = holder[key]
    if kind == "drop":
        del holder[where[-1]]
    elif kind == "add" and isinstance(holder, dict):
        holder[draw.choice(("extra", "policy", "x" * 5000, "\x1b"))] = draw.choice(ODD)
    elif kind == "raw":
        holder[where[-1]] = "PLACE"
        return json.dumps(value).replace('"PLACE"', draw.choice(RAW)).encode()
    else:
        holder[where[-1]] = draw.choice(ODD)
    return json.dumps(value).encode()


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: str(maker.__name__))
def test_every_mutation_is_read_or_refused_in_one_line(
    maker: Callable[[Path], tuple[Path, Load]], tmp_path: Path
) -> None:
    path, load = maker(tmp_path)
    load(path)  # as it stands it can be read
    text, draw, refused = path.read_text(encoding="utf-8"), random.Random(maker.__name__), 0
    for n in range(MUTATIONS):
        path.write_bytes(mutated(text, draw))
        try:
            load(path)
        except fc.FasterCacheError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 2100, n
        except BaseException as error:
            raise AssertionError(f"mutation {n}: {path.read_bytes()[:300]!r}") from error
    assert refused > MUTATIONS // 3


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: str(maker.__name__))
def test_a_text_of_many_megabytes_is_refused_shortly(
    maker: Callable[[Path], tuple[Path, Load]], tmp_path: Path
) -> None:
    path, load = maker(tmp_path)
    data = json.loads(path.read_text(encoding="utf-8"))
    first = next(iter(data))
    for name, value in ((first, "x" * 20_000_000), ("y" * 20_000_000, 1)):
        path.write_text(json.dumps({**data, name: value}))
        with pytest.raises(fc.FasterCacheError) as caught:
            load(path)
        assert len(str(caught.value)) < 2100


def test_runs_that_cannot_be_read_are_put_aside_and_none_is_lost(tmp_path: Path) -> None:
    path, _ = runs(tmp_path)
    whole = path.read_text()
    assert list(stored(tmp_path)) == ["key"]
    path.write_text(whole[:-9])
    assert stored(tmp_path) == {} and not path.exists()
    assert (tmp_path / "runs.json.unreadable-1").read_text() == whole[:-9]
    assert stored(tmp_path) == {}  # nothing there: nothing is put aside


def test_runs_of_an_older_version_are_read(tmp_path: Path) -> None:
    path, _ = runs(tmp_path)
    data = json.loads(path.read_text())
    run = data["cases"]["key"]["runs"]["entry"]
    run |= {**run.pop("quality"), "ssim": 0.5}
    path.write_text(json.dumps(data))
    assert stored(tmp_path)["key"]["runs"]["entry"]["quality"] == {"psnr": 40.0, "ssim": 0.5}

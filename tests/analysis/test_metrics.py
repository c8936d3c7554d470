"""A metric is one entry of one registry, ours and a third party's alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastercache.analysis import metrics
from fastercache.analysis.metrics import (
    Metric,
    known_metrics,
    measure,
    metric_called,
    metric_from_file,
    register_metric,
)
from fastercache.analysis.plots.pareto import ParetoPoint, axis_label, pareto_info
from fastercache.policies.errors import InvalidMetric, InvalidPolicy, MeasurementError
from fastercache.tuner import Budget, InvalidBudget
from fastercache.tuner.early import Projection

CODE = """
from fastercache.analysis import Metric

def brightness(videos, references, prompts):
    assert len(prompts) == len(videos)
    return videos.mean(dim=(1, 2, 3, 4))

bright = Metric("bright", brightness, low=0.0, high=1.0, better="higher", unit=0.01, label="brightness",
                reference_free=True)
"""


pytestmark = pytest.mark.usefixtures("own_registry")


def made(name: str = "mine", fn: Any = None, **changes: Any) -> Metric:
    fields: dict[str, Any] = {"low": 0.0, "high": 1.0, "better": "lower", "unit": 0.1, "label": "mine"}
    return Metric(name, fn or (lambda videos, references, prompts: videos.mean(dim=(1, 2, 3, 4))), **fields | changes)


def videos(n: int = 2, frames: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, frames, 3, 16, 16, generator=generator)
    return a, (a + 0.1 * torch.rand(a.shape, generator=generator)).clamp(0, 1)


def test_temporal_psnr_is_the_psnr_of_frame_differences() -> None:
    a, b = videos()
    x, y = a.double().numpy(), b.double().numpy()
    expected = []
    for v in range(2):
        values = []
        for f in range(2):
            error = np.mean(((x[v, f + 1] - x[v, f]) - (y[v, f + 1] - y[v, f])) ** 2)
            values.append(10 * math.log10(1 / error))
        expected.append(sum(values) / 2)
    assert measure(a, b, ["tpsnr"])["tpsnr"].tolist() == pytest.approx(expected, rel=1e-4)


def test_temporal_psnr_sees_flicker_and_no_constant_error() -> None:
    a = torch.full((1, 4, 3, 16, 16), 0.5)
    flicker = a.clone()
    flicker[:, ::2] += 0.1
    found = [measure(b, a, ["psnr", "tpsnr"]) for b in (a + 0.1, flicker)]
    assert found[0]["tpsnr"].item() == 100.0 and found[0]["psnr"].item() == pytest.approx(20.0, abs=1e-3)
    assert found[1]["tpsnr"].item() == pytest.approx(20.0, abs=1e-3)  # every difference is off by 0.1
    with pytest.raises(MeasurementError, match="two frames"):
        measure(a[:, :1], a[:, :1], ["tpsnr"])


def test_a_users_file_brings_a_metric_to_budgets_and_figures(tmp_path: Path) -> None:
    path = tmp_path / "my_metrics.py"
    path.write_text(CODE)
    with pytest.raises(InvalidBudget, match="no quality metric is called 'bright'"):
        Budget.parse("bright>=0.5")
    metric = metric_from_file(f"{path}:bright")
    assert metric_called("bright") is metric and metric_from_file(str(path)) is metric
    a, b = videos()
    assert measure(a, b, ["bright"], ["x", "y"])["bright"].tolist() == pytest.approx(a.mean(dim=(1, 2, 3, 4)).tolist())
    budget = Budget.parse("bright>=0.5, psnr>=30")
    assert budget.violation({"bright": [0.4, 0.4], "psnr": [50.0, 50.0]}) == pytest.approx(10.0)  # units of 0.01
    assert Projection(budget, 2, []).verdict({"bright": [0.9], "psnr": [20.0]}) is not None
    assert axis_label("bright") == "brightness" and axis_label("psnr") == "PSNR to the uncached video (dB)"
    info = pareto_info([ParetoPoint("a", 1.0, 0.5), ParetoPoint("b", 2.0, 1.0)], "bright")
    assert info.front == (1,) and info.exact == ()


@pytest.mark.parametrize(
    ("code", "spec", "error", "says"),
    [
        ("x = 1", "", InvalidMetric, "holds no metric"),
        (CODE, ":brigt", InvalidMetric, "did you mean 'bright'"),
        (CODE + "other = bright.__class__('other', brightness, 0, 1, 'lower', 1, 'o')", "", InvalidMetric, "say which"),
        (CODE.replace('"higher"', '"up"'), "", InvalidPolicy, "is better 'higher' or 'lower'"),
        (CODE.replace('"bright"', '"../x"'), "", InvalidPolicy, "cannot be a registered name"),
        (CODE.replace('"bright"', '"psnr"'), "", InvalidMetric, "the name 'psnr' is taken"),
        ("import sys; sys.exit(0)", "", InvalidPolicy, "SystemExit"),
    ],
)
def test_what_is_wrong_with_a_metric_is_one_line(
    tmp_path: Path, code: str, spec: str, error: type[Exception], says: str
) -> None:
    path = tmp_path / "my_metrics.py"
    path.write_text(code)
    with pytest.raises((error, MeasurementError), match=says) as caught:
        metric_from_file(f"{path}{spec}")
    assert str(caught.value).isprintable()


def test_a_function_that_gives_something_else_is_named() -> None:
    register_metric(made("odd", lambda videos, references, prompts: videos))
    register_metric(made("raises", lambda videos, references, prompts: 1 / 0))
    a, b = videos()
    with pytest.raises(MeasurementError, match=r"'odd' must give one value for each of 2 videos, found shape"):
        measure(a, b, ["odd"])
    with pytest.raises(MeasurementError, match=r"'raises' failed: ZeroDivisionError"):
        measure(a, b, ["raises"])
    with pytest.raises(MeasurementError, match="did you mean 'psnr'"):
        measure(a, b, ["pnsr"])


@pytest.mark.parametrize(
    "metric",
    [made(), made(better="higher"), made(high=math.inf), made(low=-math.inf, better="higher", high=math.inf)],
)
def test_the_decibel_scale_is_undone_and_rises_with_quality(metric: Metric) -> None:
    places = [metric.to_decibel(v) for v in (0.2, 0.5, 0.7)]
    assert [metric.from_decibel(p) for p in places] == pytest.approx([0.2, 0.5, 0.7])
    assert places == sorted(places, reverse=not metric.higher_is_better)


def test_an_installed_package_offers_metrics_and_a_broken_one_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    offered = "bright = plug_metrics:bright\ngone = plug_gone:m\n"
    (info / "entry_points.txt").write_text(f"[{metrics.PLUGINS.group}]\n{offered}")
    (tmp_path / "plug_metrics.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    assert known_metrics()["bright"].reference_free
    with pytest.raises(MeasurementError, match=r"plug-in 'gone' .* ModuleNotFoundError"):
        metric_called("gone")


def test_the_shipped_metrics() -> None:
    """Range, better end, what matters as much as 1 dB of PSNR, what figures call it, and whether it is in dB."""
    inf = math.inf
    expected: dict[str, tuple[Any, ...]] = {
        "psnr": (0.0, 100.0, "higher", 1.0, "PSNR (dB)", True, False),
        "tpsnr": (0.0, 100.0, "higher", 1.0, "temporal PSNR (dB)", True, False),
        "ssim": (-1.0, 1.0, "higher", 0.01, "SSIM", False, False),
        "lpips": (0.0, inf, "lower", 0.01, "LPIPS", False, False),
    }
    for name, fields in expected.items():
        one = metric_called(name)
        assert (one.low, one.high, one.better, one.unit, one.label, one.decibel, one.reference_free) == fields
    assert set(expected) <= set(known_metrics()) and list(known_metrics()) == sorted(known_metrics())
    assert set(measure(*videos())) == {"psnr", "ssim"}


def test_the_decibel_scale_in_numbers() -> None:
    """Metrics in dB stand for themselves, the others for -10 log10 of their distance from the best, where it exists."""
    psnr, ssim, lpips = (metric_called(name) for name in ("psnr", "ssim", "lpips"))
    assert [psnr.to_decibel(v) for v in (30.0, 100.0, 120.0)] == [30.0, 100.0, 100.0]
    assert [psnr.from_decibel(v) for v in (30.0, 120.0, -3.0)] == [30.0, 100.0, 0.0]
    assert [ssim.to_decibel(v) for v in (1.0, 0.9, 1.0 - 1e-9, 0.0)] == pytest.approx([100.0, 10.0, 90.0, 0.0])
    assert [ssim.from_decibel(v) for v in (10.0, 0.0, -20.0)] == pytest.approx([0.9, 0.0, -1.0])
    assert [lpips.to_decibel(v) for v in (0.0, 0.001, 10.0)] == pytest.approx([100.0, 30.0, -10.0])
    assert lpips.from_decibel(-10.0) == pytest.approx(10.0)
    loss = made(decibel=True, low=-50.0, high=50.0)
    assert (loss.to_decibel(7.0), loss.to_decibel(-120.0), loss.from_decibel(-7.0)) == (-7.0, 120.0, 7.0)
    endless = {"low": -math.inf, "high": math.inf}
    assert made(better="higher", **endless).to_decibel(0.5) == pytest.approx(5.0)
    assert made(better="lower", **endless).to_decibel(0.5) == pytest.approx(-5.0)
    assert made(better="higher", **endless).from_decibel(5.0) == pytest.approx(0.5)
    assert made(low=0.5).best == 0.5 and made(low=0.5, better="higher").best == 1.0


@pytest.mark.parametrize(
    "changes", [{"low": 1.0}, {"low": 2.0}, {"unit": 0.0}, {"unit": -0.1}, {"unit": math.inf}, {"low": math.nan}]
)
def test_a_metric_has_a_range_and_a_unit(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidMetric, match="needs low < high and a positive unit"):
        made(**changes)
    with pytest.raises(InvalidMetric, match="needs a function"):
        made(fn=3)
    assert made(unit=1e-9, low=0.999).unit == 1e-9


def test_a_name_is_taken_by_another_metric_and_not_by_itself() -> None:
    def fn(videos: Tensor, references: Tensor, prompts: Any) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4))

    first = register_metric(made("mine", fn))
    again = register_metric(made("mine", fn, unit=0.2))
    assert metric_called("mine") is again is not first
    with pytest.raises(InvalidMetric, match="the name 'mine' is taken by the metric 'mine'"):
        register_metric(made("mine", fn, label="other"))
    with pytest.raises(InvalidMetric, match="Metric, found str"):
        register_metric("mine")  # type: ignore[arg-type]


def test_each_video_has_a_prompt() -> None:
    heard: list[list[str]] = []
    register_metric(made("reader", lambda videos, references, prompts: heard.append(prompts) or videos[:, 0, 0, 0, 0]))
    a, b = videos()
    assert measure(a, b, ["reader", "reader"])["reader"].dtype == torch.float32 and heard == [["", ""]]
    with pytest.raises(MeasurementError, match="found 1 prompts and 2 videos"):
        measure(a, b, ["reader"], ["x"])

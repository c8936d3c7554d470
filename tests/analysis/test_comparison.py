"""The comparison figure: methods keep together, peers keep their method's colour and marker, fronts are right."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from fastercache.analysis.plots import ComparisonPoint, comparison_info, draw_comparison
from fastercache.analysis.plots.style import to_image
from fastercache.policies.errors import MeasurementError


def point(method: str, flops: float, psnr: float, *, wall: float = 0.0, package: str = "") -> ComparisonPoint:
    family = {"Tea": "calibrated", "Mag": "calibrated", "fewer steps": "fewer steps"}.get(method, "fixed")
    quality = (psnr, psnr - 0.5, psnr + 0.5)
    return ComparisonPoint(method, family, package, (flops, None, None), (wall or flops, None, None), quality)


POINTS = [
    point("fewer steps", 2.0, 40.0), point("fewer steps", 1.2, 50.0), point("fewer steps", 4.0, 30.0),
    point("Tea", 1.5, 52.0, wall=1.1), point("Tea", 3.0, 40.5, wall=1.9), point("Tea", 1.4, 39.0),
    point("FORA", 2.0, 39.0), point("FORA", 3.4, 32.0),  # below the line of fewer steps, which is 32.3 there
    point("Mag", 1.6, 51.0), point("Mag", 1.6, 49.0, package="diffusers"),
    point("Mag", 1.0, 100.0),
]  # fmt: skip


def test_settings_of_a_method_keep_together_and_a_peer_looks_like_its_method() -> None:
    info = comparison_info(POINTS, "fewer steps")
    assert [(s.label, len(s.points)) for s in info.series] == [
        ("Tea", 3),
        ("Mag", 1),
        ("Mag (diffusers)", 1),
        ("FORA", 2),
    ]
    tea, mag, theirs, fora = info.series
    assert tea.colour == mag.colour == theirs.colour != fora.colour
    assert mag.marker == theirs.marker != tea.marker
    assert [p.flops[0] for p in info.baseline.points] == [1.2, 2.0, 4.0]


def test_a_setting_equal_to_the_uncached_video_has_no_place() -> None:
    assert all(p.quality[0] < 100 for s in comparison_info(POINTS, "fewer steps").series for p in s.points)
    with pytest.raises(MeasurementError, match="no points"):
        comparison_info([point("Mag", 1.0, 100.0)], "fewer steps")


def test_a_front_holds_what_neither_a_method_nor_fewer_steps_beats() -> None:
    info = comparison_info(POINTS, "fewer steps")

    def names(panel: str) -> list[tuple[str, float]]:
        return [(info.series[s].label, info.series[s].points[p].flops[0]) for s, p in info.fronts[panel]]

    assert names("flops") == [("Tea", 1.5), ("Mag", 1.6), ("Tea", 3.0)]
    assert names("wall") == [("Tea", 1.5), ("Mag", 1.6)]  # at 1.9x the line of fewer steps is at 41.0


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no quality metric is called"):
        comparison_info(POINTS, "fewer steps", "mse")
    with pytest.raises(MeasurementError, match="not finite"):
        comparison_info([point("Tea", float("nan"), 40.0)], "fewer steps")


def test_the_figure_names_every_method_and_keeps_inside_its_edges() -> None:
    figure = draw_comparison(comparison_info(POINTS, "fewer steps", note="12 held-out prompts"))
    assert isinstance(figure, Figure) and to_image(figure).std() > 5
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    shown = [text.get_text() for text in legend.get_texts()]
    for label in ("fewer steps", "does not beat fewer steps", "Tea", "Mag · diffusers", "calibrated", "fixed"):
        assert label in shown
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02

"""The comparison figure: methods keep together, peers keep their method's colour and marker, fronts are right."""

from __future__ import annotations

from typing import Literal

import pytest
from matplotlib.figure import Figure

from fastercache.analysis.plots import ComparisonPoint, comparison_info, draw_comparison
from fastercache.analysis.plots.comparison import OTHER
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
    assert [panel.title for panel in info.panels] == ["calibrated", "fixed"]
    assert [[(s.label, len(s.points)) for s in panel.series] for panel in info.panels] == [
        [("Tea", 3), ("Mag", 1), ("Mag, diffusers", 1)],
        [("FORA", 2)],
    ]
    tea, mag, theirs = info.panels[0].series
    assert (mag.colour, mag.marker) == (theirs.colour, theirs.marker)
    assert mag.marker != tea.marker and mag.colour != tea.colour
    assert [p.flops[0] for p in info.baseline.points] == [1.2, 2.0, 4.0]


def test_a_family_of_many_methods_goes_on_in_a_further_panel() -> None:
    many = [point(f"method {n}", 1.5 + n / 10, 40.0 + n) for n in range(9)]
    panels = comparison_info([*POINTS[:3], *many], "fewer steps").panels
    assert [(panel.title, len(panel.series)) for panel in panels] == [("fixed, 1 of 2", 5), ("fixed, 2 of 2", 4)]
    for panel in panels:
        assert len({s.colour for s in panel.series}) == len({s.marker for s in panel.series}) == len(panel.series)


def test_a_setting_equal_to_the_uncached_video_has_no_place() -> None:
    assert all(
        p.quality[0] < 100
        for panel in comparison_info(POINTS, "fewer steps").panels
        for s in panel.series
        for p in s.points
    )
    with pytest.raises(MeasurementError, match="no points"):
        comparison_info([point("Mag", 1.0, 100.0)], "fewer steps")


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no quality metric is called"):
        comparison_info(POINTS, "fewer steps", "mse")
    with pytest.raises(MeasurementError, match="not finite"):
        comparison_info([point("Tea", float("nan"), 40.0)], "fewer steps")


@pytest.mark.parametrize("speedup", ["flops", "wall"])
def test_every_line_is_named_once_inside_its_panel_and_no_name_covers_another(
    speedup: Literal["flops", "wall"],
) -> None:
    info = comparison_info(POINTS, "fewer steps", note="12 held-out prompts")
    figure = draw_comparison(info, speedup)
    assert isinstance(figure, Figure) and to_image(figure).std() > 5
    for axes, panel in zip(figure.axes, info.panels, strict=True):
        names = [text for text in axes.texts if text.get_text()]
        assert sorted(t.get_text() for t in names) == sorted(["fewer steps", *(s.label for s in panel.series)])
        boxes = [text.get_window_extent() for text in names]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
        frame = axes.get_window_extent()
        assert all(
            frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes
        )
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02


def test_the_reference_is_drawn_with_its_interval_and_the_others_in_grey() -> None:
    info = comparison_info(POINTS, "fewer steps")
    first = draw_comparison(info).axes[0]
    (band,) = first.collections[:1]
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(29.5) and corners[:, 1].max() == pytest.approx(50.5)
    grey = [line for line in first.get_lines() if line.get_color() == OTHER]
    assert [list(line.get_xdata()) for line in grey] == [[2.0, 3.4]]  # FORA, of the other family

"""Lines and marks stay apart for a reader who cannot tell red from green."""

from __future__ import annotations

import pytest

from fastercache.analysis.plots import guidance, style, timeline
from tests.colour_vision import APART, nearest


@pytest.mark.parametrize(
    "palette",
    [
        [*style.LINES, style.BASELINE],
        list(style.COLOURS.values()),
        list(guidance.BAND_COLOURS.values()),
        list(timeline.COLOURS.values()),
    ],
    ids=["lines", "roles", "bands", "timeline"],
)
def test_colours_of_one_figure_are_told_apart(palette: list[str]) -> None:
    assert nearest(palette)[0] >= APART, nearest(palette)


def test_the_measure_knows_what_is_confused_and_what_is_not() -> None:
    """Red and green of one lightness, far apart for most eyes, are not for all; blue and yellow are."""
    assert nearest(["#009e73", "#cc4778"])[0] < 5
    assert nearest(["#0000ff", "#ffff00"])[0] > 100

"""The overview picture: one convention of maps, the plan's timeline, and differences by one factor."""

from __future__ import annotations

import matplotlib
import numpy as np

from fastercache.analysis.plots import TimelineInfo
from fastercache.analysis.plots.style import to_image
from fastercache.experiments.pictures.poster import Map, alike, poster
from fastercache.policies.schedule import Code

STEPS = 12


def timeline(equal: bool) -> TimelineInfo:
    codes = np.full((2, 1, STEPS), Code.REUSED, dtype=np.int8)
    codes[:, :, ::4] = Code.COMPUTED
    codes[1, 0, 1] = Code.REUSED if equal else Code.COMPUTED
    cost = (codes[0, 0] == Code.COMPUTED).astype(float)
    return TimelineInfo(codes, ("denoiser",), (("denoiser", 1),), (-1,), ("cond", "uncond"), cost, "planned", 4.0)


def test_branches_that_decide_the_same_share_a_panel() -> None:
    assert alike(timeline(True)) == [(0, ("cond", "uncond"))]
    assert alike(timeline(False)) == [(0, ("cond",)), (1, ("uncond",))]


def test_the_poster_says_what_it_shows() -> None:
    step = np.arange(STEPS)
    matrix = (np.abs(step[:, None] - step) / (1 + step[:, None])).astype(np.float32)  # not symmetric
    strip = np.full((16, 48, 3), 90, dtype=np.uint8)
    strips = [("uncached", strip), ("planned", strip // 2), ("3 steps", strip)]
    figure = poster(Map("attention", matrix, "rel_l1"), timeline(True), "4x in FLOPs, 3x in time", strips, 8)
    assert to_image(figure, 60).std() > 5
    words = " | ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))
    for text in (
        "step j that stands in →", "← step i that is replaced", "guidance branches: cond and uncond", "× 8, one factor",
        "4x in FLOPs, 3x in time", "uncached", "3 steps",
    ):  # fmt: skip
        assert text in words
    image = next(
        image for axes in figure.axes for image in axes.get_images() if image.get_array().shape == (STEPS,) * 2
    )
    np.testing.assert_allclose(image.get_array(), matrix)
    assert image.origin == "upper"
    assert image.axes.get_xticks()[image.axes.get_xticks() >= 0][:3].tolist() == [0, 1, 2]

"""Pictures show what they claim: sizes, frame counts, and differences amplified by the factor that is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fastercache.experiments.pictures import render


def test_a_video_becomes_a_gif_with_every_frame_and_an_image_a_png(tmp_path: Path) -> None:
    video = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    written = render.save_video(tmp_path / "deep" / "v.gif", video, fps=5)
    with Image.open(written) as gif:
        assert (gif.format, getattr(gif, "n_frames", 1), gif.info["duration"]) == ("GIF", 5, 200)
        assert gif.size == (160, 160)
    assert render.save_video(tmp_path / "v", video[:1]).suffix == ".png"


def test_frames_keep_values_and_layout() -> None:
    video = torch.zeros(2, 3, 4, 6)
    video[1, 2, 3, 5] = 1.0
    pictures = render.frames(video)
    assert pictures.shape == (2, 4, 6, 3)
    assert pictures[1, 3, 5].tolist() == [0, 0, 255] and pictures.sum() == 255


def test_the_difference_is_amplified_by_the_factor_it_names() -> None:
    reference = torch.full((2, 3, 8, 8), 0.5)
    gain = render.gain_for(reference + 0.02, reference)
    assert gain == 32
    changed = render.difference(reference + 0.02, reference, gain)
    assert torch.allclose(changed, torch.full_like(changed, 0.64), atol=1e-4)


def test_equal_videos_differ_by_nothing() -> None:
    video = torch.rand(2, 3, 8, 8)
    assert render.difference(video, video, render.gain_for(video, video)).sum() == 0


def test_differences_beside_each_other_share_one_factor() -> None:
    reference = torch.full((1, 3, 80, 80), 0.5)
    others = [("near", reference + 0.01), ("far", reference + 0.1)]
    pictures = render.comparison(reference, others)
    row = pictures[0, -40].astype(int)
    near, far = row[2 * 166 + 80, 0], row[4 * 166 + 80, 0]
    assert abs(far - 10 * near) <= 10 and far < 255
    assert render.common_gain([(video, reference) for _, video in others]) == render.gain_for(
        reference + 0.1, reference
    )
    assert render.common_gain([]) == 1
    given = render.comparison(reference, others, gain=2)[0, -40].astype(int)
    assert given[4 * 166 + 80, 0] == round(0.2 * 255)


def test_the_comparison_holds_both_videos_and_the_difference() -> None:
    video = torch.rand(3, 3, 32, 32)
    pictures = render.comparison(video, [("cached", video * 0.9)])
    assert pictures.shape[0] == 3
    assert pictures.shape[2] == 3 * 160 + 2 * 6
    assert render.stacked([pictures, pictures]).shape[1] == 2 * pictures.shape[1] + 6


@pytest.mark.parametrize(("size", "names"), [(32, 3), (32, 1), (720, 1), (480, 6), (1600, 3)])
def test_videos_beside_each_other_are_at_most_900_pixels_wide(size: int, names: int) -> None:
    video = torch.zeros(1, 3, size // 2, size)
    video[:, 0, :, size // 2 :] = 1.0
    pictures = render.comparison(video, [("a name of several words", video)] * names)
    assert 900 - 2 * names * 40 <= pictures.shape[2] <= 900 or size < 100
    assert pictures.shape[2] <= 900
    first = pictures[0, -1, : (pictures.shape[2] - 12 * names) // (2 * names + 1)].astype(int)
    assert first[:2, 0].tolist() == [0, 0] and first[-3:-1, 0].tolist() == [255, 255]
